//! How links lie upon each other, as far as the kernel tells.

use std::collections::HashMap;

use super::Layer;
use crate::{Link, MacAddr, Route};

/// The links by index, and the ports of each master.
pub(super) struct Layers<'a> {
    links: HashMap<u32, &'a Link>,
    routes: &'a [Route],
    ports: HashMap<u32, Vec<&'a Link>>,
    switch_ports: Vec<&'a Link>,
    by_mac: HashMap<MacAddr, Vec<&'a Link>>,
}

impl<'a> Layers<'a> {
    pub(super) fn of(links: &'a [Link], routes: &'a [Route]) -> Self {
        let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let mut ports: HashMap<u32, Vec<&Link>> = HashMap::new();
        let mut by_mac: HashMap<MacAddr, Vec<&Link>> = HashMap::new();
        let mut switch_ports = Vec::new();
        for link in links {
            if let Some(master) = link.master {
                ports.entry(master).or_default().push(link);
                if by_index.get(&master).copied().is_some_and(is_open_vswitch) {
                    switch_ports.push(link);
                }
            }
            if let Some(mac) = link.mac.filter(|mac| is_hardware(link) && mac.is_unicast()) {
                by_mac.entry(mac).or_default().push(link);
            }
        }
        Layers { links: by_index, routes, ports, switch_ports, by_mac }
    }

    pub(super) fn link(&self, index: u32) -> Option<&'a Link> {
        self.links.get(&index).copied()
    }

    /// What lies directly below `link`.
    pub(super) fn below(&self, link: &'a Link) -> Vec<(&'a Link, Layer)> {
        let mut below: Vec<_> =
            self.ports.get(&link.index).into_iter().flatten().map(|port| (*port, Layer::Port)).collect();
        if is_open_vswitch(link) {
            // Every bridge of Open vSwitch is a link of its own, but the kernel names the datapath as the master of all
            // ports (vport-netdev.c), whatever their bridge. Which ports belong to this bridge only OVSDB knows.
            below.extend(self.switch_ports.iter().map(|port| (*port, Layer::Port)));
        }
        if !link.lower_elsewhere {
            self.lower(link, &mut below);
        }
        self.underlay(link, &mut below);
        self.twins(link, &mut below);
        below
    }

    fn lower(&self, link: &'a Link, below: &mut Vec<(&'a Link, Layer)>) {
        let lower = link.lower.and_then(|index| self.link(index));
        if is_pair(link) {
            if let Some(peer) = lower {
                below.push((peer, Layer::Peer));
                let master = peer.master.and_then(|index| self.link(index));
                below.extend(master.map(|master| (master, Layer::Master)));
            }
        } else {
            let more = link.further_lowers.iter().filter_map(|index| self.link(*index));
            below.extend(lower.into_iter().chain(more).map(|lower| (lower, Layer::Lower)));
        }
    }

    /// A tunnel that is bound to no link: its packets take a route, so every one that leads to its other end counts.
    fn underlay(&self, link: &Link, below: &mut Vec<(&'a Link, Layer)>) {
        let Some(remote) = link.remote else { return };
        let ways = self.routes.iter().filter(|route| route.unicast && route.covers(remote));
        let outputs = ways.flat_map(|route| &route.outputs).filter_map(|index| self.link(*index));
        below.extend(outputs.map(|output| (output, Layer::Underlay)));
    }

    /// On Azure a NIC has two faces: a synthetic one and a VF that is its port, or will be in a moment, and has its MAC. The
    /// same with virtio's standby feature (net_failover). A link without a kind that is a master is such a face, and whoever
    /// moves it moves its VF.
    fn twins(&self, link: &'a Link, below: &mut Vec<(&'a Link, Layer)>) {
        let master = link.master.and_then(|index| self.link(index)).filter(|master| is_hardware(master));
        let same_mac = link.mac.filter(|_| is_hardware(link)).and_then(|mac| self.by_mac.get(&mac));
        let twins = master.into_iter().chain(same_mac.into_iter().flatten().copied());
        below.extend(twins.map(|twin| (twin, Layer::Twin)));
    }
}

/// Made by no software: a NIC.
pub(super) fn is_hardware(link: &Link) -> bool {
    !link.loopback && link.kind.is_none()
}

/// Packets leave the node's network namespace here, as far as one can see.
pub(super) fn is_wire(link: &Link) -> bool {
    is_hardware(link) || link.parent_device.is_some() || link.lower_elsewhere
}

fn is_open_vswitch(link: &Link) -> bool {
    link.kind.as_deref() == Some("openvswitch")
}

fn is_pair(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "netkit"))
}
