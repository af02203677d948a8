//! Repatriating: NICs that are on the node again, and that nobody brought home as they were.
//!
//! When a network namespace ends before its pod's DEL, the kernel puts the NIC into the node's, down, and under the name that the pod had
//! for it. A DEL, a GC or the next ADD puts that right, if one comes. This task does so whenever the node was looked at: at the start,
//! after each change, and every half minute.
//!
//! What it touches is on the node, has a lease that says otherwise, and a lock that nobody holds: so no ADD, DEL or GC is at work on it,
//! and no pod has it. A NIC in a network namespace that lives is the runtime's affair. Addresses are given back by the owner's DEL or
//! by GC, for whose sake the lease stays.
//!
//! That takes CAP_NET_ADMIN. An agent without it tells what it sees, and changes nothing.

mod look;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use nic::DeviceId;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use self::look::Stray;
use self::look::{Finding, Powers, look_after};
use self::report::Report;
use crate::cli::Settings;
use crate::discover::{Sight, Survey};
use crate::observe::Metrics;

/// What could not be brought home is tried again after this time, not at once: each attempt changes the link, and is seen as a change.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How it ended that a NIC was astray, as far as this is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Homecoming {
    /// It is as it was.
    Home,
    /// It is home under another name, or carries the node by now.
    Displaced,
    /// It could not be brought home; it will be tried again.
    Failed,
}

impl Homecoming {
    pub(crate) const ALL: [Homecoming; 3] = [Homecoming::Home, Homecoming::Displaced, Homecoming::Failed];

    /// In one word, for metrics.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Homecoming::Home => "home",
            Homecoming::Displaced => "displaced",
            Homecoming::Failed => "failed",
        }
    }
}

/// The NICs that are astray now, each with its name on the node and who had it. Changes nothing. Blocking.
pub(crate) fn stray(settings: &Settings, survey: &Survey) -> BTreeMap<DeviceId, Stray> {
    let astray = |(device, finding)| match finding {
        Finding::Astray(stray) => Some((device, stray)),
        Finding::InHand
        | Finding::InOrder
        | Finding::Home { .. }
        | Finding::Displaced { .. }
        | Finding::Fault(_) => None,
    };
    look_after(settings, Powers::Look, suspects(survey)).into_iter().filter_map(astray).collect()
}

/// Follows what is seen of the node until `stop`, and brings home what is astray.
pub(crate) async fn run(
    settings: Settings,
    mut sight: watch::Receiver<Sight>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let powers = Powers::ours();
    if powers == Powers::Look {
        info!("NICs that nobody brings home are only told of: that takes CAP_NET_ADMIN");
    }
    let mut report = Report::default();
    let mut failed = BTreeMap::new();
    loop {
        tokio::select! {
            changed = sight.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let Sight::Clear(survey) = sight.borrow_and_update().clone() else { continue };
        let suspects = suspects(&survey);
        report.keep(&suspects);
        metrics.astray(report.astray());
        failed.retain(|_, since: &mut Instant| since.elapsed() < AGAIN_AFTER);
        let due: Vec<DeviceId> = suspects.into_iter().filter(|id| !failed.contains_key(id)).collect();
        if due.is_empty() {
            continue;
        }
        let settings = settings.clone();
        let look = tokio::task::spawn_blocking(move || look_after(&settings, powers, due));
        let findings = tokio::select! {
            findings = look => findings,
            // Every step can be repeated, so that none need be waited for.
            () = stop.cancelled() => return,
        };
        let findings = findings.unwrap_or_else(|panicked| {
            warn!(reason = %panicked, "looking after NICs that are astray ended early");
            Vec::new()
        });
        for (device, finding) in findings {
            if matches!(finding, Finding::Fault(_)) {
                failed.insert(device.clone(), Instant::now());
            }
            if let Some(outcome) = finding.outcome() {
                metrics.homecoming(outcome);
            }
            report.tell(device, &finding);
        }
        metrics.astray(report.astray());
    }
}

/// The devices with a lease that are not known to be away.
fn suspects(survey: &Survey) -> Vec<DeviceId> {
    let away =
        |id: &DeviceId| survey.nics.iter().any(|seen| seen.nic.id == *id && seen.nic.interfaces.is_empty());
    survey.leases.keys().filter(|id| !away(id)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use nic::{Health, Interface, Nic, Standing};

    use super::*;
    use crate::discover::{Lease, Seen, sample};

    #[test]
    fn a_leased_nic_is_suspect_unless_its_interface_is_elsewhere() {
        let seen = |id: &str, interfaces: &[&str]| Seen {
            nic: Nic {
                has_interface: true,
                interfaces: interfaces
                    .iter()
                    .map(|name| Interface { index: 3, name: name.parse().unwrap(), hardware: true })
                    .collect(),
                ..sample::nic(id)
            },
            link: None,
            membership: None,
            told: None,
            standing: Standing::Offered(Health::Healthy),
        };
        let lease =
            |id: &str| (id.parse().unwrap(), Lease { owner: "somebody".into(), mac: None, pod: None });
        let survey = Survey {
            nics: vec![
                seen("0000:00:08.0", &["eth0"]),
                seen("0000:00:09.0", &[]),
                seen("0000:00:0a.0", &["net1"]),
            ],
            leases: ["0000:00:09.0", "0000:00:0a.0", "link:veth0"].map(lease).into(),
            ..Survey::default()
        };
        let suspects: Vec<String> = suspects(&survey).iter().map(ToString::to_string).collect();
        assert_eq!(suspects, ["0000:00:0a.0", "link:veth0"]);
    }
}
