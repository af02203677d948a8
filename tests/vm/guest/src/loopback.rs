//! Brings the loopback interface up: one route netlink message, so that no other program is needed for it.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;
/// The same in every network namespace: LOOPBACK_IFINDEX in include/net/net_namespace.h.
const LOOPBACK_INDEX: u32 = 1;

pub(crate) fn up() -> io::Result<()> {
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0_u8; 256];
    let (_, length) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    match answer.get(..length).and_then(errno) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::Error::other("the kernel's answer is not an acknowledgement")),
    }
}

/// `struct nlmsghdr` and `struct ifinfomsg`.
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend_from_slice(&32_u32.to_ne_bytes());
    bytes.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    bytes.extend_from_slice(&1_u32.to_ne_bytes()); // sequence number
    bytes.extend_from_slice(&0_u32.to_ne_bytes()); // port
    bytes.extend_from_slice(&[0; 4]); // family, padding, type
    bytes.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    bytes.extend_from_slice(&IFF_UP.to_ne_bytes()); // flags
    bytes.extend_from_slice(&IFF_UP.to_ne_bytes()); // which of them change
    bytes
}

/// The error number in an acknowledgement, 0 for success.
fn errno(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != NLMSG_ERROR {
        return None;
    }
    Some(i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_a_header_and_a_link_message() {
        let request = request();
        assert_eq!(request.len(), 32);
        assert_eq!(request[0..4], 32_u32.to_ne_bytes());
        assert_eq!(request[20..24], 1_u32.to_ne_bytes());
    }

    #[test]
    fn an_acknowledgement_carries_the_error() {
        let mut answer = [0_u8; 36];
        answer[4] = 2;
        assert_eq!(errno(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(errno(&answer), Some(-1));
        answer[4] = 16;
        assert_eq!(errno(&answer), None);
    }
}
