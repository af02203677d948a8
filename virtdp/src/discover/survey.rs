//! What was found in one look at the node, judged. Plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use config::Config;
use ledger::{Listing, Stage};
use linux::Unreadable;
use nic::{
    AtHome, DeviceId, Health, IfName, Link, MacAddr, Membership, Metadata, Nic, NodeFacts, Skip, Standing,
    Told, View,
};

use crate::repatriate::Stray;

/// One look at the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// All NICs, in the order of their addresses.
    pub(crate) nics: Vec<Seen>,
    /// The interfaces that belong to none of them.
    pub(crate) others: Vec<Other>,
    /// Devices that look like NICs and cannot be understood.
    pub(crate) unreadable: Vec<Unreadable>,
    /// Which NICs the ledger says are away, and for whom.
    pub(crate) leases: BTreeMap<DeviceId, Lease>,
    /// Which of those are on the node in nobody's hands; empty for who does not look for them.
    pub(crate) stray: BTreeMap<DeviceId, Stray>,
    /// Which NICs an operator offers even if they carry the node.
    pub(crate) insisted: BTreeSet<DeviceId>,
    /// What is in the ledger, counted.
    pub(crate) ledger: Tally,
    /// The configuration that they were judged by.
    pub(crate) config: Arc<Config>,
}

/// What is known besides what can be seen in this look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Which NICs the ledger says are away, and for whom.
    pub(crate) leases: BTreeMap<DeviceId, Lease>,
    /// What is in the ledger, counted.
    pub(crate) tally: Tally,
    /// What the ledger says that NICs are like at home; and of others what they were like when they were seen last.
    pub(crate) homes: BTreeMap<DeviceId, AtHome>,
    /// The VM's metadata, if there are any and they could be read.
    pub(crate) metadata: Option<Metadata>,
}

/// How many leases there are, by stage, and how many files that are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// The folder could be listed: the counts are of now.
    pub(crate) listed: bool,
    pub(crate) prepared: u64,
    pub(crate) plumbed: u64,
    pub(crate) returning: u64,
    pub(crate) displaced: u64,
    pub(crate) unusable: u64,
}

impl Tally {
    /// Counts a listing.
    pub(crate) fn of(listing: &Listing) -> Tally {
        let mut tally = Tally { listed: true, ..Tally::default() };
        for lease in &listing.leases {
            let count = match lease.stage {
                Stage::Prepared => &mut tally.prepared,
                Stage::Plumbed { .. } => &mut tally.plumbed,
                Stage::Returning { .. } => &mut tally.returning,
                Stage::Displaced { .. } => &mut tally.displaced,
            };
            *count += 1;
        }
        tally.unusable = u64::try_from(listing.unusable.len()).unwrap_or(u64::MAX);
        tally
    }
}

/// A NIC, and the verdict on it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) nic: Nic,
    /// Its link, while it is in the node's network namespace.
    pub(crate) link: Option<Link>,
    pub(crate) standing: Standing,
    /// The pool that wants it: there is one if it is offered.
    pub(crate) membership: Option<Membership>,
    /// What the VM's metadata say of it.
    pub(crate) told: Option<Told>,
}

/// An interface that is no NIC of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) name: IfName,
    pub(crate) why: String,
    /// It is made by software, or the loopback interface: such ones come and go with every pod.
    pub(crate) software: bool,
}

/// What the ledger says of a NIC that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// For whom it left, in words.
    pub(crate) owner: String,
    /// The MAC that it was made with.
    pub(crate) mac: Option<MacAddr>,
    /// The pod that has it, and what it is called there; where that is known.
    pub(crate) pod: Option<(ledger::Pod, IfName)>,
}

impl Survey {
    /// Judges what was read.
    pub(crate) fn of(
        facts: &NodeFacts,
        unreadable: Vec<Unreadable>,
        memory: &Memory,
        config: Arc<Config>,
    ) -> Survey {
        let seen = |nic: &Nic| {
            let view = View { nic, home: memory.homes.get(&nic.id), metadata: memory.metadata.as_ref() };
            let verdict = facts.judge(&view, &config.pools);
            Seen {
                nic: nic.clone(),
                link: facts.link(nic).cloned(),
                standing: verdict.standing,
                membership: verdict.membership,
                told: view.told(),
            }
        };
        let other = |(link, why): (&Link, String)| Other {
            name: link.name.clone(),
            why,
            software: link.loopback || link.kind.is_some(),
        };
        Survey {
            nics: facts.nics().iter().map(seen).collect(),
            others: facts.others().into_iter().map(other).collect(),
            unreadable,
            leases: memory.leases.clone(),
            stray: BTreeMap::new(),
            insisted: facts.insisted().clone(),
            ledger: memory.tally,
            config,
        }
    }

    /// Whether a NIC is another than somebody was given by its ID, or is held back for a while.
    pub(crate) fn has_waiting(&self) -> bool {
        let held = |standing: &Standing| matches!(standing, Standing::Skipped(Skip::LatelyLifeline { .. }));
        let strange = |standing: &Standing| matches!(standing.health(), Some(Health::Stranger(_)));
        self.nics.iter().any(|seen| held(&seen.standing) || strange(&seen.standing))
    }
}

impl Seen {
    /// What the hardware was made with, as far as that can be seen from here.
    pub(crate) fn mac(&self) -> Option<MacAddr> {
        let link = self.link.as_ref()?;
        link.permanent_mac.or(link.mac)
    }

    /// The interfaces that can be seen from here, in words.
    pub(crate) fn interfaces(&self) -> String {
        let names: Vec<&str> = self.nic.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        names.join(",")
    }
}

#[cfg(test)]
pub(crate) mod sample {
    use nic::Nic;

    /// A virtio NIC whose interface is not to be seen.
    pub(crate) fn nic(device: &str) -> Nic {
        Nic {
            id: device.parse().unwrap(),
            pci: device.parse().ok(),
            bus_name: "virtio0".into(),
            above: Vec::new(),
            acpi_index: None,
            driver: Some("virtio_net".into()),
            hardware: None,
            numa_node: None,
            interfaces: Vec::new(),
            has_interface: true,
        }
    }
}
