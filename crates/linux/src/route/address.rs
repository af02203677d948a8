//! Addresses on links, and the wait for duplicate address detection.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use nic::Address;

use super::{Event, Groups, Monitor, RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR, Socket};
use crate::Error;
use crate::wire::{self, AF_INET, AF_INET6, AF_UNSPEC, NLM_F_CREATE, NLM_F_EXCL, Request};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
pub(super) const IFA_FLAGS: u16 = 8;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_OPTIMISTIC: u32 = 0x04;
const IFA_F_TENTATIVE: u32 = 0x40;
pub(super) const IFA_F_PERMANENT: u32 = 0x80;
/// `struct ifaddrmsg`.
pub(super) const BODY: usize = 8;

/// How duplicate address detection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// Every address of the link may be used.
    Unique,
    /// Other hosts have these.
    Duplicate(Vec<IpAddr>),
    /// The deadline passed; these are not decided. Without carrier the kernel does not begin.
    Undecided(Vec<IpAddr>),
}

impl Socket {
    /// All addresses of the namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = Request::new(RTM_GETADDR, 0, &body(AF_UNSPEC, 0, 0));
        self.dump(
            || "list addresses".to_owned(),
            request,
            |kind, payload| {
                if kind == RTM_NEWADDR { read(payload) } else { None }
            },
        )
    }

    /// Adds an address, with the broadcast address where IPv4 has one for the prefix.
    ///
    /// # Errors
    /// EEXIST where the link has it already.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let mut request = request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, ip, prefix_len);
        if let IpAddr::V4(v4) = ip
            && let Some(broadcast) = broadcast(v4, prefix_len)
        {
            request.attributes().put_ip(IFA_BROADCAST, IpAddr::V4(broadcast));
        }
        self.call(|| format!("add address {ip}/{prefix_len} to link {index}"), request)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// EADDRNOTAVAIL where the link has no such address.
    pub fn remove_address(&mut self, index: u32, ip: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let request = request(RTM_DELADDR, 0, index, ip, prefix_len);
        self.call(|| format!("remove address {ip}/{prefix_len} from link {index}"), request)
    }

    /// Waits until none of `ips` on the link is tentative any more, one is found to be a duplicate, or `deadline` passes.
    /// The calling thread must be in the socket's network namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn await_duplicate_detection(
        &mut self,
        index: u32,
        ips: &[IpAddr],
        deadline: Instant,
    ) -> Result<DuplicateDetection, Error> {
        // Subscribed before the first look, so that no end is missed.
        let mut monitor = Monitor::open(Groups::ADDRESSES)?;
        loop {
            let mine = self
                .addresses()?
                .into_iter()
                .filter(|address| address.index == index && ips.contains(&address.ip));
            let (duplicate, rest): (Vec<_>, Vec<_>) = mine.partition(|address| address.duplicate);
            let undecided: Vec<_> = rest.into_iter().filter(|a| a.tentative).map(|a| a.ip).collect();
            if !duplicate.is_empty() {
                return Ok(DuplicateDetection::Duplicate(duplicate.into_iter().map(|a| a.ip).collect()));
            }
            if undecided.is_empty() {
                return Ok(DuplicateDetection::Unique);
            }
            loop {
                match monitor.wait(deadline)? {
                    None => return Ok(DuplicateDetection::Undecided(undecided)),
                    Some(Event::Address { address, .. }) if address.index != index => {}
                    Some(_) => break,
                }
            }
        }
    }
}

fn broadcast(ip: Ipv4Addr, prefix_len: u8) -> Option<Ipv4Addr> {
    // RFC 3021: /31 has no broadcast address, and /32 no network.
    let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).filter(|_| prefix_len < 31)?;
    Some(Ipv4Addr::from_bits(ip.to_bits() | host_bits))
}

fn request(kind: u16, flags: u16, index: u32, ip: IpAddr, prefix_len: u8) -> Request {
    let family = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Request::new(kind, flags, &body(family, prefix_len, index));
    request.attributes().put_ip(IFA_LOCAL, ip);
    request.attributes().put_ip(IFA_ADDRESS, ip);
    request
}

fn body(family: u8, prefix_len: u8, index: u32) -> [u8; BODY] {
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    [family, prefix_len, 0, 0, i0, i1, i2, i3]
}

/// Reads RTM_NEWADDR or RTM_DELADDR.
pub(super) fn read(payload: &[u8]) -> Option<Address> {
    let [_, prefix_len, flags, _] = *payload.first_chunk::<4>()?;
    let mut flags = u32::from(flags);
    let mut local = None;
    let mut address = None;
    for (kind, value) in wire::attributes(payload.get(BODY..)?) {
        match kind {
            IFA_LOCAL => local = wire::ip(value),
            IFA_ADDRESS => address = wire::ip(value),
            IFA_FLAGS => flags = wire::u32_at(value, 0).unwrap_or(flags),
            _ => {}
        }
    }
    Some(Address {
        index: wire::u32_at(payload, 4)?,
        ip: local.or(address)?,
        prefix_len,
        // An optimistic address is tentative, but may be used already (RFC 4429).
        tentative: flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0,
        duplicate: flags & IFA_F_DADFAILED != 0,
        permanent: flags & IFA_F_PERMANENT != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_31_or_32_bits_has_no_broadcast_address() {
        let ip = Ipv4Addr::new(10, 56, 217, 2);
        assert_eq!(broadcast(ip, 24), Some(Ipv4Addr::new(10, 56, 217, 255)));
        assert_eq!(broadcast(ip, 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!((broadcast(ip, 31), broadcast(ip, 32), broadcast(ip, 99)), (None, None, None));
    }
}
