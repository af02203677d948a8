//! A unary gRPC call that sends the `:authority` of the kubelet byte for byte.
//!
//! For sockets in `plugins_registry/` the kubelet dials a bare path, from which gRPC for Go makes the authority
//! `%2Fvar%2Flib%2Fkubelet%2F...`. No HTTP library for Rust sends that, and some servers refuse it: to find out is why
//! this exists. It speaks just enough HTTP/2 (RFC 9113): one request for each connection, headers without compression
//! (RFC 7541, section 6.2.2), and of the answer only the frames that matter. The answer's headers are not decoded: an
//! answer with a message is a success, one without is an error whose text stays with the plugin.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Plugins answer with a few names; whatever is longer is no answer.
const MAX_FRAME: usize = 16 * 1024;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    #[error("the plugin reset the request with HTTP/2 error code {code}{}", hint(*code))]
    Reset { code: u32 },
    #[error("the plugin closed the connection with HTTP/2 error code {code}{}", hint(*code))]
    GoAway { code: u32 },
    #[error("the plugin answered with an error status")]
    Status,
    #[error("the plugin's answer is not HTTP/2 with one whole message")]
    Malformed,
    #[error("the plugin's message cannot be decoded")]
    Decode(#[source] prost::DecodeError),
}

/// What code 1 means here, more often than not.
fn hint(code: u32) -> &'static str {
    if code == 1 {
        " (PROTOCOL_ERROR: its server may not take the kubelet's :authority, which is the socket's escaped path; \
         an \"@\" in the socket's name helps some)"
    } else {
        ""
    }
}

/// The authority that gRPC for Go sends to a target that is a bare path.
pub(super) fn authority(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(char::from(*byte)),
            byte if b"-_.~!$&'()*+,;=:[]@".contains(byte) => text.push(char::from(*byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Calls `method` (`/package.Service/Name`) on the socket, with its path as authority.
pub(super) async fn call<Q: Message, A: Message + Default>(
    socket: &Path,
    method: &str,
    request: &Q,
) -> Result<A, CallError> {
    let mut connection = Connection { stream: UnixStream::connect(socket).await? };
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", authority(socket).as_str()),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.72.2"),
        ("te", "trailers"),
    ] {
        literal(&mut headers, name, value);
    }
    let message = request.encode_to_vec();
    let mut data = vec![0];
    data.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend(message);

    connection.stream.write_all(PREFACE).await?;
    connection.send(SETTINGS, 0, 0, &[]).await?;
    connection.send(HEADERS, END_HEADERS, 1, &headers).await?;
    connection.send(DATA, END_STREAM, 1, &data).await?;
    let answer = connection.answer().await?;
    let Some((prefix, message)) = answer.split_at_checked(5) else {
        return Err(if answer.is_empty() { CallError::Status } else { CallError::Malformed });
    };
    let &[0, a, b, c, d] = prefix else { return Err(CallError::Malformed) };
    if usize::try_from(u32::from_be_bytes([a, b, c, d])) != Ok(message.len()) {
        return Err(CallError::Malformed);
    }
    A::decode(message).map_err(CallError::Decode)
}

/// A header field without indexing and without Huffman code.
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        // Lengths from 127 on are continued in groups of seven bits.
        let mut rest = text.len();
        if rest < 127 {
            block.push(u8::try_from(rest).unwrap_or_default());
        } else {
            block.push(127);
            rest -= 127;
            while rest >= 128 {
                block.push(u8::try_from(rest % 128).unwrap_or_default() | 0x80);
                rest /= 128;
            }
            block.push(u8::try_from(rest).unwrap_or_default());
        }
        block.extend_from_slice(text.as_bytes());
    }
}

struct Connection {
    stream: UnixStream,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Connection {
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut frame = Vec::with_capacity(9 + payload.len());
        frame.extend(length);
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await
    }

    async fn receive(&mut self) -> Result<Frame, CallError> {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).await?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        let length = usize::try_from(u32::from_be_bytes([0, l0, l1, l2])).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(CallError::Malformed);
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), payload })
    }

    /// The data of the one request's answer.
    async fn answer(&mut self) -> Result<Vec<u8>, CallError> {
        let mut data = Vec::new();
        loop {
            let Frame { kind, flags, stream, payload } = self.receive().await?;
            match (kind, stream) {
                (SETTINGS, 0) if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await?,
                (PING, 0) if flags & ACK == 0 => self.send(PING, ACK, 0, &payload).await?,
                (GOAWAY, 0) => return Err(CallError::GoAway { code: code(payload.get(4..8)) }),
                (RST_STREAM, 1) => return Err(CallError::Reset { code: code(payload.get(..4)) }),
                (DATA, 1) if data.len() <= MAX_FRAME => {
                    data.extend(unpadded(flags, &payload).ok_or(CallError::Malformed)?);
                }
                (DATA, 1) => return Err(CallError::Malformed),
                _ => {}
            }
            if stream == 1 && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return Ok(data);
            }
        }
    }
}

fn code(bytes: Option<&[u8]>) -> u32 {
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes)
}

fn unpadded(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (length, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*length))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_what_grpc_for_go_makes_of_a_path() {
        let path = Path::new("/var/lib/kubelet/plugins_registry/virtnet@node-reg.sock");
        assert_eq!(authority(path), "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fvirtnet@node-reg.sock");
        assert_eq!(authority(Path::new("/a b/ü~!:[]")), "%2Fa%20b%2F%C3%BC~!:[]");
    }

    #[test]
    fn long_header_values_have_their_length_in_groups_of_seven_bits() {
        let mut block = Vec::new();
        literal(&mut block, "a", &"x".repeat(126));
        assert_eq!(block[..4], [0, 1, b'a', 126]);
        block.clear();
        literal(&mut block, "a", &"x".repeat(127));
        assert_eq!(block[..5], [0, 1, b'a', 127, 0]);
        block.clear();
        literal(&mut block, "a", &"x".repeat(127 + 300));
        assert_eq!(block[..6], [0, 1, b'a', 127, 0xac, 2]);
    }

    #[test]
    fn padding_is_taken_off_and_wrong_padding_is_seen() {
        assert_eq!(unpadded(0, b"abc"), Some(&b"abc"[..]));
        assert_eq!(unpadded(PADDED, b"\x01ab\0"), Some(&b"ab"[..]));
        assert_eq!(unpadded(PADDED, b"\x09ab"), None);
        assert_eq!(unpadded(PADDED, b""), None);
    }
}
