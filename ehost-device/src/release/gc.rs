//! GC: every lease of this network that is not in the runtime's list ends.

use std::collections::BTreeSet;

use cni::Error;
use cni::delegate::Plugins;
use cni::plugin::Gc;
use ledger::{Addresses, Lease};

use super::{bring_home, give_back, leases, lock, stands};
use crate::code;
use crate::config::Surroundings;
use crate::log::Steps;
use crate::owner;

/// Brings home the NICs of this network whose containers the runtime does not know, and gives their addresses back.
///
/// # Errors
/// The first failure, with the others in its details; all leases are tried.
pub(crate) fn gc(gc: &Gc, steps: &mut Steps) -> Result<(), Error> {
    let surroundings = Surroundings::read(&gc.config)?;
    let plugins = surroundings.plugins(&gc.environment.path);
    steps.begin("home");
    let mut outcomes = stale_leases(gc, &surroundings, &plugins);
    steps.begin("ipam");
    outcomes.push(plugins.ipam_gc(&gc.config, &gc.environment));
    Error::all(outcomes)
}

/// Ends the stale leases; how that went, each by itself.
fn stale_leases(gc: &Gc, surroundings: &Surroundings, plugins: &Plugins) -> Vec<Result<(), Error>> {
    let valid: BTreeSet<_> =
        gc.valid.iter().map(|valid| (valid.container_id.as_str(), valid.if_name.as_str())).collect();
    let is_stale = |lease: &Lease| {
        lease.owner.network == gc.config.name().as_str()
            && !valid.contains(&(lease.owner.container_id.as_str(), lease.owner.if_name.as_str()))
    };
    let leases = match leases(&surroundings.ledger) {
        Ok(leases) => leases,
        Err(error) => return vec![Err(error)],
    };
    let mut node = match owner::node(&surroundings.ledger) {
        Ok(node) => node,
        Err(error) => return vec![Err(code::io("look at the node's network")(error))],
    };
    let mut outcomes = Vec::new();
    for lease in leases.into_iter().filter(is_stale) {
        let locked = lock(surroundings, &lease.device)
            .and_then(|entry| Ok(stands(&entry, is_stale)?.map(|lease| (entry, lease))));
        match locked {
            Ok(Some((entry, lease))) => {
                // An IPAM plugin older than 1.1.0 knows no GC.
                let given_back = give_back(plugins, &gc.config, &gc.environment, &lease);
                let addresses = if given_back.is_ok() { Addresses::GivenBack } else { Addresses::Owed };
                let home = bring_home(&mut node, &entry, &lease, None, addresses);
                outcomes.extend([given_back, home]);
            }
            Ok(None) => {}
            Err(error) => outcomes.push(Err(error)),
        }
    }
    outcomes
}
