//! The allocators of all resources, for the one task that owns what is offered.

use std::collections::BTreeMap;
use std::sync::Arc;

use nic::ResourceName;
use tracing::warn;

use super::{Allocator, cdi, complain};
use crate::advertise::{List, Offer};
use crate::cli::Settings;

/// An allocator for each resource.
pub(crate) struct Allocators {
    settings: Settings,
    by_resource: BTreeMap<ResourceName, Allocator>,
}

impl Allocators {
    pub(crate) fn new(settings: &Settings) -> Self {
        Allocators { settings: settings.clone(), by_resource: BTreeMap::new() }
    }

    /// To be called once, before [`Allocators::follow`]. `in_use` is what pods have: a reboot empties /run, and the kubelet replays old
    /// answers to Allocate instead of asking again. `resources` are all that there are.
    pub(crate) async fn begin(&mut self, in_use: Vec<Offer>, resources: impl Iterator<Item = ResourceName>) {
        let folder = self.settings.cdi.clone();
        let resources: Vec<ResourceName> = resources.collect();
        let sweep = move || cdi::sweep(&folder, &resources);
        if let Ok(swept) = tokio::task::spawn_blocking(sweep).await {
            complain(swept, "CDI files of resources that are gone cannot be removed");
        }
        let mut by_resource: BTreeMap<ResourceName, Vec<Offer>> = BTreeMap::new();
        for offer in in_use {
            by_resource.entry(offer.pool.resource.clone()).or_default().push(offer);
        }
        for (resource, in_use) in by_resource {
            self.of(&resource).restore(in_use).await;
        }
    }

    /// The lists have changed.
    pub(crate) async fn follow(
        &mut self,
        old: Option<&BTreeMap<ResourceName, List>>,
        new: &BTreeMap<ResourceName, List>,
    ) {
        for (resource, list) in new {
            let before = old.and_then(|old| old.get(resource));
            if before != Some(list) {
                let allocator = self.of(resource);
                let wants_cdi = list.iter().any(|offer| allocator.extras.with(offer).cdi);
                if before.is_none() && wants_cdi && allocator.cdi.is_none() {
                    warn!(%resource, "a kind of CDI device cannot have the resource's name: it goes without CDI");
                }
                allocator.follow(Arc::clone(list)).await;
            }
        }
        for resource in
            old.into_iter().flat_map(BTreeMap::keys).filter(|resource| !new.contains_key(resource))
        {
            if let Some(allocator) = self.by_resource.remove(resource) {
                allocator.follow(Arc::default()).await;
            }
        }
    }

    fn of(&mut self, resource: &ResourceName) -> &Allocator {
        let new = || Allocator::new(&self.settings, resource);
        self.by_resource.entry(resource.clone()).or_insert_with(new)
    }
}
