//! Queues, rings and offloads of a NIC that came home: what the ADD's configuration or the pod set is taken back.

use nic::Link;

use crate::{Home, Node};

/// Sets back what differs; what the kernel refuses is returned.
pub(crate) fn restore(node: &mut Node, home: &Home, index: u32) -> Result<Vec<linux::Error>, linux::Error> {
    let mut faults = Vec::new();
    if home.channels.is_none() && home.rings.is_none() && home.offloads.is_none() {
        return Ok(faults);
    }
    // By name, and whether it has its own back nobody has looked yet.
    let Some(Link { name, .. }) = node.routes.link_by_index(index)? else { return Ok(faults) };
    if let Some(then) = home.channels
        && node.routes.channels(&name)?.is_some_and(|channels| channels.now != then)
    {
        faults.extend(node.routes.set_channels(&name, then).err());
    }
    if let Some(then) = home.rings
        && node.routes.rings(&name)?.is_some_and(|rings| rings.now != then)
    {
        faults.extend(node.routes.set_rings(&name, then).err());
    }
    if let Some(then) = home.offloads
        && node.routes.offloads(&name)?.is_some_and(|now| now != then)
    {
        faults.extend(node.routes.set_offloads(&name, then).err());
    }
    Ok(faults)
}

/// What differs, in words.
pub(crate) fn differences(node: &mut Node, home: &Home, link: &Link) -> Result<Vec<String>, linux::Error> {
    let mut words = Vec::new();
    if let Some(then) = home.channels
        && let Some(now) = node.routes.channels(&link.name)?.map(|channels| channels.now)
        && now != then
    {
        words.push(format!("queues are {now}, were {then}"));
    }
    if let Some(then) = home.rings
        && let Some(now) = node.routes.rings(&link.name)?.map(|rings| rings.now)
        && now != then
    {
        words.push(format!("rings are {now}, were {then}"));
    }
    if let Some(then) = home.offloads
        && let Some(now) = node.routes.offloads(&link.name)?
        && now != then
    {
        words.push(format!("offloads are {now}, were {then}"));
    }
    Ok(words)
}
