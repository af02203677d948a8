//! What the kernel says about links, addresses and routes, as plain data: read by the `linux` crate, judged here.

use std::net::IpAddr;

use crate::{IfName, MacAddr};

/// A network interface as RTM_GETLINK shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// IFLA `ifi_index`, unique within its network namespace.
    pub index: u32,
    /// IFLA_IFNAME.
    pub name: IfName,
    /// IFLA_ALT_IFNAME, up to 128 bytes each.
    pub alt_names: Vec<String>,
    /// IFLA_INFO_KIND: `bond`, `bridge`, `vlan`, `veth`; absent for hardware.
    pub kind: Option<String>,
    /// IFLA_ADDRESS, where it is an Ethernet address.
    pub mac: Option<MacAddr>,
    /// IFLA_PERM_ADDRESS: what the hardware was made with.
    pub permanent_mac: Option<MacAddr>,
    /// IFLA_MTU in bytes.
    pub mtu: u32,
    /// IFLA_TXQLEN in packets.
    pub tx_queue_len: u32,
    /// IFLA_NUM_RX_QUEUES: how many receive queues the device can have.
    pub rx_queues: Option<u32>,
    /// IFLA_IFALIAS.
    pub alias: Option<String>,
    /// IFF_UP: what the administrator wants, not what the wire says.
    pub up: bool,
    /// Of `ifi_flags` the others that an administrator sets ([`Link::FLAGS`]).
    pub flags: u32,
    /// IFLA_CARRIER; meaningless while the link is not up.
    pub carrier: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// IFLA_MASTER: the bond, bridge, team, VRF or OVS datapath that this link is a port of.
    pub master: Option<u32>,
    /// IFLA_LINK: the link below a VLAN, macvlan or tunnel, or the peer of a veth. Some tunnels outlive it.
    pub lower: Option<u32>,
    /// Links below that only the attributes of its kind name: IFLA_VXLAN_LINK, IFLA_HSR_SLAVE1 and 2.
    pub further_lowers: Vec<u32>,
    /// IFLA_LINK_NETNSID: `lower` is an index in another network namespace, not in this one.
    pub lower_elsewhere: bool,
    /// The other end of a tunnel.
    pub remote: Option<IpAddr>,
    /// IFLA_XDP: the programs that see its packets first.
    pub xdp: Vec<Xdp>,
    /// IFLA_PARENT_DEV_BUS_NAME (kernel 5.14+): `virtio`, `pci`.
    pub parent_bus: Option<String>,
    /// IFLA_PARENT_DEV_NAME (kernel 5.14+): `virtio2`, `0000:00:0a.0`.
    pub parent_device: Option<String>,
}

impl Link {
    /// IFF_DEBUG, NOTRAILERS, NOARP, PROMISC, ALLMULTI, MULTICAST, PORTSEL, AUTOMEDIA, DYNAMIC: what the kernel lets an administrator change
    /// besides IFF_UP (net/core/dev.c, `__dev_change_flags`), and keeps when a link moves.
    pub const FLAGS: u32 = 0x4 | 0x20 | 0x80 | 0x100 | 0x200 | Link::MULTICAST | 0x2000 | 0x4000 | 0x8000;
    /// IFF_MULTICAST: all that an Ethernet link has of these when it is made.
    pub const MULTICAST: u32 = 0x1000;
}

/// An XDP program on a link. It goes with the link into other network namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Which one: its number, which the kernel gives to no other program before the next boot.
    pub id: u32,
    /// Where it runs: XDP_FLAGS_SKB_MODE (generic), DRV_MODE (in the driver) or HW_MODE.
    pub mode: u32,
}

/// An address on a link, as RTM_GETADDR shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub index: u32,
    /// IFA_LOCAL (IPv4) or IFA_ADDRESS (IPv6).
    pub ip: IpAddr,
    /// Length of the prefix in bits.
    pub prefix_len: u8,
    /// IFA_F_TENTATIVE: duplicate address detection has not ended.
    pub tentative: bool,
    /// IFA_F_DADFAILED: another host has this address.
    pub duplicate: bool,
    /// IFA_F_PERMANENT: an administrator gave it. Others come from DHCP or router advertisements and expire.
    pub permanent: bool,
}

/// A route, as RTM_GETROUTE shows it, of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination; the unspecified address with length 0 is the default route.
    pub destination: IpAddr,
    /// Length of the destination prefix in bits.
    pub prefix_len: u8,
    /// RTA_TABLE.
    pub table: u32,
    /// RTA_PRIORITY: the metric.
    pub priority: u32,
    /// Where packets leave: RTA_OIF, or each hop of RTA_MULTIPATH, or what the nexthop object of RTA_NH_ID leads to.
    pub outputs: Vec<u32>,
    /// RTA_GATEWAY or RTA_VIA of the first hop.
    pub gateway: Option<IpAddr>,
    /// rtm_type is RTN_UNICAST; blackhole, unreachable and local routes carry nobody's traffic.
    pub unicast: bool,
}

impl Route {
    /// Whether this is a default route, IPv4 or IPv6.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.prefix_len == 0 && self.destination.is_unspecified()
    }

    /// Whether `ip` is among its destinations.
    #[must_use]
    pub fn covers(&self, ip: IpAddr) -> bool {
        let same = |length: u32, one: u128, two: u128| {
            let host_bits = length.saturating_sub(self.prefix_len.into());
            one.checked_shr(host_bits) == two.checked_shr(host_bits)
        };
        match (self.destination, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => same(32, net.to_bits().into(), ip.to_bits().into()),
            (IpAddr::V6(net), IpAddr::V6(ip)) => same(128, net.to_bits(), ip.to_bits()),
            _ => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod sample {
    use super::Link;

    /// A plain link without anything above or below it.
    pub(crate) fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.parse().unwrap(),
            alt_names: Vec::new(),
            kind: None,
            mac: None,
            permanent_mac: None,
            mtu: 1500,
            tx_queue_len: 1000,
            rx_queues: Some(1),
            alias: None,
            up: true,
            flags: Link::MULTICAST,
            carrier: true,
            loopback: false,
            master: None,
            lower: None,
            further_lowers: Vec::new(),
            lower_elsewhere: false,
            remote: None,
            xdp: Vec::new(),
            parent_bus: None,
            parent_device: None,
        }
    }
}
