//! The scheduler: pods that have no node get one where they fit; the others are told why not, in the words of the real one.
//!
//! Every change of a pod or a node is a reason to look again at all pods that wait: there are few here.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::events::{Level, Recorder};
use super::placement::{Cluster, unschedulable};
use crate::api::json::Json;
use crate::api::selector::Selector;
use crate::api::service::Watch;
use crate::api::status::set_condition;
use crate::api::store::{Part, Store};
use crate::api::time::Timestamp;
use crate::api::{Api, Error};

/// What became of a pod.
struct Outcome {
    pod: Arc<Value>,
    /// The node, or why there is none.
    fits: Result<String, String>,
}

/// Schedules until `stop`.
pub(super) async fn run(api: Api, recorder: Recorder, stop: CancellationToken) {
    loop {
        let round = api.read_and_watch(|store| schedule(store, Timestamp::now())).await;
        let (outcomes, mut watch) = match round {
            Ok(round) => round,
            Err(error) => {
                if !stop.is_cancelled() {
                    warn!(%error, "the scheduler ends");
                }
                return;
            }
        };
        for Outcome { pod, fits } in outcomes {
            let name = format!("{}/{}", pod.namespace(), pod.name());
            match fits {
                Ok(node) => {
                    info!(pod = name, node, "pod scheduled");
                    let message = format!("Successfully assigned {name} to {node}");
                    recorder.pod(&pod, Level::Normal, "Scheduled", message).await;
                }
                Err(why) => {
                    info!(pod = name, why, "pod waits");
                    recorder.pod(&pod, Level::Warning, "FailedScheduling", why).await;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = something_that_matters(&mut watch) => {}
        }
    }
}

/// Returns when a pod or a node changed, or too much happened to tell.
async fn something_that_matters(watch: &mut Watch) {
    while let Ok(change) = watch.next().await {
        if change.kind.group.is_empty() && ["Pod", "Node"].contains(&change.kind.kind.as_str()) {
            return;
        }
    }
}

/// Binds what fits and marks what does not; gives what is new about it.
fn schedule(store: &mut Store, now: Timestamp) -> Result<Vec<Outcome>, Error> {
    let (pods, nodes) = (store.kind("", "v1", "pods")?, store.kind("", "v1", "nodes")?);
    let all = store.list(&pods, None, &Selector::default());
    let mut cluster = Cluster::new(&store.list(&nodes, None, &Selector::default()), &all);
    let mut waiting: Vec<_> = all.into_iter().filter(|pod| waits(pod)).collect();
    waiting.sort_by_key(|pod| pod.text("/metadata/creationTimestamp").to_owned());
    let mut outcomes = Vec::new();
    for pod in waiting {
        let fits = cluster.place(&pod);
        match &fits {
            Ok(node) => {
                store.bind(pod.namespace(), pod.name(), node, now)?;
            }
            Err(why) => {
                let known =
                    pod.items("/status/conditions").iter().find(|c| c.text("/type") == "PodScheduled");
                if known.is_some_and(|known| known.text("/message") == why) {
                    continue;
                }
                let mut marked = Value::clone(&pod);
                set_condition(&mut marked, unschedulable(why), now);
                store.update(&pods, pod.namespace(), pod.name(), Part::Status, marked)?;
            }
        }
        outcomes.push(Outcome { pod, fits });
    }
    Ok(outcomes)
}

/// Whether a pod is ours to schedule.
fn waits(pod: &Value) -> bool {
    pod.text("/spec/nodeName").is_empty()
        && pod.text("/spec/schedulerName") == "default-scheduler"
        && pod.items("/spec/schedulingGates").is_empty()
        && !pod.is_terminating()
        && !["Failed", "Succeeded"].contains(&pod.text("/status/phase"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn store() -> Store {
        let mut store = Store::default();
        for (plural, object) in [
            ("namespaces", json!({"metadata": {"name": "default"}})),
            ("nodes", json!({"metadata": {"name": "node1"}})),
        ] {
            let kind = store.kind("", "v1", plural).unwrap();
            store.create(&kind, "", object, NOW).unwrap();
        }
        offer(&mut store, 1);
        store
    }

    fn offer(store: &mut Store, virt: u32) {
        let nodes = store.kind("", "v1", "nodes").unwrap();
        let mut node = Value::clone(&*store.get(&nodes, "", "node1").unwrap());
        node.put(
            "/status/allocatable",
            json!({"pods": "110", "cpu": "2", "kernel.org/virt": virt.to_string()}),
        );
        store.update(&nodes, "", "node1", Part::Status, node).unwrap();
    }

    fn create(store: &mut Store, name: &str) {
        let limits = json!({"limits": {"kernel.org/virt": 1}});
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": limits}]},
        });
        let pods = store.kind("", "v1", "pods").unwrap();
        store.create(&pods, "default", pod, NOW).unwrap();
    }

    fn round(store: &mut Store) -> Vec<(String, Result<String, String>)> {
        let outcomes = schedule(store, NOW).unwrap();
        outcomes.into_iter().map(|outcome| (outcome.pod.name().to_owned(), outcome.fits)).collect()
    }

    #[test]
    fn one_pod_is_bound_and_the_other_waits_until_there_is_more() {
        let mut store = store();
        create(&mut store, "a");
        create(&mut store, "b");
        let why = "0/1 nodes are available: 1 Insufficient kernel.org/virt. \
                   preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
        let first = round(&mut store);
        assert_eq!(first, [("a".to_owned(), Ok("node1".to_owned())), ("b".to_owned(), Err(why.to_owned()))]);
        let pod = store.core("pods", "default", "b").unwrap();
        let condition = &pod.items("/status/conditions")[0];
        assert_eq!((condition.text("/reason"), condition.text("/message")), ("Unschedulable", why));
        assert_eq!(round(&mut store), [], "what is known is not told again");
        offer(&mut store, 2);
        assert_eq!(round(&mut store), [("b".to_owned(), Ok("node1".to_owned()))]);
    }

    #[test]
    fn a_gated_pod_and_one_of_another_scheduler_are_left_alone() {
        let mut store = store();
        let pods = store.kind("", "v1", "pods").unwrap();
        for (name, field, value) in [
            ("gated", "/spec/schedulingGates", json!([{"name": "example.com/wait"}])),
            ("others", "/spec/schedulerName", json!("mine")),
        ] {
            let mut pod =
                json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            pod.put(field, value);
            store.create(&pods, "default", pod, NOW).unwrap();
        }
        assert_eq!(round(&mut store), []);
    }
}
