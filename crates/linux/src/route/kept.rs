//! Routes in the kernel's own form, byte for byte, as `ip route save` keeps them: so nothing gets lost for which we have no word.

use std::fmt;
use std::str::FromStr;

use nic::Route;
use serde::{Deserialize, Serialize};

use super::table::{BODY, RTA_GATEWAY, RTA_MULTIPATH, RTA_NH_ID, RTA_OIF, RTA_VIA, read_route};
use super::{RTM_GETROUTE, RTM_NEWROUTE, Socket};
use crate::Error;
use crate::wire::{self, AF_INET, AF_INET6, NLM_F_CREATE, NLM_F_EXCL, Request};

const RTA_CACHEINFO: u16 = 12;
/// Where `rta_expires` is in `struct rta_cacheinfo`.
const EXPIRES: usize = 8;
const RTPROT_UNSPEC: u8 = 0;
const RTPROT_BOOT: u8 = 3;
const RTPROT_STATIC: u8 = 4;
const RTM_F_CLONED: u32 = 0x200;
/// RTNH_F_PERVASIVE and RTNH_F_ONLINK; the other flags are how the kernel finds the route.
const ASKED: u32 = 0x2 | 0x4;

/// A route through one link that an administrator set, without the link's index. It is written as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeptRoute(Vec<u8>);

/// A text that is no [`KeptRoute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a route in hexadecimal digits")]
pub struct ParseKeptRouteError;

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

impl From<KeptRoute> for String {
    fn from(KeptRoute(bytes): KeptRoute) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for KeptRoute {
    type Error = ParseKeptRouteError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for KeptRoute {
    type Err = ParseKeptRouteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(ParseKeptRouteError) };
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        let kept = KeptRoute(bytes.ok_or(ParseKeptRouteError)?);
        if kept.route().is_some() { Ok(kept) } else { Err(ParseKeptRouteError) }
    }
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

impl Socket {
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
                asked.then(|| keep(payload, index)).flatten()
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

fn keep(payload: &[u8], index: u32) -> Option<KeptRoute> {
    let mut body = *payload.first_chunk::<BODY>()?;
    let [_, _, _, _, _, protocol, ..] = body;
    let flags = wire::u32_at(payload, 8)?;
    if ![RTPROT_UNSPEC, RTPROT_BOOT, RTPROT_STATIC].contains(&protocol) || flags & RTM_F_CLONED != 0 {
        return None;
    }
    if let Some(place) = body.last_chunk_mut() {
        *place = (flags & ASKED).to_ne_bytes();
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
