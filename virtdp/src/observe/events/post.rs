//! Posting Events.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::event::{Event, Severity};
use cluster::get::Client;
use tracing::warn;

use super::Credentials;
use super::told::{Condition, Notice};
use crate::install::server_from_environment;
use crate::log::rfc3339;

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The kernel's name for the node: a pod in the node's network has no other.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";
const COMPONENT: &str = "virtdp";

/// What became of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is there.
    Posted,
    /// It may be posted later.
    Later,
    /// It never will be: the namespace is gone, or we may not.
    Refused,
}

/// Posts one after the other; ends at the first that the API server does not answer. One outcome for each. `began` is when this agent did.
pub(super) fn all(
    credentials: &Credentials,
    notices: &[Notice],
    began: SystemTime,
    time: SystemTime,
) -> Vec<Outcome> {
    let mut outcomes = match client(credentials) {
        Ok(client) => some(&client, notices, began, time),
        Err(error) => {
            warn!(reason = format!("{error:#}"), "no Event is posted: there are no credentials");
            Vec::new()
        }
    };
    outcomes.resize(notices.len(), Outcome::Later);
    outcomes
}

fn some(client: &Client, notices: &[Notice], began: SystemTime, time: SystemTime) -> Vec<Outcome> {
    let node = std::env::var("NODE_NAME").or_else(|_| std::fs::read_to_string(HOSTNAME));
    let node = node.unwrap_or_default().trim().to_owned();
    let mut outcomes = Vec::new();
    for notice in notices {
        let outcome = match client.create_event(&event(notice, &node, began, time)) {
            Ok(()) => Outcome::Posted,
            Err(error) => {
                let outcome = if error.is_passing() { Outcome::Later } else { Outcome::Refused };
                warn!(reason = format!("{:#}", anyhow::Error::from(error)), "no Event is posted");
                outcome
            }
        };
        outcomes.push(outcome);
        if outcome == Outcome::Later {
            break;
        }
    }
    outcomes
}

fn client(credentials: &Credentials) -> anyhow::Result<Client> {
    Ok(match credentials {
        Credentials::Kubeconfig(path) => Client::from_kubeconfig(path, DEADLINE)?,
        Credentials::ServiceAccount => {
            Client::from_service_account(&server_from_environment()?, Path::new(SERVICE_ACCOUNT), DEADLINE)?
        }
    })
}

fn event(notice: &Notice, node: &str, began: SystemTime, time: SystemTime) -> Event {
    let Notice { device, held, number, .. } = notice;
    let interface = &held.interface;
    let (severity, reason, message) = match &held.condition {
        Condition::Well => {
            (Severity::Normal, "NicHealthy", format!("NIC {device} ({interface}) is well again"))
        }
        Condition::Unplugged => (
            Severity::Warning,
            "NicUnplugged",
            format!(
                "NIC {device} ({interface}) was unplugged from the node; the pod has to be replaced to get another one"
            ),
        ),
        Condition::Ill(why) => {
            (Severity::Warning, "NicUnhealthy", format!("NIC {device} ({interface}) is ill: {why}"))
        }
    };
    // What two agents find at their start has the same name, so it is said once, and so is what happens to a pod only once. What begins
    // while an agent runs is news; the next agent may say it once more.
    let news = (*number > 0 && held.condition != Condition::Unplugged).then_some((began, number));
    let mut hasher = DefaultHasher::new();
    (&held.pod.uid, device, &held.condition, news).hash(&mut hasher);
    // A pod's name may have 253 characters, and so may an Event's.
    let stem: String = held.pod.name.chars().take(200).collect();
    let stem = stem.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    Event {
        name: format!("{stem}.{:016x}", hasher.finish()),
        namespace: held.pod.namespace.clone(),
        pod: held.pod.name.clone(),
        pod_uid: held.pod.uid.clone(),
        severity,
        reason: reason.to_owned(),
        message: message.chars().take(1000).collect(),
        time: rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default()),
        component: COMPONENT.to_owned(),
        node: node.to_owned(),
    }
}
