//! What is wrong with manifests, found before any of them is sent.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use cluster::{FaultyItem, Label, NETWORKS, RESOURCE_NAME, SelectionError, selections};
use nic::IfName;
use serde_json::Value;

use super::{Fault, Manifest};
use crate::api::error::Cause;
use crate::api::json::{Json, escape};
use crate::api::kinds::{Kind, group_version, split_api_version};
use crate::api::validate;
use crate::client::{self, Client, Kinds};

/// What the checks ask the cluster.
pub trait Cluster {
    /// Whether an object exists.
    ///
    /// # Errors
    /// The cluster did not answer.
    fn has(&self, kind: &Kind, namespace: &str, name: &str) -> Result<bool, client::Error>;

    /// The extended resources that nodes have, also those of which none is left or healthy, by the nodes' names.
    ///
    /// # Errors
    /// The cluster did not answer.
    fn resources(&self) -> Result<BTreeMap<String, BTreeSet<String>>, client::Error>;

    /// All network definitions, which are of this kind.
    ///
    /// # Errors
    /// The cluster did not answer.
    fn definitions(&self, kind: &Kind) -> Result<Vec<Value>, client::Error>;
}

impl Cluster for Client {
    fn has(&self, kind: &Kind, namespace: &str, name: &str) -> Result<bool, client::Error> {
        Ok(self.find(&client::object(kind, namespace, name))?.is_some())
    }

    fn resources(&self) -> Result<BTreeMap<String, BTreeSet<String>>, client::Error> {
        let nodes = self.get("/api/v1/nodes")?;
        let resources = nodes.items("/items").iter().map(|node| {
            let names = node.map("/status/capacity").into_iter().flatten().map(|(name, _)| name.clone());
            (node.name().to_owned(), names.filter(|name| validate::is_extended(name)).collect())
        });
        Ok(resources.collect())
    }

    fn definitions(&self, kind: &Kind) -> Result<Vec<Value>, client::Error> {
        match self.get(&client::collection(kind, None)) {
            Ok(list) => Ok(list.items("/items").to_vec()),
            // The kind is defined among the manifests, not yet in the cluster.
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Which checks beyond the form of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// Networks and resources that pods ask for must be there.
    All,
    /// Only what the API server would refuse as well.
    FormOnly,
}

/// Judges all manifests, fills in their namespace, and learns kinds from the CustomResourceDefinitions among them.
///
/// # Errors
/// The cluster did not answer. What is wrong with the manifests is the value returned.
pub fn check(
    manifests: &mut [Manifest],
    kinds: &mut Kinds,
    cluster: &impl Cluster,
    namespace: Option<&str>,
    checks: Checks,
) -> Result<Vec<Fault>, client::Error> {
    for manifest in manifests.iter().filter(|manifest| manifest.object.text("/kind") == DEFINITION) {
        if let Some(kind) = Kind::from_definition(&manifest.object) {
            kinds.add(kind);
        }
    }
    let mut faults = Vec::new();
    for manifest in manifests.iter_mut() {
        faults.extend(one(manifest, kinds, namespace));
    }
    faults.extend(repeated(manifests));
    if faults.is_empty() {
        let neighbours = Neighbours { manifests, kinds, cluster, resources: None };
        faults = neighbours.check(checks)?;
    }
    faults.sort();
    faults.dedup();
    Ok(faults)
}

/// Objects that stand in the manifests twice: which one is meant?
fn repeated(manifests: &[Manifest]) -> Vec<Fault> {
    let mut seen = BTreeMap::new();
    let mut faults = Vec::new();
    for manifest in manifests {
        let object = &manifest.object;
        let group = split_api_version(object.text("/apiVersion")).0;
        let (kind, name) = (object.text("/kind"), object.name());
        if kind.is_empty() || name.is_empty() {
            continue;
        }
        match seen.entry((group, kind, object.namespace(), name)) {
            Entry::Vacant(entry) => {
                entry.insert(manifest.place(""));
            }
            Entry::Occupied(entry) => {
                let what =
                    format!("{kind} {name} stands at {} already: leave out one of the two", entry.get());
                faults.push(manifest.fault("", what));
            }
        }
    }
    faults
}

const DEFINITION: &str = "CustomResourceDefinition";
const NETWORK: (&str, &str) = ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition");

/// The form of one object.
fn one(manifest: &mut Manifest, kinds: &Kinds, namespace: Option<&str>) -> Vec<Fault> {
    let missing = |field: &str, example: &str| {
        manifest.fault("", format!("the object has no {field}: add a line such as `{example}`"))
    };
    let object = &manifest.object;
    let mut faults = Vec::new();
    for (field, example) in [("apiVersion", "apiVersion: v1"), ("kind", "kind: Pod")] {
        match object.get(field) {
            Some(Value::String(text)) if !text.is_empty() => {}
            None | Some(Value::Null) => faults.push(missing(field, example)),
            Some(other) => {
                let what = format!("{field} is {other}, but it must be a word such as in `{example}`");
                faults.push(manifest.fault(&format!("/{field}"), what));
            }
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    let (api_version, kind) = (object.text("/apiVersion"), object.text("/kind"));
    let Some(kind) = kinds.find(api_version, kind) else { return vec![unknown_kind(manifest, kinds)] };
    if object.name().is_empty() {
        let what = match object.text("/metadata/generateName") {
            "" => "the object has no name: add `name: ...` below `metadata:`",
            _ => "generateName makes a new object each time: give it a `name:` to apply it",
        };
        return vec![manifest.fault("/metadata", what)];
    }
    faults.extend(put_namespace(manifest, kind, namespace));
    let mut completed = manifest.object.clone();
    let causes = validate::admit(kind, &mut completed);
    faults.extend(causes.iter().map(|cause| manifest.fault(&cause.pointer, words(manifest, cause))));
    faults
}

fn words(manifest: &Manifest, cause: &Cause) -> String {
    let (kind, name) = (manifest.object.text("/kind"), manifest.object.name());
    format!("{kind} {name}: {}: {}", cause.field(), cause.message)
}

fn unknown_kind(manifest: &Manifest, kinds: &Kinds) -> Fault {
    let (api_version, kind) = (manifest.object.text("/apiVersion"), manifest.object.text("/kind"));
    if let Some(known) = kinds.iter().find(|known| known.kind == kind) {
        let served: Vec<_> =
            known.versions.iter().map(|version| group_version(&known.group, version)).collect();
        let what =
            format!("kind {kind} is not served as apiVersion {api_version}: use {}", served.join(" or "));
        return manifest.fault("/apiVersion", what);
    }
    let in_group = kinds.iter().filter(|known| known.group == split_api_version(api_version).0);
    let remedy = match located::nearest(kind, in_group.map(|known| known.kind.as_str())) {
        Some(meant) => format!("did you mean {meant}?"),
        None if (api_version, kind) == NETWORK => {
            "apply its definition first or in the same command, deployments/crdnetwork.yaml".to_owned()
        }
        None => {
            "if it is a custom resource, apply its CustomResourceDefinition first or in the same command; \
                 `virtsim api-resources` lists what there is"
                .to_owned()
        }
    };
    manifest.fault("/kind", format!("unknown kind {kind} in {api_version}: {remedy}"))
}

fn put_namespace(manifest: &mut Manifest, kind: &Kind, wanted: Option<&str>) -> Option<Fault> {
    if !kind.is_namespaced() {
        manifest.object.take_out("/metadata/namespace");
        return None;
    }
    let own = manifest.object.namespace().to_owned();
    match (own.as_str(), wanted) {
        ("", wanted) => manifest.object.put("/metadata/namespace", wanted.unwrap_or("default")),
        (own, Some(wanted)) if own != wanted => {
            let what =
                format!("the object's namespace is {own}, but -n says {wanted}: leave out one of the two");
            return Some(manifest.fault("/metadata/namespace", what));
        }
        _ => {}
    }
    None
}

/// What the objects need from each other and from the cluster.
struct Neighbours<'a, C> {
    manifests: &'a [Manifest],
    kinds: &'a Kinds,
    cluster: &'a C,
    resources: Option<BTreeMap<String, BTreeSet<String>>>,
}

impl<C: Cluster> Neighbours<'_, C> {
    fn check(mut self, checks: Checks) -> Result<Vec<Fault>, client::Error> {
        let mut faults = Vec::new();
        for manifest in self.manifests {
            faults.extend(self.namespace(manifest)?);
            let template = match manifest.object.text("/kind") {
                "Pod" => "",
                "DaemonSet" => "/spec/template",
                _ => continue,
            };
            let networks = self.networks(manifest, template, checks)?;
            faults.extend(networks);
            if checks == Checks::All {
                faults.extend(self.resources(manifest, template)?);
            }
        }
        Ok(faults)
    }

    fn among_manifests(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.manifests.iter().map(|manifest| &manifest.object).any(|object| {
            object.text("/kind") == kind && object.namespace() == namespace && object.name() == name
        })
    }

    fn namespace(&self, manifest: &Manifest) -> Result<Option<Fault>, client::Error> {
        let namespace = manifest.object.namespace();
        if ["", "default"].contains(&namespace) || self.among_manifests("Namespace", "", namespace) {
            return Ok(None);
        }
        let Some(kind) = self.kinds.find("v1", "Namespace") else { return Ok(None) };
        if self.cluster.has(kind, "", namespace)? {
            return Ok(None);
        }
        let what = format!("there is no namespace {namespace}: put a Namespace of that name before it");
        Ok(Some(manifest.fault("/metadata/namespace", what)))
    }

    fn networks(
        &self,
        manifest: &Manifest,
        template: &str,
        checks: Checks,
    ) -> Result<Vec<Fault>, client::Error> {
        let pointer = format!("{template}/metadata/annotations/{}", escape(NETWORKS));
        let text = manifest.object.text(&pointer);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let (Ok(namespace), Ok(eth0)) =
            (manifest.object.namespace().parse::<Label>(), "eth0".parse::<IfName>())
        else {
            return Ok(Vec::new());
        };
        let wanted = match selections(text, &namespace, &eth0) {
            Ok(wanted) => wanted,
            Err(error) => return Ok(vec![manifest.fault(&pointer, selection_words(&error))]),
        };
        let mut faults = Vec::new();
        if checks == Checks::FormOnly {
            return Ok(faults);
        }
        for selection in wanted {
            let (namespace, name) = (selection.namespace.as_str(), selection.name.as_str());
            let there = match self.kinds.find(NETWORK.0, NETWORK.1) {
                _ if self.among_manifests(NETWORK.1, namespace, name) => true,
                Some(kind) => self.cluster.has(kind, namespace, name)?,
                None => false,
            };
            if !there {
                let what = format!(
                    "pod {} asks for network {name}, but there is no NetworkAttachmentDefinition {namespace}/{name}: \
                     apply one first or in the same command, or leave the check out with --no-check",
                    manifest.object.name()
                );
                faults.push(manifest.fault(&pointer, what));
            }
        }
        Ok(faults)
    }

    fn resources(&mut self, manifest: &Manifest, template: &str) -> Result<Vec<Fault>, client::Error> {
        let mut faults = Vec::new();
        for (pointer, container, name) in extended(&manifest.object, template) {
            if let Some(instead) = self.unknown(name)? {
                let what = format!(
                    "container {container} asks for {name}, which no node has and no network is tied to ({instead}): start its \
                     device plugin first, or leave the check out with --no-check",
                );
                faults.push(manifest.fault(&pointer, what));
            }
        }
        Ok(faults)
    }

    /// What nodes have instead, where nobody knows this resource: no node has it, and no network definition is tied to
    /// it. A definition is enough, since a device plugin may come after the pods that wait for it; a slip of the finger
    /// stands in one place only.
    fn unknown(&mut self, name: &str) -> Result<Option<String>, client::Error> {
        let resources = match self.resources.take() {
            Some(resources) => resources,
            None => self.cluster.resources()?,
        };
        let found = resources.values().any(|names| names.contains(name));
        let says = |(node, names): (&String, &BTreeSet<String>)| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("{node} has {names}")
        };
        let instead: Vec<_> = resources.iter().map(says).collect();
        self.resources = Some(resources);
        if found || self.is_tied_to_a_network(name)? {
            return Ok(None);
        }
        Ok(Some(if instead.is_empty() { "there is no node".to_owned() } else { instead.join("; ") }))
    }

    fn is_tied_to_a_network(&self, name: &str) -> Result<bool, client::Error> {
        let pointer = format!("/metadata/annotations/{}", escape(RESOURCE_NAME));
        let ties = |object: &Value| object.text(&pointer) == name;
        let ours = self.manifests.iter().map(|manifest| &manifest.object);
        if ours.filter(|object| object.text("/kind") == NETWORK.1).any(ties) {
            return Ok(true);
        }
        match self.kinds.find(NETWORK.0, NETWORK.1) {
            Some(kind) => Ok(self.cluster.definitions(kind)?.iter().any(ties)),
            None => Ok(false),
        }
    }
}

/// The extended resources that containers ask for: where, which container, and the resource. A request that repeats a
/// limit is told once.
fn extended<'a>(object: &'a Value, template: &str) -> Vec<(String, &'a str, &'a str)> {
    let mut found = Vec::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in object.items(&format!("{template}/spec/{list}")).iter().enumerate() {
            let mut names = BTreeSet::new();
            for field in ["limits", "requests"] {
                let amounts = container.map(&format!("/resources/{field}")).into_iter().flatten();
                for (name, _) in amounts.filter(|(name, _)| validate::is_extended(name)) {
                    if names.insert(name) {
                        let pointer =
                            format!("{template}/spec/{list}/{index}/resources/{field}/{}", escape(name));
                        found.push((pointer, container.text("/name"), name.as_str()));
                    }
                }
            }
        }
    }
    found
}

/// The annotation's fault with its cause, which names the remedy.
fn selection_words(error: &SelectionError) -> String {
    match error {
        SelectionError::Item { source, .. } => match source.as_ref() {
            FaultyItem::DeviceId => {
                format!(
                    "{error}: {source}: leave it out, the kubelet chooses a device by the pod's resource limits"
                )
            }
            other => format!("{error}: {other}"),
        },
        other => crate::chain(other),
    }
}
