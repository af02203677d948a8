//! What is offered to the kubelet, and for how long. Pure: time and facts are passed in.
//!
//! The invariant: a device that the kubelet may have given to a pod never vanishes from the list. The kubelet looks a device's
//! entry up after Allocate and dies if it is gone (v1.36). So what is not offered any more is listed as Unhealthy first, and
//! leaves the list only after a moment, when nobody has it. A device is in the list of one resource only; it changes over to another as
//! if it had left and come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nic::{
    DeviceId, Health, MacAddr, Membership, Needs, PciAddress, Pool, Pools, ResourceName, Skip, Standing,
    Used, VFIO_PCI,
};
use tokio::time::Instant;

use crate::discover::{Seen, Survey};

/// How long what is withdrawn is listed as Unhealthy before it leaves the list.
pub(crate) const WITHDRAWN_FOR: Duration = Duration::from_secs(5);
/// How long a device counts as given away after Allocate: by then the pod's ADD has made a lease, or has failed.
pub(crate) const IN_FLIGHT_FOR: Duration = Duration::from_secs(5 * 60);

/// What the kubelet has given to pods, each with the resource as which it did.
pub(crate) type Given = BTreeMap<DeviceId, ResourceName>;

/// One device in the list of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) id: DeviceId,
    /// The pool that it is in.
    pub(crate) pool: Arc<Pool>,
    /// What a pod gets with it.
    pub(crate) needs: Needs,
    /// Why it is Unhealthy; `None` is Healthy.
    pub(crate) ill: Option<String>,
    pub(crate) numa_node: Option<u16>,
    pub(crate) pci: Option<PciAddress>,
    pub(crate) driver: Option<String>,
    /// What the hardware was made with, where that is known.
    pub(crate) mac: Option<MacAddr>,
    /// What the VM's metadata call the network that it is in.
    pub(crate) network: Option<String>,
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
    /// A device of which nothing else is known.
    pub(crate) fn bare(id: DeviceId, pool: Arc<Pool>) -> Offer {
        let needs = Needs::default();
        Offer {
            pci: id.pci(),
            id,
            pool,
            needs,
            ill: None,
            numa_node: None,
            driver: None,
            mac: None,
            network: None,
            used: LastUse::Unknown,
        }
    }

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

    /// Of a device that is not in the list. What the kubelet sends as its ID cannot be trusted to be short.
    pub(super) fn unknown(id: &str, why: String) -> Refusal {
        Refusal::Unknown(id.chars().take(63).flat_map(char::escape_debug).collect(), why)
    }

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
    skipped: BTreeMap<DeviceId, Skip>,
    /// What is configured.
    pools: Pools,
    leased: BTreeSet<DeviceId>,
    /// Nothing is known since the last look.
    blind: Option<String>,
}

#[derive(Clone, Debug)]
struct Entry {
    offer: Offer,
    /// Its pool does not want it any more: why. That is no illness of a NIC that a pod has.
    unwanted: Option<String>,
    /// What it is in the list of another resource, as soon as it has left this one.
    next: Option<Offer>,
    /// Since when it is not to be offered any more.
    withdrawn: Option<Instant>,
    in_flight_until: Option<Instant>,
}

impl Offers {
    /// Begins with what a look at the node shows. `given` are the devices that the kubelet gave to pods before this process
    /// started: those that are not offered now are listed as Unhealthy.
    pub(crate) fn begin(survey: &Survey, given: &Given, now: Instant) -> Self {
        let mut offers = Offers::default();
        for (id, resource) in given {
            let pool = survey.config.pools.of(resource).cloned();
            let pool = pool.unwrap_or_else(|| Arc::new(Pool::empty(resource.clone())));
            let offer = Offer { used: LastUse::At(now), ..Offer::bare(id.clone(), pool) };
            offers.entries.insert((id.pci(), id.clone()), Entry::new(offer));
        }
        offers.update(survey, now);
        offers
    }

    /// Takes in a new look at the node.
    pub(crate) fn update(&mut self, survey: &Survey, now: Instant) {
        self.blind = None;
        self.leased = survey.leases.keys().cloned().collect();
        self.pools = survey.config.pools.clone();
        self.skipped.clear();
        let mut offered = BTreeSet::new();
        for seen in &survey.nics {
            let key = (seen.nic.id.pci(), seen.nic.id.clone());
            match (&seen.standing, &seen.membership) {
                (Standing::Offered(health) | Standing::Insisted(health, _), Some(membership)) => {
                    let lease = survey.leases.get(&seen.nic.id);
                    let mut offer = offer(seen, membership, health, lease.and_then(|lease| lease.mac));
                    // Only what vfio holds has no interface anywhere.
                    let is_here =
                        !seen.nic.interfaces.is_empty() || seen.nic.driver.as_deref() == Some(VFIO_PCI);
                    if lease.is_some() || !is_here {
                        offer.used = LastUse::Away;
                    }
                    self.offer(&key, offer, now);
                    offered.insert(key);
                }
                // Nothing is offered without a pool.
                (Standing::Offered(_) | Standing::Insisted(..), None) => {}
                (Standing::Skipped(skip), _) => drop(self.skipped.insert(key.1, skip.clone())),
            }
        }
        for (key, entry) in &mut self.entries {
            if offered.contains(key) {
                continue;
            }
            entry.next = None;
            entry.unwanted = None;
            match self.skipped.get(&key.1) {
                Some(Skip::Unwanted(unwanted)) => entry.unwanted = Some(unwanted.to_string()),
                Some(skip) => entry.offer.ill = Some(skip.to_string()),
                None => entry.offer.ill = Some("the device is gone from the node".to_owned()),
            }
            entry.withdrawn.get_or_insert(now);
        }
    }

    fn offer(&mut self, key: &(Option<PciAddress>, DeviceId), mut offer: Offer, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            self.entries.insert(key.clone(), Entry::new(offer));
            return;
        };
        // From afar, the MAC of a NIC in a pod cannot be seen.
        offer.mac = offer.mac.or(entry.offer.mac);
        offer.used = match (offer.used, entry.offer.used) {
            (LastUse::Away, _) => LastUse::Away,
            (_, LastUse::Away) => LastUse::At(now),
            (_, before) => before,
        };
        if entry.offer.pool.resource == offer.pool.resource {
            let in_flight_until = entry.in_flight_until;
            *entry = Entry { in_flight_until, ..Entry::new(offer) };
        } else {
            entry.offer.ill = offer.ill.clone();
            entry.offer.used = offer.used;
            entry.unwanted = Some(format!("it belongs to {} now", offer.pool.resource));
            entry.next = Some(offer);
            entry.withdrawn.get_or_insert(now);
        }
    }

    /// The node cannot be read: until it can, nothing is offered but what pods have.
    pub(crate) fn go_blind(&mut self, why: &str) {
        self.blind = Some(format!("the node cannot be read: {why}"));
    }

    /// Drops what has been withdrawn long enough and nobody has. `given` is what the kubelet has given to pods.
    pub(crate) fn expire(&mut self, given: &Given, now: Instant) {
        let leased = &self.leased;
        self.entries.retain(|(_, id), entry| {
            if entry.stays(now) || leased.contains(id) || given.contains_key(id) {
                return true;
            }
            match entry.next.take() {
                Some(next) => {
                    *entry = Entry::new(next);
                    true
                }
                None => false,
            }
        });
    }

    /// What [`Offers::expire`] would drop, were it not in `given`; each with the resource as which it was given.
    pub(crate) fn hanging_on(&self, given: &Given, now: Instant) -> Vec<(DeviceId, ResourceName)> {
        let old =
            self.entries.iter().filter(|((_, id), entry)| !entry.stays(now) && !self.leased.contains(id));
        old.filter_map(|((_, id), _)| Some((id.clone(), given.get(id)?.clone()))).collect()
    }

    /// When [`Offers::expire`] may have something to do.
    pub(crate) fn expires(&self, now: Instant) -> Option<Instant> {
        let withdrawn = self.entries.values().filter_map(|entry| entry.withdrawn);
        withdrawn.map(|since| (since + WITHDRAWN_FOR).max(now + WITHDRAWN_FOR / 5)).min()
    }

    /// The list of each resource, in the order of addresses. A resource has one as long as it is configured or has a device.
    pub(crate) fn lists(&self) -> BTreeMap<ResourceName, Vec<Offer>> {
        let configured = self.pools.iter().map(|pool| (pool.resource.clone(), Vec::new()));
        let mut lists: BTreeMap<ResourceName, Vec<Offer>> = configured.collect();
        for offer in self.offers() {
            lists.entry(offer.pool.resource.clone()).or_default().push(offer);
        }
        lists
    }

    fn offers(&self) -> impl Iterator<Item = Offer> {
        self.entries.values().map(|entry| {
            let mut offer = entry.offer.clone();
            if !self.leased.contains(&offer.id) {
                offer.ill = self.blind.clone().or(entry.unwanted.clone()).or(offer.ill);
            }
            offer
        })
    }

    /// Whether the resource is ours: configured, or a device is in its list.
    pub(crate) fn is_ours(&self, resource: &ResourceName) -> bool {
        self.pools.of(resource).is_some()
            || self.entries.values().any(|entry| entry.offer.pool.resource == *resource)
    }

    /// What is to be made known to containers again after a restart: what pods have.
    pub(crate) fn in_use(&self, given: &Given) -> Vec<Offer> {
        let in_use = |offer: &Offer| self.leased.contains(&offer.id) || given.contains_key(&offer.id);
        self.offers().filter(in_use).collect()
    }

    /// Gives devices to a container, in the order of addresses and each once.
    ///
    /// That a device is in use already is no error: the containers of a pod may use those of its init containers, and the
    /// kubelet asks again then.
    ///
    /// # Errors
    /// A device is not offered, or is Unhealthy. Nothing is given then.
    pub(crate) fn allocate(
        &mut self,
        resource: &ResourceName,
        ids: &[String],
        now: Instant,
    ) -> Result<Vec<Offer>, Refusal> {
        let list: Vec<Offer> = self.offers().filter(|offer| offer.pool.resource == *resource).collect();
        let wanted: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        for id in &wanted {
            match list.iter().find(|offer| offer.id.as_str() == *id) {
                Some(Offer { ill: None, .. }) => {}
                Some(Offer { ill: Some(why), id, .. }) => return Err(Refusal::Ill(id.clone(), why.clone())),
                None => return Err(Refusal::unknown(id, self.why_unknown(id))),
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

    /// Why a device is not in the list of a resource, as far as we know it.
    fn why_unknown(&self, id: &str) -> String {
        if let Some((_, skip)) = self.skipped.iter().find(|(skipped, _)| skipped.as_str() == id) {
            return format!(": {skip}");
        }
        match self.entries.values().find(|entry| entry.offer.id.as_str() == id) {
            Some(entry) => format!(": it is offered as {}", entry.offer.pool.resource),
            None => String::new(),
        }
    }
}

fn offer(seen: &Seen, membership: &Membership, health: &Health, lease_mac: Option<MacAddr>) -> Offer {
    Offer {
        ill: match health {
            Health::Healthy => None,
            ill @ (Health::NoCarrier(_) | Health::Stranger(_)) => Some(ill.to_string()),
        },
        needs: membership.needs,
        numa_node: seen.nic.numa_node,
        pci: seen.nic.pci,
        driver: seen.nic.driver.clone(),
        mac: seen.mac().or(lease_mac),
        network: seen.told.as_ref().and_then(|told| told.network_ids.first().cloned()),
        ..Offer::bare(seen.nic.id.clone(), Arc::clone(&membership.pool))
    }
}

impl Entry {
    /// Whether it stays in the list whoever has it.
    fn stays(&self, now: Instant) -> bool {
        self.withdrawn.is_none_or(|since| now < since + WITHDRAWN_FOR)
            || self.in_flight_until.is_some_and(|until| now < until)
    }

    fn new(offer: Offer) -> Entry {
        Entry { offer, unwanted: None, next: None, withdrawn: None, in_flight_until: None }
    }
}

#[cfg(test)]
mod tests;
