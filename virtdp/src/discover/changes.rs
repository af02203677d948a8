//! Hearing that something changed: uevents of network, PCI and virtio devices, and rtnetlink.
//!
//! What changed does not matter, everything is looked at again. A source that fails is said, and opened anew; until then the
//! regular look must do.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use linux::route::{Groups, Monitor};
use linux::uevent::{self, Received};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

use crate::readable::readable;

/// Changes come in bursts. A burst is over when it was quiet for this long,
const QUIET: Duration = Duration::from_millis(50);
/// and is looked at after this time at the latest, over or not: the kubelet is to hear of a change within 500 ms, and to look takes
/// its time, too.
const AT_LATEST: Duration = Duration::from_millis(200);
/// How long a broken source is left alone.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

/// The sources of news.
pub(crate) struct Changes {
    uevents: Source<uevent::Socket>,
    routes: Source<Monitor>,
    /// Links of other network namespaces, where the agent may hear of them.
    pods: Option<Source<Monitor>>,
}

impl Changes {
    /// Opens the sources, in the network namespace of the calling thread. Never fails: see the module.
    pub(crate) fn new() -> Self {
        let pods = || Monitor::open_for_all(Groups::LINKS);
        Changes {
            pods: pods().is_ok().then(|| Source::new("links in pods", pods, network_changed)),
            uevents: Source::new("uevents", uevent::Socket::open, devices_changed),
            routes: Source::new("rtnetlink", || Monitor::open(Groups::ALL), network_changed),
        }
    }

    /// Returns when a burst of changes is over, or when there was none for `longest`.
    pub(crate) async fn settled(&mut self, longest: Duration) {
        if timeout_at(Instant::now() + longest, self.next()).await.is_err() {
            return;
        }
        let begun = Instant::now();
        while let Some(over) = over_at(begun, Instant::now()) {
            if timeout_at(over, self.next()).await.is_err() {
                return;
            }
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            () = self.uevents.next() => {}
            () = self.routes.next() => {}
            () = next_in_pods(&mut self.pods) => {}
        }
    }
}

async fn next_in_pods(pods: &mut Option<Source<Monitor>>) {
    match pods {
        Some(pods) => pods.next().await,
        None => std::future::pending().await,
    }
}

/// When a burst of changes that has begun then is over, if nothing more comes. `None`: it has lasted long enough.
fn over_at(begun: Instant, now: Instant) -> Option<Instant> {
    let at_latest = begun + AT_LATEST;
    (now < at_latest).then(|| at_latest.min(now + QUIET))
}

/// A socket that is read when it is readable, and opened again when it broke.
struct Source<S: AsFd + AsRawFd> {
    name: &'static str,
    open: fn() -> Result<S, linux::Error>,
    /// Reads all that is there; says whether any of it matters.
    drain: fn(&mut S) -> Result<bool, linux::Error>,
    socket: Option<AsyncFd<S>>,
    reopen_at: Instant,
}

impl<S: AsFd + AsRawFd> Source<S> {
    fn new(
        name: &'static str,
        open: fn() -> Result<S, linux::Error>,
        drain: fn(&mut S) -> Result<bool, linux::Error>,
    ) -> Self {
        let mut source = Source { name, open, drain, socket: None, reopen_at: Instant::now() };
        source.reopen();
        source
    }

    /// Returns when something of interest has happened, or may have while nobody listened.
    async fn next(&mut self) {
        loop {
            let Some(socket) = &mut self.socket else {
                sleep_until(self.reopen_at).await;
                self.reopen();
                return;
            };
            let drained = match socket.readable_mut().await {
                Ok(mut ready) => {
                    let drained = (self.drain)(ready.get_inner_mut()).map_err(|error| error.chain());
                    ready.clear_ready();
                    drained
                }
                Err(error) => Err(error.to_string()),
            };
            match drained {
                Ok(true) => {
                    debug!(source = self.name, "something changed");
                    return;
                }
                Ok(false) => {}
                Err(reason) => {
                    warn!(source = self.name, reason, "changes are not heard for a moment");
                    self.socket = None;
                    self.reopen_at = Instant::now() + REOPEN_AFTER;
                }
            }
        }
    }

    fn reopen(&mut self) {
        let opened = (self.open)()
            .map_err(|error| error.chain())
            .and_then(|socket| readable(socket).map_err(|error| error.to_string()));
        match opened {
            Ok(socket) => self.socket = Some(socket),
            Err(reason) => {
                warn!(source = self.name, reason, "changes are only seen by looking every half minute");
                self.reopen_at = Instant::now() + REOPEN_AFTER;
            }
        }
    }
}

fn devices_changed(socket: &mut uevent::Socket) -> Result<bool, linux::Error> {
    let mut changed = false;
    loop {
        match socket.receive()? {
            Received::Event(event) => {
                if ["net", "pci", "virtio"].contains(&event.subsystem.as_str()) {
                    debug!(action = event.action, device = event.devpath, "uevent");
                    changed = true;
                }
            }
            Received::Lost => changed = true,
            Received::Foreign => {}
            Received::Nothing => return Ok(changed),
        }
    }
}

fn network_changed(monitor: &mut Monitor) -> Result<bool, linux::Error> {
    let mut changed = false;
    while monitor.next_now()?.is_some() {
        changed = true;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux::Netns;
    use linux::route::LinkChange;

    #[test]
    fn a_stream_of_changes_that_never_ends_is_looked_at_all_the_same() {
        let begun = Instant::now();
        let mut now = begun;
        let mut changes = 0;
        // Each comes just before it would have been quiet for long enough.
        while let Some(over) = over_at(begun, now) {
            assert!(over <= begun + AT_LATEST && over <= now + QUIET);
            now += QUIET - Duration::from_millis(1);
            changes += 1;
        }
        assert!(changes > 3 && now < begun + AT_LATEST + QUIET);
    }

    #[test]
    fn uevents_that_were_lost_are_a_change() {
        let netns = Netns::create().unwrap();
        netns
            .run(|| {
                let mut socket = uevent::Socket::open().unwrap();
                linux::testing::flood();
                // None of what was sent is a uevent of the kernel; that some of it was lost is what counts.
                assert!(devices_changed(&mut socket).unwrap());
                assert!(!devices_changed(&mut socket).unwrap());
            })
            .unwrap();
    }

    #[test]
    fn a_changed_link_is_heard_and_silence_is_not() {
        let netns = Netns::create().unwrap();
        netns
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut changes = Changes::new();
                    let mut socket = linux::route::Socket::open().unwrap();
                    socket.change_link(1, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
                    let started = Instant::now();
                    changes.settled(Duration::from_secs(30)).await;
                    assert!(started.elapsed() < Duration::from_secs(20));
                    // Nothing else changes here but what the machine itself does: only the end is sure.
                    changes.settled(Duration::from_millis(10)).await;
                });
            })
            .unwrap();
    }
}
