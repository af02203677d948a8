//! Objects as rows, for `Accept: application/json;as=Table`: what `kubectl get` and `virtsim get` print.
//!
//! Source: `pkg/printers/internalversion/printers.go` for columns and words.

use serde_json::{Value, json};

use super::json::Json;
use super::kinds::Kind;
use super::time::{Timestamp, span};

/// A column's title, and whether it is shown by default (0) or only by `-o wide` (1).
type Column = (&'static str, u8);

/// A `meta.k8s.io/v1` Table of objects.
pub(super) fn table(kind: &Kind, objects: &[impl AsRef<Value>], version: u64, now: Timestamp) -> Value {
    let columns = columns(kind).iter().map(|(name, priority)| {
        json!({"name": name, "type": "string", "format": "", "description": "", "priority": priority})
    });
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version.to_string()},
        "columnDefinitions": columns.collect::<Value>(),
        "rows": objects.iter().map(|object| row(kind, object.as_ref(), now)).collect::<Value>(),
    })
}

fn columns(kind: &Kind) -> &'static [Column] {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            &[("Name", 0), ("Ready", 0), ("Status", 0), ("Restarts", 0), ("Age", 0), ("IP", 1), ("Node", 1)]
        }
        ("", "Node") => &[
            ("Name", 0),
            ("Status", 0),
            ("Roles", 0),
            ("Age", 0),
            ("Version", 0),
            ("Internal-IP", 1),
            ("Kernel-Version", 1),
        ],
        ("", "Event") => &[
            ("Last Seen", 0),
            ("Type", 0),
            ("Reason", 0),
            ("Object", 0),
            ("Source", 1),
            ("Message", 0),
            ("Count", 1),
        ],
        ("", "Namespace") => &[("Name", 0), ("Status", 0), ("Age", 0)],
        ("", "ConfigMap") => &[("Name", 0), ("Data", 0), ("Age", 0)],
        ("apps", "DaemonSet") => &[
            ("Name", 0),
            ("Desired", 0),
            ("Current", 0),
            ("Ready", 0),
            ("Up-to-date", 0),
            ("Available", 0),
            ("Age", 0),
        ],
        _ => &[("Name", 0), ("Age", 0)],
    }
}

fn row(kind: &Kind, object: &Value, now: Timestamp) -> Value {
    let age = |pointer: &str| {
        object.text(pointer).parse::<Timestamp>().map_or("<unknown>".to_owned(), |then| span(now.since(then)))
    };
    let name = object.name();
    let born = age("/metadata/creationTimestamp");
    let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
    let count = |pointer: &str| object.integer(pointer).unwrap_or_default().to_string();
    let cells = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            let (ready, all) = readiness(object);
            json!([
                name,
                format!("{ready}/{all}"),
                pod_status(object),
                restarts(object).to_string(),
                born,
                or_none(object.text("/status/podIP")),
                or_none(object.text("/spec/nodeName")),
            ])
        }
        ("", "Node") => {
            let address = object.items("/status/addresses").iter().find(|a| a.text("/type") == "InternalIP");
            json!([
                name,
                if condition(object, "Ready") == "True" { "Ready" } else { "NotReady" },
                "<none>",
                born,
                object.text("/status/nodeInfo/kubeletVersion"),
                or_none(address.map_or("", |address| address.text("/address"))),
                object.text("/status/nodeInfo/kernelVersion"),
            ])
        }
        ("", "Event") => {
            let about = format!(
                "{}/{}",
                object.text("/involvedObject/kind").to_lowercase(),
                object.text("/involvedObject/name")
            );
            let seen = if object.text("/lastTimestamp").is_empty() { &born } else { &age("/lastTimestamp") };
            json!([
                seen,
                object.text("/type"),
                object.text("/reason"),
                about,
                object.text("/source/component"),
                object.text("/message").trim(),
                object.integer("/count").unwrap_or(1).to_string(),
            ])
        }
        ("", "Namespace") => json!([name, object.text("/status/phase"), born]),
        ("", "ConfigMap") => {
            let entries = object.map("/data").map_or(0, |data| data.len());
            json!([name, entries.to_string(), born])
        }
        ("apps", "DaemonSet") => json!([
            name,
            count("/status/desiredNumberScheduled"),
            count("/status/currentNumberScheduled"),
            count("/status/numberReady"),
            count("/status/updatedNumberScheduled"),
            count("/status/numberAvailable"),
            born,
        ]),
        _ => json!([name, born]),
    };
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    json!({
        "cells": cells,
        "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata},
    })
}

/// The status of a condition: "True", "False", "Unknown", or "" where there is none.
pub(super) fn condition<'a>(object: &'a Value, name: &str) -> &'a str {
    let conditions = object.items("/status/conditions");
    conditions
        .iter()
        .find(|condition| condition.text("/type") == name)
        .map_or("", |found| found.text("/status"))
}

fn readiness(pod: &Value) -> (usize, usize) {
    let ready = pod.items("/status/containerStatuses").iter().filter(|status| status.is_true("/ready"));
    (ready.count(), pod.items("/spec/containers").len())
}

fn restarts(pod: &Value) -> i64 {
    pod.items("/status/containerStatuses").iter().filter_map(|status| status.integer("/restartCount")).sum()
}

/// The word that tells a person how a pod is.
fn pod_status(pod: &Value) -> String {
    let own = [pod.text("/status/reason"), pod.text("/status/phase"), "Unknown"];
    let mut word = own.into_iter().find(|word| !word.is_empty()).unwrap_or_default().to_owned();
    for status in pod.items("/status/initContainerStatuses") {
        let waiting = status.text("/state/waiting/reason");
        if !waiting.is_empty() && waiting != "PodInitializing" {
            word = format!("Init:{waiting}");
        } else if status.integer("/state/terminated/exitCode").is_some_and(|code| code != 0) {
            word = "Init:Error".to_owned();
        }
    }
    for status in pod.items("/status/containerStatuses").iter().rev() {
        let reasons = [status.text("/state/waiting/reason"), status.text("/state/terminated/reason")];
        if let Some(reason) = reasons.into_iter().find(|reason| !reason.is_empty()) {
            if !word.starts_with("Init:") {
                word = reason.to_owned();
            }
        } else if let Some(code) = status.integer("/state/terminated/exitCode") {
            word = format!("ExitCode:{code}");
        }
    }
    if pod.is_terminating() { "Terminating".to_owned() } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::built_in;

    fn cells(kind: &str, object: Value) -> Vec<String> {
        let kinds = built_in();
        let kind = kinds.iter().find(|found| found.kind == kind).unwrap();
        let now = "2026-11-24T05:01:00Z".parse().unwrap();
        let table = table(kind, &[std::sync::Arc::new(object)], 7, now);
        assert_eq!(table.items("/columnDefinitions").len(), table.items("/rows/0/cells").len());
        table.items("/rows/0/cells").iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_pods_row_tells_how_it_is() {
        let mut pod = json!({
            "metadata": {"name": "a", "creationTimestamp": "2026-11-24T05:00:00Z"},
            "spec": {"nodeName": "n", "containers": [{}]},
            "status": {"phase": "Running", "podIP": "10.1.2.3", "containerStatuses": [{"ready": true, "restartCount": 2}]},
        });
        assert_eq!(cells("Pod", pod.clone()), ["a", "1/1", "Running", "2", "60s", "10.1.2.3", "n"]);
        pod.put(
            "/status/containerStatuses/0",
            json!({"state": {"waiting": {"reason": "ContainerCreating"}}}),
        );
        assert_eq!(cells("Pod", pod.clone())[1..3], ["0/1", "ContainerCreating"]);
        pod.put("/metadata/deletionTimestamp", "2026-11-24T05:00:30Z");
        assert_eq!(cells("Pod", pod)[2], "Terminating");
    }

    #[test]
    fn other_kinds_have_their_own_columns() {
        let node = json!({"metadata": {"name": "n"}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
        }});
        assert_eq!(cells("Node", node)[..5], ["n", "Ready", "<none>", "<unknown>", "v1"]);
        let event = json!({
            "lastTimestamp": "2026-11-24T05:00:55Z", "type": "Warning", "reason": "FailedScheduling",
            "involvedObject": {"kind": "Pod", "name": "a"}, "message": "no\n",
        });
        assert_eq!(cells("Event", event), ["5s", "Warning", "FailedScheduling", "pod/a", "", "no", "1"]);
        assert_eq!(cells("Secret", json!({"metadata": {"name": "s"}})), ["s", "<unknown>"]);
    }
}
