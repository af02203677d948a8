//! The way home, for whoever walks it: DEL, GC, an ADD that failed or finds a stale lease, the agent at its start.
//!
//! Every step can be repeated, and none trusts the one before: what counts is the link as it is read back at the end.
//! The lease is removed only when that equals what was recorded when the NIC left.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use linux::Netns;
use linux::route::{Event, Groups, LinkChange, Monitor, Socket};
use nic::{IfName, Link};

use crate::node::{Identity, is_owners, open_owners, open_pod};
use crate::settle::{home_name, lost, settle};
use crate::{Entry, Error, Home, Lease, Node, Step, tuning};

/// How a way home ended, other than by an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Homecoming {
    /// At home, as it was, or as somebody made it since who has a better right to it: an administrator for whom it carries
    /// the node now, or the boot after the one in which it left. The lease is closed, unless [`Addresses::Owed`].
    Home,
    /// At home and in nobody's hands, but its name or an alternative name is another link's now, or it carries the node under
    /// the name that it has. The lease stays, so that it gets its names back later.
    Displaced {
        /// Its name now.
        name: IfName,
    },
    /// It exists no more: unplugged, another NIC in its place, or a virtual link that ended with its namespace. The lease
    /// is closed, unless [`Addresses::Owed`].
    Gone,
    /// It exists, but in no namespace that we can look into: one that is held open by a process, or is being torn down
    /// for longer than we waited, or the NIC has no network driver at the moment. The lease stays.
    OutOfSight,
}

/// Where the NIC of a lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In its owner's network namespace.
    WithOwner,
    /// In the node's network namespace, under whatever name.
    OnNode(Box<Link>),
    /// In neither.
    Unknown,
}

/// Looks where the NIC of `lease` is, without changing anything.
///
/// # Errors
/// A namespace or sysfs cannot be read.
pub fn whereabouts(node: &mut Node, lease: &Lease) -> Result<Whereabouts, linux::Error> {
    let identity = Identity::of(lease, &node.devices)?;
    if let Some((_netns, mut pod)) = open_owners(node, lease)?
        && identity.among_pod(lease, &pod.links()?).is_some()
    {
        return Ok(Whereabouts::WithOwner);
    }
    let links = node.routes.links()?;
    Ok(match identity.among_node(lease, None, &links) {
        Some(link) => Whereabouts::OnNode(Box::new(link.clone())),
        None => Whereabouts::Unknown,
    })
}

/// Whether a NIC that is nowhere to be seen ([`Whereabouts::Unknown`]) may still be its owner's: the owner's network namespace lives, and a pod
/// can take its NIC to another one below that. Not where it is known to exist no more.
///
/// # Errors
/// A namespace or sysfs cannot be read.
pub fn is_hidden(node: &mut Node, lease: &Lease) -> Result<bool, linux::Error> {
    if open_owners(node, lease)?.is_none() {
        return Ok(false);
    }
    let identity = Identity::of(lease, &node.devices)?;
    let links = node.routes.links()?;
    // A link without a device may have been deleted or be elsewhere: nobody can tell.
    Ok(!identity.has_a_device() || !identity.is_gone(lease, &node.devices, &links))
}

/// Why a NIC did not come home.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReturnError {
    /// The kernel refused a step.
    #[error("bring device {device} home")]
    Kernel {
        /// The device.
        device: nic::DeviceId,
        /// Which step, and why.
        #[source]
        source: linux::Error,
    },
    /// It is home, but not as it was.
    #[error("device {device} came home as {name}, but {}", differences.join(", "))]
    Unlike {
        /// The device.
        device: nic::DeviceId,
        /// Its name now.
        name: IfName,
        /// `MTU is 1400, was 1500`, and what the kernel said when we tried to restore it.
        differences: Vec<String>,
    },
    /// The ledger cannot be written.
    #[error("note that device {device} is home")]
    Ledger {
        /// The device.
        device: nic::DeviceId,
        /// Why.
        #[source]
        source: Error,
    },
}

/// The addresses that IPAM gave the owner of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPAM has them back, or gave none.
    GivenBack,
    /// IPAM could not take them back. Who asks it later, a DEL, a GC or the next ADD, knows of them by the lease.
    Owed,
}

/// Brings the NIC of `lease` home from wherever it is and closes the lease, or notes in it why it could not. While `addresses` are owed the
/// lease stays, as [`put_right`] leaves it.
///
/// It is looked for in the owner's network namespace, in `also` (what a DEL names), and in the node's, where the kernel
/// puts NICs whose namespace ended; since that happens some time after the end, it is waited for up to `patience`.
///
/// # Errors
/// The NIC was found, but could not be moved or restored. The lease stays.
pub fn bring_home(
    node: &mut Node,
    entry: &Entry<'_>,
    lease: &Lease,
    also: Option<&Path>,
    patience: Duration,
    addresses: Addresses,
) -> Result<Homecoming, ReturnError> {
    let outcome = walk_home(node, lease, also, patience);
    let noted = match (&outcome, addresses) {
        (Ok(Homecoming::Home | Homecoming::Gone), Addresses::GivenBack) => entry.close(),
        (outcome, _) => note(node, entry, lease, outcome),
    };
    first_cause(lease, outcome, noted)
}

/// Writes into a lease that stays what became of its NIC.
fn note(
    node: &mut Node,
    entry: &Entry<'_>,
    lease: &Lease,
    outcome: &Result<Homecoming, ReturnError>,
) -> Result<(), Error> {
    match outcome {
        Ok(Homecoming::Home) => {
            // What the kernel refused is tried once more by whoever ends the lease.
            let whole = lease.is_whole() || is_as_it_was(node, &lease.home);
            let mut noted = displaced(lease, &lease.home.name, whole);
            if whole && has_no_tcx(node, &lease.home) {
                noted.home.tcx = None;
            }
            entry.write(&noted)
        }
        Ok(Homecoming::Gone) => entry.write(&displaced(lease, &lease.home.name, false)),
        Ok(Homecoming::Displaced { name }) => entry.write(&displaced(lease, name, false)),
        Ok(Homecoming::OutOfSight) => {
            let fault = "it is in no network namespace that can be looked into".to_owned();
            entry.write(&returning(lease, Some(fault)))
        }
        // It was as it had been before, and what somebody made of it since must not be undone.
        Err(_) if lease.is_whole() => Ok(()),
        Err(error) => entry.write(&returning(lease, Some(linux::chain(error)))),
    }
}

/// Whether a NIC at home is as it was. One that carries the node is left as it is.
fn is_as_it_was(node: &mut Node, home: &Home) -> bool {
    let link = node.routes.link_by_name(home.name.as_str()).ok().flatten();
    link.is_some_and(|link| {
        let tuned = tuning::differences(node, home, &link);
        home.differences(&link, &[]).is_empty() && tuned.is_ok_and(|tuned| tuned.is_empty())
    }) && lost(node, home).is_ok_and(|lost| lost.is_empty())
}

/// Whether this process sees that a NIC at home has no TCX program of its owner's.
fn has_no_tcx(node: &mut Node, home: &Home) -> bool {
    let link = node.routes.link_by_name(home.name.as_str()).ok().flatten();
    link.is_some_and(|link| matches!(home.left_tcx(link.index), Ok(Some(left)) if left.is_empty()))
}

/// Puts the NIC of `lease` right where it is on the node already, but not as it was: where the kernel left it when its network
/// namespace ended, or an ADD that died. No other network namespace is looked into, so CAP_NET_ADMIN in the node's own is all that
/// this takes.
///
/// The lease stays, as [`Displaced`](crate::Stage::Displaced), also when the NIC is as it was: the owner's DEL, or a GC, has still to come and give
/// the owner's addresses back, and GC knows of them by the lease alone.
///
/// [`Homecoming::OutOfSight`]: the NIC is not on the node, or left in another boot. Nothing was changed.
///
/// # Errors
/// It could not be restored, or the lease not be written. The lease stays.
pub fn put_right(node: &mut Node, entry: &Entry<'_>, lease: &Lease) -> Result<Homecoming, ReturnError> {
    let outcome = restore_on_node(node, lease);
    let noted = match &outcome {
        Ok(Homecoming::OutOfSight) => Ok(()),
        outcome => note(node, entry, lease, outcome),
    };
    first_cause(lease, outcome, noted)
}

fn restore_on_node(node: &mut Node, lease: &Lease) -> Result<Homecoming, ReturnError> {
    let kernel = |source| ReturnError::Kernel { device: lease.device.clone(), source };
    if lease.boot_id != node.boot_id {
        return Ok(Homecoming::OutOfSight);
    }
    if lease.is_whole() {
        return Ok(Homecoming::Home);
    }
    let identity = Identity::of(lease, &node.devices).map_err(kernel)?;
    let links = node.routes.links().map_err(kernel)?;
    match identity.among_node(lease, None, &links) {
        Some(link) => settle_unless_lifeline(node, lease, link.clone()),
        None => Ok(Homecoming::OutOfSight),
    }
}

fn returning(lease: &Lease, fault: Option<String>) -> Lease {
    lease.clone().after(Step::Return { fault })
}

fn displaced(lease: &Lease, name: &IfName, whole: bool) -> Lease {
    returning(lease, None).after(Step::Displace { name: name.clone(), whole })
}

/// Of two failures the first cause is the one to tell.
fn first_cause(
    lease: &Lease,
    outcome: Result<Homecoming, ReturnError>,
    noted: Result<(), Error>,
) -> Result<Homecoming, ReturnError> {
    match (outcome, noted) {
        (Ok(_), Err(source)) => Err(ReturnError::Ledger { device: lease.device.clone(), source }),
        (outcome, _) => outcome,
    }
}

fn walk_home(
    node: &mut Node,
    lease: &Lease,
    also: Option<&Path>,
    patience: Duration,
) -> Result<Homecoming, ReturnError> {
    let kernel = |source| ReturnError::Kernel { device: lease.device.clone(), source };
    if lease.boot_id != node.boot_id {
        // Everything that was changed ended with that boot. Names, addresses and states are what this boot's
        // configuration makes them, and the NIC may have become the node's own.
        return Ok(Homecoming::Home);
    }
    if lease.is_whole() {
        take_off_unseen(node, lease).map_err(kernel)?;
        return Ok(Homecoming::Home);
    }
    let identity = Identity::of(lease, &node.devices).map_err(kernel)?;
    let owners = open_owners(node, lease).map_err(kernel)?;
    let mut expected = fetch_from(node, lease, &identity, owners).map_err(kernel)?;
    // What a DEL names is in general the same namespace, and not entered twice.
    if expected.is_none() {
        // What is known by its device is the same NIC in whatever namespace; what is not may only look like it.
        let also = also.map_or(Ok(None), |path| open_pod(node, path)).map_err(kernel)?;
        let also = also.filter(|(netns, _)| identity.has_a_device() || is_owners(node, lease, netns));
        expected = fetch_from(node, lease, &identity, also).map_err(kernel)?;
    }
    match look_at_home(node, lease, &identity, expected.as_ref(), patience).map_err(kernel)? {
        Sight::Seen(link) if expected.is_none() => settle_unless_lifeline(node, lease, *link),
        Sight::Seen(link) => settle(node, lease, *link),
        Sight::Gone => Ok(Homecoming::Gone),
        Sight::Unseen => Ok(Homecoming::OutOfSight),
    }
}

/// Takes its owner's TCX programs off a NIC that was restored by somebody who could not see them. All else about it is nobody's concern any more.
fn take_off_unseen(node: &mut Node, lease: &Lease) -> Result<(), linux::Error> {
    if lease.home.tcx.is_none() {
        return Ok(());
    }
    let identity = Identity::of(lease, &node.devices)?;
    let links = node.routes.links()?;
    let Some(link) = identity.among_node(lease, None, &links) else { return Ok(()) };
    let left = lease.home.left_tcx(link.index)?.unwrap_or_default();
    if left.is_empty() || node.lifeline()?.reason(link.index).is_some() {
        return Ok(());
    }
    left.into_iter().try_for_each(|program| linux::bpf::remove_tcx(link.index, program))
}

/// Restores a NIC that came home by itself. That may be long ago, and it may be the uplink since: renaming it, or setting it down,
/// would cut the node off.
fn settle_unless_lifeline(node: &mut Node, lease: &Lease, link: Link) -> Result<Homecoming, ReturnError> {
    let kernel = |source| ReturnError::Kernel { device: lease.device.clone(), source };
    if node.lifeline().map_err(kernel)?.reason(link.index).is_none() {
        return settle(node, lease, link);
    }
    Ok(if link.name == lease.home.name {
        Homecoming::Home
    } else {
        Homecoming::Displaced { name: link.name }
    })
}

enum Sight {
    Seen(Box<Link>),
    Gone,
    Unseen,
}

/// Finds the NIC in the node's namespace; one that has a device may take a moment to arrive.
fn look_at_home(
    node: &mut Node,
    lease: &Lease,
    identity: &Identity,
    expected: Option<&IfName>,
    patience: Duration,
) -> Result<Sight, linux::Error> {
    let deadline = Instant::now() + patience;
    let mut monitor = None;
    loop {
        let links = node.routes.links()?;
        if let Some(link) = identity.among_node(lease, expected, &links) {
            return Ok(Sight::Seen(Box::new(link.clone())));
        }
        if identity.is_gone(lease, &node.devices, &links) {
            return Ok(Sight::Gone);
        }
        let Some(monitor) = &mut monitor else {
            // Subscribed first, then looked again, so that no arrival is missed.
            monitor = Some(node.netns.run(|| Monitor::open(Groups::LINKS))??);
            continue;
        };
        loop {
            match monitor.wait(deadline)? {
                None => return Ok(Sight::Unseen),
                Some(Event::Link(_) | Event::Missed) => break,
                Some(_) => {}
            }
        }
    }
}

/// Moves the NIC out of a namespace, if it is there.
fn fetch_from(
    node: &mut Node,
    lease: &Lease,
    identity: &Identity,
    pod: Option<(Netns, Socket)>,
) -> Result<Option<IfName>, linux::Error> {
    let Some((netns, mut pod)) = pod else { return Ok(None) };
    let links = pod.links()?;
    let Some(link) = identity.among_pod(lease, &links) else { return Ok(None) };
    take_programs_off(&netns, &mut pod, &lease.home, link)?;
    fetch(node, &mut pod, lease, link, &links).map(Some)
}

/// Takes the owner's BPF programs off, which would see the packets of the node and of the next owner. Here none of them can be an agent's of the
/// node, which puts its own on a NIC that comes home.
fn take_programs_off(netns: &Netns, pod: &mut Socket, home: &Home, link: &Link) -> Result<(), linux::Error> {
    for program in home.foreign_xdp(link) {
        // Where the node had programs on the NIC, the one that a link holds may be in place of one of these.
        if pod.remove_xdp(link.index, program).is_err() && home.xdp.is_empty() {
            // What is refused for good is told at home, where no link is cut; what fails only for now is tried again here.
            match linux::bpf::unlink_xdp(link.index, program) {
                Err(error) if error.is_passing() => return Err(error),
                _ => {}
            }
        }
    }
    if home.tcx.is_none() {
        return Ok(());
    }
    let take_off = || {
        home.foreign_tcx(link.index)?.unwrap_or_default().into_iter().try_for_each(|program| {
            let taken_off = linux::bpf::remove_tcx(link.index, program);
            // What no link holds is found at home, too.
            if program.link == 0 { Ok(()) } else { taken_off }
        })
    };
    netns.run(take_off)?
}

/// Moves the NIC out of its owner's namespace, in one message with its old name and settings. Returns the name that it
/// arrived under.
fn fetch(
    node: &mut Node,
    pod: &mut Socket,
    lease: &Lease,
    link: &Link,
    links: &[Link],
) -> Result<IfName, linux::Error> {
    // What was built upon it would stay behind, bound to a NIC that is no longer there (8021q and macvlan do nothing
    // about a lower device that only moves).
    for child in links.iter().filter(|child| is_child(child, link.index)) {
        pod.delete_link(child.index).or_else(absent_is_fine)?;
    }
    // A clash of alternative names would stop the move; those that are ours by right and taken are given again later.
    let mut drop = Vec::new();
    for name in &link.alt_names {
        if !lease.home.alt_names.contains(name) || node.routes.link_by_name(name)?.is_some() {
            drop.push(name.clone());
        }
    }
    for name in drop {
        pod.remove_alt_names(link.index, &[name])?;
    }
    let name = home_name(node, &lease.home, None)?;
    let change = LinkChange {
        netns: Some(node.netns.as_fd()),
        name: Some(&name),
        mac: lease.home.mac,
        mtu: Some(lease.home.mtu),
        tx_queue_len: Some(lease.home.tx_queue_len),
        alias: Some(lease.home.alias.as_deref().unwrap_or_default()),
        flags: Some(lease.home.flags),
        ..LinkChange::default()
    };
    match pod.change_link(link.index, &change) {
        Ok(()) => Ok(name),
        // The message is not atomic: if the link has moved, under its old name, what is missing is made good at home.
        Err(error) => match pod.link_by_index(link.index)? {
            Some(still) if still.parent_device == link.parent_device => Err(error),
            _ => Ok(link.name.clone()),
        },
    }
}

/// Whether a link is built upon the one with this index, in the same network namespace.
pub(crate) fn is_child(child: &Link, index: u32) -> bool {
    const STACKED: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];
    child.lower == Some(index)
        && !child.lower_elsewhere
        && child.kind.as_deref().is_some_and(|kind| STACKED.contains(&kind))
}

fn absent_is_fine(error: linux::Error) -> Result<(), linux::Error> {
    if error.is_absent() { Ok(()) } else { Err(error) }
}
