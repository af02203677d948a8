//! Why a link carries the node, in words.

use std::fmt;
use std::net::IpAddr;

use crate::IfName;

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
    /// Routes that are as good as a default route leave through it.
    WideRoutes {
        /// The widest of them.
        destination: IpAddr,
        /// Its length in bits.
        prefix_len: u8,
        /// How many there are beside it.
        others: usize,
        /// RTA_TABLE; 254 is the main table.
        table: u32,
    },
    /// It holds an address that was named as the node's.
    NodeAddress(IpAddr),
    /// It is the way to the API server, or holds its address.
    ApiServer(IpAddr),
    /// It holds an address that expires: from DHCP or a router's advertisement.
    LeasedAddress(IpAddr),
    /// It holds an address, and nothing tells which link is the uplink.
    OnlyAddress(IpAddr),
    /// It is a NIC that is up, and nothing tells which one is the uplink.
    OnlyUp,
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
    /// A route to the other end of the tunnel above leaves through it.
    Underlay,
    /// The other end of a veth pair.
    Peer,
    /// What the other end of a veth pair is a port of.
    Master,
    /// Another face of the same NIC: a VF and the synthetic NIC that it speeds up.
    Twin,
}

impl Reason {
    /// What of the facts named the link.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Reason::DefaultRoute { .. } => "a default route",
            Reason::WideRoutes { .. } => "a route",
            Reason::ApiServer(_) => "the way to the API server",
            Reason::NodeAddress(_) | Reason::LeasedAddress(_) | Reason::OnlyAddress(_) => "an address",
            Reason::OnlyUp | Reason::Below { .. } => "a link",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |ipv6: bool| if ipv6 { "IPv6" } else { "IPv4" };
        match self {
            Reason::DefaultRoute { ipv6, table, metric } => {
                write!(f, "carries the {} default route (table {table}, metric {metric})", family(*ipv6))
            }
            Reason::WideRoutes { destination, prefix_len, others, table } => {
                write!(f, "carries the route {destination}/{prefix_len}")?;
                if *others > 0 {
                    write!(f, " and {others} more")?;
                }
                write!(f, " (table {table}), to much of all {} addresses", family(destination.is_ipv6()))
            }
            Reason::NodeAddress(ip) => write!(f, "has the node's address {ip}"),
            Reason::ApiServer(ip) => write!(f, "is the way to the API server {ip}"),
            Reason::LeasedAddress(ip) => {
                write!(f, "has the address {ip}, which expires: the node got it by DHCP or from a router")
            }
            Reason::OnlyAddress(ip) => {
                write!(f, "has the address {ip}, and no route tells which NIC carries the node")
            }
            Reason::OnlyUp => f.write_str("is up, and no route tells which NIC carries the node"),
            Reason::Below { layer, upper, because } => {
                let relation = match layer {
                    Layer::Port => "is a port of",
                    Layer::Lower => "is below",
                    Layer::Underlay => "is the way to the other end of",
                    Layer::Peer => "is the other end of",
                    Layer::Master => "is behind",
                    Layer::Twin => "is one NIC with",
                };
                write!(f, "{relation} {upper}, which {because}")
            }
        }
    }
}
