//! One task owns the [`Store`]; everybody else sends it work and hears of changes.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::error::Error;
use super::store::{Change, HISTORY, Store};
use super::time::Timestamp;

type Job = Box<dyn FnOnce(&mut Store) + Send>;

/// The way to the store. The task that owns it ends with the last clone.
#[derive(Clone)]
pub struct Api {
    jobs: mpsc::Sender<Job>,
    changes: broadcast::WeakSender<Change>,
}

/// Changes in order, from a chosen version on.
pub struct Watch {
    backlog: std::vec::IntoIter<Change>,
    live: broadcast::Receiver<Change>,
    seen: u64,
}

impl Api {
    /// A store with the namespaces that every cluster has, and its task.
    #[must_use]
    pub fn start() -> (Api, JoinHandle<()>) {
        let (jobs, inbox) = mpsc::channel(64);
        let (changes, _) = broadcast::channel(HISTORY);
        let api = Api { jobs, changes: changes.downgrade() };
        (api, tokio::spawn(own(furnished(), inbox, changes)))
    }

    /// Runs `job` on the store, alone; its changes are told to watchers when it has ended.
    ///
    /// # Errors
    /// What the job says, or that the store has stopped.
    pub async fn run<R, F>(&self, job: F) -> Result<R, Error>
    where
        F: FnOnce(&mut Store) -> Result<R, Error> + Send + 'static,
        R: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |store| {
            // Whoever asked may have gone.
            let _ = reply.send(job(store));
        });
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Runs `job` on a copy, which replaces the store only if the job succeeds: all of it happens, or nothing.
    ///
    /// # Errors
    /// As [`Api::run`].
    pub async fn run_whole<R, F>(&self, dry: DryRun, job: F) -> Result<R, Error>
    where
        F: FnOnce(&mut Store) -> Result<R, Error> + Send + 'static,
        R: Send + 'static,
    {
        self.run(move |store| {
            let mut copy = store.clone();
            let outcome = job(&mut copy)?;
            if dry == DryRun::No {
                *store = copy;
            }
            Ok(outcome)
        })
        .await
    }

    /// All changes after `since`.
    ///
    /// # Errors
    /// [`Error::Expired`] where they have left the history.
    pub async fn watch_from(&self, since: u64) -> Result<Watch, Error> {
        let changes = self.changes.clone();
        self.run(move |store| watch(store, &changes, since)).await
    }

    /// What `job` reads, and all changes after that: nothing is lost between the two.
    ///
    /// # Errors
    /// What the job says.
    pub async fn read_and_watch<R, F>(&self, job: F) -> Result<(R, Watch), Error>
    where
        F: FnOnce(&mut Store) -> Result<R, Error> + Send + 'static,
        R: Send + 'static,
    {
        let changes = self.changes.clone();
        self.run(move |store| {
            let outcome = job(store)?;
            Ok((outcome, watch(store, &changes, store.version())?))
        })
        .await
    }
}

/// Whether a write is only tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// It counts.
    No,
    /// `dryRun=All`.
    All,
}

impl Watch {
    /// The next change.
    ///
    /// # Errors
    /// [`Error::Expired`] where the reader was too slow; [`Error::Internal`] where the store has stopped.
    pub async fn next(&mut self) -> Result<Change, Error> {
        if let Some(change) = self.backlog.next() {
            self.seen = change.version;
            return Ok(change);
        }
        loop {
            match self.live.recv().await {
                // The job that opened this watch may have made changes itself, which are told only after it.
                Ok(change) if change.version <= self.seen => {}
                Ok(change) => {
                    self.seen = change.version;
                    return Ok(change);
                }
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    return Err(Error::Expired {
                        wanted: self.seen,
                        oldest: self.seen.saturating_add(count),
                    });
                }
                Err(broadcast::error::RecvError::Closed) => return Err(stopped()),
            }
        }
    }

    /// The version up to which everything has been seen.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

fn watch(store: &Store, changes: &broadcast::WeakSender<Change>, since: u64) -> Result<Watch, Error> {
    let backlog = store.changes_after(since)?.into_iter();
    let live = changes.upgrade().ok_or_else(stopped)?.subscribe();
    Ok(Watch { backlog, live, seen: store.version().max(since) })
}

fn stopped() -> Error {
    Error::Internal("the API server is stopping".to_owned())
}

async fn own(mut store: Store, mut inbox: mpsc::Receiver<Job>, changes: broadcast::Sender<Change>) {
    while let Some(job) = inbox.recv().await {
        let before = store.version();
        job(&mut store);
        if store.version() != before {
            for change in store.changes_after(before).unwrap_or_default() {
                // Nobody may be watching.
                let _ = changes.send(change);
            }
        }
    }
}

fn furnished() -> Store {
    let mut store = Store::default();
    let now = Timestamp::now();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        if let Ok(kind) = store.kind("", "v1", "namespaces") {
            // A fixed and valid object: it cannot be refused.
            let made: Result<Arc<Value>, _> =
                store.create(&kind, "", json!({"metadata": {"name": name}}), now);
            debug_assert!(made.is_ok());
        }
    }
    store
}
