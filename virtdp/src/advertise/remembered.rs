//! Which resources are offered, kept over this process's end: a pool may leave the configuration while no agent runs, and pods that have
//! NICs of it would lose their resource.
//!
//! The kubelet's checkpoint tells which pods have what, but not whose a resource is: another plugin may give away the same device IDs.

use std::collections::BTreeSet;

use ledger::Notes;
use nic::ResourceName;
use tracing::warn;

/// The resources of agents before this one, and of this one.
#[derive(Debug)]
pub(super) struct Remembered {
    notes: Notes,
    resources: BTreeSet<ResourceName>,
    /// What pods have was not known at the start: a resource that seems to be of no use may be of some.
    doubtful: bool,
}

impl Remembered {
    pub(super) fn read(notes: Notes) -> Self {
        let resources = notes.resources().unwrap_or_else(|error| {
            let reason = format!("{:#}", anyhow::Error::from(error));
            warn!(
                reason,
                "resources that are configured no more are given up, though pods may have NICs of them"
            );
            BTreeSet::new()
        });
        Remembered { notes, resources, doubtful: false }
    }

    pub(super) fn has(&self, resource: &ResourceName) -> bool {
        self.resources.contains(resource)
    }

    /// Forgets nothing from now on.
    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// These are offered from now on. To be called before the kubelet hears of them.
    pub(super) async fn keep(&mut self, offered: impl Iterator<Item = &ResourceName>) {
        let mut resources: BTreeSet<ResourceName> = offered.cloned().collect();
        if self.doubtful {
            resources.extend(self.resources.iter().cloned());
        }
        if resources == self.resources {
            return;
        }
        let (notes, new) = (self.notes.clone(), resources.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || notes.write_resources(&new)).await {
            let reason = format!("{:#}", anyhow::Error::from(error));
            warn!(
                reason,
                "which resources are offered is not kept: a pool that is removed while no agent runs is given up"
            );
        }
        self.resources = resources;
    }
}
