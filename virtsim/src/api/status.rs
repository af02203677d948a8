//! What the server itself says about an object: pure functions on the object alone.

use serde_json::{Value, json};

use super::json::Json;
use super::kinds::{CRD_GROUP, Kind};
use super::time::Timestamp;

/// Sets the condition of this type; its transition time changes only with its status.
pub fn set_condition(object: &mut Value, mut condition: Value, now: Timestamp) {
    let of_type = |other: &Value| other.text("/type") == condition.text("/type");
    let mut conditions = object.items("/status/conditions").to_vec();
    let old = conditions.iter().position(of_type);
    let since = old
        .and_then(|index| conditions.get(index))
        .filter(|old| old.text("/status") == condition.text("/status"))
        .map(|old| old.text("/lastTransitionTime").to_owned())
        .filter(|since| !since.is_empty());
    condition.put("/lastTransitionTime", since.unwrap_or_else(|| now.to_string()));
    match old.and_then(|index| conditions.get_mut(index)) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    object.put("/status/conditions", conditions);
}

/// What the server itself says about a new object.
pub(super) fn initial_status(kind: &Kind, object: &mut Value, now: Timestamp) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            object.put("/status", json!({"phase": "Pending", "qosClass": quality(object)}));
        }
        ("", "Namespace") => {
            object.put("/spec/finalizers", json!(["kubernetes"]));
            object.put("/status", json!({"phase": "Active"}));
            let name = object.name().to_owned();
            object.put("/metadata/labels/kubernetes.io~1metadata.name", name);
        }
        (CRD_GROUP, "CustomResourceDefinition") => {
            let names = object.pointer("/spec/names").cloned().unwrap_or_default();
            let stored: Vec<_> = object
                .items("/spec/versions")
                .iter()
                .filter(|version| version.is_true("/storage"))
                .map(|version| version.text("/name").to_owned())
                .collect();
            object.put("/status", json!({"acceptedNames": names, "storedVersions": stored}));
            for (name, reason) in [("NamesAccepted", "NoConflicts"), ("Established", "InitialNamesAccepted")]
            {
                set_condition(object, json!({"type": name, "status": "True", "reason": reason}), now);
            }
        }
        _ => {}
    }
}

/// How long a pod has to end: not at all where no node runs it.
pub(super) fn grace_period(pod: &Value, wanted: Option<u64>) -> u64 {
    let idle =
        pod.text("/spec/nodeName").is_empty() || ["Failed", "Succeeded"].contains(&pod.text("/status/phase"));
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    if idle { 0 } else { wanted.or(own).unwrap_or(30) }
}

/// `status.qosClass`: by cpu and memory alone.
fn quality(pod: &Value) -> &'static str {
    let named = ["/resources/requests", "/resources/limits"];
    let of = |container: &Value, which: &str, resource: &str| {
        container.pointer(&format!("{which}/{resource}")).cloned()
    };
    let containers = || pod.items("/spec/containers").iter().chain(pod.items("/spec/initContainers"));
    let any = containers().any(|container| {
        named.iter().any(|which| of(container, which, "cpu").or(of(container, which, "memory")).is_some())
    });
    let all_bound = containers().all(|container| {
        ["cpu", "memory"].iter().all(|resource| {
            let limit = of(container, "/resources/limits", resource);
            limit.is_some() && limit == of(container, "/resources/requests", resource)
        })
    });
    match (any, all_bound) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
