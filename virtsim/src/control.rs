//! What `virtsim`'s commands ask of a running node beyond the API: over a unix socket in the node's folder.
//!
//! A client connects and sends one line of JSON, the [`Request`]. From then on both sides send frames: one byte kind, four
//! bytes length (big endian), the payload. The server ends with an `Exit`, `Answer` or `Error` frame. A client that closes
//! the connection is gone, and what ran for it is ended.

mod client;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::client::{Connection, Error, InputSender};
pub use self::server::{Handler, Input, Output, Streams, serve};

/// What a command wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How the node is. Answered with a [`Status`].
    Status,
    /// Run a command in a container.
    Exec(Exec),
    /// What a container wrote.
    Logs(Logs),
    /// Stop the kubelet and start it again; pods go on running.
    RestartKubelet,
    /// End the node and everything it made.
    Shutdown,
}

/// A command to be run in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container; none: the pod's first.
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether standard input is sent; otherwise it is empty.
    pub stdin: bool,
    /// A terminal of this size; none: pipes.
    pub terminal: Option<WindowSize>,
}

/// Which log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container; none: the pod's only one.
    pub container: Option<String>,
    /// Go on until the container ends for good, or the client is gone.
    pub follow: bool,
    /// Only the last so many lines of what is there already.
    pub tail: Option<usize>,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Everything is served.
    pub ready: bool,
    /// The node's process.
    pub pid: u32,
    /// The Node object's name.
    pub node_name: String,
    /// `http://127.0.0.1:PORT`.
    pub server: String,
    /// For `kubectl --kubeconfig`.
    pub kubeconfig: PathBuf,
    /// The kubelet's root.
    pub kubelet_dir: PathBuf,
    /// Whether the kubelet serves its sockets.
    pub kubelet_running: bool,
    /// Network configurations in use.
    pub cni_conf_dir: PathBuf,
    /// What the node logs to; empty when it runs in the foreground.
    pub log: PathBuf,
    /// Pods on the node.
    pub pods: usize,
}

/// Kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameKind {
    /// To the server: bytes for standard input; none: its end.
    Stdin,
    /// To the client: standard output, or a log.
    Stdout,
    /// To the client: standard error.
    Stderr,
    /// To the client: the exit code, four bytes. The last frame.
    Exit,
    /// To the server: rows and columns, two bytes each.
    Resize,
    /// To the client: why not, as text. The last frame.
    Error,
    /// To the client: the answer as JSON. The last frame.
    Answer,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        use FrameKind::{Answer, Error, Exit, Resize, Stderr, Stdin, Stdout};
        [Stdin, Stdout, Stderr, Exit, Resize, Error, Answer].into_iter().find(|kind| kind.byte() == byte)
    }

    fn byte(self) -> u8 {
        match self {
            FrameKind::Stdin => 0,
            FrameKind::Stdout => 1,
            FrameKind::Stderr => 2,
            FrameKind::Exit => 3,
            FrameKind::Resize => 4,
            FrameKind::Error => 5,
            FrameKind::Answer => 6,
        }
    }
}

/// Longest payload of a frame, and longest request.
const LONGEST: usize = 1 << 20;
/// Bytes in front of a payload.
const HEADER: usize = 5;

type Frame = (FrameKind, Vec<u8>);

/// What stands before a payload. Longer payloads than [`LONGEST`] are split by those who send them.
fn header(kind: FrameKind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind.byte(), a, b, c, d]
}

/// Kind and length of the payload that follows.
fn parse_header(header: [u8; HEADER]) -> std::io::Result<(FrameKind, usize)> {
    let [kind, a, b, c, d] = header;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    match FrameKind::from_byte(kind) {
        Some(kind) if length <= LONGEST => Ok((kind, length)),
        Some(_) => Err(malformed(format!("a frame of {length} bytes"))),
        None => Err(malformed(format!("a frame of the unknown kind {kind}"))),
    }
}

fn malformed(what: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{what} on the control socket"))
}

impl WindowSize {
    fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.rows.to_be_bytes(), self.columns.to_be_bytes());
        [a, b, c, d]
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d] = *<&[u8; 4]>::try_from(bytes).ok()?;
        Some(WindowSize { rows: u16::from_be_bytes([a, b]), columns: u16::from_be_bytes([c, d]) })
    }
}

#[cfg(test)]
mod tests;
