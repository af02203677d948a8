//! Events: what `describe` shows. One that happens again is counted, not repeated.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};
use tracing::debug;

use crate::api::Api;
use crate::api::json::Json;
use crate::api::store::{Part, Store};
use crate::api::time::Timestamp;

/// Writes the events of one component.
#[derive(Clone)]
pub(super) struct Recorder {
    api: Api,
    component: &'static str,
    host: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Level {
    Normal,
    Warning,
}

impl Recorder {
    pub(super) fn new(api: Api, component: &'static str, host: impl Into<String>) -> Self {
        Recorder { api, component, host: host.into() }
    }

    /// Something happened to a pod.
    pub(super) async fn pod(&self, pod: &Value, level: Level, reason: &'static str, message: String) {
        self.write(pod, "", level, reason, message).await;
    }

    /// Something happened to a pod's container; `list` is `containers` or `initContainers`.
    pub(super) async fn container(
        &self,
        pod: &Value,
        (list, name): (&str, &str),
        level: Level,
        reason: &'static str,
        message: String,
    ) {
        self.write(pod, &format!("spec.{list}{{{name}}}"), level, reason, message).await;
    }

    async fn write(&self, pod: &Value, field: &str, level: Level, reason: &'static str, message: String) {
        debug!(pod = %format_args!("{}/{}", pod.namespace(), pod.name()), reason, message, "event");
        let mut hasher = DefaultHasher::new();
        (pod.uid(), field, level, reason, &message, self.component).hash(&mut hasher);
        let name = format!("{}.{:016x}", pod.name(), hasher.finish());
        let namespace = pod.namespace().to_owned();
        let now = Timestamp::now();
        let mut involved = json!({
            "kind": "Pod", "apiVersion": "v1", "namespace": namespace, "name": pod.name(), "uid": pod.uid(),
        });
        if !field.is_empty() {
            involved.put("/fieldPath", field);
        }
        let event = json!({
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "type": if level == Level::Normal { "Normal" } else { "Warning" },
            "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now.to_string(), "lastTimestamp": now.to_string(),
            "source": {"component": self.component, "host": self.host},
            "reportingComponent": self.component, "reportingInstance": self.host,
        });
        let written = self.api.run(move |store| put(store, &namespace, &name, event, now)).await;
        if let Err(error) = written {
            // A namespace that is gone has no events.
            debug!(%error, "an event was not written");
        }
    }
}

fn put(
    store: &mut Store,
    namespace: &str,
    name: &str,
    event: Value,
    now: Timestamp,
) -> Result<(), crate::api::Error> {
    let kind = store.kind("", "v1", "events")?;
    let Ok(known) = store.get(&kind, namespace, name) else {
        return store.create(&kind, namespace, event, now).map(drop);
    };
    let mut again = Value::clone(&known);
    again.put("/count", again.integer("/count").unwrap_or(1).saturating_add(1));
    again.put("/lastTimestamp", now.to_string());
    store.update(&kind, namespace, name, Part::Main, again).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::selector::Selector;

    #[tokio::test]
    async fn an_event_that_happens_again_is_counted() {
        let (api, _task) = Api::start();
        let pod = json!({"metadata": {"name": "a", "namespace": "default", "uid": "u"}});
        let recorder = Recorder::new(api.clone(), "kubelet", "node1");
        for message in ["no", "no", "other"] {
            recorder.pod(&pod, Level::Warning, "Failed", message.to_owned()).await;
        }
        let counts = api.run(|store| {
            let kind = store.kind("", "v1", "events")?;
            let events = store.list(&kind, Some("default"), &Selector::default());
            let mut counts: Vec<_> = events
                .iter()
                .map(|event| (event.text("/message").to_owned(), event["count"].clone()))
                .collect();
            counts.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(counts)
        });
        assert_eq!(counts.await.unwrap(), [("no".to_owned(), json!(2)), ("other".to_owned(), json!(1))]);
    }
}
