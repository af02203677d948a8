//! How objects go: gracefully or at once, with what they owned, with their definition or their namespace.

use std::sync::Arc;

use serde_json::Value;

use super::{Deletion, Store, Verb, resource};
use crate::api::error::Error;
use crate::api::json::Json;
use crate::api::kinds::{CRD_GROUP, CRDS, Kind};
use crate::api::selector::Selector;
use crate::api::status::grace_period;
use crate::api::time::Timestamp;

impl Store {
    /// Deletes an object. A pod on a node is only marked, its node removes it; so is an object with finalizers.
    ///
    /// # Errors
    /// It does not exist, or is not the one that was meant.
    pub fn delete(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        deletion: &Deletion,
        now: Timestamp,
    ) -> Result<Arc<Value>, Error> {
        let old = self.get(kind, namespace, name)?;
        for (wanted, found, what) in [
            (&deletion.uid, old.uid(), "UID"),
            (&deletion.resource_version, old.text("/metadata/resourceVersion"), "ResourceVersion"),
        ] {
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(Error::Conflict { resource: kind.resource(), name: name.to_owned(), why });
            }
        }
        let is_pod = kind.group.is_empty() && kind.kind == "Pod";
        let grace = if is_pod { grace_period(&old, deletion.grace) } else { 0 };
        let held = !old.items("/metadata/finalizers").is_empty() || self.has_contents(kind, name);
        if grace == 0 && !held {
            return Ok(self.remove(kind, &old, now));
        }
        let seconds = i64::try_from(grace).unwrap_or(i64::MAX);
        let sooner = old.integer("/metadata/deletionGracePeriodSeconds").is_none_or(|was| seconds < was);
        let mut object = Value::clone(&old);
        if !old.is_terminating() || sooner {
            object.put("/metadata/deletionTimestamp", now.after(seconds).to_string());
            object.put("/metadata/deletionGracePeriodSeconds", seconds);
            if kind.group.is_empty() && kind.kind == "Namespace" {
                object.put("/status/phase", "Terminating");
            }
            self.write(kind, object);
            if kind.group.is_empty() && kind.kind == "Namespace" {
                self.empty(name, now);
            }
        }
        // An empty namespace is gone by now: then its last state is the answer.
        Ok(self.find(kind, namespace, name).unwrap_or(old))
    }

    pub(super) fn remove(&mut self, kind: &Arc<Kind>, old: &Arc<Value>, now: Timestamp) -> Arc<Value> {
        self.version += 1;
        let place = (old.namespace().to_owned(), old.name().to_owned());
        let previous = self.objects.get_mut(&resource(kind)).and_then(|objects| objects.remove(&place));
        let mut last = Value::clone(old);
        last.put("/metadata/resourceVersion", self.version.to_string());
        let last = Arc::new(last);
        self.remember(kind, Verb::Deleted, last.clone(), previous);
        if kind.group == CRD_GROUP && kind.plural == CRDS {
            // With its definition a custom resource loses its objects.
            if let Some(gone) = Kind::from_definition(&last).map(Arc::new) {
                for object in self.list(&gone, None, &Selector::default()) {
                    self.remove(&gone, &object, now);
                }
            }
            self.learn_kinds();
        }
        self.remove_orphans(old.uid(), now);
        self.close_namespace(old.namespace(), now);
        last
    }

    /// What only this object owned goes with it: the garbage collector's background deletion.
    fn remove_orphans(&mut self, owner: &str, now: Timestamp) {
        let mut orphans = Vec::new();
        for kind in self.kinds.clone() {
            let owned = self.list(&kind, None, &Selector::default()).into_iter().filter(|object| {
                let owners = object.items("/metadata/ownerReferences");
                !owners.is_empty() && owners.iter().all(|reference| reference.text("/uid") == owner)
            });
            orphans.extend(owned.map(|object| (kind.clone(), object)));
        }
        for (kind, orphan) in orphans {
            // It may have gone with another one meanwhile.
            let _ = self.delete(&kind, orphan.namespace(), orphan.name(), &Deletion::default(), now);
        }
    }

    pub(super) fn has_contents(&self, kind: &Kind, name: &str) -> bool {
        kind.group.is_empty()
            && kind.kind == "Namespace"
            && self.kinds.iter().any(|kind| !self.list(kind, Some(name), &Selector::default()).is_empty())
    }

    /// Deletes what is in a namespace; pods end in their own time.
    fn empty(&mut self, namespace: &str, now: Timestamp) {
        for kind in self.kinds.clone().iter().filter(|kind| kind.is_namespaced()) {
            for object in self.list(kind, Some(namespace), &Selector::default()) {
                let _ = self.delete(kind, namespace, object.name(), &Deletion::default(), now);
            }
        }
    }

    /// Removes a namespace that ends once nothing is left in it but events.
    pub(super) fn close_namespace(&mut self, name: &str, now: Timestamp) {
        let (Some(namespace), Ok(kind)) =
            (self.core("namespaces", "", name), self.kind("", "v1", "namespaces"))
        else {
            return;
        };
        let alive = |kind: &&Arc<Kind>| {
            kind.is_namespaced()
                && kind.kind != "Event"
                && !self.list(kind, Some(name), &Selector::default()).is_empty()
        };
        if !namespace.is_terminating() || self.kinds.iter().any(|kind| alive(&kind)) {
            return;
        }
        self.remove(&kind, &namespace, now);
        self.empty(name, now);
    }
}
