//! Setting right what is on the node again, and telling what it lacks.
//!
//! Every step can be repeated, and none trusts the one before: what counts is the link as it is read back at the end.

use std::fmt;

use linux::bpf::Tcx;
use linux::route::{KeptAddress, LinkChange};
use nic::{Address, IfName, Link, Xdp};

use crate::homecoming::{Homecoming, ReturnError};
use crate::{Home, Lease, Node, tuning};

/// The name at home: its own, or where another link has that, the first free one of `eth1-2`, `eth1-3`, ...
pub(crate) fn home_name(
    node: &mut Node,
    home: &Home,
    own_index: Option<u32>,
) -> Result<IfName, linux::Error> {
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
pub(crate) fn settle(node: &mut Node, lease: &Lease, link: Link) -> Result<Homecoming, ReturnError> {
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
    let left = home.left_tcx(index).map_err(kernel)?.unwrap_or_default();
    differences.extend(left.iter().map(|program| format!("it has {program}, had not")));
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
    match home.left_tcx(link.index) {
        Ok(left) => {
            let left = left.unwrap_or_default().into_iter();
            left.for_each(|program| attempt(linux::bpf::remove_tcx(link.index, program)));
        }
        Err(error) => attempt(Err(error)),
    }
    for program in home.foreign_xdp(link) {
        attempt(node.routes.remove_xdp(link.index, program));
    }
    // Kernels before 6.2 rename a link only while it is down, and some drivers change the MAC only then.
    if up && (rename || readdress || !home.up) {
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
        let joining = LinkChange { master: Some(master), ..LinkChange::default() };
        let mut joined = set(node, link.index, joining);
        // A bond takes no port that is up; a bridge does, which spares the addresses and routes that end with the link's being up.
        if up && joined.is_err() {
            joined = set(node, link.index, LinkChange { up: Some(false), ..LinkChange::default() });
            up = joined.is_err();
            if !up {
                joined = set(node, link.index, joining);
            }
        }
        refused.extend(is_for_good(&joined).then_some(Part::PortOf(name)));
        // A bond sets its new port up.
        let set_up = joined.is_ok() && !home.up;
        attempt(joined);
        if set_up {
            attempt(set(node, link.index, LinkChange { up: Some(false), ..LinkChange::default() }));
        }
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
    pub(crate) fn foreign_xdp(&self, link: &Link) -> impl Iterator<Item = Xdp> {
        link.xdp.iter().copied().filter(|program| !self.xdp.contains(&program.id))
    }

    /// The TCX programs on a link of the calling thread's network namespace that were not there at home; `None` where nobody saw what was there, or
    /// this process does not see what is.
    pub(crate) fn foreign_tcx(&self, index: u32) -> Result<Option<Vec<Tcx>>, linux::Error> {
        let Some(then) = &self.tcx else { return Ok(None) };
        let now = linux::bpf::tcx(index)?;
        Ok(now.map(|now| now.into_iter().filter(|program| !then.contains(&program.into())).collect()))
    }

    /// Those of them on a link at home that were its owner's, and not the node's: what holds by itself. A BPF link of the owner's ended with the
    /// owner or was cut in the owner's network namespace; one that is there now is that of an agent of the node's, which was quick.
    pub(crate) fn left_tcx(&self, index: u32) -> Result<Option<Vec<Tcx>>, linux::Error> {
        let foreign = self.foreign_tcx(index)?;
        Ok(foreign.map(|foreign| foreign.into_iter().filter(|program| program.link == 0).collect()))
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
