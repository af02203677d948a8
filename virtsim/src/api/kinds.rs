//! Which kinds of objects are served: a table of built-in ones, and what CustomResourceDefinitions add.

use std::sync::Arc;

use serde_json::Value;

use super::json::Json;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// Whether `status` is written only through the `status` subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusIs {
    /// A subresource of its own.
    Subresource,
    /// A field like others.
    Field,
}

/// A kind of objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// API group, "" for core.
    pub group: String,
    /// Served versions, the preferred one first.
    pub versions: Vec<String>,
    /// `Pod`.
    pub kind: String,
    /// `pods`.
    pub plural: String,
    /// `pod`.
    pub singular: String,
    /// `po`.
    pub short_names: Vec<String>,
    /// In a namespace or not.
    pub scope: Scope,
    /// How status is written.
    pub status: StatusIs,
    /// The OpenAPI schema of a custom resource, by version; none for built-in kinds.
    pub schemas: Option<Vec<(String, Value)>>,
}

impl Kind {
    /// `apiVersion` of its preferred version.
    #[must_use]
    pub fn api_version(&self) -> String {
        group_version(&self.group, self.versions.first().map_or("v1", String::as_str))
    }

    /// The resource as messages name it: `pods`, `network-attachment-definitions.k8s.cni.cncf.io`.
    #[must_use]
    pub fn resource(&self) -> String {
        dotted(&self.plural, &self.group)
    }

    /// The kind as messages name it: `Pod`, `NetworkAttachmentDefinition.k8s.cni.cncf.io`.
    #[must_use]
    pub fn qualified(&self) -> String {
        dotted(&self.kind, &self.group)
    }

    /// Whether it comes from a CustomResourceDefinition.
    #[must_use]
    pub fn is_custom(&self) -> bool {
        self.schemas.is_some()
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether somebody who types `word` means this kind: plural, singular, short name, kind in any case, or
    /// plural with the group behind a dot.
    #[must_use]
    pub fn answers_to(&self, word: &str) -> bool {
        let lower = word.to_lowercase();
        lower == self.plural
            || lower == self.singular
            || lower == self.kind.to_lowercase()
            || self.short_names.contains(&lower)
            || lower == self.resource()
    }

    /// What a CustomResourceDefinition adds; none where it lacks what it needs.
    #[must_use]
    pub fn from_definition(definition: &Value) -> Option<Kind> {
        let text = |pointer: &str| {
            let text = definition.text(pointer);
            (!text.is_empty()).then(|| text.to_owned())
        };
        let kind = text("/spec/names/kind")?;
        let served: Vec<_> =
            definition.items("/spec/versions").iter().filter(|version| version.is_true("/served")).collect();
        let schema = |version: &&Value| {
            let schema = version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or(Value::Bool(true));
            (version.text("/name").to_owned(), schema)
        };
        Some(Kind {
            group: text("/spec/group")?,
            versions: served.iter().map(|version| version.text("/name").to_owned()).collect(),
            plural: text("/spec/names/plural")?,
            singular: text("/spec/names/singular").unwrap_or_else(|| kind.to_lowercase()),
            short_names: definition
                .items("/spec/names/shortNames")
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            scope: match definition.text("/spec/scope") {
                "Cluster" => Scope::Cluster,
                _ => Scope::Namespaced,
            },
            status: if served.iter().any(|version| version.pointer("/subresources/status").is_some()) {
                StatusIs::Subresource
            } else {
                StatusIs::Field
            },
            schemas: Some(served.iter().map(schema).collect()),
            kind,
        })
    }
}

/// `apiVersion` as group and version: `apps/v1` is `("apps", "v1")`, `v1` is `("", "v1")`.
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The inverse of [`split_api_version`].
#[must_use]
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn dotted(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// The built-in kinds: what node agents, CNI plugins and their manifests use.
pub(crate) fn built_in() -> Vec<Arc<Kind>> {
    use Scope::{Cluster, Namespaced};
    use StatusIs::{Field, Subresource};
    const RBAC: &str = "rbac.authorization.k8s.io";
    [
        ("", "Namespace", "namespaces", "ns", Cluster, Subresource),
        ("", "Node", "nodes", "no", Cluster, Subresource),
        ("", "Pod", "pods", "po", Namespaced, Subresource),
        ("", "Event", "events", "ev", Namespaced, Field),
        ("", "ConfigMap", "configmaps", "cm", Namespaced, Field),
        ("", "Secret", "secrets", "", Namespaced, Field),
        ("", "ServiceAccount", "serviceaccounts", "sa", Namespaced, Field),
        ("", "Service", "services", "svc", Namespaced, Subresource),
        ("apps", "DaemonSet", "daemonsets", "ds", Namespaced, Subresource),
        (RBAC, "ClusterRole", "clusterroles", "", Cluster, Field),
        (RBAC, "ClusterRoleBinding", "clusterrolebindings", "", Cluster, Field),
        (RBAC, "Role", "roles", "", Namespaced, Field),
        (RBAC, "RoleBinding", "rolebindings", "", Namespaced, Field),
        (CRD_GROUP, "CustomResourceDefinition", CRDS, "crd", Cluster, Subresource),
        ("coordination.k8s.io", "Lease", "leases", "", Namespaced, Field),
        ("scheduling.k8s.io", "PriorityClass", "priorityclasses", "pc", Cluster, Field),
    ]
    .into_iter()
    .map(|(group, kind, plural, short, scope, status)| {
        Arc::new(Kind {
            group: group.to_owned(),
            versions: vec!["v1".to_owned()],
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: Some(short)
                .filter(|short| !short.is_empty())
                .map(str::to_owned)
                .into_iter()
                .collect(),
            scope,
            status,
            schemas: None,
        })
    })
    .collect()
}

/// The group of CustomResourceDefinition.
pub(super) const CRD_GROUP: &str = "apiextensions.k8s.io";
/// The plural of CustomResourceDefinition.
pub(super) const CRDS: &str = "customresourcedefinitions";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_adds_a_kind() {
        let kind = Kind::from_definition(&json!({"spec": {
            "group": "k8s.cni.cncf.io", "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions", "kind": "NetworkAttachmentDefinition",
                "shortNames": ["net-attach-def"],
            },
            "versions": [{"name": "v1", "served": true, "storage": true}, {"name": "v0", "served": false}],
        }}))
        .unwrap();
        assert_eq!(kind.api_version(), "k8s.cni.cncf.io/v1");
        assert_eq!(kind.versions, ["v1"]);
        for word in [
            "net-attach-def",
            "NetworkAttachmentDefinition",
            "network-attachment-definitions.k8s.cni.cncf.io",
        ] {
            assert!(kind.answers_to(word), "{word}");
        }
        assert!(!kind.answers_to("pods"));
        assert_eq!(Kind::from_definition(&json!({"spec": {}})), None);
    }
}
