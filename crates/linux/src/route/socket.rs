//! The socket: one request at a time, its answer checked by sequence and port, every wait bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};

use crate::wire::{
    self, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, Request,
};
use crate::{Error, Refusal, fault};

/// The kernel answers while it handles the request, so this only guards against what should not happen.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often a dump is tried again when the tables change under it.
const DUMP_ATTEMPTS: u32 = 32;
/// Larger than any datagram that the kernel makes for us (32 KiB for dumps; VF lists are not asked for).
const BUFFER: usize = 256 * 1024;

/// A blocking route socket, bound to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`] where the kernel does not give us one.
    pub fn open() -> Result<Self, Error> {
        let (socket, port) = fault::step(|| "open a netlink socket".to_owned(), io::Error::from, open)
            .map_err(|source| Error::Socket { kind: "netlink", source })?;
        Ok(Socket { socket, port, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request that is answered by an acknowledgement.
    pub(super) fn call(&mut self, what: impl Fn() -> String, mut request: Request) -> Result<(), Error> {
        request.flags |= NLM_F_ACK;
        self.exchange(&what, &request, |_, _| {}).map(|_| ())
    }

    /// Sends a request that is answered by one message, or by an error.
    pub(super) fn get<T>(
        &mut self,
        what: impl Fn() -> String,
        mut request: Request,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        request.flags |= NLM_F_ACK;
        let mut answer = None;
        self.exchange(&what, &request, |kind, payload| {
            answer = answer.take().or_else(|| read(kind, payload))
        })?;
        Ok(answer)
    }

    /// Sends a dump request and reads all of it; begins anew when the tables changed meanwhile.
    pub(super) fn dump<T>(
        &mut self,
        what: impl Fn() -> String,
        mut request: Request,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        request.flags |= NLM_F_DUMP;
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = Vec::new();
            let steady = self.exchange(&what, &request, |kind, payload| all.extend(read(kind, payload)))?;
            if steady {
                return Ok(all);
            }
        }
        Err(Error::Unsteady { what: what(), attempts: DUMP_ATTEMPTS })
    }

    /// One request and its whole answer. The result says whether the answer is consistent.
    fn exchange(
        &mut self,
        what: &impl Fn() -> String,
        request: &Request,
        read: impl FnMut(u16, &[u8]),
    ) -> Result<bool, Error> {
        let refused = |errno: Errno| {
            let source = Refusal { errno: errno.raw_os_error(), text: None };
            Error::Refused { what: what(), source }
        };
        fault::step(what, refused, || self.converse(what, request, read))
    }

    fn converse(
        &mut self,
        what: &impl Fn() -> String,
        request: &Request,
        mut read: impl FnMut(u16, &[u8]),
    ) -> Result<bool, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let transport = |source: Errno| Error::Transport { what: what(), source: source.into() };
        let malformed = |why| Error::Malformed { what: what(), why };
        rustix::io::retry_on_intr(|| {
            rustix::net::send(&self.socket, &request.bytes(self.sequence), SendFlags::empty())
        })
        .map_err(transport)?;

        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut steady = true;
        loop {
            let received = rustix::net::recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC);
            let length = match received {
                Ok((_, length)) => length,
                // SO_RCVTIMEO has passed.
                Err(Errno::AGAIN) => return Err(Error::Timeout { what: what(), after: ANSWER_WITHIN }),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(transport(errno)),
            };
            let Some(datagram) = self.buffer.get(..length) else {
                return Err(malformed("it is longer than the buffer"));
            };
            for message in wire::messages(datagram) {
                // Left over from a request that we gave up.
                if message.sequence != self.sequence || message.port != self.port {
                    continue;
                }
                steady &= message.flags & NLM_F_DUMP_INTR == 0;
                let ended = match message.kind {
                    NLMSG_ERROR => {
                        Some(wire::error(&message).ok_or_else(|| malformed("an error is cut off"))?)
                    }
                    NLMSG_DONE => Some(wire::done(&message)),
                    NLMSG_OVERRUN => return Err(malformed("data was lost")),
                    kind => {
                        read(kind, message.payload);
                        None
                    }
                };
                match ended {
                    None => {}
                    Some((0, _)) => return Ok(steady),
                    Some((errno, text)) => {
                        return Err(Error::Refused { what: what(), source: Refusal { errno, text } });
                    }
                }
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout { what: what(), after: ANSWER_WITHIN });
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open() -> io::Result<(netlink_sys::Socket, u32)> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    let port = socket.bind_auto()?.port_number();
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    // Kernel 4.12+: words beside the number, and no echo of the request.
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    // Kernel 4.20+: what we ask for and the kernel does not know is an error, not ignored.
    socket.set_netlink_get_strict_chk(true)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WITHIN))?;
    set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_WITHIN))?;
    Ok((socket, port))
}
