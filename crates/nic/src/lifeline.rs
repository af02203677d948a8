//! The lifeline rule: which links carry the node's own traffic, and why.
//!
//! A link carries the node if
//! * a default route leaves through it (IPv4 or IPv6, any table, any metric, each hop of a multipath route), or routes that
//!   together lead to so much of all addresses that they are one in effect (`wide`);
//! * it holds an address that was named as the node's, or one that expires: whoever got that by DHCP or from a router's
//!   advertisement on this node lives on it;
//! * the kernel sends through it what goes to a peer that was named, such as the API server.
//!
//! From there the rule walks towards the hardware (`layers`): to the ports of a bond, team, bridge or Open vSwitch, to the link
//! below a VLAN, macvlan or tunnel, through a veth pair into the bridge behind it, to any depth.
//!
//! The invariant: more facts never protect less, and a [`Lifeline`] exists only where facts were read. There is no
//! empty default that an error path could fall back to. Where all of this leads to no wire, the facts do not tell how the node is
//! reached, and the rule turns cautious: every link with an address counts, and every NIC that is up. (So the first fact that does
//! lead to a wire is the one that protects less.)

mod layers;
mod reason;
mod wide;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use self::layers::Layers;
pub use self::reason::{Layer, Reason};
use crate::{Address, Link, Route};

/// The links that carry the node, each with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifeline {
    reasons: BTreeMap<u32, Reason>,
}

/// What somebody named as vital, beyond what links, routes and addresses show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// An address of the node.
    Address(IpAddr),
    /// A peer that the node must reach: the API server.
    Peer {
        /// Its address.
        ip: IpAddr,
        /// The links through which the kernel sends what goes there. None where there is no way, or where it is this node.
        outputs: Vec<u32>,
    },
}

/// The facts contradict each other: they were read while the kernel's state changed. Read them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} names the interface with index {index}, which is not among the interfaces read before it")]
pub struct TornFacts {
    what: &'static str,
    index: u32,
}

impl Lifeline {
    /// Finds the links that carry the node.
    ///
    /// `links` must be read before `routes`, `addresses` and the ways to the peers in `named`, all in the node's network
    /// namespace. `named` may be empty.
    ///
    /// # Errors
    /// One of the facts belongs to a link that is not in `links`.
    pub fn find(
        links: &[Link],
        routes: &[Route],
        addresses: &[Address],
        named: &[Named],
    ) -> Result<Self, TornFacts> {
        let layers = Layers::of(links, routes);
        let mut walk = Walk { layers: &layers, reasons: BTreeMap::new(), todo: VecDeque::new() };
        let roots = roots(routes, addresses, named);
        let no_roots = roots.is_empty();
        walk.begin_at(roots)?;
        if !walk.has_reached(layers::is_wire) {
            // A node that nothing points to still has an uplink. Whoever configured an address uses it.
            walk.begin_at(every_address(links, addresses))?;
            // Where there are roots, they lead into software: there is a wire somewhere that the kernel's tables do not show (ppp,
            // a switch or VPN in user space). Where there are none, no NIC may have an address yet.
            if !(no_roots && walk.has_reached(layers::is_hardware)) {
                walk.begin_at(every_nic_that_is_up(links))?;
            }
        }
        Ok(Lifeline { reasons: walk.reasons })
    }

    /// Why the link with this index carries the node, if it does.
    #[must_use]
    pub fn reason(&self, index: u32) -> Option<&Reason> {
        self.reasons.get(&index)
    }

    /// All links that carry the node, by index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Reason)> {
        self.reasons.iter().map(|(index, reason)| (*index, reason))
    }
}

type Root = (u32, Reason);

/// Where the node's traffic enters the stack of layers; the most telling reason of a link comes first.
fn roots(routes: &[Route], addresses: &[Address], named: &[Named]) -> Vec<Root> {
    const MAIN_TABLE: u32 = 254;
    let mut defaults: Vec<&Route> =
        routes.iter().filter(|route| route.unicast && route.is_default()).collect();
    defaults.sort_by_key(|r| (r.destination.is_ipv6(), r.table != MAIN_TABLE, r.table, r.priority));
    let by_default = defaults.iter().flat_map(|route| {
        let reason = Reason::DefaultRoute {
            ipv6: route.destination.is_ipv6(),
            table: route.table,
            metric: route.priority,
        };
        route.outputs.iter().map(move |index| (*index, reason.clone()))
    });
    let with = |ip: IpAddr, reason: fn(IpAddr) -> Reason| {
        let holders = addresses.iter().filter(move |held| held.ip.to_canonical() == ip.to_canonical());
        holders.map(move |held| (held.index, reason(ip)))
    };
    let by_name = named.iter().flat_map(|named| match named {
        Named::Address(ip) => with(*ip, Reason::NodeAddress).collect::<Vec<Root>>(),
        Named::Peer { ip, outputs } => {
            let ways = outputs.iter().map(|index| (*index, Reason::ApiServer(*ip)));
            ways.chain(with(*ip, Reason::ApiServer)).collect()
        }
    });
    let expiring = addresses.iter().filter(|address| !address.permanent && !is_local(address.ip));
    let by_lease = expiring.map(|address| (address.index, Reason::LeasedAddress(address.ip)));
    by_default.chain(wide::roots(routes)).chain(by_name).chain(by_lease).collect()
}

fn every_address(links: &[Link], addresses: &[Address]) -> Vec<Root> {
    let loopback = |index| links.iter().any(|link| link.index == index && link.loopback);
    let addresses = addresses.iter().filter(|address| !is_local(address.ip) && !loopback(address.index));
    addresses.map(|address| (address.index, Reason::OnlyAddress(address.ip))).collect()
}

fn every_nic_that_is_up(links: &[Link]) -> Vec<Root> {
    let nics = links.iter().filter(|link| layers::is_hardware(link) && link.up);
    nics.map(|link| (link.index, Reason::OnlyUp)).collect()
}

fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// Breadth first, so that the reason is the shortest; each link is visited once, so that a cycle ends.
struct Walk<'a> {
    layers: &'a Layers<'a>,
    reasons: BTreeMap<u32, Reason>,
    todo: VecDeque<u32>,
}

impl Walk<'_> {
    fn begin_at(&mut self, roots: Vec<Root>) -> Result<(), TornFacts> {
        for (index, reason) in roots {
            if self.layers.link(index).is_none() {
                return Err(TornFacts { what: reason.what(), index });
            }
            self.reach(index, reason);
        }
        self.descend();
        Ok(())
    }

    fn reach(&mut self, index: u32, reason: Reason) {
        if let Entry::Vacant(entry) = self.reasons.entry(index) {
            entry.insert(reason);
            self.todo.push_back(index);
        }
    }

    fn descend(&mut self) {
        while let Some(index) = self.todo.pop_front() {
            let Some(link) = self.layers.link(index) else { continue };
            let Some(because) = self.reasons.get(&index).cloned() else { continue };
            for (below, layer) in self.layers.below(link) {
                let because = Box::new(because.clone());
                self.reach(below.index, Reason::Below { layer, upper: link.name.clone(), because });
            }
        }
    }

    fn has_reached(&self, end: fn(&Link) -> bool) -> bool {
        self.reasons.keys().filter_map(|index| self.layers.link(*index)).any(end)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
