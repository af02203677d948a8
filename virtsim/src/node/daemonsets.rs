//! The controller of DaemonSets, for one node: one pod for each set, made anew when it is gone or its template changed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::api::json::Json;
use crate::api::selector::Selector;
use crate::api::store::{Deletion, Part, Store};
use crate::api::time::Timestamp;
use crate::api::{Api, Error};

/// The label by which a pod is known to be of its set's present template.
const TEMPLATE: &str = "controller-revision-hash";

/// Makes pods of DaemonSets until `stop`.
pub(super) async fn run(api: Api, node: String, stop: CancellationToken) {
    loop {
        let name = node.clone();
        let round = api.read_and_watch(move |store| look(store, &name, Timestamp::now())).await;
        let mut watch = match round {
            Ok(((), watch)) => watch,
            Err(error) => {
                if !stop.is_cancelled() {
                    warn!(%error, "DaemonSets are not served any more");
                }
                return;
            }
        };
        let something_that_matters = async {
            while let Ok(change) = watch.next().await {
                if ["DaemonSet", "Pod"].contains(&change.kind.kind.as_str()) {
                    return;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = something_that_matters => {}
        }
    }
}

fn look(store: &mut Store, node: &str, now: Timestamp) -> Result<(), Error> {
    let (sets, pods) = (store.kind("apps", "v1", "daemonsets")?, store.kind("", "v1", "pods")?);
    for set in store.list(&sets, None, &Selector::default()).iter().filter(|set| !set.is_terminating()) {
        let revision = revision(set);
        let all = store.list(&pods, Some(set.namespace()), &Selector::default());
        let own: Vec<_> = all.iter().filter(|pod| is_of(pod, set)).cloned().collect();
        for pod in own.iter().filter(|pod| !pod.is_terminating()) {
            // One that ended, or that an older template made, makes room for a new one.
            let over = ["Failed", "Succeeded"].contains(&pod.text("/status/phase"));
            if over || pod.labels().get(TEMPLATE) != Some(&revision) {
                store.delete(&pods, pod.namespace(), pod.name(), &Deletion::default(), now)?;
            }
        }
        let mut left = store.list(&pods, Some(set.namespace()), &Selector::default());
        left.retain(|pod| is_of(pod, set));
        if left.is_empty() {
            match store.create(&pods, set.namespace(), pod_of(set, node, &revision), now) {
                Ok(pod) => left.push(pod),
                // Its namespace may be ending.
                Err(error) => warn!(daemonset = set.name(), %error, "a pod is not made"),
            }
        }
        let ready = |pod: &Arc<Value>| {
            let is = |one: &Value| one.text("/type") == "Ready" && one.text("/status") == "True";
            pod.items("/status/conditions").iter().any(is)
        };
        let count = |ready: usize| i64::try_from(ready).unwrap_or(i64::MAX);
        let ready = count(left.iter().filter(|pod| ready(pod)).count());
        let mut counted = Value::clone(set);
        counted.put("/status", json!({
            "currentNumberScheduled": count(left.len()), "desiredNumberScheduled": 1, "numberMisscheduled": 0,
            "numberReady": ready, "numberAvailable": ready, "updatedNumberScheduled": count(left.len()),
            "observedGeneration": set.integer("/metadata/generation").unwrap_or(1),
        }));
        store.update(&sets, set.namespace(), set.name(), Part::Status, counted)?;
    }
    Ok(())
}

fn is_of(pod: &Value, set: &Value) -> bool {
    pod.items("/metadata/ownerReferences").iter().any(|owner| owner.text("/uid") == set.uid())
}

fn revision(set: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    set.pointer("/spec/template").map(Value::to_string).hash(&mut hasher);
    format!("{:010x}", hasher.finish() >> 24)
}

fn pod_of(set: &Value, node: &str, revision: &str) -> Value {
    let mut pod = set.pointer("/spec/template").cloned().unwrap_or_default();
    pod.take_out("/metadata/creationTimestamp");
    pod.put("/metadata/generateName", format!("{}-", set.name()));
    pod.put(&format!("/metadata/labels/{TEMPLATE}"), revision);
    pod.put(
        "/metadata/ownerReferences",
        json!([{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": set.name(), "uid": set.uid(),
            "controller": true, "blockOwnerDeletion": true,
        }]),
    );
    // The node, and the taints that a daemon must not mind: `AddOrUpdateDaemonPodTolerations`.
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
    pod.put(
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
        json!([term]),
    );
    let mut tolerations = pod.items("/spec/tolerations").to_vec();
    for taint in ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "unschedulable"] {
        tolerations.push(json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists"}));
    }
    pod.put("/spec/tolerations", tolerations);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn pods(store: &Store) -> Vec<Arc<Value>> {
        store.list(&store.kind("", "v1", "pods").unwrap(), None, &Selector::default())
    }

    #[test]
    fn a_set_has_one_pod_of_its_present_template() {
        let mut store = Store::default();
        let namespaces = store.kind("", "v1", "namespaces").unwrap();
        store.create(&namespaces, "", json!({"metadata": {"name": "default"}}), NOW).unwrap();
        let sets = store.kind("apps", "v1", "daemonsets").unwrap();
        let set = json!({
            "metadata": {"name": "d"},
            "spec": {
                "selector": {"matchLabels": {"app": "d"}},
                "template": {
                    "metadata": {"labels": {"app": "d"}},
                    "spec": {"containers": [{"name": "c", "image": "one"}]},
                },
            },
        });
        let set = store.create(&sets, "default", set, NOW).unwrap();
        for _ in 0..2 {
            look(&mut store, "n", NOW).unwrap();
            assert_eq!(pods(&store).len(), 1);
        }
        let first = pods(&store)[0].clone();
        assert!(first.name().starts_with("d-") && first.labels()["app"] == "d", "{first}");

        let mut changed = Value::clone(&store.get(&sets, "default", "d").unwrap());
        changed.put("/spec/template/spec/containers/0/image", "two");
        store.update(&sets, "default", "d", Part::Main, changed).unwrap();
        look(&mut store, "n", NOW).unwrap();
        let second = pods(&store)[0].clone();
        assert_eq!(pods(&store).len(), 1);
        assert_ne!(first.uid(), second.uid());
        assert_eq!(second.text("/spec/containers/0/image"), "two");

        store.delete(&sets, "default", set.name(), &Deletion::default(), NOW).unwrap();
        look(&mut store, "n", NOW).unwrap();
        assert_eq!(pods(&store).len(), 0);
    }
}
