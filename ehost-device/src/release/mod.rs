//! DEL and GC: the NIC home, the addresses given back, whatever else is gone.
//!
//! A DEL asks nobody, goes on after a failure, and touches a NIC only if its lease is for this very container.

mod gc;
mod rescue;

use std::path::Path;
use std::time::Duration;

use cni::delegate::Plugins;
use cni::plugin::Del;
use cni::{Code, Config, Environment, Error, Verb};
use ledger::{Homecoming, Lease, Ledger, Node};
use nic::DeviceId;

use crate::code;
use crate::config::Surroundings;
use crate::log::Steps;
use crate::owner;
use crate::plumb::ARRIVAL_PATIENCE;

pub(crate) use gc::gc;

/// An ADD that is still at work on the NIC may take this long to end: IPAM is what takes time.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Detaches the container.
///
/// # Errors
/// IPAM failed, or the NIC is there but did not come home; both are tried, whichever fails. A DEL later tries again.
pub(crate) fn del(del: &Del, steps: &mut Steps) -> Result<(), Error> {
    let surroundings = Surroundings::read_leniently(&del.config);
    // First, because some IPAM plugins (dhcp) say good-bye through the interface; and always: with the namespace gone,
    // without a lease, for a container that was never attached.
    let plugins = surroundings.plugins(&del.environment.path);
    steps.begin("ipam");
    let given_back = match del.config.ipam_type() {
        Ok(_) => plugins.ipam_del(&del.config, &del.environment),
        // No plugin can have been called by such a name, so none has given an address.
        Err(error) => {
            cni::tell!("ehost-device: {error}: there is no address to give back");
            Ok(())
        }
    };
    steps.begin("home");
    Error::all(
        std::iter::once(given_back).chain(release(&surroundings.ledger, del, steps).into_iter().map(Err)),
    )
}

/// Brings home whatever NIC is this container's; returns what went wrong.
fn release(ledger: &Ledger, del: &Del, steps: &mut Steps) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut node = match owner::node(ledger) {
        Ok(node) => node,
        Err(error) => return vec![code::io("look at the node's network")(error)],
    };
    let mine = |lease: &Lease| lease.is_for(del.container_id.as_str(), &del.if_name);
    let leases = match ledger.list() {
        Ok(listing) => {
            for unusable in &listing.unusable {
                cni::tell!("ehost-device: {}", Error::from_chain(code::LEDGER, unusable));
            }
            listing.leases
        }
        Err(error) => {
            errors.push(code::ledger(error));
            Vec::new()
        }
    };
    let devices: Vec<DeviceId> = leases.into_iter().filter(mine).map(|lease| lease.device).collect();
    steps.device = devices.first().cloned();
    if devices.is_empty() {
        errors.extend(rescue::without_lease(&mut node, ledger, del).err());
    }
    for device in devices {
        errors.extend(return_device(&mut node, ledger, &device, del.netns.as_deref(), mine).err());
    }
    errors
}

/// Brings a device home if, seen under its lock, its lease is one that `is_meant`.
fn return_device(
    node: &mut Node,
    ledger: &Ledger,
    device: &DeviceId,
    netns: Option<&Path>,
    is_meant: impl Fn(&Lease) -> bool,
) -> Result<(), Error> {
    let entry = ledger.lock(device, LOCK_PATIENCE).map_err(code::ledger)?;
    let Some(lease) = entry.read().map_err(code::ledger)?.filter(is_meant) else { return Ok(()) };
    match ledger::bring_home(node, &entry, &lease, netns, ARRIVAL_PATIENCE).map_err(code::not_home)? {
        Homecoming::Home => tell_lost_routes(node, &lease)?,
        Homecoming::Gone => cni::tell!("ehost-device: device {device} exists no more; its lease is closed"),
        Homecoming::Displaced { name } => cni::tell!(
            "ehost-device: device {device} is home as {name}: its name {} or an alternative name is taken by another \
             interface, or it carries the node by now; it gets it back when that is over",
            lease.home.name
        ),
        // An error here would keep the pod in Terminating for as long as some process holds its namespace open.
        Homecoming::OutOfSight => cni::tell!(
            "ehost-device: WARNING: device {device} of {} has not come back: its lease stays, and the next ADD, DEL or GC \
             brings it home",
            lease.owner
        ),
    }
    Ok(())
}

/// Gives back the addresses of a container whose DEL never came, by calling IPAM as that would have; before the lease is closed,
/// since after that nobody knows of them.
///
/// # Errors
/// IPAM's.
pub(crate) fn give_back(
    plugins: &Plugins,
    config: &Config,
    environment: &Environment,
    lease: &Lease,
) -> Result<(), Error> {
    let owner = &lease.owner;
    let del = Environment {
        container_id: Some(owner.container_id.parse().map_err(|error: cni::NameError| internal(&error))?),
        if_name: Some(owner.if_name.clone()),
        ..Environment::new(Verb::Del, environment.path.clone())
    };
    plugins.ipam_del(config, &del)
}

/// The node's routes may have changed meanwhile, so what is not there again is no failure.
fn tell_lost_routes(node: &mut Node, lease: &Lease) -> Result<(), Error> {
    let Lease { device, home, .. } = lease;
    for route in ledger::lost_routes(node, home).map_err(code::io("read the node's routes"))? {
        cni::tell!(
            "ehost-device: WARNING: device {device} is home as {}, without its route to {route}: there is another one, or its next \
             hop is out of reach",
            home.name
        );
    }
    Ok(())
}

/// What a `Del` says when a name in it cannot be used.
fn internal(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::from_chain(Code::INTERNAL, error)
}
