//! Which kinds the server serves, by its discovery documents.

use serde_json::Value;

use super::{Client, Error};
use crate::api::json::Json;
use crate::api::kinds::{Kind, Scope, StatusIs, group_version, split_api_version};

/// All kinds that can be asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kinds(Vec<Kind>);

impl Client {
    /// Asks for all kinds; those of CustomResourceDefinitions come with their schemas.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn kinds(&self) -> Result<Kinds, Error> {
        let mut kinds = Kinds::default();
        for kind in in_resource_list(&self.get("/api/v1")?) {
            kinds.add(kind);
        }
        let groups = self.get("/apis")?;
        for group in groups.items("/groups") {
            let version = group.text("/preferredVersion/groupVersion");
            for kind in in_resource_list(&self.get(&format!("/apis/{version}"))?) {
                kinds.add(kind);
            }
        }
        if kinds.find("apiextensions.k8s.io/v1", "CustomResourceDefinition").is_some() {
            let definitions = self.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")?;
            for kind in definitions.items("/items").iter().filter_map(Kind::from_definition) {
                kinds.add(kind);
            }
        }
        Ok(kinds)
    }
}

impl Kinds {
    /// Adds a kind, or replaces what is known of it.
    pub fn add(&mut self, kind: Kind) {
        self.0.retain(|known| known.group != kind.group || known.kind != kind.kind);
        self.0.push(kind);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.0.iter()
    }

    /// The kind of an object.
    #[must_use]
    pub fn find(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        let (group, version) = split_api_version(api_version);
        let fits = |known: &&Kind| {
            known.group == group
                && known.kind == kind
                && known.versions.iter().any(|served| served == version)
        };
        self.0.iter().find(fits)
    }

    /// The kind that somebody means by `word`. Where several answer, the core group's comes first, as in kubectl.
    #[must_use]
    pub fn named(&self, word: &str) -> Option<&Kind> {
        self.0.iter().find(|kind| kind.answers_to(word))
    }
}

fn in_resource_list(list: &Value) -> Vec<Kind> {
    let (group, version) = split_api_version(list.text("/groupVersion"));
    let names = |resource: &Value, pointer: &str| -> Vec<String> {
        resource.items(pointer).iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let has_status = |plural: &str| {
        list.items("/resources").iter().any(|resource| resource.text("/name") == format!("{plural}/status"))
    };
    let kind = |resource: &Value| Kind {
        group: group.to_owned(),
        versions: vec![version.to_owned()],
        kind: resource.text("/kind").to_owned(),
        plural: resource.text("/name").to_owned(),
        singular: match resource.text("/singularName") {
            "" => resource.text("/kind").to_lowercase(),
            singular => singular.to_owned(),
        },
        short_names: names(resource, "/shortNames"),
        scope: if resource.is_true("/namespaced") { Scope::Namespaced } else { Scope::Cluster },
        status: if has_status(resource.text("/name")) { StatusIs::Subresource } else { StatusIs::Field },
        schemas: None,
    };
    // What has a slash is a subresource.
    list.items("/resources")
        .iter()
        .filter(|resource| {
            !resource.text("/name").contains('/') && names(resource, "/verbs").iter().any(|v| v == "get")
        })
        .map(kind)
        .filter(|kind| group_version(&kind.group, version) == list.text("/groupVersion"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_are_read_from_discovery_without_subresources() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": [
            {"name": "daemonsets", "singularName": "daemonset", "namespaced": true, "kind": "DaemonSet",
             "shortNames": ["ds"], "verbs": ["get", "list"]},
            {"name": "daemonsets/status", "namespaced": true, "kind": "DaemonSet", "verbs": ["get"]},
        ]});
        let mut kinds = Kinds::default();
        in_resource_list(&list).into_iter().for_each(|kind| kinds.add(kind));
        assert_eq!(kinds.iter().count(), 1);
        let kind = kinds.named("ds").unwrap();
        assert_eq!((kind.plural.as_str(), kind.api_version().as_str()), ("daemonsets", "apps/v1"));
        assert_eq!(kinds.find("apps/v1", "DaemonSet"), Some(kind));
        assert_eq!(kinds.find("apps/v2", "DaemonSet"), None);
    }
}
