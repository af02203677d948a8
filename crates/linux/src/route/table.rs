//! Routes of all tables, with multipath and nexthop objects resolved to the links behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nic::Route;
use rustix::io::Errno;

use super::{RTM_DELROUTE, RTM_GETNEXTHOP, RTM_GETROUTE, RTM_NEWNEXTHOP, RTM_NEWROUTE, Socket};
use crate::Error;
use crate::wire::{self, AF_INET, AF_INET6, NLM_F_CREATE, NLM_F_EXCL, Request};

const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
pub(super) const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
pub(super) const RTA_VIA: u16 = 18;
pub(super) const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;

const RTN_UNICAST: u8 = 1;
const RTPROT_STATIC: u8 = 4;
const RTNH_F_ONLINK: u32 = 4;
/// Answer with the route itself, all hops, and not with what one packet would do (kernel 4.13+).
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// The last two: where the kernel runs without IPv6.
const NO_WAY: [Errno; 6] = [
    Errno::NETUNREACH,
    Errno::HOSTUNREACH,
    Errno::ACCESS,
    Errno::INVAL,
    Errno::OPNOTSUPP,
    Errno::AFNOSUPPORT,
];
const RT_TABLE_MAIN: u32 = 254;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
/// `struct rtmsg`, `struct rtnexthop`, `struct nhmsg`.
pub(super) const BODY: usize = 12;
const HOP: usize = 8;
const NEXTHOP: usize = 8;

/// A unicast route to be added. Defaults are those of `ip route add`.
#[derive(Clone, Debug)]
pub struct NewRoute {
    /// The destination network.
    pub destination: IpAddr,
    /// Length of the destination prefix in bits.
    pub prefix_len: u8,
    /// The link through which packets leave.
    pub output: u32,
    /// RTA_GATEWAY, or RTA_VIA where it is not of the destination's family (IPv4 through IPv6: kernel 5.2+).
    pub gateway: Option<IpAddr>,
    /// RTA_PREFSRC.
    pub source: Option<IpAddr>,
    /// RTNH_F_ONLINK: the gateway is reached directly though no route covers it.
    pub onlink: bool,
    /// rtm_scope; by default `link` for IPv4 without a gateway, else `universe`.
    pub scope: Option<u8>,
    /// RTA_TABLE; by default the main table.
    pub table: Option<u32>,
    /// RTA_PRIORITY: the metric.
    pub priority: Option<u32>,
    /// RTAX_MTU in bytes.
    pub mtu: Option<u32>,
    /// RTAX_ADVMSS in bytes.
    pub advmss: Option<u32>,
}

impl NewRoute {
    /// A route to `destination` through the link `output`, and nothing more.
    #[must_use]
    pub fn new(destination: IpAddr, prefix_len: u8, output: u32) -> Self {
        NewRoute {
            destination,
            prefix_len,
            output,
            gateway: None,
            source: None,
            onlink: false,
            scope: None,
            table: None,
            priority: None,
            mtu: None,
            advmss: None,
        }
    }

    fn request(&self, kind: u16, flags: u16) -> Request {
        let (family, default_scope) = match (self.destination, self.gateway) {
            (IpAddr::V4(_), None) => (AF_INET, RT_SCOPE_LINK),
            (IpAddr::V4(_), Some(_)) => (AF_INET, RT_SCOPE_UNIVERSE),
            (IpAddr::V6(_), _) => (AF_INET6, RT_SCOPE_UNIVERSE),
        };
        let table = self.table.unwrap_or(RT_TABLE_MAIN);
        let [f0, f1, f2, f3] = if self.onlink { RTNH_F_ONLINK } else { 0 }.to_ne_bytes();
        let body = [
            family,
            self.prefix_len,
            0,
            0,
            // RT_TABLE_UNSPEC: the attribute says it, for numbers above 255.
            0,
            RTPROT_STATIC,
            self.scope.unwrap_or(default_scope),
            RTN_UNICAST,
            f0,
            f1,
            f2,
            f3,
        ];
        let mut request = Request::new(kind, flags, &body);
        let attributes = request.attributes();
        attributes.put_ip(RTA_DST, self.destination);
        attributes.put_u32(RTA_OIF, self.output);
        attributes.put_u32(RTA_TABLE, table);
        match self.gateway {
            Some(gateway) if gateway.is_ipv4() == self.destination.is_ipv4() => {
                attributes.put_ip(RTA_GATEWAY, gateway);
            }
            // `struct rtvia`. In RTA_GATEWAY the kernel would take the first four bytes of an IPv6 address.
            Some(gateway) => attributes.put(RTA_VIA, &via(gateway)),
            None => {}
        }
        if let Some(source) = self.source {
            attributes.put_ip(RTA_PREFSRC, source);
        }
        if let Some(priority) = self.priority {
            attributes.put_u32(RTA_PRIORITY, priority);
        }
        if self.mtu.is_some() || self.advmss.is_some() {
            attributes.nest(RTA_METRICS, |metrics| {
                if let Some(mtu) = self.mtu {
                    metrics.put_u32(RTAX_MTU, mtu);
                }
                if let Some(advmss) = self.advmss {
                    metrics.put_u32(RTAX_ADVMSS, advmss);
                }
            });
        }
        request
    }

    fn describe(&self, verb: &str) -> String {
        let NewRoute { destination, prefix_len, output, .. } = self;
        let gateway = self.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        format!("{verb} route {destination}/{prefix_len}{gateway} through link {output}")
    }
}

impl Socket {
    /// All IPv4 and IPv6 routes of all tables.
    ///
    /// # Errors
    /// The kernel does not answer. An incomplete list is never returned.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut read = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut body = [0; BODY];
            if let Some(first) = body.first_mut() {
                *first = family;
            }
            let request = Request::new(RTM_GETROUTE, 0, &body);
            // Without IPv6 the kernel answers for all families: keep only the one that was asked for.
            let of_family = |kind: u16, payload: &[u8]| {
                (kind == RTM_NEWROUTE && payload.first() == Some(&family))
                    .then(|| read_route(payload))
                    .flatten()
            };
            read.extend(self.dump(|| "list routes".to_owned(), request, of_family)?);
        }
        self.with_nexthops(read)
    }

    /// The links through which the kernel sends packets to `ip`: all hops of the route that it would take by all rules and tables.
    /// None where there is no way, or where packets stay on this machine.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn ways_to(&mut self, ip: IpAddr) -> Result<Vec<u32>, Error> {
        let (family, bits) = if ip.is_ipv4() { (AF_INET, 32) } else { (AF_INET6, 128) };
        let [f0, f1, f2, f3] = RTM_F_FIB_MATCH.to_ne_bytes();
        let mut request = Request::new(RTM_GETROUTE, 0, &[family, bits, 0, 0, 0, 0, 0, 0, f0, f1, f2, f3]);
        request.attributes().put_ip(RTA_DST, ip);
        let read = |kind: u16, payload: &[u8]| (kind == RTM_NEWROUTE).then(|| read_route(payload)).flatten();
        let found = match self.get(|| format!("find the way to {ip}"), request, read) {
            Ok(found) => found,
            // No route, or one of the types unreachable, prohibit, blackhole (net/ipv4/fib_semantics.c, `fib_props`).
            Err(error) if NO_WAY.iter().any(|errno| error.errno() == Some(errno.raw_os_error())) => None,
            Err(error) => return Err(error),
        };
        let routes = self.with_nexthops(found.into_iter().collect())?;
        let unicast = routes.into_iter().filter(|route| route.unicast);
        Ok(unicast.flat_map(|route| route.outputs).collect())
    }

    /// With nexthop_compat_mode off, a route names its nexthop object and nothing else.
    fn with_nexthops(&mut self, mut read: Vec<Found>) -> Result<Vec<Route>, Error> {
        if read.iter().any(|found| found.nexthop.is_some()) {
            let objects = self.nexthops()?;
            for found in &mut read {
                let Some(id) = found.nexthop else { continue };
                found.route.outputs.extend(outputs_of(&objects, id));
                found.route.outputs.sort_unstable();
                found.route.outputs.dedup();
                if found.route.unicast && found.route.outputs.is_empty() {
                    // It went, with its route, after that was listed. The caller may ask anew; a route without a way out would be
                    // taken for one that carries nothing.
                    let what = format!("list routes and nexthop object {id}");
                    return Err(Error::Unsteady { what, attempts: 1 });
                }
            }
        }
        Ok(read.into_iter().map(|found| found.route).collect())
    }

    /// Adds a route.
    ///
    /// # Errors
    /// EEXIST where the table has this destination with this metric; ENETUNREACH where the gateway is out of reach.
    pub fn add_route(&mut self, route: &NewRoute) -> Result<(), Error> {
        self.call(|| route.describe("add"), route.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Adds a route before those that have the same destination and metric (`ip route prepend`). That such a route is
    /// there is no error, but for IPv6 packets are then shared out between both.
    ///
    /// # Errors
    /// EEXIST where the very same route is there; ENETUNREACH where the gateway is out of reach.
    pub fn prepend_route(&mut self, route: &NewRoute) -> Result<(), Error> {
        self.call(|| route.describe("add"), route.request(RTM_NEWROUTE, NLM_F_CREATE))
    }

    /// Removes a route.
    ///
    /// # Errors
    /// ESRCH where there is no such route.
    pub fn remove_route(&mut self, route: &NewRoute) -> Result<(), Error> {
        self.call(|| route.describe("remove"), route.request(RTM_DELROUTE, 0))
    }

    fn nexthops(&mut self) -> Result<BTreeMap<u32, Nexthop>, Error> {
        let request = Request::new(RTM_GETNEXTHOP, 0, &[0; NEXTHOP]);
        let all = self.dump(
            || "list nexthop objects".to_owned(),
            request,
            |kind, payload| {
                if kind == RTM_NEWNEXTHOP { read_nexthop(payload) } else { None }
            },
        )?;
        Ok(all.into_iter().collect())
    }
}

fn via(gateway: IpAddr) -> Vec<u8> {
    let family = if gateway.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut value = u16::from(family).to_ne_bytes().to_vec();
    match gateway {
        IpAddr::V4(ip) => value.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => value.extend_from_slice(&ip.octets()),
    }
    value
}

pub(super) struct Found {
    pub(super) route: Route,
    nexthop: Option<u32>,
}

struct Nexthop {
    output: Option<u32>,
    group: Vec<u32>,
}

fn outputs_of(objects: &BTreeMap<u32, Nexthop>, id: u32) -> BTreeSet<u32> {
    let Some(object) = objects.get(&id) else { return BTreeSet::new() };
    // Groups do not nest but for resilient ones of one level; two levels cover the kernel's.
    let members = object.group.iter().filter_map(|member| objects.get(member));
    object.output.into_iter().chain(members.filter_map(|member| member.output)).collect()
}

fn read_nexthop(payload: &[u8]) -> Option<(u32, Nexthop)> {
    let mut id = None;
    let mut nexthop = Nexthop { output: None, group: Vec::new() };
    for (kind, value) in wire::attributes(payload.get(NEXTHOP..)?) {
        match kind {
            NHA_ID => id = wire::u32_at(value, 0),
            NHA_OIF => nexthop.output = wire::u32_at(value, 0),
            // `struct nexthop_grp`: eight bytes, the ID first.
            NHA_GROUP => nexthop.group = value.chunks_exact(8).filter_map(|c| wire::u32_at(c, 0)).collect(),
            _ => {}
        }
    }
    Some((id?, nexthop))
}

pub(super) fn read_route(payload: &[u8]) -> Option<Found> {
    let [family, prefix_len, _, _, table, _, _, kind] = *payload.first_chunk::<8>()?;
    let mut found = Found {
        route: Route {
            destination: match family {
                AF_INET => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                _ => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            },
            prefix_len,
            table: u32::from(table),
            priority: 0,
            outputs: Vec::new(),
            gateway: None,
            unicast: kind == RTN_UNICAST,
        },
        nexthop: None,
    };
    let route = &mut found.route;
    for (kind, value) in wire::attributes(payload.get(BODY..)?) {
        match kind {
            RTA_DST => route.destination = wire::ip(value)?,
            RTA_TABLE => route.table = wire::u32_at(value, 0)?,
            RTA_PRIORITY => route.priority = wire::u32_at(value, 0)?,
            RTA_OIF => route.outputs.extend(wire::u32_at(value, 0)),
            RTA_NH_ID => found.nexthop = wire::u32_at(value, 0),
            RTA_MULTIPATH => read_hops(route, value),
            kind => route.gateway = route.gateway.or_else(|| gateway(kind, value)),
        }
    }
    Some(found)
}

/// RTA_MULTIPATH: `struct rtnexthop` {length, flags, hops, index}, each followed by its attributes.
fn read_hops(route: &mut Route, mut hops: &[u8]) {
    while let Some(length) = wire::u16_at(hops, 0).map(usize::from).filter(|length| *length >= HOP) {
        route.outputs.extend(wire::u32_at(hops, 4));
        for (kind, value) in wire::attributes(hops.get(HOP..length).unwrap_or(&[])) {
            route.gateway = route.gateway.or_else(|| gateway(kind, value));
        }
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
}

fn gateway(kind: u16, value: &[u8]) -> Option<IpAddr> {
    match kind {
        RTA_GATEWAY => wire::ip(value),
        // `struct rtvia`: the family in two bytes, then the address.
        RTA_VIA => wire::ip(value.get(2..)?),
        _ => None,
    }
}
