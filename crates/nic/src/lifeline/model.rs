//! The rule against a node that is built and torn down at random: whatever links, ports and routes come and go in whatever order, a
//! NIC that carries a default route is not offered, and one that carries nothing is.
//!
//! The model keeps what was done (this VLAN was put upon that link), not what the kernel tells of it, and its own idea of what that
//! means; only [`Model::links`] speaks the kernel's language.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use crate::facts::sample::link;
use crate::{Interface, Lifeline, Link, MacAddr, Nic, NodeFacts, Pool, Pools, Route, Skip, Standing, View};

const STACKED: [&str; 7] = ["vlan", "macvlan", "macvtap", "ipvlan", "macsec", "gre", "vxlan"];
const MASTERS: [&str; 4] = ["bond", "team", "bridge", "vrf"];
/// The NICs with these indexes are there from the beginning. The last one is a VF of the one before it.
const NICS: std::ops::RangeInclusive<u32> = 1..=5;
const VF: u32 = 5;
const SYNTHETIC: u32 = 4;

#[derive(Clone, Debug)]
enum Device {
    Nic,
    Stacked {
        kind: &'static str,
        on: u32,
    },
    Master {
        kind: &'static str,
    },
    Pair {
        peer: u32,
    },
    /// A bridge of Open vSwitch, or the datapath itself.
    Switch,
    /// A tunnel to this address, bound to no link.
    Tunnel {
        remote: IpAddr,
    },
}

#[derive(Clone, Debug, Default)]
struct Model {
    devices: BTreeMap<u32, Device>,
    /// Port and master.
    ports: BTreeMap<u32, u32>,
    datapath: Option<u32>,
    routes: Vec<Route>,
    last: u32,
}

/// What happens: a number that says what, and two that say to whom.
type Event = (u8, u8, u8);

impl Model {
    fn new() -> Self {
        let mut model = Model { last: *NICS.end(), ..Model::default() };
        model.devices.extend(NICS.map(|index| (index, Device::Nic)));
        model.ports.insert(VF, SYNTHETIC);
        model
    }

    fn add(&mut self, device: Device) -> u32 {
        self.last += 1;
        self.devices.insert(self.last, device);
        self.last
    }

    fn pick(&self, number: u8) -> u32 {
        let all: Vec<u32> = self.devices.keys().copied().collect();
        all.get(usize::from(number) % all.len()).copied().unwrap()
    }

    fn happen(&mut self, (what, one, two): Event) {
        let (first, second) = (self.pick(one), self.pick(two));
        let metric = u32::from(one);
        match what % 16 {
            0 | 1 => drop(self.add(Device::Stacked { kind: STACKED[usize::from(two) % 7], on: first })),
            2 => drop(self.add(Device::Master { kind: MASTERS[usize::from(two) % 4] })),
            3 | 4 => self.enslave(first, second),
            5 => drop(self.ports.remove(&first).filter(|_| first != VF)),
            6 => {
                let peer = self.last + 2;
                let end = self.add(Device::Pair { peer });
                self.add(Device::Pair { peer: end });
            }
            7 => {
                if self.datapath.is_none_or(|datapath| !self.devices.contains_key(&datapath)) {
                    self.datapath = Some(self.add(Device::Switch));
                }
                self.add(Device::Switch);
            }
            8 => self.delete(first),
            9 => self.routes.push(route("0.0.0.0", 0, u32::from(two), metric, &[first])),
            10 => self.routes.push(route("::", 0, 254, metric, &[first])),
            11 => self.routes.push(route("0.0.0.0", 0, 254, metric, &[first, second])),
            12 => {
                self.routes.push(route("0.0.0.0", 1, 254, metric, &[first]));
                self.routes.push(route("2000::", 3, u32::from(two), metric, &[second]));
            }
            13 => self.routes.push(route("198.51.100.0", 24, 254, metric, &[first])),
            14 => {
                let remote = if two % 2 == 0 { "198.51.100.7" } else { "203.0.113.7" };
                self.add(Device::Tunnel { remote: remote.parse().unwrap() });
            }
            _ => drop(self.routes.pop()),
        }
    }

    fn enslave(&mut self, port: u32, master: u32) {
        let takes = match self.devices.get(&master) {
            Some(Device::Master { .. }) => true,
            Some(Device::Switch) => self.datapath == Some(master),
            _ => false,
        };
        if takes && port != master && port != VF && !matches!(self.devices.get(&port), Some(Device::Switch)) {
            self.ports.insert(port, master);
        }
    }

    /// A link goes, and takes along what lies upon it; a NIC goes to another namespace.
    fn delete(&mut self, index: u32) {
        let Some(device) = self.devices.remove(&index) else { return };
        self.ports.retain(|port, master| *port != index && *master != index);
        for route in &mut self.routes {
            route.outputs.retain(|output| *output != index);
        }
        self.routes.retain(|route| !route.outputs.is_empty());
        let upon = |(above, other): (&u32, &Device)| match other {
            Device::Stacked { on, .. } if *on == index => Some(*above),
            _ => None,
        };
        let mut along: Vec<u32> = self.devices.iter().filter_map(upon).collect();
        if let Device::Pair { peer } = device {
            along.push(peer);
        }
        along.into_iter().for_each(|other| self.delete(other));
        if self.devices.is_empty() {
            // The loopback interface is always there; here it is the last NIC that stays.
            self.devices.insert(index, Device::Nic);
        }
    }

    /// What the kernel tells.
    fn links(&self) -> Vec<Link> {
        let links = self.devices.iter().map(|(&index, device)| {
            let plain =
                Link { master: self.ports.get(&index).copied(), ..link(index, &format!("if{index}")) };
            let kind = |kind: &str| Some(kind.to_owned());
            match device {
                Device::Nic => Link { mac: Some(mac(index)), ..plain },
                // The kernel names the link below a VXLAN elsewhere.
                Device::Stacked { kind: "vxlan", on } => {
                    Link { kind: kind("vxlan"), further_lowers: vec![*on], ..plain }
                }
                Device::Stacked { kind: name, on } => Link { kind: kind(name), lower: Some(*on), ..plain },
                Device::Master { kind: name } => Link { kind: kind(name), ..plain },
                Device::Pair { peer } => Link { kind: kind("veth"), lower: Some(*peer), ..plain },
                Device::Switch => Link { kind: kind("openvswitch"), ..plain },
                Device::Tunnel { remote } => Link { kind: kind("sit"), remote: Some(*remote), ..plain },
            }
        });
        links.collect()
    }

    /// Where a packet that leaves through this device may go next.
    fn next(&self, index: u32) -> Vec<u32> {
        let ports_of =
            |master: u32| self.ports.iter().filter(move |(_, of)| **of == master).map(|(port, _)| *port);
        match self.devices.get(&index) {
            None => Vec::new(),
            Some(Device::Nic) if index == VF => self.ports.get(&VF).copied().into_iter().collect(),
            Some(Device::Nic | Device::Master { .. }) => ports_of(index).collect(),
            Some(Device::Stacked { on, .. }) => vec![*on],
            Some(Device::Pair { peer }) => [*peer].into_iter().chain(self.ports.get(peer).copied()).collect(),
            Some(Device::Switch) => self.datapath.into_iter().flat_map(ports_of).collect(),
            Some(Device::Tunnel { remote }) => {
                let covers = |route: &&Route| {
                    // The model has only these.
                    remote.is_ipv4() == route.destination.is_ipv4()
                        && match route.prefix_len {
                            0 => true,
                            1 => false,
                            _ => remote.to_string().starts_with("198.51.100."),
                        }
                };
                self.routes.iter().filter(covers).flat_map(|route| route.outputs.clone()).collect()
            }
        }
    }

    /// Every device that the node's traffic to the world may pass.
    fn carriers(&self) -> BTreeSet<u32> {
        let world = self.routes.iter().filter(|route| route.prefix_len < 4);
        let mut todo: Vec<u32> = world.flat_map(|route| route.outputs.clone()).collect();
        let mut passed = BTreeSet::new();
        while let Some(index) = todo.pop() {
            if passed.insert(index) {
                todo.extend(self.next(index));
            }
        }
        passed
    }

    fn nics(&self) -> Vec<Nic> {
        NICS.map(|index| {
            let name = format!("if{index}").parse().unwrap();
            let there = matches!(self.devices.get(&index), Some(Device::Nic));
            Nic {
                id: format!("0000:00:0{index}.0").parse().unwrap(),
                bus_name: format!("virtio{index}"),
                pci: None,
                above: vec![],
                acpi_index: None,
                driver: Some("virtio_net".to_owned()),
                hardware: None,
                numa_node: None,
                interfaces: there.then_some(Interface { index, name, hardware: true }).into_iter().collect(),
                has_interface: true,
            }
        })
        .collect()
    }
}

fn mac(index: u32) -> MacAddr {
    // The two faces of one NIC.
    let index = if index == VF { SYNTHETIC } else { index };
    MacAddr([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])
}

fn route(destination: &str, prefix_len: u8, table: u32, priority: u32, outputs: &[u32]) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        prefix_len,
        table,
        priority,
        outputs: outputs.to_vec(),
        gateway: None,
        unicast: true,
    }
}

fn interface(link: &Link) -> Interface {
    Interface { index: link.index, name: link.name.clone(), hardware: link.kind.is_none() }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(any::<Event>(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_sequence_of_events_leads_to_the_uplink_being_offered(events in events(), seed: u64) {
        let pool = Pool::of_drivers("kernel.org/virt".parse().unwrap(), vec!["virtio_net".into()]);
        let pools = Pools::new(vec![pool]);
        let mut model = Model::new();
        for event in events {
            model.happen(event);
            let mut links = model.links();
            // The order in which the kernel lists them says nothing.
            links.sort_by_key(|link| u64::from(link.index).wrapping_mul(seed | 1));
            let shown: Vec<_> = links.iter().map(interface).collect();
            let lifeline = Lifeline::find(&links, &model.routes, &[], &[]).unwrap();
            let facts = NodeFacts::new(model.nics(), &shown, links, lifeline, BTreeSet::new()).unwrap();
            let carriers = model.carriers();
            let told = carriers.iter().any(|index| matches!(model.devices[index], Device::Nic));
            for nic in facts.nics() {
                let Some(interface) = nic.interfaces.first() else { continue };
                let standing = facts.judge(&View { nic, home: None, metadata: None }, &pools).standing;
                let spared = matches!(standing, Standing::Skipped(Skip::Lifeline { .. }));
                if carriers.contains(&interface.index) {
                    prop_assert!(spared, "{} is {standing:?} after {event:?} in {model:#?}", interface.name);
                } else if told {
                    let faces = [SYNTHETIC, VF];
                    let twin = faces.contains(&interface.index) && faces.iter().any(|face| carriers.contains(face));
                    prop_assert_eq!(spared, twin, "{} is {:?} in {:#?}", interface.name, standing, model);
                } else {
                    // No default route leads to a NIC: any NIC that is up may be the one.
                    prop_assert!(spared, "{} is {standing:?} in {model:#?}", interface.name);
                }
            }
        }
    }

    /// The one exception is in the rule's description: the first fact that leads to a wire.
    #[test]
    fn more_facts_never_protect_less(events in events(), more in events(), named in 1_u32..=5) {
        let mut model = Model::new();
        events.into_iter().for_each(|event| model.happen(event));
        model.devices.entry(named).or_insert(Device::Nic);
        model.routes.push(route("0.0.0.0", 0, 254, 0, &[named]));
        let find = |model: &Model| Lifeline::find(&model.links(), &model.routes, &[], &[]).unwrap();
        let before = find(&model);
        // Only what adds something: no port is released, no link and no route goes.
        more.into_iter().filter(|(what, ..)| ![3, 4, 5, 8, 15].contains(&(what % 16))).for_each(|e| model.happen(e));
        let after = find(&model);
        for (index, _) in before.iter() {
            prop_assert!(after.reason(index).is_some(), "{index} was unprotected in {model:#?}");
        }
    }
}
