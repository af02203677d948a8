//! The pod is told when a NIC that it has was unplugged or turned ill, and when it is well again: in the log always, and by an Event on
//! the pod where there are credentials for the API server.
//!
//! What is compared is what is with what was told last, so nothing waits in a queue and nothing is told twice: however often a NIC
//! changes, there is one thing to say about it, and after that a pause. One batch is under way at a time, on a thread of its own.

mod post;
mod told;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use nic::{DeviceId, Health, Standing};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(super) use self::post::Outcome;
use self::told::{Condition, Held, Notice, Told};
use super::Metrics;
use crate::discover::{Sight, Survey};

/// With what to ask the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// The service account of the pod that we run in.
    ServiceAccount,
    /// A kubeconfig.
    Kubeconfig(PathBuf),
}

/// Tells until `stop`.
pub(crate) async fn tell(
    credentials: Option<Credentials>,
    mut sight: watch::Receiver<Sight>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let began = SystemTime::now();
    let mut told = Told::default();
    let mut held = BTreeMap::new();
    loop {
        let again = told.next(&held);
        tokio::select! {
            changed = sight.changed() => {
                if changed.is_err() {
                    return;
                }
                // While the node cannot be read, nothing is known that could be told.
                if let Sight::Clear(survey) = &*sight.borrow_and_update() {
                    let before = std::mem::replace(&mut held, held_by_pods(survey));
                    told::stay_unplugged(&before, &mut held);
                }
            }
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            () = stop.cancelled() => return,
        }
        let notices = told.take(&held, Instant::now());
        for notice in &notices {
            log(notice);
        }
        let Some(credentials) = &credentials else { continue };
        if notices.is_empty() {
            continue;
        }
        let outcomes = tokio::select! {
            outcomes = post(credentials.clone(), notices.clone(), began) => outcomes,
            () = stop.cancelled() => return,
        };
        for (notice, outcome) in notices.iter().zip(outcomes) {
            metrics.event(outcome);
            match outcome {
                Outcome::Posted => told.done(&notice.device),
                Outcome::Refused => {}
                Outcome::Later => told.again(notice, Instant::now()),
            }
        }
    }
}

/// Posts on a thread of its own: the API server may take its time, and reading the node must not wait for it.
async fn post(credentials: Credentials, notices: Vec<Notice>, began: SystemTime) -> Vec<Outcome> {
    let (reply, outcomes) = oneshot::channel();
    let time = SystemTime::now();
    let count = notices.len();
    let spawned = std::thread::Builder::new().name("events".to_owned()).spawn(move || {
        // Whoever waits may have been told to stop.
        let _ = reply.send(post::all(&credentials, &notices, began, time));
    });
    if let Err(error) = spawned {
        warn!(reason = %error, "no Event is posted: there is no thread to be had");
    }
    outcomes.await.unwrap_or_else(|_| vec![Outcome::Later; count])
}

/// What pods have, and how it is.
fn held_by_pods(survey: &Survey) -> BTreeMap<DeviceId, Held> {
    let mut held = BTreeMap::new();
    for (device, lease) in &survey.leases {
        let Some((pod, interface)) = &lease.pod else { continue };
        let seen = survey.nics.iter().find(|seen| seen.nic.id == *device);
        let condition = match seen.map(|seen| &seen.standing) {
            None => Condition::Unplugged,
            Some(Standing::Offered(Health::Healthy) | Standing::Insisted(Health::Healthy, _)) => {
                Condition::Well
            }
            Some(Standing::Offered(ill) | Standing::Insisted(ill, _)) => Condition::Ill(ill.to_string()),
            Some(Standing::Skipped(skip)) => Condition::Ill(skip.to_string()),
        };
        held.insert(device.clone(), Held { pod: pod.clone(), interface: interface.clone(), condition });
    }
    held
}

fn log(notice: &Notice) {
    let Notice { device, held, .. } = notice;
    let pod = format!("{}/{}", held.pod.namespace, held.pod.name);
    match &held.condition {
        Condition::Well => info!(%device, pod, interface = %held.interface, "the NIC of a pod is well again"),
        Condition::Unplugged => {
            warn!(%device, pod, interface = %held.interface, "the NIC of a pod was unplugged");
        }
        Condition::Ill(why) => {
            warn!(%device, pod, interface = %held.interface, reason = why, "the NIC of a pod is ill");
        }
    }
}
