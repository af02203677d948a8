//! What the log says about the interfaces: why each is taken or left alone, once, and again when that changes.

use std::collections::{BTreeMap, BTreeSet};

use nic::{DeviceId, ResourceName, Skip, Standing};
use tracing::{debug, info, warn};

use super::survey::{Seen, Survey};

/// What was told so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    told: BTreeMap<String, Line>,
    insisted: BTreeSet<DeviceId>,
    strangers: BTreeSet<DeviceId>,
    nothing_offered: bool,
    failure: Option<String>,
}

/// What is told of one device or interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    kind: Kind,
    interface: String,
    /// The resource that it is offered as.
    pool: String,
    /// Those of pools that would have taken it, too.
    also: String,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Offered,
    Insisted,
    Default,
    Skipped,
    Software,
    Unreadable,
}

impl Report {
    /// Tells what is new.
    pub(crate) fn tell(&mut self, survey: &Survey) {
        if self.failure.take().is_some() {
            info!("the node's interfaces and routes can be read again");
        }
        self.tell_of_insistence(survey);
        let lines = lines(survey);
        for (device, line) in &lines {
            if self.told.get(device) != Some(line) {
                line.log(device);
            }
        }
        for (device, line) in &self.told {
            if !lines.contains_key(device) {
                match line.kind {
                    Kind::Software => debug!(interface = line.interface, "the interface is gone"),
                    _ => info!(device, interface = line.interface, "the device is gone"),
                }
            }
        }
        let nothing_offered = !lines.values().any(|line| matches!(line.kind, Kind::Offered | Kind::Insisted));
        if nothing_offered && !self.nothing_offered {
            let resources: Vec<&str> =
                survey.config.pools.iter().map(|pool| pool.resource.as_str()).collect();
            warn!(
                resources = resources.join(","),
                "no NIC to offer on this node (virtdp discover shows why)"
            );
        }
        self.nothing_offered = nothing_offered;
        self.told = lines;
    }

    /// Loudly, at each start: whoever gets such a NIC may cut the node off.
    fn tell_of_insistence(&mut self, survey: &Survey) {
        for device in survey.insisted.difference(&self.insisted) {
            warn!(%device, "--offer-lifeline: this NIC is offered even if it carries the node, which can cut the node off");
        }
        self.insisted.clone_from(&survey.insisted);
        let known: BTreeSet<&DeviceId> = survey.nics.iter().map(|seen| &seen.nic.id).collect();
        let strangers: BTreeSet<DeviceId> =
            survey.insisted.iter().filter(|device| !known.contains(device)).cloned().collect();
        for device in strangers.difference(&self.strangers) {
            warn!(%device, "--offer-lifeline names a device that is no NIC of this node");
        }
        self.strangers = strangers;
    }

    /// Notes that nothing could be read; says whether that is news.
    pub(crate) fn failed(&mut self, why: &str) -> bool {
        let news = self.failure.as_deref() != Some(why);
        self.failure = Some(why.to_owned());
        news
    }
}

impl Line {
    fn new(kind: Kind, interface: String, reason: String) -> Line {
        Line { kind, interface, pool: String::new(), also: String::new(), reason }
    }

    fn log(&self, device: &str) {
        let Line { kind, interface, pool, also, reason } = self;
        if !also.is_empty() {
            warn!(device, pool, also, "several pools want this NIC: the first in the configuration has it");
        }
        match kind {
            Kind::Offered => info!(interface, pool, reason, "Offering {device}"),
            Kind::Insisted => {
                warn!(interface, pool, reason, "Offering {device}, WHICH CARRIES THE NODE: offerLifeline")
            }
            Kind::Default => info!(interface, reason, "Skipping default interface {device}"),
            Kind::Skipped => info!(interface, reason, "Skipping interface of {device}"),
            Kind::Software => debug!(interface, reason, "Skipping interface"),
            Kind::Unreadable => warn!(reason, "Skipping {device}, which cannot be understood"),
        }
    }
}

fn lines(survey: &Survey) -> BTreeMap<String, Line> {
    let nics = survey.nics.iter().map(|seen| (seen.nic.id.to_string(), of_nic(seen, survey)));
    let others = survey.others.iter().map(|other| {
        let kind = if other.software { Kind::Software } else { Kind::Skipped };
        (other.name.to_string(), Line::new(kind, other.name.to_string(), other.why.clone()))
    });
    let unreadable = survey.unreadable.iter().map(|device| {
        (device.device.clone(), Line::new(Kind::Unreadable, String::new(), device.why.clone()))
    });
    nics.chain(others).chain(unreadable).collect()
}

fn of_nic(seen: &Seen, survey: &Survey) -> Line {
    let (kind, reason) = match &seen.standing {
        Standing::Offered(health) => {
            let place = match survey.leases.get(&seen.nic.id) {
                Some(lease) if seen.nic.interfaces.is_empty() => {
                    format!("{health}, away for {}", lease.owner)
                }
                Some(lease) => format!("{health}, on the node, though {} has it by the ledger", lease.owner),
                None if seen.nic.interfaces.is_empty() => format!("{health}, in another network namespace"),
                None => health.to_string(),
            };
            (Kind::Offered, place)
        }
        Standing::Insisted(health, lifeline) => (Kind::Insisted, format!("{lifeline}; {health}")),
        Standing::Skipped(skip @ (Skip::Lifeline { .. } | Skip::LatelyLifeline { .. })) => {
            (Kind::Default, skip.to_string())
        }
        Standing::Skipped(skip) => (Kind::Skipped, skip.to_string()),
    };
    let membership = seen.membership.as_ref().filter(|_| matches!(kind, Kind::Offered | Kind::Insisted));
    let also: Vec<&str> = membership.iter().flat_map(|found| &found.also).map(ResourceName::as_str).collect();
    Line {
        pool: membership.map(|found| found.pool.resource.to_string()).unwrap_or_default(),
        also: also.join(","),
        ..Line::new(kind, seen.interfaces(), reason)
    }
}
