//! What was read of the node in one go, and the verdict on each NIC: offered with its health, or skipped with the reason.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::identity::Stranger;
use crate::lifeline::Reason;
use crate::{DeviceId, IfName, Interface, Lifeline, Link, Membership, Nic, Pools, Unwanted, VFIO_PCI, View};

/// The facts about a node that the verdicts rest on. Exists only if sysfs and netlink showed the same interfaces.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    nics: Vec<Nic>,
    links: HashMap<u32, Link>,
    lifeline: Lifeline,
    leased: BTreeSet<DeviceId>,
    insisted: BTreeSet<DeviceId>,
    sees_hardware: bool,
}

/// Sysfs and netlink do not show the same interfaces.
///
/// Either something changed while we read, and reading again helps; or the mounted sysfs belongs to another network
/// namespace than this process, and then nothing can be said about any NIC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "sysfs and netlink do not show the same interfaces ({0} only in one of them): is sysfs of this network namespace?"
)]
pub struct Disagreement(String);

impl NodeFacts {
    /// Puts the facts together.
    ///
    /// `interfaces` are all that sysfs shows, `links` all that netlink shows; `leased` are the devices that our
    /// ledger says are in a pod.
    ///
    /// # Errors
    /// Sysfs and netlink disagree.
    pub fn new(
        mut nics: Vec<Nic>,
        interfaces: &[Interface],
        links: Vec<Link>,
        lifeline: Lifeline,
        leased: BTreeSet<DeviceId>,
    ) -> Result<Self, Disagreement> {
        let by_sysfs: BTreeSet<(u32, &IfName)> = interfaces.iter().map(|i| (i.index, &i.name)).collect();
        let by_netlink: BTreeSet<(u32, &IfName)> = links.iter().map(|l| (l.index, &l.name)).collect();
        let of_nics = nics.iter().flat_map(|nic| &nic.interfaces).map(|i| (i.index, &i.name)).collect();
        let odd: Vec<&str> = by_sysfs
            .symmetric_difference(&by_netlink)
            .chain(BTreeSet::difference(&of_nics, &by_netlink))
            .take(4)
            .map(|(_, name)| name.as_str())
            .collect();
        if !odd.is_empty() {
            return Err(Disagreement(odd.join(", ")));
        }
        let sees_hardware = interfaces.iter().any(|interface| interface.hardware);
        nics.sort_by(|a, b| (a.pci, &a.id).cmp(&(b.pci, &b.id)));
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        Ok(NodeFacts { nics, links, lifeline, leased, insisted: BTreeSet::new(), sees_hardware })
    }

    /// Offers these devices also if they carry the node. No other objection is lifted.
    #[must_use]
    pub fn insisting_on(mut self, devices: BTreeSet<DeviceId>) -> Self {
        self.insisted = devices;
        self
    }

    /// The devices of [`NodeFacts::insisting_on`].
    #[must_use]
    pub fn insisted(&self) -> &BTreeSet<DeviceId> {
        &self.insisted
    }

    /// All NICs, in the order of their addresses.
    #[must_use]
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// The link of a NIC, if it is in this network namespace.
    #[must_use]
    pub fn link(&self, nic: &Nic) -> Option<&Link> {
        self.links.get(&nic.interfaces.first()?.index)
    }

    /// Whether the ledger says that the NIC is in a pod.
    #[must_use]
    pub fn is_leased(&self, nic: &Nic) -> bool {
        self.leased.contains(&nic.id)
    }

    /// The links that belong to no NIC of [`NodeFacts::nics`], by index, each with why it is none of ours.
    #[must_use]
    pub fn others(&self) -> Vec<(&Link, String)> {
        let ours: BTreeSet<u32> = self.nics.iter().flat_map(|n| &n.interfaces).map(|i| i.index).collect();
        let mut others: Vec<_> = self
            .links
            .values()
            .filter(|link| !ours.contains(&link.index))
            .map(|link| (link, self.why_no_nic(link)))
            .collect();
        others.sort_by_key(|(link, _)| link.index);
        others
    }

    fn why_no_nic(&self, link: &Link) -> String {
        let what = match (&link.kind, &link.parent_device) {
            _ if link.loopback => "is the loopback interface".to_owned(),
            (Some(kind), _) => format!("is a virtual interface ({kind})"),
            (None, Some(device)) => {
                format!("its device {device} is neither on the PCI nor on the virtio bus")
            }
            (None, None) => "is not backed by a device".to_owned(),
        };
        match self.lifeline.reason(link.index) {
            Some(reason) => format!("{what}; {reason}"),
            None => what,
        }
    }

    /// Judges one NIC.
    #[must_use]
    pub fn judge(&self, view: &View<'_>, pools: &Pools) -> Verdict {
        let membership = pools.membership(view);
        let health = self.health(view.nic);
        let standing = match (self.carries_the_node(view.nic), self.objection(view.nic, &membership)) {
            // The lifeline comes first: for the node's operator it is the reason that matters.
            (Some(lifeline), _) if !self.insisted.contains(&view.nic.id) => Standing::Skipped(lifeline),
            (_, Some(skip)) => Standing::Skipped(skip),
            (Some(lifeline), None) => Standing::Insisted(health, lifeline),
            (None, None) => Standing::Offered(health),
        };
        Verdict { standing, membership: membership.ok() }
    }

    fn carries_the_node(&self, nic: &Nic) -> Option<Skip> {
        nic.interfaces.iter().find_map(|interface| {
            let reason = self.lifeline.reason(interface.index)?.clone();
            Some(Skip::Lifeline { interface: interface.name.clone(), reason })
        })
    }

    fn objection(&self, nic: &Nic, membership: &Result<Membership, Unwanted>) -> Option<Skip> {
        let Some(driver) = &nic.driver else { return Some(Skip::NoDriver) };
        if let Err(unwanted) = membership {
            return Some(Skip::Unwanted(unwanted.clone()));
        }
        if !nic.has_interface && driver != VFIO_PCI && !self.is_leased(nic) {
            return Some(Skip::NoInterface(driver.clone()));
        }
        match nic.interfaces.as_slice() {
            [] if !self.sees_hardware && !self.is_leased(nic) => Some(Skip::OutOfSight),
            [] | [_] => None,
            many => Some(Skip::SeveralInterfaces(many.iter().map(|i| i.name.clone()).collect())),
        }
    }

    fn health(&self, nic: &Nic) -> Health {
        self.link(nic).map_or(Health::Healthy, Health::of)
    }
}

/// The verdict on a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is for pods.
    pub standing: Standing,
    /// The pool that wants it. There is one if it is offered; and there may be one though something else is in the way.
    pub membership: Option<Membership>,
}

/// Whether a NIC is for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is for pods.
    Offered(Health),
    /// It is for pods although it carries the node, because an operator insists ([`NodeFacts::insisting_on`]). The objection is
    /// always [`Skip::Lifeline`].
    Insisted(Health, Skip),
    /// It is not.
    Skipped(Skip),
}

impl Standing {
    /// How the NIC is, where it is for pods.
    #[must_use]
    pub fn health(&self) -> Option<&Health> {
        match self {
            Standing::Offered(health) | Standing::Insisted(health, _) => Some(health),
            Standing::Skipped(_) => None,
        }
    }

    /// The same of a NIC that is like this; what is not for pods stays so.
    #[must_use]
    pub fn with_health(&self, health: Health) -> Standing {
        match self {
            Standing::Offered(_) => Standing::Offered(health),
            Standing::Insisted(_, skip) => Standing::Insisted(health, skip.clone()),
            Standing::Skipped(skip) => Standing::Skipped(skip.clone()),
        }
    }
}

/// How a NIC that is for pods is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// A pod can have it, or has it.
    Healthy,
    /// The interface is up, and the wire is not.
    NoCarrier(IfName),
    /// It is another NIC than the one that somebody was given by its ID.
    Stranger(Box<Stranger>),
}

impl Health {
    /// What a link says of its NIC, wherever it is. Administratively down is how a NIC waits for its pod, and says nothing about
    /// the wire.
    #[must_use]
    pub fn of(link: &Link) -> Health {
        if link.up && !link.carrier { Health::NoCarrier(link.name.clone()) } else { Health::Healthy }
    }
}

/// Why a NIC is not for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It carries the node.
    Lifeline {
        /// The interface.
        interface: IfName,
        /// Why it carries the node.
        reason: Reason,
    },
    /// It carried the node until a moment ago, and may just be being configured anew.
    LatelyLifeline {
        /// The interface.
        interface: IfName,
        /// Why it carried the node.
        reason: Reason,
    },
    /// Nothing drives it.
    NoDriver,
    /// This driver has made no interface of it, and is not one that hands the whole device to a program.
    NoInterface(String),
    /// No pool wants it.
    Unwanted(Unwanted),
    /// One function, several interfaces: it cannot be given to one pod as a whole.
    SeveralInterfaces(Vec<IfName>),
    /// Its interface is in another network namespace, and we see no hardware at all in ours: we are probably not where
    /// the node's interfaces are, and could not tell the lifeline.
    OutOfSight,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Healthy => f.write_str("healthy"),
            Health::NoCarrier(interface) => write!(f, "{interface} is up and has no carrier"),
            Health::Stranger(stranger) => stranger.fmt(f),
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Skip::Lifeline { interface, reason } => write!(f, "{interface} {reason}"),
            Skip::LatelyLifeline { interface, reason } => {
                write!(f, "{interface} carried the node until a moment ago ({interface} {reason})")
            }
            Skip::NoInterface(driver) => write!(f, "its driver {driver} has made no interface"),
            Skip::NoDriver => f.write_str("no driver is bound to it"),
            Skip::Unwanted(unwanted) => unwanted.fmt(f),
            Skip::SeveralInterfaces(names) => {
                let names: Vec<&str> = names.iter().map(IfName::as_str).collect();
                write!(f, "it has {} interfaces ({}), a pod gets one", names.len(), names.join(", "))
            }
            Skip::OutOfSight => f.write_str(
                "its interface is in another network namespace, and this one has no hardware at all: the agent must run \
                 in the node's network namespace (hostNetwork: true)",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::sample::link;
    use crate::{Pool, Route};

    fn pools() -> Pools {
        Pools::new(vec![Pool::of_drivers("kernel.org/virt".parse().unwrap(), vec!["virtio_net".into()])])
    }

    fn interface(index: u32, name: &str) -> Interface {
        Interface { index, name: name.parse().unwrap(), hardware: true }
    }

    fn nic(id: &str, interfaces: &[Interface]) -> Nic {
        Nic {
            id: id.parse().unwrap(),
            bus_name: "virtio0".into(),
            pci: id.parse().ok(),
            above: vec![],
            acpi_index: None,
            driver: Some("virtio_net".into()),
            hardware: None,
            numa_node: None,
            interfaces: interfaces.to_vec(),
            has_interface: true,
        }
    }

    /// A node with `eth0` as uplink, and the interfaces and NICs given.
    fn node(nics: &[Nic], links: &[Link], leased: &[&str]) -> NodeFacts {
        let uplink = link(2, "eth0");
        let route = Route {
            destination: "0.0.0.0".parse().unwrap(),
            prefix_len: 0,
            table: 254,
            priority: 0,
            outputs: vec![2],
            gateway: None,
            unicast: true,
        };
        let mut all = vec![uplink];
        all.extend_from_slice(links);
        let shown: Vec<_> = all
            .iter()
            .map(|l| Interface { index: l.index, name: l.name.clone(), hardware: l.kind.is_none() })
            .collect();
        let lifeline = Lifeline::find(&all, &[route], &[], &[]).unwrap();
        let leased = leased.iter().map(|id| id.parse().unwrap()).collect();
        NodeFacts::new(nics.to_vec(), &shown, all, lifeline, leased).unwrap()
    }

    fn why(node: &NodeFacts, nic: &Nic) -> String {
        match node.judge(&View { nic, home: None, metadata: None }, &pools()).standing {
            Standing::Offered(health) => format!("offered: {health}"),
            Standing::Insisted(health, lifeline) => format!("offered although {lifeline}: {health}"),
            Standing::Skipped(skip) => skip.to_string(),
        }
    }

    #[test]
    fn the_uplink_is_skipped_even_if_its_driver_fits() {
        let uplink = nic("0000:00:03.0", &[interface(2, "eth0")]);
        let node = node(std::slice::from_ref(&uplink), &[], &[]);
        assert_eq!(why(&node, &uplink), "eth0 carries the IPv4 default route (table 254, metric 0)");
    }

    #[test]
    fn who_insists_lifts_the_lifeline_of_that_device_and_nothing_else() {
        let uplink = nic("0000:00:03.0", &[interface(2, "eth0")]);
        let e1000 = Nic { driver: Some("e1000".into()), ..uplink.clone() };
        let both = nic("0000:00:03.0", &[interface(2, "eth0"), interface(3, "eth1")]);
        let links = [link(3, "eth1")];
        let insisting = |on: &[&str]| {
            node(&[], &links, &[]).insisting_on(on.iter().map(|id| id.parse().unwrap()).collect())
        };
        let on_it = insisting(&["0000:00:03.0"]);
        assert_eq!(
            why(&on_it, &uplink),
            "offered although eth0 carries the IPv4 default route (table 254, metric 0): healthy"
        );
        assert_eq!(why(&on_it, &nic("0000:00:0a.0", &[interface(3, "eth1")])), "offered: healthy");
        assert!(why(&on_it, &e1000).contains("not in the pool's list"));
        assert!(why(&on_it, &both).contains("2 interfaces"));
        assert!(why(&insisting(&["0000:00:0a.0"]), &uplink).starts_with("eth0 carries"));
    }

    #[test]
    fn other_drivers_and_none_are_named() {
        let e1000 = Nic { driver: Some("e1000".into()), ..nic("0000:00:05.0", &[]) };
        let bare = Nic { driver: None, ..nic("0000:00:06.0", &[]) };
        let node = node(&[], &[], &[]);
        assert_eq!(why(&node, &e1000), "driver e1000 is not in the pool's list (virtio_net)");
        assert_eq!(why(&node, &bare), "no driver is bound to it");
    }

    #[test]
    fn a_lost_carrier_is_ill_and_admin_down_is_not() {
        let down = Link { up: false, carrier: false, ..link(3, "eth1") };
        let lost = Link { up: true, carrier: false, ..link(4, "eth2") };
        let node = node(&[], &[down, lost], &[]);
        assert_eq!(why(&node, &nic("0000:00:0a.0", &[interface(3, "eth1")])), "offered: healthy");
        assert_eq!(
            why(&node, &nic("0000:00:0b.0", &[interface(4, "eth2")])),
            "offered: eth2 is up and has no carrier"
        );
    }

    #[test]
    fn a_nic_in_a_pod_stays_offered_and_one_that_never_had_an_interface_is_not() {
        let away = nic("0000:00:0a.0", &[]);
        assert_eq!(why(&node(&[], &[], &[]), &away), "offered: healthy");
        let bare = Nic { has_interface: false, ..away };
        assert_eq!(why(&node(&[], &[], &[]), &bare), "its driver virtio_net has made no interface");
        assert_eq!(why(&node(&[], &[], &["0000:00:0a.0"]), &bare), "offered: healthy");
        let vfio = Nic { driver: Some(VFIO_PCI.to_owned()), ..bare };
        let pools =
            Pools::new(vec![Pool::of_drivers("kernel.org/virt".parse().unwrap(), vec![VFIO_PCI.into()])]);
        let verdict = node(&[], &[], &[]).judge(&View { nic: &vfio, home: None, metadata: None }, &pools);
        assert_eq!(verdict.standing, Standing::Offered(Health::Healthy));
    }

    #[test]
    fn where_no_hardware_is_seen_only_leased_nics_are_offered() {
        let lo = Link { loopback: true, ..link(1, "lo") };
        let shown = [Interface { hardware: false, ..interface(1, "lo") }];
        let lifeline = Lifeline::find(std::slice::from_ref(&lo), &[], &[], &[]).unwrap();
        let leased = BTreeSet::from(["0000:00:0a.0".parse().unwrap()]);
        let node = NodeFacts::new(vec![], &shown, vec![lo], lifeline, leased).unwrap();
        assert_eq!(why(&node, &nic("0000:00:0a.0", &[])), "offered: healthy");
        assert!(why(&node, &nic("0000:00:0b.0", &[])).contains("hostNetwork: true"));
    }

    #[test]
    fn a_device_with_two_interfaces_is_not_split() {
        let links = [link(3, "eth1"), link(4, "eth2")];
        let both = nic("0000:00:0a.0", &[interface(3, "eth1"), interface(4, "eth2")]);
        assert_eq!(why(&node(&[], &links, &[]), &both), "it has 2 interfaces (eth1, eth2), a pod gets one");
    }

    #[test]
    fn facts_from_two_namespaces_are_refused() {
        let links = vec![link(2, "eth0")];
        let lifeline = Lifeline::find(&links, &[], &[], &[]).unwrap();
        let new = |nics, shown: &[Interface]| {
            NodeFacts::new(nics, shown, links.clone(), lifeline.clone(), BTreeSet::new())
        };
        assert!(new(vec![], &[interface(2, "eth0")]).is_ok());
        assert!(new(vec![], &[interface(7, "eth0")]).is_err());
        assert!(new(vec![], &[]).is_err());
        let stranger = nic("0000:00:0a.0", &[interface(9, "eth9")]);
        let refused = new(vec![stranger], &[interface(2, "eth0")]).unwrap_err();
        assert!(refused.to_string().contains("(eth9 only in one of them)"), "{refused}");
    }

    #[test]
    fn every_other_interface_has_its_reason() {
        let lo = Link { loopback: true, ..link(1, "lo") };
        let bond = Link { kind: Some("bond".into()), ..link(9, "bond0") };
        let node = node(&[], &[lo, bond], &[]);
        let why: Vec<_> =
            node.others().into_iter().map(|(link, why)| format!("{}: {why}", link.name)).collect();
        assert_eq!(
            why,
            [
                "lo: is the loopback interface",
                "eth0: is not backed by a device; carries the IPv4 default route (table 254, metric 0)",
                "bond0: is a virtual interface (bond)",
            ]
        );
    }
}
