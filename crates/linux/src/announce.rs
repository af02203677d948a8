//! Telling the neighbours about a new address: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour
//! advertisement (RFC 4861 section 7.2.6). Without it, who talked to the address's last owner goes on talking to it.
//!
//! Each function must run inside the network namespace of the link ([`crate::Netns::run`]).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use nic::MacAddr;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::{Error, fault};

const ETH_P_ARP: u16 = 0x0806;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Broadcasts an ARP request in which sender and target are `ip`. Closing the socket waits for a grace period of RCU
/// (net/packet/af_packet.c, `packet_release`), 10 ms and more: [`crate::route::Socket::announce`] does not, where it can take its place.
///
/// # Errors
/// [`Error::Socket`] or [`Error::Transport`]; the link must be up.
pub fn gratuitous_arp(index: u32, mac: MacAddr, ip: Ipv4Addr) -> Result<(), Error> {
    let socket = open("packet", AddressFamily::PACKET, SocketType::DGRAM, None)?;
    let to = LinkLayer { index, protocol: ETH_P_ARP, address: [0xff; 6] };
    let what = || format!("gratuitous ARP for {ip} on link {index}");
    let send = || rustix::net::sendto(&socket, &arp_request(mac, ip), SendFlags::empty(), &to);
    fault::step(what, |errno| errno, send).map(drop).map_err(|errno| failed(what(), errno))
}

/// Multicasts a neighbour advertisement for `ip` with the override flag to all nodes of the link.
///
/// # Errors
/// [`Error::Socket`] or [`Error::Transport`]; the link must be up, and the address no longer tentative.
pub fn unsolicited_advertisement(index: u32, mac: MacAddr, ip: Ipv6Addr) -> Result<(), Error> {
    let what = || format!("neighbour advertisement for {ip} on link {index}");
    let socket = open("ICMPv6", AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
    let failed = |errno| failed(what(), errno);
    // Receivers drop what has passed a router (RFC 4861 section 7.1.2).
    sockopt::set_ipv6_multicast_hops(&socket, 255).map_err(failed)?;
    // The source must be an address of this very link; other sources are dropped or sent elsewhere.
    rustix::net::bind(&socket, &SocketAddrV6::new(ip, 0, 0, index)).map_err(failed)?;
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, index);
    let send = || rustix::net::sendto(&socket, &advertisement(mac, ip), SendFlags::empty(), &to);
    fault::step(what, |errno| errno, send).map(drop).map_err(failed)
}

fn open(
    kind: &'static str,
    family: AddressFamily,
    socket: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let open = || rustix::net::socket_with(family, socket, flags, protocol);
    fault::step(|| format!("open a {kind} socket"), |errno| errno, open)
        .map_err(|errno| Error::Socket { kind, source: errno.into() })
}

fn failed(what: String, errno: Errno) -> Error {
    Error::Transport { what, source: errno.into() }
}

/// Ethernet, IPv4, request; sender and target protocol address alike (RFC 826, RFC 5227).
fn arp_request(MacAddr(mac): MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&ip.octets());
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&ip.octets());
    packet
}

/// Type 136, override flag, target, and the target's link-layer address; the kernel fills in the checksum.
fn advertisement(MacAddr(mac): MacAddr, ip: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    packet.extend_from_slice(&ip.octets());
    packet.extend_from_slice(&[2, 1]);
    packet.extend_from_slice(&mac);
    packet
}

/// `struct sockaddr_ll` of packet(7), which rustix does not know.
struct LinkLayer {
    index: u32,
    protocol: u16,
    address: [u8; 6],
}

/// The length of `struct sockaddr_ll`.
const SOCKADDR_LL: usize = 20;

// SAFETY: `with_sockaddr` passes a pointer to, and the length of, an initialised sockaddr_ll that outlives the call.
#[allow(unsafe_code)]
unsafe impl SocketAddrArg for LinkLayer {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let [f0, f1] = AddressFamily::PACKET.as_raw().to_ne_bytes();
        let [p0, p1] = self.protocol.to_be_bytes();
        let [i0, i1, i2, i3] = self.index.to_ne_bytes();
        let [a0, a1, a2, a3, a4, a5] = self.address;
        // Family, protocol, index; hardware type and packet type are not read on sending; six bytes of address.
        let bytes: Aligned =
            Aligned([f0, f1, p0, p1, i0, i1, i2, i3, 0, 0, 0, 6, a0, a1, a2, a3, a4, a5, 0, 0]);
        f(std::ptr::from_ref(&bytes).cast(), SOCKADDR_LL.try_into().unwrap_or(0))
    }
}

#[repr(C, align(8))]
struct Aligned([u8; SOCKADDR_LL]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_the_standards_have_them() {
        let mac = MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd]);
        let arp = arp_request(mac, Ipv4Addr::new(10, 56, 217, 2));
        assert_eq!(arp.len(), 28);
        assert_eq!(arp[8..18], [0x52, 0x54, 0, 0xc4, 0xe6, 0xcd, 10, 56, 217, 2]);
        assert_eq!(arp[24..28], [10, 56, 217, 2]);
        let na = advertisement(mac, "fd00::2".parse().unwrap());
        assert_eq!((na.len(), na[0], na[4]), (32, 136, 0x20));
        assert_eq!(na[24..26], [2, 1]);
    }
}
