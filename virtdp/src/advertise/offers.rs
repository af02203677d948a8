//! What is offered to the kubelet, and for how long. Pure: time and facts are passed in.
//!
//! The invariant: a device that the kubelet may have given to a pod never vanishes from the list. The kubelet looks a device's
//! entry up after Allocate and dies if it is gone (v1.36). So what is not offered any more is listed as Unhealthy first, and
//! leaves the list only after a moment, when nobody has it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nic::{DeviceId, Health, MacAddr, PciAddress, Standing, Used};
use tokio::time::Instant;

use crate::allocate::VFIO;
use crate::discover::{Seen, Survey};

/// How long what is withdrawn is listed as Unhealthy before it leaves the list.
pub(crate) const WITHDRAWN_FOR: Duration = Duration::from_secs(5);
/// How long a device counts as given away after Allocate: by then the pod's ADD has made a lease, or has failed.
pub(crate) const IN_FLIGHT_FOR: Duration = Duration::from_secs(5 * 60);

/// One device in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) id: DeviceId,
    /// Why it is Unhealthy; `None` is Healthy.
    pub(crate) ill: Option<String>,
    pub(crate) numa_node: Option<u16>,
    pub(crate) pci: Option<PciAddress>,
    pub(crate) driver: Option<String>,
    /// What the hardware was made with, where that is known.
    pub(crate) mac: Option<MacAddr>,
    pub(crate) used: LastUse,
}

/// When a device was in a pod's hands last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LastUse {
    /// Not since this process started.
    #[default]
    Unknown,
    /// It was given to a pod, or came home.
    At(Instant),
    /// It is away, by the ledger or because its interface is not here.
    Away,
}

impl Offer {
    /// For the choice of devices.
    pub(crate) fn used(&self, now: Instant) -> Used {
        match self.used {
            LastUse::Unknown => Used::Never,
            LastUse::At(when) => Used::before(now.saturating_duration_since(when)),
            LastUse::Away => Used::Now,
        }
    }
}

/// Why a device cannot be allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is not in the list.
    #[error("device {0} is not offered{1}")]
    Unknown(String, String),
    /// It is in the list as Unhealthy.
    #[error("device {0} is unhealthy: {1}")]
    Ill(DeviceId, String),
}

impl Refusal {
    /// All that [`Refusal::class`] may be.
    pub(crate) const CLASSES: [&str; 2] = ["unknown", "unhealthy"];

    /// The reason in one word, for metrics.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Refusal::Unknown(..) => "unknown",
            Refusal::Ill(..) => "unhealthy",
        }
    }
}

/// All that is offered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offers {
    /// By ID, in the order of addresses.
    entries: BTreeMap<(Option<PciAddress>, DeviceId), Entry>,
    /// Why a NIC of this node is not offered.
    skipped: BTreeMap<DeviceId, String>,
    leased: BTreeSet<DeviceId>,
    /// Nothing is known since the last look.
    blind: Option<String>,
}

#[derive(Clone, Debug)]
struct Entry {
    offer: Offer,
    /// Since when it is not to be offered any more.
    withdrawn: Option<Instant>,
    in_flight_until: Option<Instant>,
}

impl Offers {
    /// Begins with what a look at the node shows. `given` are the devices that the kubelet gave to pods before this process
    /// started: those that are not offered now are listed as Unhealthy.
    pub(crate) fn begin(survey: &Survey, given: &BTreeSet<DeviceId>, now: Instant) -> Self {
        let mut offers = Offers::default();
        for id in given {
            let pci = id.pci();
            let used = LastUse::At(now);
            let offer =
                Offer { id: id.clone(), ill: None, numa_node: None, pci, driver: None, mac: None, used };
            let entry = Entry { offer, withdrawn: None, in_flight_until: None };
            offers.entries.insert((pci, id.clone()), entry);
        }
        offers.update(survey, now);
        offers
    }

    /// Takes in a new look at the node.
    pub(crate) fn update(&mut self, survey: &Survey, now: Instant) {
        self.blind = None;
        self.leased = survey.leases.keys().cloned().collect();
        self.skipped.clear();
        let mut offered = BTreeSet::new();
        for seen in &survey.nics {
            let key = (seen.nic.id.pci(), seen.nic.id.clone());
            match &seen.standing {
                Standing::Offered(health) | Standing::Insisted(health, _) => {
                    self.offer(&key, seen, health, survey, now);
                    offered.insert(key);
                }
                Standing::Skipped(skip) => drop(self.skipped.insert(key.1, skip.to_string())),
            }
        }
        for (key, entry) in &mut self.entries {
            if !offered.contains(key) {
                let gone = || "the device is gone from the node".to_owned();
                entry.offer.ill = Some(self.skipped.get(&key.1).cloned().unwrap_or_else(gone));
                entry.withdrawn.get_or_insert(now);
            }
        }
    }

    fn offer(
        &mut self,
        key: &(Option<PciAddress>, DeviceId),
        seen: &Seen,
        health: &Health,
        survey: &Survey,
        now: Instant,
    ) {
        let known = self.entries.remove(key);
        let lease = survey.leases.get(&seen.nic.id);
        // Only what vfio holds has no interface anywhere.
        let is_here = !seen.nic.interfaces.is_empty() || seen.nic.driver.as_deref() == Some(VFIO);
        let used = match known.as_ref().map(|entry| entry.offer.used).unwrap_or_default() {
            _ if lease.is_some() || !is_here => LastUse::Away,
            LastUse::Away => LastUse::At(now),
            before => before,
        };
        let known_mac = known.as_ref().and_then(|entry| entry.offer.mac);
        let offer = Offer {
            id: seen.nic.id.clone(),
            ill: match health {
                Health::Healthy => None,
                ill @ (Health::NoCarrier(_) | Health::Stranger(_)) => Some(ill.to_string()),
            },
            numa_node: seen.nic.numa_node,
            pci: seen.nic.pci,
            driver: seen.nic.driver.clone(),
            // From afar, the MAC of a NIC in a pod cannot be seen.
            mac: seen.mac().or_else(|| lease?.mac).or(known_mac),
            used,
        };
        let in_flight_until = known.and_then(|entry| entry.in_flight_until);
        self.entries.insert(key.clone(), Entry { offer, withdrawn: None, in_flight_until });
    }

    /// The node cannot be read: until it can, nothing is offered but what pods have.
    pub(crate) fn go_blind(&mut self, why: &str) {
        self.blind = Some(format!("the node cannot be read: {why}"));
    }

    /// Drops what has been withdrawn long enough and nobody has. `given` is what the kubelet has given to pods.
    pub(crate) fn expire(&mut self, given: &BTreeSet<DeviceId>, now: Instant) {
        let leased = &self.leased;
        self.entries.retain(|(_, id), entry| {
            let in_flight = entry.in_flight_until.is_some_and(|until| now < until);
            let fresh = entry.withdrawn.is_none_or(|since| now < since + WITHDRAWN_FOR);
            fresh || in_flight || leased.contains(id) || given.contains(id)
        });
    }

    /// When [`Offers::expire`] may have something to do.
    pub(crate) fn expires(&self, now: Instant) -> Option<Instant> {
        let withdrawn = self.entries.values().filter_map(|entry| entry.withdrawn);
        withdrawn.map(|since| (since + WITHDRAWN_FOR).max(now + WITHDRAWN_FOR / 5)).min()
    }

    /// The list, in the order of addresses.
    pub(crate) fn list(&self) -> Vec<Offer> {
        self.entries
            .values()
            .map(|entry| {
                let mut offer = entry.offer.clone();
                if !self.leased.contains(&offer.id) {
                    offer.ill = self.blind.clone().or(offer.ill);
                }
                offer
            })
            .collect()
    }

    /// What is to be made known to containers again after a restart: what pods have.
    pub(crate) fn in_use(&self, given: &BTreeSet<DeviceId>) -> Vec<Offer> {
        let in_use = |offer: &Offer| self.leased.contains(&offer.id) || given.contains(&offer.id);
        self.list().into_iter().filter(in_use).collect()
    }

    /// Gives devices to a container, in the order of addresses and each once.
    ///
    /// That a device is in use already is no error: the containers of a pod may use those of its init containers, and the
    /// kubelet asks again then.
    ///
    /// # Errors
    /// A device is not offered, or is Unhealthy. Nothing is given then.
    pub(crate) fn allocate(&mut self, ids: &[String], now: Instant) -> Result<Vec<Offer>, Refusal> {
        let list = self.list();
        let wanted: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        for id in &wanted {
            match list.iter().find(|offer| offer.id.as_str() == *id) {
                Some(Offer { ill: None, .. }) => {}
                Some(Offer { ill: Some(why), id, .. }) => return Err(Refusal::Ill(id.clone(), why.clone())),
                None => {
                    // What the kubelet sends cannot be trusted to be short.
                    let shown = id.chars().take(63).flat_map(char::escape_debug).collect();
                    let why = self.skipped.iter().find(|(skipped, _)| skipped.as_str() == *id);
                    let why = why.map(|(_, why)| format!(": {why}")).unwrap_or_default();
                    return Err(Refusal::Unknown(shown, why));
                }
            }
        }
        for ((_, id), entry) in &mut self.entries {
            if wanted.contains(id.as_str()) {
                entry.in_flight_until = Some(now + IN_FLIGHT_FOR);
                if entry.offer.used != LastUse::Away {
                    entry.offer.used = LastUse::At(now);
                }
            }
        }
        Ok(list.into_iter().filter(|offer| wanted.contains(offer.id.as_str())).collect())
    }
}

#[cfg(test)]
mod tests;
