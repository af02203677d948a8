//! What a NIC must be like to belong to a pool.
//!
//! An answer is yes, no, or that it cannot be told from here: the name of a NIC that left before anybody looked, the network of one whose
//! MAC nobody knows. What cannot be told selects nothing, and excludes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{IfName, Link, MacAddr, Nic, Pattern, PciAddress};

/// Demands that a NIC must meet all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The demands. None at all is met by every NIC.
    pub demands: Vec<Demand>,
    /// What a pod gets with a NIC that this selected.
    pub needs: Needs,
}

/// One thing that a NIC must be like: one of several values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The vendor's number.
    Vendors(Vec<u16>),
    /// The vendor's number for the device.
    Devices(Vec<u16>),
    /// The bound driver.
    Drivers(Vec<String>),
    /// The PCI function that it is, or sits on.
    PciAddresses(Vec<PciAddress>),
    /// What the firmware numbered it (PCI firmware specification 3.0, `_DSM` for slots).
    AcpiIndexes(Vec<u32>),
    /// What it sits behind: the physical function of a virtual one, a root port, a bridge.
    RootDevices(Vec<PciAddress>),
    /// It speaks Ethernet.
    Ethernet,
    /// The interface's name at home.
    Names(Vec<Pattern>),
    /// The address that it was made with, else that which it has at home.
    Macs(Vec<MacAddr>),
    /// The MTU at home, in bytes.
    Mtus(Vec<u32>),
    /// At least so many receive queues.
    Queues(u32),
    /// The network that the VM's metadata say it is in.
    NetworkIds(Vec<String>),
    /// A tag that the VM's metadata give it.
    Tags(Vec<String>),
    /// No NIC here can be like that, for the reason given.
    Nothing(String),
}

/// Devices of the node that a pod gets together with a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// `/dev/vhost-net`.
    pub vhost_net: bool,
    /// `/dev/net/tun`.
    pub tun: bool,
}

/// What a NIC is like in the node's network namespace: as it is seen there, or as it was when it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtHome {
    /// The interface's name.
    pub name: IfName,
    /// The address that it was made with, else the one that it has.
    pub mac: Option<MacAddr>,
    /// In bytes.
    pub mtu: u32,
    /// Receive queues; not everybody who remembers a NIC knows it.
    pub queues: Option<u32>,
}

impl From<&Link> for AtHome {
    fn from(link: &Link) -> Self {
        AtHome {
            name: link.name.clone(),
            mac: link.permanent_mac.or(link.mac),
            mtu: link.mtu,
            queues: link.rx_queues,
        }
    }
}

/// What the VM's metadata say of its NICs, by MAC: the PCI addresses in them are those that the host had in mind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(pub BTreeMap<MacAddr, Told>);

/// What they say of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The networks that its port is in.
    pub network_ids: BTreeSet<String>,
    /// What the user wrote on it.
    pub tags: BTreeSet<String>,
}

/// All that is known of a NIC when it is selected.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The device.
    pub nic: &'a Nic,
    /// What it is like at home, if that is known.
    pub home: Option<&'a AtHome>,
    /// The VM's metadata, if they could be read.
    pub metadata: Option<&'a Metadata>,
}

impl View<'_> {
    /// What the metadata say of this NIC. Nothing, where they do not know its MAC; unknown, where that or they are.
    #[must_use]
    pub fn told(&self) -> Option<Told> {
        let mac = self.home?.mac?;
        Some(self.metadata?.0.get(&mac).cloned().unwrap_or_default())
    }
}

impl Selector {
    /// Whether the NIC meets all demands; `None` if that cannot be told.
    #[must_use]
    pub fn is_met(&self, view: &View<'_>) -> Option<bool> {
        let mut all = Some(true);
        for demand in &self.demands {
            match demand.is_met(view) {
                Some(false) => return Some(false),
                None => all = None,
                Some(true) => {}
            }
        }
        all
    }

    /// The first demand that is not met, in words.
    #[must_use]
    pub fn why_not(&self, view: &View<'_>) -> Option<String> {
        let unmet = |wanted| self.demands.iter().find(move |demand| demand.is_met(view) == wanted);
        unmet(Some(false)).or_else(|| unmet(None)).map(|demand| demand.why_not(view))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let demands: Vec<String> = self.demands.iter().map(ToString::to_string).collect();
        f.write_str(&if demands.is_empty() { "any NIC".to_owned() } else { demands.join(", ") })
    }
}

impl Demand {
    fn is_met(&self, view: &View<'_>) -> Option<bool> {
        let View { nic, home, .. } = *view;
        Some(match self {
            Demand::Vendors(wanted) => wanted.contains(&nic.hardware?.vendor),
            Demand::Devices(wanted) => wanted.contains(&nic.hardware?.device),
            Demand::Drivers(wanted) => nic.driver.as_ref().is_some_and(|driver| wanted.contains(driver)),
            Demand::PciAddresses(wanted) => nic.pci.is_some_and(|pci| wanted.contains(&pci)),
            Demand::AcpiIndexes(wanted) => nic.acpi_index.is_some_and(|index| wanted.contains(&index)),
            Demand::RootDevices(wanted) => nic.above.iter().any(|above| wanted.contains(above)),
            Demand::Ethernet => home?.mac.is_some(),
            Demand::Names(wanted) => {
                let name = &home?.name;
                wanted.iter().any(|pattern| pattern.matches(name))
            }
            Demand::Macs(wanted) => wanted.contains(&home?.mac?),
            Demand::Mtus(wanted) => wanted.contains(&home?.mtu),
            Demand::Queues(least) => home?.queues? >= *least,
            Demand::NetworkIds(wanted) => {
                let told = view.told()?;
                wanted.iter().any(|id| told.network_ids.contains(id))
            }
            Demand::Tags(wanted) => {
                let told = view.told()?;
                wanted.iter().any(|tag| told.tags.contains(tag))
            }
            Demand::Nothing(_) => false,
        })
    }

    /// What the NIC has instead of what is demanded.
    fn why_not(&self, view: &View<'_>) -> String {
        let View { nic, home, .. } = *view;
        let has = match self {
            Demand::Vendors(_) => nic.hardware.map(|hardware| format!("vendor {:04x}", hardware.vendor)),
            Demand::Devices(_) => nic.hardware.map(|hardware| format!("device {:04x}", hardware.device)),
            Demand::Drivers(_) => Some(match &nic.driver {
                Some(driver) => format!("driver {driver}"),
                None => "no driver".to_owned(),
            }),
            Demand::PciAddresses(_) => {
                Some(nic.pci.map_or("no PCI address".to_owned(), |pci| format!("PCI address {pci}")))
            }
            Demand::AcpiIndexes(_) => {
                Some(nic.acpi_index.map_or("no ACPI index".to_owned(), |index| format!("ACPI index {index}")))
            }
            Demand::RootDevices(_) if nic.above.is_empty() => Some("no PCI device above it".to_owned()),
            Demand::RootDevices(_) => {
                let above: Vec<String> = nic.above.iter().map(ToString::to_string).collect();
                Some(format!("what it sits behind ({})", above.join(", ")))
            }
            Demand::Ethernet => home.map(|_| "its link type".to_owned()),
            Demand::Names(_) => home.map(|home| format!("name {}", home.name)),
            Demand::Macs(_) => home.and_then(|home| home.mac).map(|mac| format!("MAC {mac}")),
            Demand::Mtus(_) => home.map(|home| format!("MTU {}", home.mtu)),
            Demand::Queues(least) => {
                let queues = home.and_then(|home| home.queues);
                return match queues {
                    Some(queues) => format!("it has {queues} receive queues, the pool wants {least}"),
                    None => "how many receive queues it has cannot be told from here".to_owned(),
                };
            }
            Demand::NetworkIds(_) => view.told().map(|told| listed("network", &told.network_ids)),
            Demand::Tags(_) => view.told().map(|told| listed("tag", &told.tags)),
            Demand::Nothing(why) => return why.clone(),
        };
        match has {
            Some(has) => format!("{has} is not in the pool's list ({})", self.values()),
            None => format!("{} cannot be told from here", self.subject()),
        }
    }

    /// What it is about, as it is called in a sentence.
    fn subject(&self) -> &'static str {
        match self {
            Demand::Vendors(_) => "its vendor",
            Demand::Devices(_) => "its device number",
            Demand::Drivers(_) => "its driver",
            Demand::PciAddresses(_) => "its PCI address",
            Demand::AcpiIndexes(_) => "its ACPI index",
            Demand::RootDevices(_) => "what it sits behind",
            Demand::Ethernet => "its link type",
            Demand::Names(_) => "its name at home",
            Demand::Macs(_) => "its MAC",
            Demand::Mtus(_) => "its MTU at home",
            Demand::Queues(_) => "its receive queues",
            Demand::NetworkIds(_) => "its network",
            Demand::Tags(_) => "its tags",
            Demand::Nothing(_) => "it",
        }
    }

    fn values(&self) -> String {
        match self {
            Demand::Vendors(values) | Demand::Devices(values) => {
                joined(values.iter().map(|number| format!("{number:04x}")))
            }
            Demand::Drivers(values) | Demand::NetworkIds(values) | Demand::Tags(values) => values.join(", "),
            Demand::PciAddresses(values) | Demand::RootDevices(values) => {
                joined(values.iter().map(ToString::to_string))
            }
            Demand::AcpiIndexes(values) | Demand::Mtus(values) => {
                joined(values.iter().map(ToString::to_string))
            }
            Demand::Ethernet => "ether".to_owned(),
            Demand::Names(values) => joined(values.iter().map(ToString::to_string)),
            Demand::Macs(values) => joined(values.iter().map(ToString::to_string)),
            Demand::Queues(least) => format!("{least} or more"),
            Demand::Nothing(why) => why.clone(),
        }
    }
}

fn listed(what: &str, values: &BTreeSet<String>) -> String {
    if values.is_empty() {
        return format!("no {what}");
    }
    format!("{what} {}", joined(values.iter().cloned()))
}

fn joined(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(", ")
}

/// As in a configuration, without the quotes.
impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self {
            Demand::Vendors(_) => "vendors",
            Demand::Devices(_) => "devices",
            Demand::Drivers(_) => "drivers",
            Demand::PciAddresses(_) => "pciAddresses",
            Demand::AcpiIndexes(_) => "acpiIndexes",
            Demand::RootDevices(_) => "rootDevices",
            Demand::Ethernet => "linkTypes",
            Demand::Names(_) => "names",
            Demand::Macs(_) => "macs",
            Demand::Mtus(_) => "mtus",
            Demand::Queues(_) => "queues",
            Demand::NetworkIds(_) => "networkIds",
            Demand::Tags(_) => "tags",
            Demand::Nothing(why) => return write!(f, "nothing ({why})"),
        };
        write!(f, "{key} {}", self.values())
    }
}
