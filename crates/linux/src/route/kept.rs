//! Addresses and routes in the kernel's own form, byte for byte, as `ip address save` and `ip route save` keep them: so nothing gets lost for
//! which we have no word.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use nic::{Address, Route};
use serde::{Deserialize, Serialize};

use super::address::{self, BODY as ADDRESS_BODY, IFA_F_PERMANENT, IFA_FLAGS};
use super::table::{BODY, RTA_GATEWAY, RTA_MULTIPATH, RTA_NH_ID, RTA_OIF, RTA_VIA, read_route};
use super::{RTM_GETADDR, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWROUTE, Socket};
use crate::Error;
use crate::wire::{self, AF_INET, AF_INET6, NLM_F_CREATE, NLM_F_EXCL, Request};

const IFA_CACHEINFO: u16 = 6;
/// HOMEADDRESS, NODAD, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN of IFA_F_*; the other flags are how the kernel finds the address.
const ASKED_OF_ADDRESSES: u32 = 0x10 | 0x02 | 0x100 | 0x200 | 0x400;
/// Where `ifa_index` is in `struct ifaddrmsg`.
const INDEX: usize = 4;
const RTA_CACHEINFO: u16 = 12;
/// Where `rta_expires` is in `struct rta_cacheinfo`.
const EXPIRES: usize = 8;
const RTPROT_UNSPEC: u8 = 0;
const RTPROT_BOOT: u8 = 3;
const RTPROT_STATIC: u8 = 4;
const RTM_F_CLONED: u32 = 0x200;
/// RTNH_F_PERVASIVE and RTNH_F_ONLINK; the other flags are how the kernel finds the route.
const ASKED_OF_ROUTES: u32 = 0x2 | 0x4;

/// A route through one link that an administrator set, without the link's index. It is written as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeptRoute(Vec<u8>);

/// An address of a link that does not expire, without the link's index. It is written as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeptAddress(Vec<u8>);

/// A text that is no [`KeptRoute`] or [`KeptAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no route or address in hexadecimal digits")]
pub struct ParseKeptError;

impl KeptRoute {
    /// What we have words for.
    #[must_use]
    pub fn route(&self) -> Option<Route> {
        read_route(&self.0).map(|found| found.route)
    }

    fn has_next_hop(&self) -> bool {
        let attributes = wire::attributes(self.0.get(BODY..).unwrap_or_default());
        attributes.into_iter().any(|(kind, _)| [RTA_GATEWAY, RTA_VIA].contains(&kind))
    }
}

impl KeptAddress {
    /// What we have words for; its index is 0.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        address::read(&self.0)
    }

    fn is_link_local(&self) -> bool {
        let ip = self.address().map(|address| address.ip);
        matches!(ip, Some(IpAddr::V6(ip)) if ip.is_unicast_link_local())
    }

    fn is_ipv4(&self) -> bool {
        self.0.first() == Some(&AF_INET)
    }
}

macro_rules! hexadecimal {
    ($type:ident, $read:ident) => {
        impl From<$type> for String {
            fn from($type(bytes): $type) -> String {
                bytes.iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }

        impl TryFrom<String> for $type {
            type Error = ParseKeptError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                let kept = $type(bytes(&text).ok_or(ParseKeptError)?);
                if kept.$read().is_some() { Ok(kept) } else { Err(ParseKeptError) }
            }
        }
    };
}

hexadecimal!(KeptRoute, route);
hexadecimal!(KeptAddress, address);

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// `198.51.100.0/24`.
impl fmt::Debug for KeptRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.route() {
            Some(route) => write!(f, "{}/{}", route.destination, route.prefix_len),
            None => f.write_str("?"),
        }
    }
}

/// `192.0.2.1/24`.
impl fmt::Debug for KeptAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(address) => write!(f, "{}/{}", address.ip, address.prefix_len),
            None => f.write_str("?"),
        }
    }
}

impl Socket {
    /// The addresses of this link that do not expire, but for IPv6 link-local ones where the kernel makes them itself; in the order in which
    /// they are to be given back.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn kept_addresses(&mut self, index: u32) -> Result<Vec<KeptAddress>, Error> {
        let request = Request::new(RTM_GETADDR, 0, &[0; ADDRESS_BODY]);
        let read = |kind: u16, payload: &[u8]| {
            let mine = kind == RTM_NEWADDR && wire::u32_at(payload, INDEX) == Some(index);
            mine.then(|| keep_address(payload)).flatten()
        };
        let mut all = self.dump(|| format!("list the addresses of link {index}"), request, read)?;
        if all.iter().any(KeptAddress::is_link_local) && !self.settings(index)?.is_some_and(makes_none) {
            all.retain(|kept| !kept.is_link_local());
        }
        // The kernel puts an IPv6 address before those that are there.
        let (four, mut six): (Vec<_>, Vec<_>) = all.into_iter().partition(KeptAddress::is_ipv4);
        six.reverse();
        Ok([four, six].concat())
    }

    /// Gives a link an address.
    ///
    /// # Errors
    /// EEXIST where the link has it already.
    pub fn give_address(&mut self, index: u32, kept: &KeptAddress) -> Result<(), Error> {
        let mut payload = kept.0.clone();
        if let Some(place) = payload.get_mut(INDEX..ADDRESS_BODY) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        let request = Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &payload);
        self.call(|| format!("add address {kept:?} to link {index}"), request)
    }

    /// The routes of all tables through this link and no other that an administrator set: not those of the kernel, of router
    /// advertisements, of DHCP or routing daemons, nor those that expire. Those come first that need no other to be there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn kept_routes(&mut self, index: u32) -> Result<Vec<KeptRoute>, Error> {
        let mut kept = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut body = [0; BODY];
            if let Some(first) = body.first_mut() {
                *first = family;
            }
            let request = Request::new(RTM_GETROUTE, 0, &body);
            // Without IPv6 the kernel answers for all families.
            let read = |kind: u16, payload: &[u8]| {
                let asked = kind == RTM_NEWROUTE && payload.first() == Some(&family);
                asked.then(|| keep_route(payload, index)).flatten()
            };
            kept.extend(self.dump(|| format!("list the routes through link {index}"), request, read)?);
        }
        kept.sort_by_key(KeptRoute::has_next_hop);
        Ok(kept)
    }

    /// Sets a route through a link.
    ///
    /// # Errors
    /// EEXIST where there is one to the same destination with the same metric; ENETUNREACH where its next hop is out of reach.
    pub fn give_route(&mut self, index: u32, kept: &KeptRoute) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &kept.0);
        request.attributes().put_u32(RTA_OIF, index);
        self.call(|| format!("add the route to {kept:?} through link {index}"), request)
    }
}

fn keep_route(payload: &[u8], index: u32) -> Option<KeptRoute> {
    let mut body = *payload.first_chunk::<BODY>()?;
    let [_, _, _, _, _, protocol, ..] = body;
    let flags = wire::u32_at(payload, 8)?;
    if ![RTPROT_UNSPEC, RTPROT_BOOT, RTPROT_STATIC].contains(&protocol) || flags & RTM_F_CLONED != 0 {
        return None;
    }
    if let Some(place) = body.last_chunk_mut() {
        *place = (flags & ASKED_OF_ROUTES).to_ne_bytes();
    }
    let mut request = Request::new(RTM_NEWROUTE, 0, &body);
    let mut through = None;
    for (kind, value) in wire::attributes(payload.get(BODY..)?) {
        match kind {
            RTA_OIF => through = wire::u32_at(value, 0),
            RTA_MULTIPATH => return None,
            RTA_CACHEINFO if wire::u32_at(value, EXPIRES).is_some_and(|expires| expires != 0) => return None,
            // The object goes with the link; its next hop is told beside it.
            RTA_CACHEINFO | RTA_NH_ID => {}
            _ => request.attributes().put(kind, value),
        }
    }
    (through == Some(index)).then(|| KeptRoute(request.into_payload()))
}

/// Whether the kernel makes no link-local addresses: IN6_ADDR_GEN_MODE_NONE.
fn makes_none(settings: BTreeMap<String, i64>) -> bool {
    settings.get("net.ipv6.conf.IFNAME.addr_gen_mode") == Some(&1)
}

fn keep_address(payload: &[u8]) -> Option<KeptAddress> {
    let address = address::read(payload)?;
    if !address.permanent {
        return None;
    }
    let [family, prefix_len, short, scope] = *payload.first_chunk()?;
    let attributes = || wire::attributes(payload.get(ADDRESS_BODY..).unwrap_or_default());
    let long =
        attributes().find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, value)| wire::u32_at(value, 0));
    let mut request = Request::new(RTM_NEWADDR, 0, &[family, prefix_len, 0, scope, 0, 0, 0, 0]);
    for (kind, value) in attributes().filter(|(kind, _)| ![IFA_CACHEINFO, IFA_FLAGS].contains(kind)) {
        request.attributes().put(kind, value);
    }
    // Permanent, so that it reads as what it is.
    let flags = long.unwrap_or(u32::from(short)) & ASKED_OF_ADDRESSES | IFA_F_PERMANENT;
    request.attributes().put_u32(IFA_FLAGS, flags);
    Some(KeptAddress(request.into_payload()))
}
