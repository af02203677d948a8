//! The command agent's protocol: frames on one byte stream (a virtio-serial port), many commands at a time.
//!
//! A frame is `length: u32` (little endian, of what follows), `command: u32`, `kind: u8`, then the kind's body. The host numbers the
//! commands; number 0 belongs to the connection itself.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest body of one frame; larger data is sent in several.
pub const MAX_BODY: usize = 1 << 20;
/// How much output is sent in one frame at most.
pub const CHUNK: usize = 1 << 15;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// A program to start in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working folder.
    pub cwd: PathBuf,
    /// With a terminal of this size instead of three pipes.
    pub terminal: Option<WindowSize>,
    /// Whether the host will send standard input; otherwise it is `/dev/null`.
    pub stdin: bool,
}

/// A file to write in the guest; the contents follow as [`Frame::Stdin`], ended by [`Frame::EndOfStdin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFile {
    /// Where; missing folders are made.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What the agent says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Release of the guest's kernel.
    pub kernel: String,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Host: start a program.
    Spawn(Spawn),
    /// Host: write a file.
    WriteFile(WriteFile),
    /// Host: bytes for the program's standard input or terminal.
    Stdin(Vec<u8>),
    /// Host: no more standard input.
    EndOfStdin,
    /// Host: send this signal to the program's process group.
    Signal(i32),
    /// Host: the terminal has a new size.
    Resize(WindowSize),
    /// Host: are you there?
    Ping,
    /// Host: sync file systems and restart the machine.
    Reboot,
    /// Guest: the agent is ready.
    Hello(Hello),
    /// Guest: yes.
    Pong,
    /// Guest: standard output, or what came from the terminal.
    Stdout(Vec<u8>),
    /// Guest: standard error.
    Stderr(Vec<u8>),
    /// Guest: the program ended, or the file is written (code 0).
    Exit(Ended),
    /// Guest: it could not even be started; why.
    Failed(String),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Spawn(_) => 1,
            Frame::WriteFile(_) => 2,
            Frame::Stdin(_) => 3,
            Frame::EndOfStdin => 4,
            Frame::Signal(_) => 5,
            Frame::Resize(_) => 6,
            Frame::Ping => 7,
            Frame::Reboot => 8,
            Frame::Hello(_) => 64,
            Frame::Pong => 65,
            Frame::Stdout(_) => 66,
            Frame::Stderr(_) => 67,
            Frame::Exit(_) => 68,
            Frame::Failed(_) => 69,
        }
    }

    fn body(&self) -> io::Result<Vec<u8>> {
        Ok(match self {
            Frame::Spawn(spawn) => serde_json::to_vec(spawn)?,
            Frame::WriteFile(file) => serde_json::to_vec(file)?,
            Frame::Resize(size) => serde_json::to_vec(size)?,
            Frame::Hello(hello) => serde_json::to_vec(hello)?,
            Frame::Exit(ended) => serde_json::to_vec(ended)?,
            Frame::Signal(number) => serde_json::to_vec(number)?,
            Frame::Stdin(bytes) | Frame::Stdout(bytes) | Frame::Stderr(bytes) => bytes.clone(),
            Frame::Failed(why) => why.clone().into_bytes(),
            Frame::EndOfStdin | Frame::Ping | Frame::Reboot | Frame::Pong => Vec::new(),
        })
    }

    fn decode(kind: u8, body: Vec<u8>) -> io::Result<Self> {
        Ok(match kind {
            1 => Frame::Spawn(serde_json::from_slice(&body)?),
            2 => Frame::WriteFile(serde_json::from_slice(&body)?),
            3 => Frame::Stdin(body),
            4 => Frame::EndOfStdin,
            5 => Frame::Signal(serde_json::from_slice(&body)?),
            6 => Frame::Resize(serde_json::from_slice(&body)?),
            7 => Frame::Ping,
            8 => Frame::Reboot,
            64 => Frame::Hello(serde_json::from_slice(&body)?),
            65 => Frame::Pong,
            66 => Frame::Stdout(body),
            67 => Frame::Stderr(body),
            68 => Frame::Exit(serde_json::from_slice(&body)?),
            69 => Frame::Failed(String::from_utf8_lossy(&body).into_owned()),
            other => return Err(malformed(format!("frame of unknown kind {other}"))),
        })
    }
}

/// Writes one frame for `command`, in one call so that frames of several threads stay whole under a lock.
///
/// # Errors
/// What the stream says, or `InvalidData` for a body above [`MAX_BODY`].
pub fn write_frame(to: &mut impl Write, command: u32, frame: &Frame) -> io::Result<()> {
    let body = frame.body()?;
    if body.len() > MAX_BODY {
        return Err(malformed(format!("frame of {} bytes", body.len())));
    }
    let length = u32::try_from(body.len() + 5).map_err(|_| malformed("frame too long".into()))?;
    let mut bytes = Vec::with_capacity(body.len() + 9);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&command.to_le_bytes());
    bytes.push(frame.kind());
    bytes.extend_from_slice(&body);
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads one frame.
///
/// # Errors
/// `UnexpectedEof` when the other side is gone, `InvalidData` for what is not a frame.
pub fn read_frame(from: &mut impl Read) -> io::Result<(u32, Frame)> {
    let mut word = [0; 4];
    from.read_exact(&mut word)?;
    let length = usize::try_from(u32::from_le_bytes(word)).map_err(|_| malformed("length".into()))?;
    let Some(body_length) = length.checked_sub(5).filter(|length| *length <= MAX_BODY) else {
        return Err(malformed(format!("frame length {length}")));
    };
    from.read_exact(&mut word)?;
    let command = u32::from_le_bytes(word);
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    let mut body = vec![0; body_length];
    from.read_exact(&mut body)?;
    let [kind] = kind;
    Ok((command, Frame::decode(kind, body)?))
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_frame_round_trips() {
        let frames = [
            Frame::Spawn(Spawn {
                argv: vec!["ip".into(), "link".into()],
                env: BTreeMap::from([("PATH".into(), "/bin".into())]),
                cwd: "/".into(),
                terminal: Some(WindowSize { rows: 24, columns: 80 }),
                stdin: true,
            }),
            Frame::WriteFile(WriteFile { path: "/etc/x".into(), mode: 0o644 }),
            Frame::Stdin(b"in".to_vec()),
            Frame::EndOfStdin,
            Frame::Signal(15),
            Frame::Resize(WindowSize { rows: 1, columns: 2 }),
            Frame::Ping,
            Frame::Reboot,
            Frame::Hello(Hello { boot_id: "b".into(), kernel: "6.1".into() }),
            Frame::Pong,
            Frame::Stdout(vec![0, 255]),
            Frame::Stderr(Vec::new()),
            Frame::Exit(Ended::Code(3)),
            Frame::Exit(Ended::Signal(9)),
            Frame::Failed("no such file".into()),
        ];
        let mut stream = Vec::new();
        for (number, frame) in (0..).zip(&frames) {
            write_frame(&mut stream, number, frame).unwrap();
        }
        let mut stream = stream.as_slice();
        for (number, frame) in (0..).zip(&frames) {
            assert_eq!(read_frame(&mut stream).unwrap(), (number, frame.clone()));
        }
        assert_eq!(read_frame(&mut stream).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nonsense_is_refused_without_allocating_for_it() {
        for bytes in [&[0xff_u8; 16][..], &[4, 0, 0, 0, 0, 0, 0, 0][..], &[5, 0, 0, 0, 0, 0, 0, 0, 200][..]] {
            let error = read_frame(&mut &bytes[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
