//! Kernel uevents: devices that come, go, are bound to drivers.
//!
//! Only the kernel's own messages are taken (group 1, sender port 0); what udev or anybody else sends is dropped. A
//! message that was lost is not an error but [`Received::Lost`]: whoever listens looks at everything again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use rustix::io::Errno;

use crate::Error;

/// What a uevent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `bind`, `unbind`, `change`, `move`, `online`, `offline`.
    pub action: String,
    /// The device's path below the root of sysfs.
    pub devpath: String,
    /// `net`, `pci`, `virtio`, ...
    pub subsystem: String,
}

impl Uevent {
    /// Reads a message of the kernel: `action@devpath`, then `KEY=value` pairs, each ended by a NUL
    /// (`kobject_uevent_env()` in lib/kobject_uevent.c). `None` if it is not one.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut fields = message.split(|byte| *byte == 0).map(std::str::from_utf8);
        let (action, devpath) = fields.next()?.ok()?.split_once('@')?;
        let subsystem = fields.find_map(|field| field.ok()?.strip_prefix("SUBSYSTEM="))?;
        let devpath = devpath.starts_with('/').then_some(devpath)?;
        Some(Uevent { action: action.into(), devpath: devpath.into(), subsystem: subsystem.into() })
    }
}

/// The outcome of one look at the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A uevent.
    Event(Uevent),
    /// Something that is not a uevent of the kernel.
    Foreign,
    /// The kernel had to drop messages.
    Lost,
    /// Nothing is waiting.
    Nothing,
}

/// A socket that hears the kernel's uevents. It never blocks; `AsFd` is for whoever waits.
#[derive(Debug)]
pub struct Socket(NetlinkSocket);

/// The kernel's buffer for one message is `UEVENT_BUFFER_SIZE` (2048) and the header line.
const BUFFER: usize = 8192;

impl Socket {
    /// Opens a socket in the current network namespace and joins the kernel's group.
    ///
    /// Uevents of network interfaces are sent to the namespace of the interface, all others to the namespaces of
    /// the initial user namespace.
    ///
    /// # Errors
    /// The socket cannot be opened or bound.
    pub fn open() -> Result<Self, Error> {
        let failed = |source| Error::Socket { kind: "uevent", source };
        let mut socket = NetlinkSocket::new(NETLINK_KOBJECT_UEVENT).map_err(failed)?;
        socket.bind(&SocketAddr::new(0, 1)).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        // Unplugging many devices at once must not lose messages; beyond the system's limit this fails silently.
        let _best_effort = socket.set_rx_buf_sz(1 << 20);
        Ok(Socket(socket))
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self) -> Result<Received, Error> {
        let mut buffer = Vec::with_capacity(BUFFER);
        match self.0.recv_from(&mut buffer, 0) {
            Ok((_, sender)) if sender.port_number() == 0 => {
                Ok(Uevent::parse(&buffer).map_or(Received::Foreign, Received::Event))
            }
            Ok(_) => Ok(Received::Foreign),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Foreign),
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(Received::Lost),
            Err(source) => Err(Error::Transport { what: "receive a uevent".into(), source }),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_uevent_is_read_as_the_kernel_writes_it() {
        let message =
            b"add@/devices/pci0000:00/0000:00:0a.0/virtio2/net/eth0\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=net\0\
                        INTERFACE=eth0\0IFINDEX=4\0SEQNUM=2011\0";
        let event = Uevent::parse(message).unwrap();
        assert_eq!((event.action.as_str(), event.subsystem.as_str()), ("add", "net"));
        assert_eq!(event.devpath, "/devices/pci0000:00/0000:00:0a.0/virtio2/net/eth0");
    }

    #[test]
    fn what_udev_sends_is_no_uevent() {
        for foreign in [&b"libudev\0\xfe\xed\xca\xfe"[..], b"", b"add@relative\0SUBSYSTEM=net\0", b"add@/x\0"]
        {
            assert_eq!(Uevent::parse(foreign), None);
        }
    }

    #[test]
    fn an_open_socket_without_events_says_so() {
        let socket = Socket::open().unwrap();
        // The machine may be busy, so events are allowed; what must not happen is to block.
        while socket.receive().unwrap() != Received::Nothing {}
    }

    #[test]
    fn messages_that_the_kernel_had_to_drop_are_not_passed_over_in_silence() {
        let netns = crate::Netns::create().unwrap();
        let heard = netns.run(|| {
            let socket = Socket::open().unwrap();
            crate::testing::flood();
            std::iter::from_fn(|| Some(socket.receive().unwrap()).filter(|heard| *heard != Received::Nothing))
                .collect::<Vec<_>>()
        });
        let heard = heard.unwrap();
        assert!(heard.contains(&Received::Lost));
        // What a process sends is no word of the kernel, and the socket goes on.
        assert!(heard.iter().all(|heard| matches!(heard, Received::Lost | Received::Foreign)));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(message in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Uevent::parse(&message);
        }
    }
}
