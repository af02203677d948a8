//! Discovering: what NICs the node has, which of them are for pods, and why; again whenever something changes.
//!
//! A reading that failed is never taken for an empty one. As long as the node cannot be read, nothing of it is offered, and
//! the log says so.

pub(crate) mod accept;
mod changes;
pub(crate) mod explain;
mod identity;
mod lately;
mod pods;
pub(crate) mod print;
mod read;
mod report;
mod survey;
mod vital;

use std::sync::Arc;
use std::time::Duration;

use config::Config;
use ledger::Notes;
use linux::route::Vital;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use self::changes::Changes;
use self::read::Reader;
use self::report::Report;
#[cfg(test)]
pub(crate) use self::survey::{Lease, sample};
pub(crate) use self::survey::{Seen, Survey};
pub(crate) use self::vital::{Host, List};
use self::vital::{Noted, Resolved};
use crate::cli::Settings;
use crate::observe::Metrics;

/// What is known of the node.
#[derive(Clone, Debug)]
pub(crate) enum Sight {
    /// Nobody has looked yet.
    Unknown,
    /// This is what it looks like.
    Clear(Arc<Survey>),
    /// It cannot be read, for this reason.
    Blind(String),
}

/// Without any event, look again after this time: no source of events is perfect.
pub(crate) const RESYNC: Duration = Duration::from_secs(30);
/// While a NIC waits for what no event tells: that a pod is gone, what an operator says, that a time is over.
const DOUBT: Duration = Duration::from_secs(1);
/// After a failed reading look again soon, then less often.
const RETRY: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];
/// One failed reading may be a busy moment, and to withdraw everything for it would turn pods away.
const BLIND_AFTER: usize = 2;

/// How long the first look waits for the names of API servers.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);

/// Follows the node until `stop`. The one owner of what was discovered.
pub(crate) async fn follow(
    settings: Settings,
    config: watch::Receiver<Arc<Config>>,
    sight: watch::Sender<Sight>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let notes = Notes::at(&settings.state);
    let (resolved, peers) = vital::channel(&settings.api_servers, &notes);
    tokio::join!(
        vital::follow(settings.api_servers.clone(), notes, resolved, stop.clone()),
        keep_looking(settings, peers, config, sight, metrics, stop),
    );
}

async fn keep_looking(
    settings: Settings,
    mut peers: watch::Receiver<Resolved>,
    mut config: watch::Receiver<Arc<Config>>,
    sight: watch::Sender<Sight>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    if settings.api_servers.iter().any(|host| !matches!(host, Host::Ip(_))) {
        // Whether that helped shows in what is read.
        tokio::select! {
            _ = timeout(RESOLVE_WITHIN, peers.changed()) => {}
            () = stop.cancelled() => return,
        }
    }
    // Listening begins before the first look, so that no change falls in between.
    let mut changes = Changes::new();
    let mut reader = Reader::of_the_agent(&settings);
    let mut report = Report::default();
    let mut noted = Noted::at(&settings.state);
    let mut failures = 0_usize;
    loop {
        let started = Instant::now();
        // Files and netlink are read on a thread of their own: the kubelet is answered meanwhile.
        let in_force = Arc::clone(&config.borrow_and_update());
        reader.set_peers(peers.borrow_and_update().clone());
        let read = tokio::task::spawn_blocking(move || {
            let survey = reader.read(&in_force);
            (reader, survey)
        });
        let read = tokio::select! {
            read = read => read,
            () = stop.cancelled() => return,
        };
        let took = started.elapsed();
        debug!(milliseconds = took.as_millis(), "looked at the node");
        let survey = match read {
            Ok((back, survey)) => {
                reader = back;
                survey
            }
            Err(panicked) => {
                reader = Reader::of_the_agent(&settings);
                Err(anyhow::Error::new(panicked).context("reading the node ended early"))
            }
        };
        metrics.looked(took, &survey);
        let again_after = match survey {
            Ok(survey) => {
                failures = 0;
                report.tell(&survey);
                if matches!(*sight.borrow(), Sight::Unknown) {
                    info!(milliseconds = took.as_millis(), "looked at all interfaces of the node");
                }
                let again_after = if survey.has_waiting() { DOUBT } else { RESYNC };
                sight.send_replace(Sight::Clear(Arc::new(survey)));
                let vital = Vital {
                    addresses: settings.node_addresses.clone(),
                    peers: peers.borrow().clone().unwrap_or_default(),
                };
                noted.keep(vital).await;
                again_after
            }
            Err(failure) => {
                let why = format!("{failure:#}");
                let pause = RETRY.get(failures).or(RETRY.last()).copied().unwrap_or(RESYNC);
                failures = failures.saturating_add(1);
                if failures < BLIND_AFTER {
                    debug!(reason = why, "looking again: the node could not be read");
                } else {
                    if report.failed(&why) {
                        error!(
                            reason = why,
                            "no NIC is offered: the node's interfaces and routes cannot be read"
                        );
                    }
                    sight.send_replace(Sight::Blind(why));
                }
                pause
            }
        };
        tokio::select! {
            () = changes.settled(again_after) => {}
            _ = peers.changed() => {}
            // Who handed it on has gone, and so do we soon.
            changed = config.changed() => if changed.is_err() { stop.cancelled().await },
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests;
