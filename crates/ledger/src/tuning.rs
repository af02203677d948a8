//! Queues, rings, offloads and settings of a NIC that came home: what the ADD's configuration or the pod set is taken back.

use linux::Sysctl;
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

/// Sets the settings back that differ. Returned is what failed only for now: what is refused for good, as on a read-only `/proc/sys`, does not keep
/// the NIC from being home.
pub(crate) fn restore_settings(
    node: &mut Node,
    home: &Home,
    index: u32,
) -> Result<Vec<linux::Error>, linux::Error> {
    let mut faults = Vec::new();
    let differing = differing_settings(node, home, index)?;
    if differing.is_empty() {
        return Ok(faults);
    }
    let Some(Link { name, .. }) = node.routes.link_by_index(index)? else { return Ok(faults) };
    let mut limits = false;
    for Differing { setting, then, .. } in differing {
        match setting.parse::<Sysctl>() {
            Ok(sysctl) => faults.extend(node.netns.set_sysctl(&sysctl, &name, &then.to_string()).err()),
            Err(_) => limits = true,
        }
    }
    if limits {
        faults.extend(node.routes.set_limits(index, &home.settings).err());
    }
    faults.retain(linux::Error::is_passing);
    Ok(faults)
}

/// The settings that are not what they were, in words.
pub(crate) fn lost_settings(node: &mut Node, home: &Home, index: u32) -> Result<Vec<String>, linux::Error> {
    let differing = differing_settings(node, home, index)?.into_iter();
    let words = differing.map(|Differing { setting, now, then }| {
        format!("its {setting} of {then}: it is {now} and cannot be set")
    });
    Ok(words.collect())
}

struct Differing {
    setting: String,
    now: i64,
    then: i64,
}

fn differing_settings(node: &mut Node, home: &Home, index: u32) -> Result<Vec<Differing>, linux::Error> {
    if home.settings.is_empty() {
        return Ok(Vec::new());
    }
    let Some(now) = node.routes.settings(index)? else { return Ok(Vec::new()) };
    let all = home.settings.iter().filter_map(|(name, then)| {
        // A sysctl is gone where the MTU is too small for IPv6.
        let now = *now.get(name)?;
        Some(Differing { setting: name.clone(), now, then: *then })
    });
    Ok(all.filter(|setting| setting.now != setting.then).collect())
}
