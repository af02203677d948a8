//! The end of a node: what it made goes, in an order in which everything that goes still finds what it needs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::Parts;
use super::pods::on_node;
use crate::api::Error;
use crate::api::json::Json;
use crate::api::selector::Selector;
use crate::api::store::Deletion;
use crate::api::time::Timestamp;

/// How long containers have to end; less where the pod says so.
const GRACE: u64 = 5;
/// How long all pods have to go: some CNI plugin may not let them.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long clients have to notice.
const CLIENTS: Duration = Duration::from_secs(5);

impl Parts {
    /// Ends the node, once: whoever asks again hears the same.
    pub(super) async fn end(&self) -> Result<()> {
        let outcome = self.shutdown.get_or_init(|| self.shut_down()).await;
        outcome.clone().map_err(anyhow::Error::msg)
    }

    async fn shut_down(&self) -> Result<(), String> {
        info!("node ends");
        self.givers.end().await;
        let deadline = Instant::now() + PATIENCE;
        let workloads = self.end_pods(|pod| !pod.is_true("/spec/hostNetwork"), deadline).await;
        let others = self.end_pods(|_| true, deadline).await;
        self.servers.stop.cancel();
        // What the workers could not take back is tried a last time, and stays on record.
        self.runtime.shutdown().await;
        self.kubelet.stop().await;
        if timeout(CLIENTS, self.servers.end()).await.is_err() {
            warn!("some client did not notice that the API server ends");
        }
        workloads.and(others).map_err(|error| format!("{error:#}; the next `virtsim up` tries again"))
    }

    /// Deletes the pods that are meant, and waits until they are gone.
    async fn end_pods(&self, meant: fn(&Value) -> bool, deadline: Instant) -> Result<()> {
        let node = self.options.node_name.clone();
        let marked = self.api.read_and_watch(move |store| {
            let kind = store.kind("", "v1", "pods")?;
            for pod in on_node(store, &node)?.into_iter().filter(|pod| meant(pod)) {
                let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
                let grace = Some(own.unwrap_or(GRACE).clamp(1, GRACE));
                let deletion = Deletion { grace, ..Deletion::default() };
                store.delete(&kind, pod.namespace(), pod.name(), &deletion, Timestamp::now())?;
            }
            Ok(())
        });
        let ((), mut watch) = marked.await?;
        loop {
            let left: Vec<_> = self.pods().await.into_iter().filter(|pod| meant(pod)).collect();
            if left.is_empty() {
                return Ok(());
            }
            match timeout_at(deadline, watch.next()).await {
                Ok(Ok(_)) => {}
                // Too much happened to tell: it is looked at all the same.
                Ok(Err(Error::Expired { .. })) => tokio::task::yield_now().await,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(self.complaint(&left).await),
            }
        }
    }

    /// Which pods stay, and what their last warning is.
    async fn complaint(&self, left: &[Arc<Value>]) -> anyhow::Error {
        let uids: Vec<_> = left.iter().map(|pod| pod.uid().to_owned()).collect();
        let said = self.api.run(move |store| {
            let kind = store.kind("", "v1", "events")?;
            let all = store.list(&kind, None, &Selector::default());
            let theirs = all.into_iter().filter(|event| {
                event.text("/reason") == "FailedKillPod"
                    && uids.iter().any(|uid| uid == event.text("/involvedObject/uid"))
            });
            let last = theirs.max_by_key(|event| event.resource_version());
            Ok(last.map(|event| event.text("/message").to_owned()))
        });
        let names: Vec<_> = left.iter().map(|pod| format!("{}/{}", pod.namespace(), pod.name())).collect();
        let said = said.await.ok().flatten().unwrap_or_else(|| "they did not end in time".to_owned());
        anyhow!("these pods could not be taken back: {}: {said}", names.join(", "))
    }
}
