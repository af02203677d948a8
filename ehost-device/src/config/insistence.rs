//! Refusals that a network's author may override, each by a key of its own, and never in silence.
//!
//! Only the network's own configuration counts: `runtimeConfig`, `args` and CNI_ARGS may hold what a pod's author wrote.

use cni::{Config, Error};

use super::key;

/// Whether the author insists, and by which key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insistence {
    key: &'static str,
    insists: bool,
}

impl Insistence {
    pub(super) fn read(config: &Config, name: &'static str) -> Result<Insistence, Error> {
        let insists = key(config, name, "true or false")?.unwrap_or(false);
        Ok(Insistence { key: name, insists })
    }

    /// Lets a refusal pass with a warning where the author insists; else says how to insist.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn weigh(self, refusal: Error) -> Result<(), Error> {
        let Insistence { key, insists } = self;
        if insists {
            cni::tell!("ehost-device: WARNING: {}; {key} lets it pass all the same", refusal.details);
            return Ok(());
        }
        let details =
            format!("{}; \"{key}\": true in the network configuration overrides this", refusal.details);
        Err(refusal.with_details(details))
    }
}
