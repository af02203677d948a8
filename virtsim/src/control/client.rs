//! The commands' end of the control socket; blocking.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;

use super::{Frame, FrameKind, HEADER, LONGEST, Request, WindowSize, header, malformed, parse_header};

/// Why a command got no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no virtsim runs in {}: start one with `virtsim up`", dir.display())]
    NoNode {
        /// The node's folder.
        dir: PathBuf,
    },
    /// The socket is there, but not for us.
    #[error("the virtsim in {} belongs to somebody else: run this as whoever started it (`sudo virtsim ...`)", dir.display())]
    NotAllowed {
        /// The node's folder.
        dir: PathBuf,
    },
    /// The socket is there, but cannot be used.
    #[error("the virtsim in {} cannot be reached", dir.display())]
    Connect {
        /// The node's folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke off.
    #[error("the virtsim in {} ended before it answered: its log is virtsim.log there", dir.display())]
    Broken {
        /// The node's folder.
        dir: PathBuf,
        /// How.
        #[source]
        source: io::Error,
    },
    /// Output could not be written where it belongs.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
    /// The node says no, in its own words.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a node, for one request.
#[derive(Debug)]
pub struct Connection {
    dir: PathBuf,
    reader: BufReader<UnixStream>,
    input: InputSender,
}

/// Sends what a command reads and how large its terminal is. Clones share the connection.
#[derive(Clone, Debug)]
pub struct InputSender(Arc<Mutex<UnixStream>>);

impl InputSender {
    /// Bytes for the command's standard input.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(LONGEST).try_for_each(|chunk| self.frame(FrameKind::Stdin, chunk))
    }

    /// The end of the command's standard input.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn end(&self) -> io::Result<()> {
        self.frame(FrameKind::Stdin, &[])
    }

    /// The terminal's new size.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        self.frame(FrameKind::Resize, &size.to_bytes())
    }

    fn frame(&self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let mut bytes = header(kind, payload.len()).to_vec();
        bytes.extend_from_slice(payload);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes)
    }
}

impl Connection {
    /// Connects to the node in `dir` and sends the request.
    ///
    /// # Errors
    /// Nobody is there, or the socket cannot be used.
    pub fn open(dir: &Path, request: &Request) -> Result<Self, Error> {
        let connect = |source: io::Error| match source.kind() {
            // A socket that nobody serves was left by a node that was killed.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NoNode { dir: dir.to_owned() }
            }
            io::ErrorKind::PermissionDenied => Error::NotAllowed { dir: dir.to_owned() },
            _ => Error::Connect { dir: dir.to_owned(), source },
        };
        let stream = UnixStream::connect(crate::options::control_socket(dir)).map_err(connect)?;
        let mut line = serde_json::to_vec(request).map_err(io::Error::from).map_err(connect)?;
        line.push(b'\n');
        let mut writer = stream.try_clone().map_err(connect)?;
        writer.write_all(&line).map_err(connect)?;
        Ok(Connection {
            dir: dir.to_owned(),
            reader: BufReader::new(stream),
            input: InputSender(Arc::new(Mutex::new(writer))),
        })
    }

    /// Where to send standard input and window sizes.
    #[must_use]
    pub fn input(&self) -> InputSender {
        self.input.clone()
    }

    /// Writes all output as it comes; gives the exit code.
    ///
    /// # Errors
    /// The node refuses or ends, or the output cannot be written.
    pub fn run(mut self, stdout: &mut impl Write, stderr: &mut impl Write) -> Result<i32, Error> {
        loop {
            match self.read()? {
                (FrameKind::Stdout, bytes) => {
                    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(Error::Output)?;
                }
                (FrameKind::Stderr, bytes) => {
                    stderr.write_all(&bytes).and_then(|()| stderr.flush()).map_err(Error::Output)?;
                }
                (FrameKind::Exit, bytes) => {
                    let code = <[u8; 4]>::try_from(bytes.as_slice()).map(i32::from_be_bytes);
                    return code
                        .map_err(|_| self.broken(malformed("an exit code of the wrong length".to_owned())));
                }
                other => return Err(self.unexpected(other)),
            }
        }
    }

    /// The answer to a request that has one.
    ///
    /// # Errors
    /// The node refuses or ends.
    pub fn answer<T: DeserializeOwned>(mut self) -> Result<T, Error> {
        match self.read()? {
            (FrameKind::Answer, bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| self.broken(error.into()))
            }
            other => Err(self.unexpected(other)),
        }
    }

    fn read(&mut self) -> Result<Frame, Error> {
        self.frame().map_err(|error| self.broken(error))
    }

    fn frame(&mut self) -> io::Result<Frame> {
        let mut header = [0; HEADER];
        self.reader.read_exact(&mut header)?;
        let (kind, length) = parse_header(header)?;
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload)?;
        Ok((kind, payload))
    }

    fn unexpected(&self, (kind, bytes): Frame) -> Error {
        match kind {
            FrameKind::Error => Error::Refused(String::from_utf8_lossy(&bytes).into_owned()),
            kind => self.broken(malformed(format!("an unexpected {kind:?} frame"))),
        }
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Broken { dir: self.dir.clone(), source }
    }
}

impl Drop for Connection {
    /// Those who still hold the [`InputSender`] must not keep the connection open.
    fn drop(&mut self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
    }
}
