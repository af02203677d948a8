//! The node's pods: a worker for each, from when it is bound to the node until it is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::worker::{Context, Seen, work};
use crate::api::Error;
use crate::api::json::Json;
use crate::api::selector::Selector;
use crate::api::store::{Change, Store, Verb};

/// Pods that are bound to the node.
pub(super) fn on_node(store: &Store, node: &str) -> Result<Vec<Arc<Value>>, Error> {
    let kind = store.kind("", "v1", "pods")?;
    let all = store.list(&kind, None, &Selector::default());
    Ok(all.into_iter().filter(|pod| pod.text("/spec/nodeName") == node).collect())
}

/// Serves pods until `stop`; then their workers are ended where they are.
pub(super) async fn run(context: Arc<Context>, node: String, stop: CancellationToken) {
    let mut workers = Workers { context, node, seen: BTreeMap::new(), tasks: JoinSet::new() };
    loop {
        let node = workers.node.clone();
        let opened = workers.context.api.read_and_watch(move |store| on_node(store, &node)).await;
        let (pods, mut changes) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, "pods are not served any more");
                return stop.cancelled().await;
            }
        };
        workers.resume(&pods);
        loop {
            tokio::select! {
                () = stop.cancelled() => return workers.tasks.shutdown().await,
                Some(ended) = workers.tasks.join_next() => match ended {
                    Ok(uid) => drop(workers.seen.remove(&uid)),
                    Err(error) => warn!(%error, "a pod's worker failed"),
                },
                change = changes.next() => match change {
                    Ok(change) => workers.hear(&change),
                    // Too much happened at once: look at everything anew.
                    Err(_) => break,
                }
            }
        }
    }
}

struct Workers {
    context: Arc<Context>,
    node: String,
    /// By UID.
    seen: BTreeMap<String, watch::Sender<Seen>>,
    tasks: JoinSet<String>,
}

impl Workers {
    fn hear(&mut self, change: &Change) {
        if !change.kind.group.is_empty() || change.kind.kind != "Pod" {
            return;
        }
        match change.verb {
            Verb::Deleted => self.gone(change.object.uid()),
            Verb::Added | Verb::Modified => self.there(&change.object),
        }
    }

    fn resume(&mut self, pods: &[Arc<Value>]) {
        let known: Vec<_> = self.seen.keys().cloned().collect();
        for uid in known.iter().filter(|uid| !pods.iter().any(|pod| pod.uid() == *uid)) {
            self.gone(uid);
        }
        for pod in pods {
            self.there(pod);
        }
    }

    fn there(&mut self, pod: &Arc<Value>) {
        if pod.text("/spec/nodeName") != self.node {
            return;
        }
        let now = Seen { pod: pod.clone(), gone: false };
        if let Some(seen) = self.seen.get(pod.uid()) {
            seen.send_replace(now);
            return;
        }
        let uid = pod.uid().to_owned();
        let (seen, worker) = watch::channel(now);
        self.seen.insert(uid.clone(), seen);
        let work = work(self.context.clone(), worker);
        self.tasks.spawn(async move {
            work.await;
            uid
        });
    }

    fn gone(&mut self, uid: &str) {
        if let Some(seen) = self.seen.get(uid) {
            seen.send_modify(|seen| seen.gone = true);
        }
    }
}
