//! Pools: extended resources, and which NICs each is made of.
//!
//! The invariants: a NIC is in one pool at most, the first that wants it; and what an exclusion may be about is never selected.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::selector::{Demand, Needs, Selector, View};
use crate::{DeviceId, ResourceName};

/// A resource, and which NICs it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What pods ask for.
    pub resource: ResourceName,
    /// A NIC that one of these selects belongs to it.
    pub selectors: Vec<Selector>,
    /// But not if one of these does.
    pub exclude: Vec<Selector>,
    /// The kubelet is not told to which NUMA node a NIC is close.
    pub exclude_topology: bool,
    /// Device nodes come to containers by CDI names.
    pub cdi: bool,
    /// What containers are told besides, about the device with this ID, or about all (`*`).
    pub additional_info: BTreeMap<String, BTreeMap<String, String>>,
}

impl Pool {
    /// A pool of this name without any NIC.
    #[must_use]
    pub fn empty(resource: ResourceName) -> Self {
        Pool {
            resource,
            selectors: Vec::new(),
            exclude: Vec::new(),
            exclude_topology: false,
            cdi: false,
            additional_info: BTreeMap::new(),
        }
    }

    /// The NICs with one of these drivers.
    #[must_use]
    pub fn of_drivers(resource: ResourceName, drivers: Vec<String>) -> Self {
        let selector = Selector { demands: vec![Demand::Drivers(drivers)], needs: Needs::default() };
        Pool { selectors: vec![selector], ..Pool::empty(resource) }
    }

    /// What containers are told besides about a device.
    #[must_use]
    pub fn additional_info_for(&self, id: &DeviceId) -> BTreeMap<&str, &str> {
        let lists = ["*", id.as_str()].into_iter().filter_map(|key| self.additional_info.get(key));
        lists.flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    /// Whether it wants the NIC, and what a pod needs with it; else why not.
    fn wants(&self, view: &View<'_>) -> Result<Needs, String> {
        let selected = self.selectors.iter().find(|selector| selector.is_met(view) == Some(true));
        let Some(selected) = selected else {
            let mut why: Vec<String> =
                self.selectors.iter().filter_map(|selector| selector.why_not(view)).collect();
            why.dedup();
            return Err(if why.is_empty() { "no selector".to_owned() } else { why.join("; ") });
        };
        // What cannot be told may be what was meant.
        match self.exclude.iter().find(|exclusion| exclusion.is_met(view) != Some(false)) {
            Some(exclusion) if exclusion.is_met(view).is_none() => Err(format!(
                "it may be excluded ({exclusion}): {}",
                exclusion.why_not(view).unwrap_or_default()
            )),
            Some(exclusion) => Err(format!("it is excluded ({exclusion})")),
            None => Ok(selected.needs),
        }
    }
}

/// All pools of a node, in the order in which they choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools(Vec<Arc<Pool>>);

/// The pool that a NIC belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The first that wants it.
    pub pool: Arc<Pool>,
    /// What a pod needs with it.
    pub needs: Needs,
    /// Further pools that would have taken it.
    pub also: Vec<ResourceName>,
}

/// Why no pool wants a NIC: each with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwanted(pub Vec<(ResourceName, String)>);

impl Pools {
    /// The pools, in the order in which they choose. Of two with the same resource only the first is kept: whoever takes them from
    /// outside refuses that before.
    #[must_use]
    pub fn new(pools: Vec<Pool>) -> Self {
        let mut kept: Vec<Arc<Pool>> = Vec::new();
        for pool in pools {
            if kept.iter().all(|other| other.resource != pool.resource) {
                kept.push(Arc::new(pool));
            }
        }
        Pools(kept)
    }

    /// In the order in which they choose.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.iter()
    }

    /// The pool of a resource.
    #[must_use]
    pub fn of(&self, resource: &ResourceName) -> Option<&Arc<Pool>> {
        self.0.iter().find(|pool| pool.resource == *resource)
    }

    /// The pool that a NIC belongs to.
    ///
    /// # Errors
    /// No pool wants it, or none can be sure.
    pub fn membership(&self, view: &View<'_>) -> Result<Membership, Unwanted> {
        let mut found: Option<Membership> = None;
        let mut unwanted = Vec::new();
        for pool in &self.0 {
            match (pool.wants(view), &mut found) {
                (Ok(_), Some(found)) => found.also.push(pool.resource.clone()),
                (Ok(needs), none) => {
                    *none = Some(Membership { pool: Arc::clone(pool), needs, also: Vec::new() });
                }
                (Err(why), None) => unwanted.push((pool.resource.clone(), why)),
                (Err(_), Some(_)) => {}
            }
        }
        found.ok_or(Unwanted(unwanted))
    }
}

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("no pool is configured"),
            [(_, why)] => f.write_str(why),
            many => {
                let each: Vec<String> =
                    many.iter().map(|(resource, why)| format!("{resource}: {why}")).collect();
                write!(f, "no pool wants it: {}", each.join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
