//! ADD: the NIC into the pod, with addresses, or nothing changed at all.
//!
//! 1. see that the kubelet gave the device to the pod; lock it; see that it is the NIC that is known by its ID, that there is the IPAM
//!    plugin, whose the NIC is, and that it does not carry the node; see that its names are free in the pod;
//! 2. write the lease: from here on every process that comes after us can undo what we do;
//! 3. move and rename in one message; queues, the VLAN upon it; IPAM; sysctls, addresses, routes;
//! 4. note in the lease that it is complete.
//!
//! Whatever fails in 2 to 4 is undone in reverse order, and the first cause is what the runtime hears.

mod network;
pub(crate) mod passthrough;
mod shape;
mod transaction;

use std::time::Duration;

use cni::plugin::Add;
use cni::{Code, Error, Success};
use ledger::{Addresses, Entry, Home, Homecoming, Lease, Node, Owner, Stage, TcxProgram};
use linux::route::Socket;
use linux::{Netns, NewInterfaces, Sysctl};
use nic::{DeviceId, IfName, Link};

use crate::allocation;
use crate::code::{self, DEVICE_NOT_FOUND, NAME_TAKEN};
use crate::config::Settings;
use crate::identity::Identity;
use crate::log::Steps;
use crate::owner::{self, Standing};
use crate::release;
use crate::select::{self, Chosen};
use shape::Tuning;
use transaction::Transaction;

/// How long another process may hold the device: less than a runtime's patience, since it can try again.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a NIC may take to arrive from a network namespace that has just ended (0.3 to 0.7 s seen).
pub(crate) const ARRIVAL_PATIENCE: Duration = Duration::from_secs(3);

/// The pod's network namespace and a socket in it.
struct Pod {
    netns: Netns,
    routes: Socket,
}

/// Attaches the NIC to the container.
///
/// # Errors
/// Everything is as it was before, or the error's details say what is not.
pub(crate) fn add(add: &Add, steps: &mut Steps) -> Result<Success, Error> {
    let settings = Settings::read(&add.config)?;
    steps.asked_for = Some(settings.selector.to_string());
    // Read before anything is changed: what cannot be passed on is an error now, not later.
    let previous = add.config.prev_result()?.unwrap_or_default();
    let mut pod = Pod::open(add)?;
    let ledger = &settings.surroundings.ledger;
    let wanted = owner::owner(add, &pod.netns)?;
    let mut node = owner::node(ledger).map_err(code::io("look at the node's network"))?;
    let chosen = select::choose(&mut node, ledger, &settings.selector)?;
    steps.device = Some(chosen.id.clone());
    steps.begin("allocation");
    allocation::confirm(&settings, &node.devices, &chosen.id, &wanted)?;
    steps.begin("lock");
    let entry = ledger.lock(&chosen.id, LOCK_PATIENCE).map_err(code::ledger)?;

    let boot_id = node.boot_id.clone();
    steps.begin("judge");
    let identity = Identity::read(ledger, &entry, &settings.selector, &wanted, &boot_id)?;
    // Before its lease is closed, which may be all that tells.
    let devices = node.devices.clone();
    let confirm = |link: &Link| {
        select::is_found_again(&devices, &chosen.id, link)?;
        identity.confirm(link).or_else(|refusal| settings.another_nic.weigh(refusal))
    };
    chosen.link.as_ref().map_or(Ok(()), confirm)?;
    let plugins = settings.surroundings.plugins(&add.environment.path);
    // Before there is a lease: without one, a DEL that does not find the plugin, either, knows that there is no address to give back.
    add.config.ipam_type()?.map_or(Ok(()), |ipam| plugins.find(&ipam).map(drop))?;
    let (link, inherited) = clear(&mut node, &entry, &settings, &wanted, add)?;
    let link = match link {
        Some(link) => link,
        None if node.devices.driver(&chosen.id).as_deref() == Some(nic::VFIO_PCI) => {
            steps.begin("ipam");
            let success = passthrough::add(add, &settings, &chosen.id)?;
            return Ok(merge(previous, success, &settings));
        }
        None => return Err(no_interface(&node, &chosen.id)),
    };
    confirm(&link)?;
    owner::spare_the_lifeline(&mut node, &link, settings.lifeline)?;
    names_are_free(&mut pod, &link, &settings, &add.if_name)?;
    let tuning = Tuning::of(&mut node, &link)?;
    let retuning = tuning.plan(&settings.interface, &link)?;
    let lease = lease(&mut node, &entry, &link, &tuning, inherited, wanted)?;
    let mut transaction = Transaction::new(&mut node, &mut pod, &entry, &lease, &settings, add);

    match transaction.attach(retuning, steps) {
        Ok(success) => Ok(merge(previous, success, &settings)),
        Err(error) => {
            steps.begin("undo");
            Err(transaction.undo(error))
        }
    }
}

impl Pod {
    fn open(add: &Add) -> Result<Pod, Error> {
        let netns =
            Netns::open(&add.netns).map_err(|error| Error::from_chain(Code::INVALID_NETNS, &error))?;
        let routes = netns.route_socket().map_err(|error| {
            let message = format!("enter network namespace {}", add.netns.display());
            Error::new(Code::INVALID_NETNS, message).caused_by(&error)
        })?;
        Ok(Pod { netns, routes })
    }
}

/// Sees to it that nobody has the NIC, bringing it home where a lease is stale. Returns its link, if it has one, and what it was at home
/// where a lease that stays knows better than the kernel (its name may be taken by another link for now).
fn clear(
    node: &mut Node,
    entry: &Entry<'_>,
    settings: &Settings,
    wanted: &Owner,
    add: &Add,
) -> Result<(Option<Link>, Option<Home>), Error> {
    let ledger = &settings.surroundings.ledger;
    let mut inherited = None;
    match entry.read() {
        Ok(None) => {}
        Ok(Some(lease)) => {
            let place = ledger::whereabouts(node, &lease)
                .map_err(code::io(format!("look for device {}", lease.device)))?;
            match owner::judge(&lease, &place, wanted) {
                Standing::InUse(error) => return Err(error),
                Standing::InUseIfHidden(error) if is_hidden(node, &lease)? => return Err(error),
                Standing::Stale | Standing::InUseIfHidden(_) => {
                    inherited = repair(node, entry, &lease, settings, add)?
                }
            }
        }
        Err(error @ ledger::Error::Unusable { source: ledger::Fault::Newer { .. }, .. }) => {
            return Err(code::ledger(error));
        }
        Err(error) => {
            // Nothing can be learned from it. If the NIC is at home it tells us nothing that we need, either.
            cni::tell!(
                "ehost-device: {}; it is kept as {}.json.unusable",
                code::ledger(error),
                entry.device()
            );
            entry.set_aside().map_err(code::ledger)?;
        }
    }
    // Found anew, under the lock: before, it may have been on its way.
    let Chosen { id, link } = select::choose(node, ledger, &settings.selector)?;
    if id != *entry.device() {
        let message = format!("device {} became {id} while it was waited for", entry.device());
        return Err(Error::new(Code::TRY_AGAIN, message));
    }
    Ok((link, inherited))
}

fn is_hidden(node: &mut Node, lease: &Lease) -> Result<bool, Error> {
    ledger::is_hidden(node, lease).map_err(code::io(format!("look for the owner of device {}", lease.device)))
}

fn repair(
    node: &mut Node,
    entry: &Entry<'_>,
    lease: &Lease,
    settings: &Settings,
    add: &Add,
) -> Result<Option<Home>, Error> {
    let device = &lease.device;
    cni::tell!("ehost-device: device {device} has a stale lease of {}: bringing it home", lease.owner);
    // The runtime may have forgotten that container (containerd does when the machine is switched off soon after it was made): then
    // no DEL comes. How another network gives addresses back is not known here; its GC asks IPAM.
    if lease.owner.network == add.config.name().as_str() {
        let plugins = settings.surroundings.plugins(&add.environment.path);
        release::give_back(&plugins, &add.config, &add.environment, lease)?;
    }
    match ledger::bring_home(node, entry, lease, None, ARRIVAL_PATIENCE, Addresses::GivenBack)
        .map_err(code::not_home)?
    {
        Homecoming::Home => release::tell_lost(node, lease).map(|()| None),
        Homecoming::Gone => Ok(None),
        Homecoming::Displaced { name } => {
            cni::tell!(
                "ehost-device: device {device} is home as {name}: its name or an alternative name is taken, or it carries the node"
            );
            Ok(Some(lease.home.clone()))
        }
        Homecoming::OutOfSight => {
            let message = format!("device {device} has not come back from {}", lease.owner);
            let details = "it is in no network namespace that can be looked into, or has no network driver";
            Err(Error::new(Code::TRY_AGAIN, message).with_details(details))
        }
    }
}

fn no_interface(node: &Node, id: &DeviceId) -> Error {
    let error =
        Error::new(DEVICE_NOT_FOUND, format!("device {id} has no network interface in the node's namespace"));
    match node.devices.driver(id) {
        Some(driver) => error.with_details(format!("its driver is {driver}")),
        None => error,
    }
}

/// Looks before the leap: a rename that clashes in the pod would fail only after the move.
fn names_are_free(pod: &mut Pod, link: &Link, settings: &Settings, if_name: &IfName) -> Result<(), Error> {
    let nic = shape::name_in_pod(&settings.interface, link, if_name);
    if settings.interface.vlan.is_some() && nic == if_name {
        let message = format!("the VLAN in the pod and the NIC below it would both be {if_name}");
        let details = "with vlan the NIC keeps its name; another interface name helps";
        return Err(Error::new(NAME_TAKEN, message).with_details(details));
    }
    let wanted =
        [if_name.as_str(), nic.as_str()].into_iter().chain(link.alt_names.iter().map(String::as_str));
    for name in wanted {
        let holder = pod.routes.link_by_name(name).map_err(code::io("look at the pod's interfaces"))?;
        if let Some(holder) = holder {
            let message = format!("there is an interface {name} in the pod already");
            let details =
                format!("it is {} with index {}; {} stays on the node", holder.name, holder.index, link.name);
            return Err(Error::new(NAME_TAKEN, message).with_details(details));
        }
    }
    Ok(())
}

fn lease(
    node: &mut Node,
    entry: &Entry<'_>,
    link: &Link,
    tuning: &Tuning,
    inherited: Option<Home>,
    owner: Owner,
) -> Result<Lease, Error> {
    let tcx = linux::bpf::tcx(link.index).map_err(code::io("look at the NIC's TCX programs"))?;
    let tcx = tcx.map(|programs| programs.iter().map(TcxProgram::from).collect());
    let home = match inherited {
        Some(home) => Home { index: link.index, tcx, ..home },
        None => {
            let addresses = node.routes.kept_addresses(link.index).map_err(code::io("list addresses"))?;
            let master = match link.master {
                Some(index) => {
                    node.routes.link_by_index(index).map_err(code::io("look at the bridge or bond"))?
                }
                None => None,
            };
            let settings =
                node.routes.settings(link.index).map_err(code::io("look at the NIC's settings"))?;
            // What it has as all interfaces have it may change for all of them while it is away; that it changed for new ones alone is not told from that.
            let mut new = NewInterfaces::default();
            let mut is_its_own = |name: &str, value| {
                name.parse::<Sysctl>()
                    .map_or(true, |sysctl| !sysctl.follows() || new.value(&sysctl) != Some(value))
            };
            let settings = settings.unwrap_or_default().into_iter();
            Home {
                settings: settings.filter(|(name, value)| is_its_own(name, *value)).collect(),
                channels: tuning.channels.map(|channels| channels.now),
                rings: tuning.rings.map(|rings| rings.now),
                tcx,
                offloads: node.routes.offloads(&link.name).map_err(code::io("look at the NIC's offloads"))?,
                routes: node.routes.kept_routes(link.index).map_err(code::io("list routes"))?,
                ..Home::of(link, addresses, master.map(|master| master.name))
            }
        }
    };
    Ok(Lease {
        device: entry.device().clone(),
        permanent_mac: link.permanent_mac,
        boot_id: linux::boot_id().map_err(code::io("read the boot ID"))?,
        home,
        owner,
        stage: Stage::Prepared,
    })
}

/// The result so far with ours added to it.
fn merge(previous: Success, ours: Success, settings: &Settings) -> Success {
    let offset = previous.interfaces.len();
    let mut merged = previous;
    merged.interfaces.extend(ours.interfaces);
    merged
        .ips
        .extend(ours.ips.into_iter().map(|ip| cni::Ip { interface: ip.interface.map(|i| i + offset), ..ip }));
    merged.routes.extend(ours.routes);
    if !settings.dns.is_empty() {
        merged.dns = settings.dns.clone();
    } else if !ours.dns.is_empty() {
        merged.dns = ours.dns;
    }
    merged
}
