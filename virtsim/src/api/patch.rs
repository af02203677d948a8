//! Ways to change an object: JSON merge patch (RFC 7396), JSON patch (RFC 6902), strategic merge patch and
//! server-side apply.
//!
//! Strategic merge knows which lists are keyed by what from the API's `patchMergeKey` tags. Server-side apply is
//! taken as a strategic merge: nobody's fields are tracked here, so a field that is no longer applied stays.

use serde_json::{Map, Value};

use super::json::{Json, escape};

/// A patch as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// `application/merge-patch+json`.
    Merge(Value),
    /// `application/strategic-merge-patch+json`.
    Strategic(Value),
    /// `application/json-patch+json`.
    Json(Vec<Value>),
    /// `application/apply-patch+yaml`: makes the object where it does not exist.
    Apply(Value),
}

/// Why a patch does not apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// An operation that is not one of RFC 6902, or lacks what it needs.
    #[error("operation {index} of the patch is malformed: {why}")]
    Malformed {
        /// Which operation, from 0.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// The path does not exist, or `test` found something else.
    #[error("operation {index} of the patch cannot be applied: {why}")]
    Refused {
        /// Which operation, from 0.
        index: usize,
        /// What is wrong.
        why: String,
    },
}

impl Patch {
    /// The object after the patch.
    ///
    /// # Errors
    /// Only a JSON patch can fail.
    pub fn apply(&self, object: &Value) -> Result<Value, PatchError> {
        let mut object = object.clone();
        match self {
            Patch::Merge(patch) => merge(&mut object, patch),
            Patch::Strategic(patch) | Patch::Apply(patch) => strategic(&mut object, patch, "", ""),
            Patch::Json(operations) => {
                for (index, operation) in operations.iter().enumerate() {
                    json_operation(&mut object, operation, index)?;
                }
            }
        }
        Ok(object)
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = as_map(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // It was made an object just above.
        _ => unreachable!(),
    }
}

/// The key by which a list is merged, by the list's field and the field that holds it (`patchMergeKey`).
fn merge_key(parent: &str, field: &str) -> Option<&'static str> {
    Some(match (parent, field) {
        (_, "containers" | "initContainers" | "ephemeralContainers" | "env" | "volumes") => "name",
        (_, "imagePullSecrets") => "name",
        (_, "volumeMounts") => "mountPath",
        (_, "volumeDevices") => "devicePath",
        (_, "conditions" | "addresses") => "type",
        (_, "ownerReferences") => "uid",
        (_, "podIPs" | "hostIPs" | "hostAliases") => "ip",
        (_, "taints") => "key",
        (_, "topologySpreadConstraints") => "topologyKey",
        ("containers" | "initContainers", "ports") => "containerPort",
        _ => return None,
    })
}

/// Lists of plain values that are united rather than replaced (`patchStrategy: merge` without a key).
fn is_set(field: &str) -> bool {
    matches!(field, "finalizers" | "podCIDRs")
}

fn strategic(target: &mut Value, patch: &Value, parent: &str, field: &str) {
    match patch {
        Value::Object(patch) => strategic_map(as_map(target), patch, field),
        Value::Array(items) => match merge_key(parent, field) {
            Some(key) => strategic_list(target, items, key, field),
            None if is_set(field) && target.is_array() => {
                if let Value::Array(old) = target {
                    let fresh: Vec<_> = items.iter().filter(|item| !old.contains(item)).cloned().collect();
                    old.extend(fresh);
                }
            }
            None => *target = patch.clone(),
        },
        other => *target = other.clone(),
    }
}

fn strategic_map(target: &mut Map<String, Value>, patch: &Map<String, Value>, field: &str) {
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        target.clear();
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let (gone, old) = (value.as_array(), target.get_mut(list).and_then(Value::as_array_mut));
            if let (Some(gone), Some(old)) = (gone, old) {
                old.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // $setElementOrder only sorts, $retainKeys clears unions that this server does not know.
        } else if value.is_null() || value.text("/$patch") == "delete" {
            target.remove(key);
        } else {
            strategic(target.entry(key.clone()).or_insert(Value::Null), value, field, key);
        }
    }
}

fn strategic_list(target: &mut Value, items: &[Value], key: &str, field: &str) {
    let directive = |item: &Value| item.text("/$patch").to_owned();
    let mut old = match target.take() {
        Value::Array(old) if !items.iter().any(|item| directive(item) == "replace") => old,
        _ => Vec::new(),
    };
    for item in items {
        match directive(item).as_str() {
            "replace" => {}
            "delete" => old.retain(|other| other.get(key) != item.get(key)),
            _ => {
                let known =
                    item.get(key).and_then(|id| old.iter_mut().find(|other| other.get(key) == Some(id)));
                match known {
                    Some(known) => strategic(known, item, field, field),
                    None => {
                        let mut fresh = Value::Null;
                        strategic(&mut fresh, item, field, field);
                        old.push(fresh);
                    }
                }
            }
        }
    }
    *target = Value::Array(old);
}

fn json_operation(object: &mut Value, operation: &Value, index: usize) -> Result<(), PatchError> {
    let malformed = |why: &str| PatchError::Malformed { index, why: why.to_owned() };
    let refused = |why: String| PatchError::Refused { index, why };
    let path = operation.get("path").and_then(Value::as_str).ok_or_else(|| malformed("it has no path"))?;
    let value = || operation.get("value").cloned().ok_or_else(|| malformed("it has no value"));
    let from = || operation.get("from").and_then(Value::as_str).ok_or_else(|| malformed("it has no from"));
    let there = |object: &Value, path: &str| {
        object.pointer(path).cloned().ok_or_else(|| refused(format!("there is no {path:?}")))
    };
    match operation.text("/op") {
        "add" => add(object, path, value()?).map_err(refused),
        "remove" => remove(object, path).map(drop).map_err(refused),
        "replace" => {
            let value = value()?;
            let target = object.pointer_mut(path).ok_or_else(|| refused(format!("there is no {path:?}")))?;
            *target = value;
            Ok(())
        }
        "test" => {
            let (value, found) = (value()?, there(object, path)?);
            let same = value == found;
            same.then_some(()).ok_or_else(|| refused(format!("{path:?} is {found}, not {value}")))
        }
        "move" => {
            let value = remove(object, from()?).map_err(refused)?;
            add(object, path, value).map_err(refused)
        }
        "copy" => {
            let value = there(object, from()?)?;
            add(object, path, value).map_err(refused)
        }
        other => Err(malformed(&format!("{other:?} is no operation"))),
    }
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let Some((parent, key)) = path.rsplit_once('/') else {
        *object = value;
        return Ok(());
    };
    let missing = || format!("there is no {parent:?}");
    match object.pointer_mut(parent).ok_or_else(missing)? {
        Value::Object(map) => {
            map.insert(key.replace("~1", "/").replace("~0", "~"), value);
            Ok(())
        }
        Value::Array(list) => {
            let index = if key == "-" { Some(list.len()) } else { key.parse().ok() };
            let index = index
                .filter(|index| *index <= list.len())
                .ok_or_else(|| format!("{:?} is no place in a list of {}", escape(key), list.len()))?;
            list.insert(index, value);
            Ok(())
        }
        _ => Err(format!("{parent:?} holds neither an object nor a list")),
    }
}

fn remove(object: &mut Value, path: &str) -> Result<Value, String> {
    let missing = || format!("there is no {path:?}");
    let (parent, key) = path.rsplit_once('/').ok_or_else(missing)?;
    match object.pointer_mut(parent).ok_or_else(missing)? {
        Value::Object(map) => map.remove(&key.replace("~1", "/").replace("~0", "~")).ok_or_else(missing),
        Value::Array(list) => {
            let index = key.parse().ok().filter(|index| *index < list.len()).ok_or_else(missing)?;
            Ok(list.remove(index))
        }
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patch_follows_the_rfc() {
        let object =
            json!({"title": "Goodbye!", "author": {"first": "John", "last": "Doe"}, "tags": ["a", "b"]});
        let patch = Patch::Merge(
            json!({"title": "Hello!", "author": {"last": null}, "tags": ["a"], "new": {"x": null}}),
        );
        assert_eq!(
            patch.apply(&object).unwrap(),
            json!({"title": "Hello!", "author": {"first": "John"}, "tags": ["a"], "new": {}})
        );
    }

    #[test]
    fn strategic_merge_merges_conditions_and_containers_by_their_key() {
        let pod = json!({
            "spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]},
            "status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]},
        });
        let patch = Patch::Strategic(json!({
            "spec": {"containers": [{"name": "a", "image": "2"}, {"$patch": "delete", "name": "b"}]},
            "status": {
                "$setElementOrder/conditions": [{"type": "Ready"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
        assert_eq!(
            patch.apply(&pod).unwrap(),
            json!({
                "spec": {"containers": [{"name": "a", "image": "2"}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]},
            })
        );
    }

    #[test]
    fn strategic_merge_knows_its_directives() {
        let object =
            json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"}}, "spec": {"old": 1}});
        let patch = Patch::Strategic(json!({
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": null}},
            "spec": {"$patch": "replace", "new": 2},
        }));
        let mut result = patch.apply(&object).unwrap();
        let mut finalizers: Vec<_> = result.items("/metadata/finalizers").to_vec();
        finalizers.sort_by_key(ToString::to_string);
        result.take_out("/metadata/finalizers");
        assert_eq!(finalizers, [json!("b"), json!("c")]);
        assert_eq!(result, json!({"metadata": {"labels": {}}, "spec": {"new": 2}}));
    }

    #[test]
    fn json_patch_knows_every_operation() {
        let object = json!({"a": {"b": [1, 2]}, "k/8": "x"});
        let patch = Patch::Json(vec![
            json!({"op": "test", "path": "/k~18", "value": "x"}),
            json!({"op": "add", "path": "/a/b/1", "value": 9}),
            json!({"op": "add", "path": "/a/b/-", "value": 3}),
            json!({"op": "remove", "path": "/a/b/0"}),
            json!({"op": "copy", "from": "/a/b", "path": "/c"}),
            json!({"op": "move", "from": "/k~18", "path": "/d"}),
            json!({"op": "replace", "path": "/a", "value": null}),
        ]);
        assert_eq!(patch.apply(&object).unwrap(), json!({"a": null, "c": [9, 2, 3], "d": "x"}));
    }

    #[test]
    fn a_json_patch_that_does_not_fit_is_refused() {
        for operation in [
            json!({"op": "replace", "path": "/none", "value": 1}),
            json!({"op": "remove", "path": "/a/5"}),
            json!({"op": "test", "path": "/a/0", "value": 2}),
            json!({"op": "add", "path": "/a/9", "value": 2}),
            json!({"op": "frob", "path": "/a"}),
            json!({"op": "add", "path": "/a"}),
            json!({}),
        ] {
            assert!(Patch::Json(vec![operation.clone()]).apply(&json!({"a": [1]})).is_err(), "{operation}");
        }
    }

    proptest! {
        #[test]
        fn no_json_patch_makes_it_panic(path in "(/[a-z0-9~-]{0,3}){0,3}", op in "add|remove|replace|move|copy|test") {
            let operation = json!({"op": op, "path": path, "from": "/a/0", "value": 1});
            let _ = Patch::Json(vec![operation]).apply(&json!({"a": [1, {"b": 2}], "c": "d"}));
        }
    }
}
