//! The lifeline rule: which links carry the node's own traffic, and why.
//!
//! A link carries the node if a default route (IPv4 or IPv6, any table, any metric, each hop of a multipath route) leaves
//! through it, or if it holds an address that was named as the node's. From there the rule walks towards the
//! hardware: to the ports of a bond, team, bridge or Open vSwitch, to the link below a VLAN, macvlan or tunnel, through a
//! veth pair into the bridge behind it, to any depth.
//!
//! The invariant: more facts never protect less, and a [`Lifeline`] exists only where facts were read. There is no
//! empty default that an error path could fall back to.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;

use crate::{Address, IfName, Link, Route};

/// The links that carry the node, each with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifeline {
    reasons: BTreeMap<u32, Reason>,
}

/// Why a link carries the node. `Display` gives a phrase that continues "eth0 ...": "carries the IPv4 default route
/// (table 254, metric 100)", "is a port of bond0, which carries ...".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A default route leaves through it.
    DefaultRoute {
        /// IPv6, else IPv4.
        ipv6: bool,
        /// RTA_TABLE; 254 is the main table.
        table: u32,
        /// RTA_PRIORITY.
        metric: u32,
    },
    /// It holds an address that was named as the node's.
    NodeAddress(IpAddr),
    /// It holds an address, and there is no default route that would tell which link is the uplink.
    OnlyAddress(IpAddr),
    /// It lies below a link that carries the node.
    Below {
        /// How it hangs together with the upper link.
        layer: Layer,
        /// The upper link.
        upper: IfName,
        /// Why the upper link carries the node.
        because: Box<Reason>,
    },
}

/// How a link lies below another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A port of the bond, team, bridge or Open vSwitch above.
    Port,
    /// The link below a VLAN, macvlan, ipvlan or tunnel.
    Lower,
    /// The other end of a veth pair.
    Peer,
    /// What the other end of a veth pair is a port of.
    Master,
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
    /// `links` must be read before `routes` and `addresses`, all in the node's network namespace. `node_addresses` are
    /// addresses that somebody named as the node's own; it may be empty.
    ///
    /// # Errors
    /// A default route or a node address belongs to a link that is not in `links`.
    pub fn find(
        links: &[Link],
        routes: &[Route],
        addresses: &[Address],
        node_addresses: &[IpAddr],
    ) -> Result<Self, TornFacts> {
        let layers = Layers::of(links);
        let mut walk = Walk { layers: &layers, reasons: BTreeMap::new(), todo: VecDeque::new() };
        for (index, reason) in roots(links, routes, addresses, node_addresses) {
            if !layers.links.contains_key(&index) {
                let what = match reason {
                    Reason::DefaultRoute { .. } => "a default route",
                    _ => "an address",
                };
                return Err(TornFacts { what, index });
            }
            walk.reach(index, reason);
        }
        walk.descend();
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

/// Where the node's traffic enters the stack of layers; the most telling reason of a link comes first.
fn roots(
    links: &[Link],
    routes: &[Route],
    addresses: &[Address],
    node_addresses: &[IpAddr],
) -> Vec<(u32, Reason)> {
    const MAIN_TABLE: u32 = 254;
    let mut defaults: Vec<&Route> =
        routes.iter().filter(|route| route.unicast && route.is_default()).collect();
    defaults.sort_by_key(|r| (r.destination.is_ipv6(), r.table != MAIN_TABLE, r.table, r.priority));
    let by_route = defaults.iter().flat_map(|route| {
        let reason = Reason::DefaultRoute {
            ipv6: route.destination.is_ipv6(),
            table: route.table,
            metric: route.priority,
        };
        route.outputs.iter().map(move |index| (*index, reason.clone()))
    });
    let by_name = addresses
        .iter()
        .filter(|address| node_addresses.contains(&address.ip))
        .map(|address| (address.index, Reason::NodeAddress(address.ip)));
    let mut roots: Vec<_> = by_route.chain(by_name).collect();
    if roots.is_empty() {
        // A node without a default route still has an uplink. Whoever configured an address on a NIC uses it.
        let loopback = |index| links.iter().any(|link| link.index == index && link.loopback);
        roots.extend(
            addresses
                .iter()
                .filter(|address| !is_link_local(address.ip) && !loopback(address.index))
                .map(|address| (address.index, Reason::OnlyAddress(address.ip))),
        );
    }
    roots
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// The links by index, and the ports of each master.
struct Layers<'a> {
    links: HashMap<u32, &'a Link>,
    ports: HashMap<u32, Vec<&'a Link>>,
    switch_ports: Vec<&'a Link>,
}

impl<'a> Layers<'a> {
    fn of(links: &'a [Link]) -> Self {
        let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let mut ports: HashMap<u32, Vec<&Link>> = HashMap::new();
        let mut switch_ports = Vec::new();
        for link in links {
            if let Some(master) = link.master {
                ports.entry(master).or_default().push(link);
                if by_index.get(&master).copied().is_some_and(is_open_vswitch) {
                    switch_ports.push(link);
                }
            }
        }
        Layers { links: by_index, ports, switch_ports }
    }

    /// What lies directly below `link`.
    fn below(&self, link: &'a Link) -> Vec<(&'a Link, Layer)> {
        let mut below: Vec<_> =
            self.ports.get(&link.index).into_iter().flatten().map(|port| (*port, Layer::Port)).collect();
        if is_open_vswitch(link) {
            // Every bridge of Open vSwitch is a link of its own, but the kernel names the datapath as the master of all
            // ports (vport-netdev.c), whatever their bridge. Which ports belong to this bridge only OVSDB knows.
            below.extend(self.switch_ports.iter().map(|port| (*port, Layer::Port)));
        }
        let other = link.lower.filter(|_| !link.lower_elsewhere).and_then(|index| self.links.get(&index));
        if let Some(other) = other.copied() {
            if is_pair(link) {
                below.push((other, Layer::Peer));
                let master = other.master.and_then(|index| self.links.get(&index));
                below.extend(master.map(|master| (*master, Layer::Master)));
            } else {
                below.push((other, Layer::Lower));
            }
        }
        below
    }
}

fn is_open_vswitch(link: &Link) -> bool {
    link.kind.as_deref() == Some("openvswitch")
}

fn is_pair(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "netkit"))
}

/// Breadth first, so that the reason is the shortest; each link is visited once, so that a cycle ends.
struct Walk<'a> {
    layers: &'a Layers<'a>,
    reasons: BTreeMap<u32, Reason>,
    todo: VecDeque<u32>,
}

impl Walk<'_> {
    fn reach(&mut self, index: u32, reason: Reason) {
        if let Entry::Vacant(entry) = self.reasons.entry(index) {
            entry.insert(reason);
            self.todo.push_back(index);
        }
    }

    fn descend(&mut self) {
        while let Some(index) = self.todo.pop_front() {
            let Some(link) = self.layers.links.get(&index).copied() else { continue };
            let Some(because) = self.reasons.get(&index).cloned() else { continue };
            for (below, layer) in self.layers.below(link) {
                let because = Box::new(because.clone());
                self.reach(below.index, Reason::Below { layer, upper: link.name.clone(), because });
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::DefaultRoute { ipv6, table, metric } => {
                let family = if *ipv6 { "IPv6" } else { "IPv4" };
                write!(f, "carries the {family} default route (table {table}, metric {metric})")
            }
            Reason::NodeAddress(ip) => write!(f, "has the node's address {ip}"),
            Reason::OnlyAddress(ip) => write!(f, "has the address {ip} on a node without a default route"),
            Reason::Below { layer, upper, because } => {
                let relation = match layer {
                    Layer::Port => "is a port of",
                    Layer::Lower => "is below",
                    Layer::Peer => "is the other end of",
                    Layer::Master => "is behind",
                };
                write!(f, "{relation} {upper}, which {because}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::sample::link;
    use proptest::prelude::*;

    fn default_route(outputs: &[u32]) -> Route {
        Route {
            destination: "0.0.0.0".parse().unwrap(),
            prefix_len: 0,
            table: 254,
            priority: 100,
            outputs: outputs.to_vec(),
            gateway: None,
            unicast: true,
        }
    }

    fn address(index: u32, ip: &str) -> Address {
        Address {
            index,
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            tentative: false,
            duplicate: false,
            permanent: true,
        }
    }

    fn kind(link: Link, kind: &str) -> Link {
        Link { kind: Some(kind.into()), ..link }
    }

    fn find(links: &[Link], routes: &[Route]) -> Lifeline {
        Lifeline::find(links, routes, &[], &[]).unwrap()
    }

    #[test]
    fn default_routes_of_every_family_table_and_hop_count() {
        let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "eth3")];
        let v6 = Route {
            destination: "::".parse().unwrap(),
            table: 1001,
            priority: u32::MAX,
            ..default_route(&[4])
        };
        let found = find(&links, &[default_route(&[2, 3]), v6]);
        assert_eq!(
            found.reason(2).unwrap().to_string(),
            "carries the IPv4 default route (table 254, metric 100)"
        );
        assert!(found.reason(3).is_some());
        assert_eq!(
            found.reason(4).unwrap().to_string(),
            "carries the IPv6 default route (table 1001, metric 4294967295)"
        );
        assert!(found.reason(5).is_none());
    }

    #[test]
    fn other_routes_do_not_make_an_uplink() {
        let links = [link(2, "eth0"), link(3, "eth1")];
        let blackhole = Route { unicast: false, ..default_route(&[2]) };
        let subnet = Route { destination: "10.0.0.0".parse().unwrap(), prefix_len: 8, ..default_route(&[3]) };
        assert_eq!(find(&links, &[blackhole, subnet]).iter().count(), 0);
    }

    #[test]
    fn the_reason_names_every_layer_down_to_the_nic() {
        let links = [
            Link { master: Some(10), ..link(2, "eth0") },
            Link { master: Some(10), ..link(3, "eth1") },
            Link { master: Some(12), lower: Some(10), ..kind(link(11, "bond0.7"), "vlan") },
            kind(link(10, "bond0"), "bond"),
            kind(link(12, "br0"), "bridge"),
        ];
        let found = find(&links, &[default_route(&[12])]);
        assert_eq!(
            found.reason(3).unwrap().to_string(),
            "is a port of bond0, which is below bond0.7, which is a port of br0, which carries the IPv4 default \
             route (table 254, metric 100)"
        );
    }

    #[test]
    fn ports_of_open_vswitch_carry_what_its_bridges_carry() {
        let links = [
            Link { master: Some(5), ..link(2, "eth0") },
            kind(link(5, "ovs-system"), "openvswitch"),
            kind(link(6, "br-ex"), "openvswitch"),
            link(3, "eth1"),
        ];
        let found = find(&links, &[default_route(&[6])]);
        assert_eq!(
            found.reason(2).unwrap().to_string(),
            "is a port of br-ex, which carries the IPv4 default route (table 254, metric 100)"
        );
        assert!(found.reason(3).is_none());
    }

    #[test]
    fn a_veth_pair_leads_into_the_bridge_behind_it() {
        let links = [
            Link { lower: Some(11), ..kind(link(10, "uplink"), "veth") },
            Link { lower: Some(10), master: Some(12), ..kind(link(11, "uplink-br"), "veth") },
            kind(link(12, "br0"), "bridge"),
            Link { master: Some(12), ..link(2, "eth0") },
        ];
        let found = find(&links, &[default_route(&[10])]);
        assert_eq!(
            found.reason(2).unwrap().to_string(),
            "is a port of br0, which is behind uplink, which carries the IPv4 default route (table 254, metric 100)"
        );
    }

    #[test]
    fn an_index_of_another_namespace_is_not_followed() {
        let links = [
            Link { lower: Some(2), lower_elsewhere: true, ..kind(link(10, "eth0"), "veth") },
            link(2, "eth9"),
        ];
        assert!(find(&links, &[default_route(&[10])]).reason(2).is_none());
    }

    #[test]
    fn named_addresses_protect_their_link() {
        let links = [link(2, "eth0"), link(3, "eth1")];
        let addresses = [address(2, "192.0.2.7"), address(3, "198.51.100.7")];
        let named = ["198.51.100.7".parse().unwrap()];
        let found = Lifeline::find(&links, &[default_route(&[2])], &addresses, &named).unwrap();
        assert_eq!(found.reason(3).unwrap().to_string(), "has the node's address 198.51.100.7");
    }

    #[test]
    fn without_a_default_route_every_address_counts() {
        let links = [
            Link { loopback: true, ..link(1, "lo") },
            Link { master: Some(9), ..link(2, "eth0") },
            link(3, "eth1"),
            kind(link(9, "br0"), "bridge"),
        ];
        let addresses = [address(1, "10.9.9.9"), address(9, "192.0.2.7"), address(3, "fe80::1")];
        let found = Lifeline::find(&links, &[], &addresses, &[]).unwrap();
        assert_eq!(
            found.reason(2).unwrap().to_string(),
            "is a port of br0, which has the address 192.0.2.7 on a node without a default route"
        );
        assert!(found.reason(3).is_none());
        assert!(found.reason(1).is_none());
    }

    #[test]
    fn facts_that_were_torn_give_no_lifeline() {
        let torn = Lifeline::find(&[link(2, "eth0")], &[default_route(&[7])], &[], &[]).unwrap_err();
        assert_eq!(
            torn.to_string(),
            "a default route names the interface with index 7, which is not among the interfaces read before it"
        );
    }

    /// A stack above the NIC with index 1: link `n` lies on link `n - 1` in one of the ways the kernel knows.
    fn stack(layers: &[u8]) -> Vec<Link> {
        let mut links = vec![link(1, "eth0")];
        for (layer, index) in layers.iter().zip(2_u32..) {
            let below = index - 1;
            let mut upper = link(index, &format!("layer{index}"));
            match layer % 4 {
                0 => upper = kind(Link { lower: Some(below), ..upper }, "vlan"),
                1 => upper = kind(Link { lower: Some(below), ..upper }, "macvlan"),
                2 => upper = kind(upper, "bond"),
                _ => upper = kind(upper, "openvswitch"),
            }
            if layer % 4 >= 2 {
                links.last_mut().unwrap().master = Some(index);
            }
            links.push(upper);
        }
        links
    }

    fn any_link(index: u32) -> impl Strategy<Value = Link> {
        (
            proptest::option::of(0_u32..30),
            proptest::option::of(0_u32..30),
            any::<bool>(),
            prop::sample::select(vec!["", "veth", "vlan", "bond", "bridge", "openvswitch"]),
        )
            .prop_map(move |(master, lower, lower_elsewhere, name)| Link {
                master,
                lower,
                lower_elsewhere,
                kind: Some(name.to_owned()).filter(|name| !name.is_empty()),
                ..link(index, &format!("if{index}"))
            })
    }

    fn any_links() -> impl Strategy<Value = Vec<Link>> {
        (1_u32..30).prop_flat_map(|count| (1..=count).map(any_link).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn the_nic_below_any_stack_of_layers_is_found(
            layers in prop::collection::vec(any::<u8>(), 0..8),
            seed: u64,
        ) {
            let mut links = stack(&layers);
            let top = u32::try_from(links.len()).unwrap();
            // The order in which the kernel lists them says nothing.
            links.sort_by_key(|link| u64::from(link.index).wrapping_mul(seed | 1));
            prop_assert!(find(&links, &[default_route(&[top])]).reason(1).is_some());
        }

        #[test]
        fn more_links_and_routes_never_unprotect(
            links in any_links(),
            more in prop::collection::vec((31_u32..60).prop_flat_map(any_link), 0..10),
            first in 1_u32..30,
            second in 1_u32..30,
        ) {
            prop_assume!(links.iter().any(|link| link.index == first));
            let before = find(&links, &[default_route(&[first])]);
            let mut all = links.clone();
            all.extend(more);
            let mut routes = vec![default_route(&[first])];
            if links.iter().any(|link| link.index == second) {
                routes.push(default_route(&[second]));
            }
            let after = find(&all, &routes);
            for (index, _) in before.iter() {
                prop_assert!(after.reason(index).is_some(), "{} was unprotected", index);
            }
        }
    }
}
