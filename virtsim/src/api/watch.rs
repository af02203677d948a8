//! A watch over HTTP: one JSON document per line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::kinds::{Kind, group_version};
use super::selector::Selector;
use super::service::Watch;
use super::store::{Change, Verb};
use super::table::table;
use super::time::Timestamp;

/// How often a watcher that asked for it hears where it stands. The real server's is about a minute.
const BOOKMARK: Duration = Duration::from_secs(60);

/// What a watcher wants.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) kind: Arc<Kind>,
    pub(super) version: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) selector: Selector,
    pub(super) shape: Shape,
}

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// As they are.
    Whole,
    /// As a row of a table.
    Row,
    /// Only their metadata.
    Metadata,
}

impl Wanted {
    fn selects(&self, object: &Value) -> bool {
        use super::json::Json;
        self.namespace.as_deref().is_none_or(|namespace| namespace == object.namespace())
            && self.name.as_deref().is_none_or(|name| name == object.name())
            && self.selector.matches(object)
    }

    /// The event that this watcher sees: an object that no longer is selected is deleted for it.
    fn event(&self, change: &Change) -> Option<Value> {
        if change.kind.plural != self.kind.plural || change.kind.group != self.kind.group {
            return None;
        }
        let is = change.verb != Verb::Deleted && self.selects(&change.object);
        let was = change.previous.as_ref().is_some_and(|previous| self.selects(previous));
        let name = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(self.as_event(name, &change.object, change.version))
    }

    fn as_event(&self, name: &str, object: &Arc<Value>, version: u64) -> Value {
        json!({"type": name, "object": self.shown(object, version)})
    }

    fn shown(&self, object: &Arc<Value>, version: u64) -> Value {
        match self.shape {
            Shape::Row => table(&self.kind, std::slice::from_ref(object), version, Timestamp::now()),
            shape => show(&self.kind, &self.version, object, shape),
        }
    }

    fn bookmark(&self, version: u64, initial_events_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata = json!({
                "resourceVersion": version.to_string(), "creationTimestamp": null,
                "annotations": {"k8s.io/initial-events-end": "true"},
            });
        }
        let object = match self.shape {
            Shape::Row => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": [],
            }),
            _ => json!({
                "kind": self.kind.kind, "apiVersion": group_version(&self.kind.group, &self.version), "metadata": metadata,
            }),
        };
        json!({"type": "BOOKMARK", "object": object})
    }
}

/// An object as it goes over the wire in this version.
pub(super) fn show(kind: &Kind, version: &str, object: &Value, shape: Shape) -> Value {
    use super::json::Json;
    if shape == Shape::Metadata {
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        return json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
    }
    let mut object = object.clone();
    object.put("/apiVersion", group_version(&kind.group, version));
    object
}

/// How long a watch lasts and what it says besides changes.
pub(super) struct Manner {
    pub(super) timeout: Option<Duration>,
    pub(super) bookmarks: bool,
    /// `sendInitialEvents`: a bookmark ends the objects that were there.
    pub(super) mark_initial_end: bool,
}

/// Writes events until the client leaves, the time is over, or `stop`.
pub(super) async fn stream(
    wanted: Wanted,
    initial: Vec<Arc<Value>>,
    mut watch: Watch,
    manner: Manner,
    lines: mpsc::Sender<String>,
    stop: CancellationToken,
) {
    let mut first: VecDeque<Value> =
        initial.iter().map(|object| wanted.as_event("ADDED", object, watch.seen())).collect();
    if manner.mark_initial_end {
        first.push_back(wanted.bookmark(watch.seen(), true));
    }
    for event in first {
        if lines.send(line(&event)).await.is_err() {
            return;
        }
    }
    let end = manner.timeout.map(|timeout| Instant::now() + timeout);
    let over = async {
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut tick = tokio::time::interval_at(Instant::now() + BOOKMARK, BOOKMARK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            () = lines.closed() => return,
            () = &mut over => {
                if manner.bookmarks {
                    let _ = lines.send(line(&wanted.bookmark(watch.seen(), false))).await;
                }
                return;
            }
            _ = tick.tick(), if manner.bookmarks => Some(wanted.bookmark(watch.seen(), false)),
            change = watch.next() => match change {
                Ok(change) => wanted.event(&change),
                Err(error) => {
                    let _ = lines.send(line(&error_event(&error))).await;
                    return;
                }
            },
        };
        if let Some(event) = event
            && lines.send(line(&event)).await.is_err()
        {
            return;
        }
    }
}

/// How a watch ends in words: after 410 the client lists again.
pub(super) fn error_event(error: &Error) -> Value {
    json!({"type": "ERROR", "object": error.status()})
}

fn line(event: &Value) -> String {
    format!("{event}\n")
}
