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
use ledger::{Addresses, Entry, Homecoming, Lease, Ledger, Node};
use nic::DeviceId;

use crate::code;
use crate::config::{Surroundings, selector};
use crate::log::Steps;
use crate::owner;
use crate::plumb::ARRIVAL_PATIENCE;
use crate::select;

pub(crate) use gc::gc;

/// An ADD that is still at work on the NIC may take this long to end: IPAM is what takes time.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Detaches the container.
///
/// # Errors
/// IPAM failed, or the NIC is there but did not come home; both are tried, whichever fails. A DEL later tries again.
pub(crate) fn del(del: &Del, steps: &mut Steps) -> Result<(), Error> {
    let surroundings = Surroundings::read_leniently(&del.config);
    let ledger = &surroundings.ledger;
    let mine = |lease: &Lease| lease.is_for(del.container_id.as_str(), &del.if_name);
    let mut errors = Vec::new();
    let leases = leases(ledger).unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    let devices: Vec<DeviceId> = leases.into_iter().filter(mine).map(|lease| lease.device).collect();
    steps.device = devices.first().cloned();
    steps.begin("lock");
    // Before IPAM is asked: an ADD that is at work, or its IPAM plugin where it was killed, takes no address after that.
    let mut held = Vec::new();
    for device in &devices {
        match lock(&surroundings, device) {
            Ok(entry) => held.push(entry),
            Err(error) => errors.push(error),
        }
    }
    // An ADD that has just begun has no lease yet.
    let mut waited = None;
    if devices.is_empty()
        && let Some(entry) = named(ledger, del).and_then(|device| lock(&surroundings, &device).ok())
    {
        match stands(&entry, mine) {
            Ok(Some(_)) => held.push(entry),
            _ => waited = Some(entry),
        }
    }
    // Before the NIC leaves, because some IPAM plugins (dhcp) say good-bye through the interface; and always: with the namespace gone,
    // without a lease, for a container that was never attached.
    steps.begin("ipam");
    let plugins = surroundings.plugins(&del.environment.path);
    let absent = absent_plugin(&plugins, &del.config);
    let given_back = match &absent {
        // An ADD looks for the plugin before it writes a lease, so none was called; but a NIC that vfio-pci holds has no lease, and another
        // network's ADD may have ended this one's: then the result tells.
        Some(error) if devices.is_empty() && held.is_empty() && !was_addressed(&del.config) => {
            cni::tell!(
                "ehost-device: WARNING: {error}: without a lease or a result, there is no address to give back"
            );
            Ok(())
        }
        _ => match del.config.ipam_type() {
            Ok(_) => plugins.ipam_del(&del.config, &del.environment),
            // No plugin can have been called by such a name, so none has given an address.
            Err(error) => {
                cni::tell!("ehost-device: {error}: there is no address to give back");
                Ok(())
            }
        },
    };
    steps.begin("home");
    match owner::node(ledger) {
        Ok(mut node) => {
            drop(waited);
            if devices.is_empty() && held.is_empty() {
                errors.extend(rescue::without_lease(&mut node, ledger, del).err());
            }
            for entry in held {
                let outcome = stands(&entry, mine).and_then(|lease| {
                    let Some(lease) = lease else { return Ok(()) };
                    // The next DEL must know that there is an address. A plugin that fails is asked by every DEL; a lease that is kept for
                    // it would keep the NIC from the next pod.
                    let addresses = if absent.is_some() { Addresses::Owed } else { Addresses::GivenBack };
                    bring_home(&mut node, &entry, &lease, del.netns.as_deref(), addresses)
                });
                errors.extend(outcome.err());
            }
        }
        Err(error) => errors.push(code::io("look at the node's network")(error)),
    }
    Error::all(std::iter::once(given_back).chain(errors.into_iter().map(Err)))
}

/// That the IPAM plugin is not there, if it is not.
fn absent_plugin(plugins: &Plugins, config: &Config) -> Option<Error> {
    plugins.find(&config.ipam_type().ok()??).err()
}

/// Whether the ADD had an address, by its result.
fn was_addressed(config: &Config) -> bool {
    config.prev_result().ok().flatten().is_some_and(|result| !result.ips.is_empty())
}

/// The device that an ADD with this configuration takes.
fn named(ledger: &Ledger, del: &Del) -> Option<DeviceId> {
    let selector = selector(&del.config).ok()?;
    let mut node = owner::node(ledger).ok()?;
    select::choose(&mut node, ledger, &selector).ok().map(|chosen| chosen.id)
}

/// All leases; those that cannot be read are told of.
fn leases(ledger: &Ledger) -> Result<Vec<Lease>, Error> {
    let listing = ledger.list().map_err(code::ledger)?;
    for unusable in &listing.unusable {
        cni::tell!("ehost-device: {}", Error::from_chain(code::LEDGER, unusable));
    }
    Ok(listing.leases)
}

/// Takes the lock of a device. An IPAM plugin that a killed call left at work holds it, too: that is waited for as long as a call that
/// lives would have waited, and then ended, as that would have done.
fn lock<'a>(surroundings: &'a Surroundings, device: &DeviceId) -> Result<Entry<'a>, Error> {
    let ledger = &surroundings.ledger;
    match ledger.lock(device, surroundings.ipam_timeout.min(LOCK_PATIENCE)) {
        Err(error) if error.is_busy() => {}
        outcome => return outcome.map_err(code::ledger),
    }
    let ended = ledger.end_orphans(device).map_err(code::ledger)?;
    if ended > 0 {
        cni::tell!(
            "ehost-device: device {device}: ended {ended} programs that a call which was killed had left at work"
        );
    }
    ledger.lock(device, LOCK_PATIENCE).map_err(code::ledger)
}

/// The lease of a device, if under its lock it is still one that `is_meant`.
fn stands(entry: &Entry<'_>, is_meant: impl Fn(&Lease) -> bool) -> Result<Option<Lease>, Error> {
    Ok(entry.read().map_err(code::ledger)?.filter(is_meant))
}

/// Brings the NIC of a lease home.
fn bring_home(
    node: &mut Node,
    entry: &Entry<'_>,
    lease: &Lease,
    netns: Option<&Path>,
    addresses: Addresses,
) -> Result<(), Error> {
    let device = &lease.device;
    match ledger::bring_home(node, entry, lease, netns, ARRIVAL_PATIENCE, addresses)
        .map_err(code::not_home)?
    {
        Homecoming::Home => tell_lost(node, lease)?,
        Homecoming::Gone => cni::tell!("ehost-device: the interface of device {device} exists no more"),
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

/// The node may have changed meanwhile, so what is not there again is no failure. After a reboot nothing is: all is what that boot made of it;
/// nor is what somebody did to a NIC that was as it had been.
///
/// # Errors
/// The kernel does not answer.
pub(crate) fn tell_lost(node: &mut Node, lease: &Lease) -> Result<(), Error> {
    let Lease { device, home, boot_id, .. } = lease;
    if *boot_id != node.boot_id || lease.is_whole() {
        return Ok(());
    }
    for lost in ledger::lost(node, home).map_err(code::io("look at the NIC at home"))? {
        cni::tell!("ehost-device: WARNING: device {device} is home as {}, without {lost}", home.name);
    }
    Ok(())
}

/// What a `Del` says when a name in it cannot be used.
fn internal(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::from_chain(Code::INTERNAL, error)
}
