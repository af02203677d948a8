//! What an object must look like before it is stored, and the defaults that it gets.
//!
//! Source: `pkg/apis/core/validation`. Of each kind the fields that this node acts on are judged, not all.

use std::collections::{BTreeMap, BTreeSet};

use nic::ResourceName;
use serde_json::{Value, json};

use super::error::Cause;
use super::json::{Json, escape};
use super::kinds::{CRD_GROUP, Kind};
use super::quantity::Quantity;

/// Fills in the defaults of `object` and returns what is wrong with it.
#[must_use]
pub fn admit(kind: &Kind, object: &mut Value) -> Vec<Cause> {
    let mut causes = metadata(kind, object);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod_spec(object, "/spec", &mut causes),
        ("apps", "DaemonSet") => daemon_set(object, &mut causes),
        (CRD_GROUP, "CustomResourceDefinition") => definition(object, &mut causes),
        ("", "ConfigMap") => strings(object, "/data", &mut causes),
        _ => {}
    }
    if let Some(schemas) = &kind.schemas {
        let version = super::kinds::split_api_version(object.text("/apiVersion")).1.to_owned();
        if let Some((_, schema)) = schemas.iter().find(|(name, _)| *name == version) {
            causes.extend(super::schema::conform(object, schema));
        }
    }
    causes
}

/// What an update must leave alone.
pub(super) fn update(kind: &Kind, old: &Value, new: &Value) -> Vec<Cause> {
    if (kind.group.as_str(), kind.kind.as_str()) != ("", "Pod") {
        return Vec::new();
    }
    let fixed = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
            spec.take_out(&format!("/{field}"));
        }
        for list in ["/containers", "/initContainers"] {
            for container in spec.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container.take_out("/image");
            }
        }
        spec
    };
    if fixed(old) == fixed(new) {
        return Vec::new();
    }
    vec![Cause {
        pointer: "/spec".to_owned(),
        reason: "FieldValueForbidden",
        message: "Forbidden: pod updates may not change fields other than `spec.containers[*].image`, \
                  `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` and \
                  `spec.terminationGracePeriodSeconds`"
            .to_owned(),
    }]
}

fn metadata(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = object.name();
    if name.is_empty() {
        causes.push(Cause::required("/metadata/name", "Required value: name or generateName is required"));
    } else if let Some(why) = wrong_name(kind, name) {
        causes.push(Cause::invalid("/metadata/name", format!("Invalid value: {name:?}: {why}")));
    }
    for (place, what) in [("/metadata/labels", "labels"), ("/metadata/annotations", "annotations")] {
        strings(object, place, &mut causes);
        for (key, value) in object.texts(place) {
            let pointer = format!("{place}/{}", escape(&key));
            if !is_qualified_name(&key) {
                let why = format!(
                    "Invalid value: {key:?}: {what} have names of letters, digits, '-', '_' and '.', with an optional DNS prefix and '/'"
                );
                causes.push(Cause::invalid(pointer, why));
            } else if what == "labels" && !is_label_value(&value) {
                let why = format!(
                    "Invalid value: {value:?}: a label is at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
                );
                causes.push(Cause::invalid(pointer, why));
            }
        }
    }
    causes
}

fn wrong_name(kind: &Kind, name: &str) -> Option<String> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        // RBAC allows any path segment.
        ("rbac.authorization.k8s.io", _) => (name.contains(['/', '%']) || [".", ".."].contains(&name))
            .then(|| "it may not be '.', '..' or contain '/' or '%'".to_owned()),
        ("", "Namespace") => (!is_dns_label(name)).then(|| DNS_LABEL.to_owned()),
        _ => (!is_dns_name(name)).then(|| DNS_NAME.to_owned()),
    }
}

const DNS_LABEL: &str = "a DNS label has at most 63 lower case letters, digits and '-', with a letter or digit at both ends (for example my-name)";
const DNS_NAME: &str = "a name has at most 253 lower case letters, digits, '-' and '.', with a letter or digit at both ends of each part (for example example.com)";

/// Whether a Node may have this name.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    is_dns_name(name)
}

/// RFC 1123 label.
#[must_use]
pub(super) fn is_dns_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// RFC 1123 subdomain.
#[must_use]
pub(super) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| !label.is_empty() && is_dns_part(label))
}

fn is_dns_part(text: &str) -> bool {
    // In a subdomain only the whole is limited in length.
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_label_value(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    !name.is_empty()
        && is_label_value(name)
        && prefix.is_none_or(|prefix| is_dns_name(&prefix.to_lowercase()))
}

/// Every value below `pointer` must be a string.
fn strings(object: &Value, pointer: &str, causes: &mut Vec<Cause>) {
    match object.pointer(pointer) {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) => {
            for (key, value) in map.iter().filter(|(_, value)| !value.is_string()) {
                let what = format!("Invalid value: {value}: must be a string (put it in quotes)");
                causes.push(Cause::invalid(format!("{pointer}/{}", escape(key)), what));
            }
        }
        Some(other) => {
            causes.push(Cause::invalid(
                pointer,
                format!("Invalid value: {other}: must be an object of strings"),
            ));
        }
    }
}

fn daemon_set(object: &mut Value, causes: &mut Vec<Cause>) {
    pod_spec(object, "/spec/template/spec", causes);
    let labels = object.texts("/spec/template/metadata/labels");
    let wanted = object.texts("/spec/selector/matchLabels");
    if wanted.is_empty() && object.items("/spec/selector/matchExpressions").is_empty() {
        causes.push(Cause::required("/spec/selector", "Required value"));
    } else if wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
        let message = format!("Invalid value: {labels:?}: `selector` does not match template `labels`");
        causes.push(Cause::invalid("/spec/template/metadata/labels", message));
    }
}

fn definition(object: &mut Value, causes: &mut Vec<Cause>) {
    for field in ["/spec/group", "/spec/names/plural", "/spec/names/kind", "/spec/scope"] {
        if object.text(field).is_empty() {
            causes.push(Cause::required(field, "Required value"));
        }
    }
    let scope = object.text("/spec/scope");
    if !["", "Cluster", "Namespaced"].contains(&scope) {
        let what = format!("Unsupported value: {scope:?}: supported values: \"Cluster\", \"Namespaced\"");
        causes.push(Cause::invalid("/spec/scope", what));
    }
    let expected = format!("{}.{}", object.text("/spec/names/plural"), object.text("/spec/group"));
    if object.name() != expected {
        let what = format!("Invalid value: {:?}: must be spec.names.plural+\".\"+spec.group", object.name());
        causes.push(Cause::invalid("/metadata/name", what));
    }
    if object.items("/spec/versions").iter().filter(|version| version.is_true("/storage")).count() != 1 {
        causes.push(Cause::invalid(
            "/spec/versions",
            "Invalid value: must have exactly one version marked as storage version",
        ));
    }
    let kind = object.text("/spec/names/kind").to_owned();
    if object.text("/spec/names/singular").is_empty() {
        object.put("/spec/names/singular", kind.to_lowercase());
    }
    if object.text("/spec/names/listKind").is_empty() {
        object.put("/spec/names/listKind", format!("{kind}List"));
    }
}

/// Judges the pod specification at `at` and fills in its defaults.
fn pod_spec(object: &mut Value, at: &str, causes: &mut Vec<Cause>) {
    let Some(spec) = object.pointer_mut(at).filter(|spec| spec.is_object()) else {
        causes.push(Cause::required(at, "Required value"));
        return;
    };
    for (field, default) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
    ] {
        if spec.get(field).is_none_or(Value::is_null) {
            spec.put(&format!("/{field}"), default);
        }
    }
    let policy = spec.text("/restartPolicy");
    if !["Always", "OnFailure", "Never"].contains(&policy) {
        let what =
            format!("Unsupported value: {policy:?}: supported values: \"Always\", \"OnFailure\", \"Never\"");
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            ..Cause::invalid(format!("{at}/restartPolicy"), what)
        });
    }
    if spec.items("/containers").is_empty() {
        causes.push(Cause::required(format!("{at}/containers"), "Required value"));
    }
    let volumes: BTreeSet<String> =
        spec.items("/volumes").iter().map(|volume| volume.text("/name").to_owned()).collect();
    let mut names = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for (index, container) in containers.into_iter().flatten().enumerate() {
            let at = format!("{at}/{list}/{index}");
            let name = container.text("/name").to_owned();
            if name.is_empty() {
                causes.push(Cause::required(format!("{at}/name"), "Required value"));
            } else if !is_dns_label(&name) {
                causes.push(Cause::invalid(
                    format!("{at}/name"),
                    format!("Invalid value: {name:?}: {DNS_LABEL}"),
                ));
            } else if !names.insert(name.clone()) {
                causes.push(Cause {
                    pointer: format!("{at}/name"),
                    reason: "FieldValueDuplicate",
                    message: format!("Duplicate value: {name:?}"),
                });
            }
            if container.text("/image").is_empty() {
                causes.push(Cause::required(format!("{at}/image"), "Required value"));
            }
            words(container, &at, causes);
            for (index, mount) in container.items("/volumeMounts").iter().enumerate() {
                if !volumes.contains(mount.text("/name")) {
                    let what = format!("Not found: {:?}", mount.text("/name"));
                    let pointer = format!("{at}/volumeMounts/{index}/name");
                    causes.push(Cause { reason: "FieldValueNotFound", ..Cause::invalid(pointer, what) });
                }
            }
            resources(container, &at, causes);
        }
    }
}

/// `command` and `args` are lists of strings; a plain string or a number is the commonest slip.
fn words(container: &Value, at: &str, causes: &mut Vec<Cause>) {
    for field in ["command", "args"] {
        let Some(value) = container.get(field).filter(|value| !value.is_null()) else { continue };
        let Some(words) = value.as_array() else {
            causes.push(Cause::invalid(
                format!("{at}/{field}"),
                format!("Invalid value: {value}: must be a list of strings"),
            ));
            continue;
        };
        for (index, word) in words.iter().enumerate().filter(|(_, word)| !word.is_string()) {
            let what = format!("Invalid value: {word}: must be a string (put it in quotes)");
            causes.push(Cause::invalid(format!("{at}/{field}/{index}"), what));
        }
    }
}

fn resources(container: &mut Value, at: &str, causes: &mut Vec<Cause>) {
    let limits = amounts(container, at, "limits", causes);
    let requests = amounts(container, at, "requests", causes);
    for (name, limit) in &limits {
        let pointer = format!("{at}/resources/requests/{}", escape(name));
        match requests.get(name) {
            // A limit without a request is one: SetDefaults_Pod.
            None => {
                if let Some(text) = container.pointer(&format!("/resources/limits/{}", escape(name))).cloned()
                {
                    container.put(&format!("/resources/requests/{}", escape(name)), text);
                }
            }
            Some(request) if is_extended(name) && request != limit => {
                causes.push(Cause::invalid(
                    pointer,
                    format!("Invalid value: \"{request}\": must be equal to {name} limit of {limit}"),
                ));
            }
            Some(request) if request > limit => causes.push(Cause::invalid(
                pointer,
                format!(
                    "Invalid value: \"{request}\": must be less than or equal to {name} limit of {limit}"
                ),
            )),
            Some(_) => {}
        }
    }
    for name in requests.keys().filter(|name| is_extended(name) && !limits.contains_key(*name)) {
        causes.push(Cause::required(
            format!("{at}/resources/requests/{}", escape(name)),
            format!("Required value: limit must be set for non overcommitable resources ({name})"),
        ));
    }
}

fn amounts(container: &Value, at: &str, which: &str, causes: &mut Vec<Cause>) -> BTreeMap<String, Quantity> {
    let mut amounts = BTreeMap::new();
    for (name, value) in container.map(&format!("/resources/{which}")).into_iter().flatten() {
        let pointer = format!("{at}/resources/{which}/{}", escape(name));
        let mut wrong = |message: String| causes.push(Cause::invalid(pointer.clone(), message));
        let quantity = match Quantity::of(value) {
            Ok(quantity) => quantity,
            Err(error) => {
                wrong(format!("Invalid value: {error}"));
                continue;
            }
        };
        if quantity.is_negative() {
            wrong(format!("Invalid value: \"{quantity}\": must be greater than or equal to 0"));
        } else if is_extended(name) {
            if let Err(error) = name.parse::<ResourceName>() {
                wrong(format!("Invalid value: {error}"));
            } else if quantity.as_whole().is_none() {
                wrong(format!("Invalid value: \"{quantity}\": must be an integer"));
            }
        } else if !is_native(name) {
            wrong(format!(
                "Invalid value: {name:?}: must be a standard resource for containers, or have a prefix such as example.com/"
            ));
        }
        amounts.insert(name.clone(), quantity);
    }
    amounts
}

fn is_native(name: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&name)
        || name.starts_with("hugepages-")
        || name.contains("kubernetes.io/")
}

/// Whether a resource is one that device plugins offer, rather than cpu, memory and the like.
#[must_use]
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::built_in;

    fn causes(mut pod: Value) -> Vec<String> {
        let kinds = built_in();
        let kind = kinds.iter().find(|kind| kind.kind == "Pod").unwrap();
        admit(kind, &mut pod).iter().map(|cause| format!("{}: {}", cause.field(), cause.message)).collect()
    }

    fn pod(resources: Value) -> Value {
        json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "image": "busybox", "resources": resources}]},
        })
    }

    #[test]
    fn a_plain_pod_is_admitted_with_its_defaults() {
        let kinds = built_in();
        let kind = kinds.iter().find(|kind| kind.kind == "Pod").unwrap();
        let mut object = pod(json!({"limits": {"kernel.org/virt": "1", "memory": "128Mi"}}));
        assert_eq!(admit(kind, &mut object), []);
        assert_eq!(object.text("/spec/restartPolicy"), "Always");
        assert_eq!(object.text("/spec/containers/0/resources/requests/kernel.org~1virt"), "1");
    }

    #[test]
    fn extended_resources_are_whole_and_not_overcommitted() {
        for (resources, wrong) in [
            (json!({"limits": {"kernel.org/virt": "1.5"}}), "must be an integer"),
            (json!({"limits": {"kernel.org/virt": "one"}}), "is not a quantity"),
            (json!({"limits": {"Kernel.Org/virt": 1}}), "DNS name in lower case"),
            (json!({"limits": {"kernel.org/virt": 2}, "requests": {"kernel.org/virt": 1}}), "must be equal"),
            (json!({"requests": {"kernel.org/virt": 1}}), "limit must be set"),
            (json!({"limits": {"memory": "1Mi"}, "requests": {"memory": "2Mi"}}), "less than or equal"),
            (json!({"limits": {"memory": "-1"}}), "greater than or equal to 0"),
            (json!({"limits": {"virt": 1}}), "standard resource"),
        ] {
            let causes = causes(pod(resources.clone()));
            assert_eq!(causes.len(), 1, "{resources}: {causes:?}");
            assert!(causes[0].contains(wrong) && causes[0].contains("resources."), "{causes:?}");
        }
    }

    #[test]
    fn every_wrong_field_is_named() {
        let causes = causes(json!({
            "metadata": {"name": "Pod_1", "labels": {"a": 1, "b": "not ok!"}},
            "spec": {
                "restartPolicy": "Sometimes",
                "containers": [
                    {"name": "c", "image": "i", "command": "sh", "args": [300]},
                    {"name": "c", "volumeMounts": [{"name": "none", "mountPath": "/x"}]},
                ],
            },
        }));
        let fields: Vec<_> = causes.iter().map(|cause| cause.split(": ").next().unwrap()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.labels.a",
                "metadata.labels.b",
                "spec.restartPolicy",
                "spec.containers[0].command",
                "spec.containers[0].args[0]",
                "spec.containers[1].name",
                "spec.containers[1].image",
                "spec.containers[1].volumeMounts[0].name",
            ]
        );
    }
}
