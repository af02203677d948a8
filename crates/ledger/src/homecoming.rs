//! The way home, for whoever walks it: DEL, GC, an ADD that failed or finds a stale lease, the agent at its start.
//!
//! Every step can be repeated, and none trusts the one before: what counts is the link as it is read back at the end.
//! The lease is removed only when that equals what was recorded when the NIC left.

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use linux::Netns;
use linux::route::{Event, Groups, KeptAddress, LinkChange, Monitor, Socket};
use nic::{Address, IfName, Link, Xdp};

use crate::node::{Identity, is_owners, open_owners, open_pod};
use crate::{Entry, Error, Home, Lease, Node, Step, tuning};

/// How a way home ended, other than by an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Homecoming {
    /// At home, as it was, or as somebody made it since who has a better right to it: an administrator for whom it carries
    /// the node now, or the boot after the one in which it left. The lease is closed.
    Home,
    /// At home and in nobody's hands, but its name or an alternative name is another link's now, or it carries the node under
    /// the name that it has. The lease stays, so that it gets its names back later.
    Displaced {
        /// Its name now.
        name: IfName,
    },
    /// It exists no more: unplugged, another NIC in its place, or a virtual link that ended with its namespace. The lease
    /// is closed.
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

/// Brings the NIC of `lease` home from wherever it is and closes the lease, or notes in it why it could not.
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
) -> Result<Homecoming, ReturnError> {
    let outcome = walk_home(node, lease, also, patience);
    let noted = match &outcome {
        Ok(Homecoming::Home | Homecoming::Gone) => entry.close(),
        Ok(Homecoming::Displaced { name }) => entry.write(&displaced(lease, name)),
        Ok(Homecoming::OutOfSight) => {
            let fault = "it is in no network namespace that can be looked into".to_owned();
            entry.write(&returning(lease, Some(fault)))
        }
        Err(error) => entry.write(&returning(lease, Some(linux::chain(error)))),
    };
    first_cause(lease, outcome, noted)
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
        Ok(Homecoming::Home) => keep(entry, lease),
        Ok(Homecoming::Displaced { name }) => entry.write(&displaced(lease, name)),
        Ok(Homecoming::Gone | Homecoming::OutOfSight) => Ok(()),
        Err(error) => entry.write(&returning(lease, Some(linux::chain(error)))),
    };
    first_cause(lease, outcome, noted)
}

/// Leaves the lease of a NIC that is home, as [`put_right`] does: IPAM could not be asked to take the owner's addresses back, and who asks it
/// later, a DEL, a GC or the next ADD, knows of them by the lease.
///
/// # Errors
/// [`Error::Write`].
pub fn keep(entry: &Entry<'_>, lease: &Lease) -> Result<(), Error> {
    entry.write(&displaced(lease, &lease.home.name))
}

fn restore_on_node(node: &mut Node, lease: &Lease) -> Result<Homecoming, ReturnError> {
    let kernel = |source| ReturnError::Kernel { device: lease.device.clone(), source };
    if lease.boot_id != node.boot_id {
        return Ok(Homecoming::OutOfSight);
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

fn displaced(lease: &Lease, name: &IfName) -> Lease {
    returning(lease, None).after(Step::Displace { name: name.clone() })
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
    let Some((_netns, mut pod)) = pod else { return Ok(None) };
    let links = pod.links()?;
    let link = identity.among_pod(lease, &links);
    link.map(|link| fetch(node, &mut pod, lease, link, &links)).transpose()
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

/// The name at home: its own, or where another link has that, the first free one of `eth1-2`, `eth1-3`, ...
fn home_name(node: &mut Node, home: &Home, own_index: Option<u32>) -> Result<IfName, linux::Error> {
    let mut taken = |name: &IfName| {
        let holder = node.routes.link_by_name(name.as_str())?;
        Ok(holder.is_some_and(|link| Some(link.index) != own_index))
    };
    if !taken(&home.name)? {
        return Ok(home.name.clone());
    }
    for number in 2..1000 {
        let suffix = format!("-{number}");
        let mut stem = home.name.as_str();
        while stem.len() + suffix.len() > 15 {
            let mut characters = stem.chars();
            characters.next_back();
            stem = characters.as_str();
        }
        if let Ok(name) = format!("{stem}{suffix}").parse::<IfName>()
            && !taken(&name)?
        {
            return Ok(name);
        }
    }
    // A thousand links of that name: the kernel says EEXIST, in its own words.
    Ok(home.name.clone())
}

/// Restores the NIC in the node's namespace and reads it back.
fn settle(node: &mut Node, lease: &Lease, link: Link) -> Result<Homecoming, ReturnError> {
    let kernel = |source| ReturnError::Kernel { device: lease.device.clone(), source };
    let home = &lease.home;
    let name = home_name(node, home, Some(link.index)).map_err(kernel)?;
    let index = link.index;
    let Shortfall { faults, mut unsettled, refused } = restore(node, home, &link, &name).map_err(kernel)?;
    unsettled.extend(give_routes(node, home, index));
    let after = node.routes.link_by_index(index).map_err(kernel)?.ok_or_else(|| {
        // Unplugged just now: the next attempt finds it gone.
        ReturnError::Unlike {
            device: lease.device.clone(),
            name,
            differences: vec!["it vanished".to_owned()],
        }
    })?;
    let mut taken = Vec::new();
    for name in home.alt_names.iter().filter(|name| !after.alt_names.contains(name)) {
        if node.routes.link_by_name(name).map_err(kernel)?.is_some() {
            taken.push(name.clone());
        }
    }
    let mut differences = home.differences(&after, &taken);
    differences.extend(tuning::differences(node, home, &after).map_err(kernel)?);
    let missing = missing(node, home, &after).map_err(kernel)?.into_iter();
    differences
        .extend(missing.filter(|part| !refused.contains(part)).map(|part| format!("{part} is missing")));
    differences.extend(unsettled.iter().map(linux::Error::chain));
    if differences.is_empty() {
        return Ok(if after.name == home.name && taken.is_empty() {
            Homecoming::Home
        } else {
            Homecoming::Displaced { name: after.name }
        });
    }
    differences.extend(faults.iter().map(linux::Error::chain));
    Err(ReturnError::Unlike { device: lease.device.clone(), name: after.name, differences })
}

/// What a NIC had at home beside its link, queues and settings.
#[derive(PartialEq, Eq)]
enum Part<'a> {
    Address(&'a KeptAddress),
    PortOf(&'a IfName),
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Address(address) => write!(f, "address {address:?}"),
            Part::PortOf(master) => write!(f, "place in {master}"),
        }
    }
}

/// What the NIC had and has not now: addresses, and its place in a bridge or bond that is still there.
fn missing<'a>(node: &mut Node, home: &'a Home, link: &Link) -> Result<Vec<Part<'a>>, linux::Error> {
    let mut missing = Vec::new();
    if !home.addresses.is_empty() {
        // Of all that it has: which of them are kept is for the settings to say, and those may be refused.
        let now = node.routes.addresses()?;
        let mine = |address: &&Address| address.index == link.index && address.permanent;
        let now: Vec<_> = now.iter().filter(mine).map(|now| (now.ip, now.prefix_len)).collect();
        // Whatever else the kernel makes of it: it is there.
        let is_there = |then: &&KeptAddress| {
            then.address().is_some_and(|then| now.contains(&(then.ip, then.prefix_len)))
        };
        missing.extend(home.addresses.iter().filter(|then| !is_there(then)).map(Part::Address));
    }
    if let Some((name, _)) = master_to_join(node, home, link)? {
        missing.push(Part::PortOf(name));
    }
    Ok(missing)
}

/// The bridge or bond that the NIC is no port of any more, and its index.
fn master_to_join<'a>(
    node: &mut Node,
    home: &'a Home,
    link: &Link,
) -> Result<Option<(&'a IfName, u32)>, linux::Error> {
    let Some(name) = &home.master else { return Ok(None) };
    let master = node.routes.link_by_name(name.as_str())?;
    Ok(master.map(|master| (name, master.index)).filter(|(_, index)| link.master != Some(*index)))
}

/// What could not be restored.
struct Shortfall<'a> {
    /// Judged by what is read back, and for the message.
    faults: Vec<linux::Error>,
    /// Settings that failed only for now.
    unsettled: Vec<linux::Error>,
    /// What the kernel refuses for good: the node may have changed meanwhile, and that does not keep the NIC from being home.
    refused: Vec<Part<'a>>,
}

/// Sets right whatever differs. A step that is refused does not keep the others from being tried.
fn restore<'a>(
    node: &mut Node,
    home: &'a Home,
    link: &Link,
    name: &IfName,
) -> Result<Shortfall<'a>, linux::Error> {
    let mut faults = Vec::new();
    let mut refused = Vec::new();
    let join = master_to_join(node, home, link)?;
    let mut up = link.up;
    let mut attempt = |result: Result<(), linux::Error>| faults.extend(result.err());
    // They are in the order in which they were given: from the first one that is not in its place all are given anew. Those that the
    // pod gave it go before the rename: one of them may be the very name that it is to have.
    let in_place = link.alt_names.iter().zip(&home.alt_names).take_while(|(now, then)| now == then).count();
    for name in link.alt_names.iter().skip(in_place) {
        attempt(node.routes.remove_alt_names(link.index, std::slice::from_ref(name)));
    }
    let rename = link.name != *name;
    let readdress = home.mac.is_some() && link.mac != home.mac;
    // A program of the pod's would see the node's packets, and while one runs in the driver that refuses MTUs and queues.
    for program in home.foreign_xdp(link) {
        attempt(node.routes.remove_xdp(link.index, program));
    }
    // Kernels before 6.2 rename a link only while it is down, some drivers change the MAC only then, and a bond takes it only then.
    if up && (rename || readdress || join.is_some() || !home.up) {
        attempt(set(node, link.index, LinkChange { up: Some(false), ..LinkChange::default() }));
        up = false;
    }
    if rename {
        attempt(set(node, link.index, LinkChange { name: Some(name), ..LinkChange::default() }));
    }
    if readdress {
        attempt(set(node, link.index, LinkChange { mac: home.mac, ..LinkChange::default() }));
    }
    if link.mtu != home.mtu {
        attempt(set(node, link.index, LinkChange { mtu: Some(home.mtu), ..LinkChange::default() }));
    }
    // Promiscuity, say: the kernel keeps what the pod asked for, also when the namespace ends.
    if link.flags != home.flags {
        attempt(set(node, link.index, LinkChange { flags: Some(home.flags), ..LinkChange::default() }));
    }
    if link.tx_queue_len != home.tx_queue_len {
        let tx_queue_len = Some(home.tx_queue_len);
        attempt(set(node, link.index, LinkChange { tx_queue_len, ..LinkChange::default() }));
    }
    if link.alias != home.alias {
        let alias = Some(home.alias.as_deref().unwrap_or_default());
        attempt(set(node, link.index, LinkChange { alias, ..LinkChange::default() }));
    }
    for name in home.alt_names.iter().skip(in_place) {
        attempt(node.routes.add_alt_names(link.index, std::slice::from_ref(name)));
    }
    if let Some((name, master)) = join {
        let joined = set(node, link.index, LinkChange { master: Some(master), ..LinkChange::default() });
        refused.extend(is_for_good(&joined).then_some(Part::PortOf(name)));
        attempt(joined);
    }
    tuning::restore(node, home, link.index)?.into_iter().for_each(|error| attempt(Err(error)));
    // Before it is up, when the kernel makes addresses and asks routers, or does not.
    let unsettled = tuning::restore_settings(node, home, link.index)?;
    if home.up && !up {
        attempt(set(node, link.index, LinkChange { up: Some(true), ..LinkChange::default() }));
    }
    let family = |kept: &KeptAddress| kept.address().map(|address| address.ip.is_ipv4());
    for addresses in home.addresses.chunk_by(|one, next| family(one) == family(next)) {
        for address in addresses {
            let given = node.routes.give_address(link.index, address);
            // Their order counts, since packets leave with the first of a subnet: behind one that failed only for now none is given.
            let is_last = given.as_ref().is_err_and(linux::Error::is_passing);
            refused.extend(is_for_good(&given).then_some(Part::Address(address)));
            attempt(given.or_else(|error| if error.is_exists() { Ok(()) } else { Err(error) }));
            if is_last {
                break;
            }
        }
    }
    Ok(Shortfall { faults, unsettled, refused })
}

/// Whether the kernel refused something, and would again.
fn is_for_good(outcome: &Result<(), linux::Error>) -> bool {
    outcome.as_ref().is_err_and(|error| !error.is_passing())
}

/// Sets the routes that a NIC had at home. Returned is what failed only for now. What is refused for good is that there is another way to the
/// same destination, or none to the next hop: the node's routes may have changed meanwhile.
fn give_routes(node: &mut Node, home: &Home, index: u32) -> Vec<linux::Error> {
    let given = home.routes.iter().map(|route| node.routes.give_route(index, route));
    given.filter_map(Result::err).filter(linux::Error::is_passing).collect()
}

/// What a NIC had at home and has not, in words: routes, where another link leads there by now, and settings, addresses and its place in a bridge
/// or bond, where the kernel refuses. That does not keep it from being home, since all of it may change while a NIC is away.
///
/// # Errors
/// The kernel does not answer.
pub fn lost(node: &mut Node, home: &Home) -> Result<Vec<String>, linux::Error> {
    let Some(link) = node.routes.link_by_name(home.name.as_str())? else { return Ok(Vec::new()) };
    let mut words = tuning::lost_settings(node, home, link.index)?;
    let missing = missing(node, home, &link)?.into_iter();
    words.extend(missing.map(|part| format!("its {part}: the kernel refuses it, or somebody took it off")));
    if !home.routes.is_empty() {
        let now = node.routes.kept_routes(link.index)?;
        words.extend(home.routes.iter().filter(|then| !now.contains(then)).map(|route| {
            format!("its route to {route:?}: there is another one, or its next hop is out of reach")
        }));
    }
    Ok(words)
}

fn set(node: &mut Node, index: u32, change: LinkChange<'_>) -> Result<(), linux::Error> {
    node.routes.change_link(index, &change)
}

impl Home {
    /// The XDP programs on a link that were not there at home. One that is missing now cannot be had back: it ended when it was taken off.
    fn foreign_xdp(&self, link: &Link) -> impl Iterator<Item = Xdp> {
        link.xdp.iter().copied().filter(|program| !self.xdp.contains(&program.id))
    }

    /// In what a link at home differs from what it was, in words. Names that are `taken` by other links are not among
    /// them, nor is its first name: that is no fault of the link, and nothing can be done about it now.
    #[must_use]
    pub fn differences(&self, link: &Link, taken: &[String]) -> Vec<String> {
        let mut words = Vec::new();
        let mut compare = |what: &str, now: String, then: String| {
            if now != then {
                words.push(format!("{what} is {now}, was {then}"));
            }
        };
        let state = |up: bool| if up { "up" } else { "down" }.to_owned();
        let free = |names: &[String]| {
            let names: Vec<_> = names.iter().filter(|name| !taken.contains(name)).collect();
            format!("{names:?}")
        };
        if let Some(mac) = self.mac {
            compare(
                "MAC",
                link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string()),
                mac.to_string(),
            );
        }
        compare("MTU", link.mtu.to_string(), self.mtu.to_string());
        compare("queue length", link.tx_queue_len.to_string(), self.tx_queue_len.to_string());
        compare("flags", format!("{:#x}", link.flags), format!("{:#x}", self.flags));
        compare("alias", format!("{:?}", link.alias), format!("{:?}", self.alias));
        compare("alternative names", free(&link.alt_names), free(&self.alt_names));
        for program in self.foreign_xdp(link) {
            compare("XDP program", program.id.to_string(), "none".to_owned());
        }
        compare("state", state(link.up), state(self.up));
        words
    }
}
