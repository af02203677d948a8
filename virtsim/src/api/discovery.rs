//! The documents by which clients learn what is served: versions, groups, resources, and as much OpenAPI as tells
//! kubectl that fields are validated here.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::error::Error;
use super::json::Json;
use super::kinds::{Kind, StatusIs, group_version};
use super::path::GroupVersion;

/// The Kubernetes version whose behaviour is simulated.
pub(super) const VERSION: &str = "v1.36.0";

pub(super) fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": format!("{VERSION}+virtsim"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

pub(super) fn core() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

pub(super) fn groups(kinds: &[Arc<Kind>]) -> Value {
    let mut names: Vec<&str> =
        kinds.iter().map(|kind| kind.group.as_str()).filter(|group| !group.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    let groups = names.into_iter().map(|name| one_group(kinds, name));
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Value>()})
}

pub(super) fn group(kinds: &[Arc<Kind>], name: &str) -> Result<Value, Error> {
    if !kinds.iter().any(|kind| kind.group == name) {
        return Err(Error::NoSuchResource);
    }
    let mut group = one_group(kinds, name);
    group.put("/kind", "APIGroup");
    group.put("/apiVersion", "v1");
    Ok(group)
}

fn one_group(kinds: &[Arc<Kind>], name: &str) -> Value {
    let mut versions: Vec<&str> = Vec::new();
    for version in kinds.iter().filter(|kind| kind.group == name).flat_map(|kind| &kind.versions) {
        if !versions.contains(&version.as_str()) {
            versions.push(version);
        }
    }
    let versions: Vec<_> = versions
        .into_iter()
        .map(|version| json!({"groupVersion": group_version(name, version), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

pub(super) fn resources(kinds: &[Arc<Kind>], of: &GroupVersion) -> Result<Value, Error> {
    let mut resources = Vec::new();
    for kind in served(kinds, of) {
        resources.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.is_namespaced(), "kind": kind.kind,
            "shortNames": kind.short_names,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }));
        let mut subresource = |name: &str, verbs: &[&str]| {
            resources.push(json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.is_namespaced(),
                "kind": kind.kind, "verbs": verbs,
            }));
        };
        if kind.status == StatusIs::Subresource {
            subresource("status", &["get", "patch", "update"]);
        }
        if kind.group.is_empty() && kind.kind == "Pod" {
            subresource("binding", &["create"]);
            subresource("log", &["get"]);
        }
    }
    if resources.is_empty() {
        return Err(Error::NoSuchResource);
    }
    let name = group_version(&of.group, &of.version);
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}))
}

fn served<'a>(kinds: &'a [Arc<Kind>], of: &'a GroupVersion) -> impl Iterator<Item = &'a Arc<Kind>> {
    kinds.iter().filter(|kind| kind.group == of.group && kind.versions.contains(&of.version))
}

/// The index of OpenAPI documents.
pub(super) fn open_api(kinds: &[Arc<Kind>]) -> Value {
    let mut paths = Map::new();
    for kind in kinds {
        for version in &kind.versions {
            let path = prefix(&kind.group, version);
            let url = format!("/openapi/v3/{path}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// kubectl looks whether PATCH of a kind takes `fieldValidation`, and if so leaves validation to the server.
pub(super) fn open_api_of(kinds: &[Arc<Kind>], of: &GroupVersion) -> Result<Value, Error> {
    let mut paths = Map::new();
    for kind in served(kinds, of) {
        let place = if kind.is_namespaced() { "namespaces/{namespace}/" } else { "" };
        let path = format!("/{}/{place}{}/{{name}}", prefix(&of.group, &of.version), kind.plural);
        let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
        let operation = json!({
            "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": of.group, "version": of.version, "kind": kind.kind},
        });
        paths.insert(path, json!({"patch": operation}));
    }
    if paths.is_empty() {
        return Err(Error::NoSuchResource);
    }
    Ok(json!({"openapi": "3.0.0", "info": {"title": "virtsim", "version": VERSION}, "paths": paths}))
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}
