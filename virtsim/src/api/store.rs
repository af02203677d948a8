//! The objects, and what happens to them: plain data and methods, without a clock, a socket or a task.
//!
//! Invariants: every change has a resourceVersion of its own, in order; an object that is served was admitted by
//! [`super::validate`]; the history holds the last [`HISTORY`] changes and says when it is asked for more. Values
//! are shared, so a clone of the store is cheap: a batch works on a clone, which replaces the original or is dropped.

mod removal;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use serde_json::{Value, json};

use super::error::{Cause, Error};
use super::json::Json;
use super::kinds::{CRD_GROUP, CRDS, Kind, StatusIs, built_in, split_api_version};
use super::patch::Patch;
use super::selector::Selector;
use super::status::{initial_status, set_condition};
use super::time::Timestamp;
use super::validate;

/// How many changes a watcher may be behind.
pub const HISTORY: usize = 4096;

/// An object's place: namespace ("" for an object of the cluster) and name.
type Place = (String, String);
/// Group and plural.
type Resource = (String, String);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is new.
    Added,
    /// It differs from before.
    Modified,
    /// It is gone; the object is its last state.
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The resourceVersion that it made.
    pub version: u64,
    /// Of which kind the object is.
    pub kind: Arc<Kind>,
    /// What happened.
    pub verb: Verb,
    /// The object afterwards.
    pub object: Arc<Value>,
    /// The object before, where it was there.
    pub previous: Option<Arc<Value>>,
}

/// Which part of an object a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but the status, where that is a subresource.
    Main,
    /// The status, and the metadata that a kubelet or a CNI plugin sets with it.
    Status,
}

/// How an object is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Seconds that a pod has to end; its own `terminationGracePeriodSeconds` where absent.
    pub grace: Option<u64>,
    /// Only if it still is this very object.
    pub uid: Option<String>,
    /// Only if it did not change since.
    pub resource_version: Option<String>,
}

/// Everything that the API server knows.
#[derive(Clone)]
pub struct Store {
    kinds: Vec<Arc<Kind>>,
    objects: BTreeMap<Resource, BTreeMap<Place, Arc<Value>>>,
    version: u64,
    history: VecDeque<Change>,
    random: RandomState,
    draws: u64,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            kinds: built_in(),
            objects: BTreeMap::new(),
            version: 0,
            history: VecDeque::new(),
            random: RandomState::new(),
            draws: 0,
        }
    }
}

impl Store {
    /// All kinds that are served.
    #[must_use]
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// The kind behind a path.
    ///
    /// # Errors
    /// [`Error::NoSuchResource`]
    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Result<Arc<Kind>, Error> {
        let serves = |kind: &&Arc<Kind>| {
            kind.group == group
                && kind.plural == plural
                && kind.versions.iter().any(|served| served == version)
        };
        self.kinds.iter().find(serves).cloned().ok_or(Error::NoSuchResource)
    }

    /// The kind of an object by its `apiVersion` and `kind`.
    #[must_use]
    pub fn kind_of(&self, object: &Value) -> Option<Arc<Kind>> {
        let (group, version) = split_api_version(object.text("/apiVersion"));
        let name = object.text("/kind");
        let is = |kind: &&Arc<Kind>| {
            kind.group == group && kind.kind == name && kind.versions.iter().any(|served| served == version)
        };
        self.kinds.iter().find(is).cloned()
    }

    /// The newest change's resourceVersion.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object.
    ///
    /// # Errors
    /// [`Error::NotFound`]
    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Value>, Error> {
        self.find(kind, namespace, name)
            .ok_or_else(|| Error::NotFound { resource: kind.resource(), name: name.to_owned() })
    }

    /// One object of a core kind, by its plural.
    #[must_use]
    pub fn core(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let kind = self.kind("", "v1", plural).ok()?;
        self.find(&kind, namespace, name)
    }

    fn find(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let place = (namespace.to_owned(), name.to_owned());
        self.objects.get(&resource(kind))?.get(&place).cloned()
    }

    /// The objects of a kind, of one namespace or of all, by namespace and name.
    #[must_use]
    pub fn list(&self, kind: &Kind, namespace: Option<&str>, selector: &Selector) -> Vec<Arc<Value>> {
        let objects = self.objects.get(&resource(kind)).into_iter().flatten();
        let here = objects.filter(|((space, _), _)| namespace.is_none_or(|wanted| wanted == space));
        here.map(|(_, object)| object).filter(|object| selector.matches(object)).cloned().collect()
    }

    /// The changes after `since`, for a watcher that saw everything up to there.
    ///
    /// # Errors
    /// [`Error::Expired`] where some of them have left the history.
    pub fn changes_after(&self, since: u64) -> Result<Vec<Change>, Error> {
        let oldest = self.history.front().map_or(self.version, |change| change.version - 1);
        if since < oldest || since > self.version {
            return Err(Error::Expired { wanted: since, oldest });
        }
        Ok(self.history.iter().filter(|change| change.version > since).cloned().collect())
    }

    /// Makes an object.
    ///
    /// # Errors
    /// Its name is taken, it is invalid, or its namespace does not exist.
    pub fn create(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        mut object: Value,
        now: Timestamp,
    ) -> Result<Arc<Value>, Error> {
        if !object.is_object() {
            return Err(Error::BadRequest("the object is not a JSON object".to_owned()));
        }
        self.place(kind, namespace, &mut object)?;
        if object.name().is_empty() && !object.text("/metadata/generateName").is_empty() {
            let name = format!("{}{}", object.text("/metadata/generateName"), self.suffix());
            object.put("/metadata/name", name);
        }
        for theirs in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink"] {
            object.take_out(&format!("/metadata/{theirs}"));
        }
        if kind.status == StatusIs::Subresource {
            object.take_out("/status");
        }
        let uid = self.uid();
        object.put("/metadata/uid", uid);
        object.put("/metadata/creationTimestamp", now.to_string());
        object.put("/metadata/generation", 1);
        self.admit(kind, &mut object)?;
        self.namespace_is_open(kind, &object)?;
        if self.find(kind, namespace, object.name()).is_some() {
            return Err(Error::AlreadyExists { resource: kind.resource(), name: object.name().to_owned() });
        }
        initial_status(kind, &mut object, now);
        Ok(self.write(kind, object))
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    /// It does not exist, has changed since, or would be invalid.
    pub fn update(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        mut object: Value,
    ) -> Result<Arc<Value>, Error> {
        let old = self.get(kind, namespace, name)?;
        self.place(kind, namespace, &mut object)?;
        if object.name() != name {
            let message = format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                object.name()
            );
            return Err(Error::BadRequest(message));
        }
        self.replace(kind, &old, part, object)
    }

    /// Changes an object, or its status.
    ///
    /// # Errors
    /// It does not exist, the patch does not apply, or the result would be invalid.
    pub fn patch(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        part: Part,
        patch: &Patch,
        now: Timestamp,
    ) -> Result<Arc<Value>, Error> {
        let old = match (self.get(kind, namespace, name), patch) {
            (Ok(old), _) => old,
            (Err(Error::NotFound { .. }), Patch::Apply(object)) if part == Part::Main => {
                let mut object = object.clone();
                object.put("/metadata/name", name);
                return self.create(kind, namespace, object, now);
            }
            (Err(error), _) => return Err(error),
        };
        if kind.is_custom() && matches!(patch, Patch::Strategic(_)) {
            return Err(Error::UnsupportedMediaType {
                expected: "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            });
        }
        let invalid = |error: super::patch::PatchError| Error::Invalid {
            kind: kind.qualified(),
            name: name.to_owned(),
            causes: vec![Cause::invalid("", format!("Invalid value: {error}"))],
        };
        let applied = match patch {
            // Which lists of a custom resource have keys is not known here.
            Patch::Apply(patch) if kind.is_custom() => Patch::Merge(patch.clone()).apply(&old),
            patch => patch.apply(&old),
        };
        let mut object = applied.map_err(invalid)?;
        if !object.is_object() || object.name() != name || object.namespace() != old.namespace() {
            return Err(Error::BadRequest("a patch cannot change an object's name or namespace".to_owned()));
        }
        object.put("/kind", kind.kind.as_str());
        self.replace(kind, &old, part, object)
    }

    /// Puts a pod on a node: what a scheduler does.
    ///
    /// # Errors
    /// It does not exist, or is on a node already.
    pub fn bind(
        &mut self,
        namespace: &str,
        name: &str,
        node: &str,
        now: Timestamp,
    ) -> Result<Arc<Value>, Error> {
        let kind = self.kind("", "v1", "pods")?;
        let old = self.get(&kind, namespace, name)?;
        let bound_to = old.text("/spec/nodeName");
        if !bound_to.is_empty() {
            let why = format!("pod {name} is already assigned to node {bound_to:?}");
            return Err(Error::Conflict { resource: "pods/binding".to_owned(), name: name.to_owned(), why });
        }
        let mut pod = Value::clone(&old);
        pod.put("/spec/nodeName", node);
        set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}), now);
        Ok(self.write(&kind, pod))
    }

    /// Checks and completes kind, version, namespace and name.
    fn place(&self, kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Error> {
        let (api_version, name) = (object.text("/apiVersion").to_owned(), object.text("/kind").to_owned());
        if !name.is_empty() && name != kind.kind {
            let message =
                format!("the kind in the data ({name}) does not match the expected kind ({})", kind.kind);
            return Err(Error::BadRequest(message));
        }
        let (group, version) = split_api_version(&api_version);
        if api_version.is_empty() {
            object.put("/apiVersion", kind.api_version());
        } else if group != kind.group || !kind.versions.iter().any(|served| served == version) {
            let expected = kind.api_version();
            let message = format!(
                "the API version in the data ({api_version}) does not match the expected API version ({expected})"
            );
            return Err(Error::BadRequest(message));
        }
        object.put("/kind", kind.kind.as_str());
        if !kind.is_namespaced() {
            object.take_out("/metadata/namespace");
            return Ok(());
        }
        let own = object.namespace().to_owned();
        if !own.is_empty() && own != namespace {
            let message = format!(
                "the namespace of the provided object does not match the namespace sent on the request: {own} is not {namespace}"
            );
            return Err(Error::BadRequest(message));
        }
        object.put("/metadata/namespace", namespace);
        Ok(())
    }

    fn admit(&self, kind: &Kind, object: &mut Value) -> Result<(), Error> {
        let causes = validate::admit(kind, object);
        if causes.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid { kind: kind.qualified(), name: object.name().to_owned(), causes })
    }

    fn namespace_is_open(&self, kind: &Kind, object: &Value) -> Result<(), Error> {
        if !kind.is_namespaced() {
            return Ok(());
        }
        let name = object.namespace();
        let missing = || Error::NotFound { resource: "namespaces".to_owned(), name: name.to_owned() };
        let namespace = self.core("namespaces", "", name).ok_or_else(missing)?;
        // The last events of a pod still go into a namespace that ends, as they tell why it does not.
        if namespace.is_terminating() && kind.kind != "Event" {
            return Err(Error::Forbidden {
                resource: kind.resource(),
                name: object.name().to_owned(),
                why: format!(
                    "unable to create new content in namespace {name} because it is being terminated"
                ),
            });
        }
        Ok(())
    }

    fn replace(
        &mut self,
        kind: &Arc<Kind>,
        old: &Arc<Value>,
        part: Part,
        mut new: Value,
    ) -> Result<Arc<Value>, Error> {
        let conflict = |why: &str| Error::Conflict {
            resource: kind.resource(),
            name: old.name().to_owned(),
            why: why.to_owned(),
        };
        let version = new.text("/metadata/resourceVersion");
        if !version.is_empty() && version != old.text("/metadata/resourceVersion") {
            return Err(conflict(
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        if !new.uid().is_empty() && new.uid() != old.uid() {
            return Err(conflict(&format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                new.uid(),
                old.uid()
            )));
        }
        // What belongs to the server stays as it was, whatever was sent.
        let servers =
            ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"];
        for field in servers.map(|field| format!("/metadata/{field}")) {
            keep(&mut new, old, &field);
        }
        new.take_out("/metadata/managedFields");
        match part {
            Part::Main if kind.status == StatusIs::Subresource => keep(&mut new, old, "/status"),
            Part::Main => {}
            Part::Status => {
                let fields: Vec<_> =
                    new.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
                for field in fields.iter().filter(|field| !["metadata", "status"].contains(&field.as_str())) {
                    keep(&mut new, old, &format!("/{field}"));
                }
                keep(&mut new, old, "/spec");
            }
        }
        if part == Part::Main {
            self.admit(kind, &mut new)?;
            let causes = validate::update(kind, old, &new);
            if !causes.is_empty() {
                return Err(Error::Invalid { kind: kind.qualified(), name: old.name().to_owned(), causes });
            }
        }
        if new.get("spec") != old.get("spec") {
            new.put(
                "/metadata/generation",
                old.integer("/metadata/generation").unwrap_or(1).saturating_add(1),
            );
        }
        keep(&mut new, old, "/metadata/resourceVersion");
        if new == **old {
            return Ok(old.clone());
        }
        let ended = new.is_terminating()
            && new.items("/metadata/finalizers").is_empty()
            && !old.items("/metadata/finalizers").is_empty()
            && new.integer("/metadata/deletionGracePeriodSeconds").unwrap_or_default() == 0;
        let new = self.write(kind, new);
        Ok(if ended { self.remove(kind, &new, Timestamp::now()) } else { new })
    }

    /// Stores an object under the next version.
    fn write(&mut self, kind: &Arc<Kind>, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object.put("/metadata/resourceVersion", self.version.to_string());
        let place = (object.namespace().to_owned(), object.name().to_owned());
        let object = Arc::new(object);
        let previous = self.objects.entry(resource(kind)).or_default().insert(place, object.clone());
        let verb = if previous.is_some() { Verb::Modified } else { Verb::Added };
        self.remember(kind, verb, object.clone(), previous);
        if kind.group == CRD_GROUP && kind.plural == CRDS {
            self.learn_kinds();
        }
        object
    }

    fn remember(&mut self, kind: &Arc<Kind>, verb: Verb, object: Arc<Value>, previous: Option<Arc<Value>>) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Change { version: self.version, kind: kind.clone(), verb, object, previous });
    }

    fn learn_kinds(&mut self) {
        self.kinds = built_in();
        let definitions = self.objects.get(&(CRD_GROUP.to_owned(), CRDS.to_owned()));
        let custom =
            definitions.into_iter().flatten().filter_map(|(_, object)| Kind::from_definition(object));
        self.kinds.extend(custom.map(Arc::new));
    }

    fn draw(&mut self) -> u64 {
        self.draws += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.draws);
        hasher.write_u64(self.version);
        hasher.finish()
    }

    /// A random UUID (RFC 9562, version 4): the standard library's hasher is keyed from the system's randomness.
    fn uid(&mut self) -> String {
        let (high, low) = (self.draw(), self.draw());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 48 & 0x3fff | 0x8000,
            low & 0xffff_ffff_ffff
        )
    }

    /// Five characters without vowels or lookalikes, as `generateName` gets them.
    fn suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut random = self.draw();
        let letters = u64::try_from(LETTERS.len()).unwrap_or(1);
        (0..5)
            .filter_map(|_| {
                let index = usize::try_from(random % letters).ok()?;
                random /= letters;
                LETTERS.get(index).copied().map(char::from)
            })
            .collect()
    }
}

fn resource(kind: &Kind) -> Resource {
    (kind.group.clone(), kind.plural.clone())
}

/// `new` gets what `old` has at `pointer`, also where that is nothing.
fn keep(new: &mut Value, old: &Value, pointer: &str) {
    match old.pointer(pointer) {
        Some(value) => new.put(pointer, value.clone()),
        None => drop(new.take_out(pointer)),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
