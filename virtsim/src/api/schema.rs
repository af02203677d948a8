//! The OpenAPI schema of a custom resource: wrong types are refused, unknown fields pruned, defaults filled in.
//!
//! Knows `type`, `properties`, `additionalProperties`, `items`, `required`, `enum`, `default`, `nullable`,
//! `minimum`, `maximum`, `x-kubernetes-preserve-unknown-fields` and `x-kubernetes-int-or-string`. Patterns and
//! validation rules (CEL) are not judged here.

use serde_json::Value;

use super::error::Cause;
use super::json::{Json, escape};

/// Fits `object` to `schema` and says what cannot be fitted.
pub(super) fn conform(object: &mut Value, schema: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if schema.is_object() {
        visit(object, schema, "", &mut causes);
    }
    causes
}

fn visit(value: &mut Value, schema: &Value, pointer: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema.is_true("/nullable") {
        return;
    }
    if let Some(wrong) = wrong_type(value, schema) {
        causes.push(Cause { pointer: pointer.to_owned(), reason: "FieldValueTypeInvalid", message: wrong });
        return;
    }
    let allowed = schema.items("/enum");
    if !allowed.is_empty() && !allowed.contains(value) {
        let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        causes.push(Cause {
            pointer: pointer.to_owned(),
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
        });
    }
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(number) = value.as_f64() {
        for (word, limit) in [
            ("greater", bound("minimum").filter(|minimum| number < *minimum)),
            ("less", bound("maximum").filter(|maximum| number > *maximum)),
        ] {
            if let Some(limit) = limit {
                let what = format!("Invalid value: {value}: should be {word} than or equal to {limit}");
                causes.push(Cause::invalid(pointer, what));
            }
        }
    }
    match value {
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter_mut().enumerate() {
                    visit(item, schema, &format!("{pointer}/{index}"), causes);
                }
            }
        }
        Value::Object(map) => {
            let known = schema.map("/properties");
            for (key, property) in known.into_iter().flatten() {
                if let (None, Some(default)) = (map.get(key), property.get("default")) {
                    map.insert(key.clone(), default.clone());
                }
            }
            for required in schema.items("/required").iter().filter_map(Value::as_str) {
                if !map.contains_key(required) {
                    causes.push(Cause::required(
                        format!("{pointer}/{}", escape(required)),
                        "Required value".to_owned(),
                    ));
                }
            }
            let others = schema.get("additionalProperties").filter(|others| others.is_object());
            let keep = schema.is_true("/x-kubernetes-preserve-unknown-fields")
                || schema.is_true("/additionalProperties")
                || schema.is_true("/x-kubernetes-embedded-resource");
            map.retain(|key, value| {
                // What every object has is the API server's own business (and `metadata` is a bare object in CRDs).
                if pointer.is_empty() && ["apiVersion", "kind", "metadata"].contains(&key.as_str()) {
                    return true;
                }
                let below = format!("{pointer}/{}", escape(key));
                match (known.and_then(|known| known.get(key)), others) {
                    (Some(schema), _) | (None, Some(schema)) => {
                        visit(value, schema, &below, causes);
                        true
                    }
                    (None, None) => keep,
                }
            });
        }
        _ => {}
    }
}

fn wrong_type(value: &Value, schema: &Value) -> Option<String> {
    if schema.is_true("/x-kubernetes-int-or-string") {
        return (!value.is_string() && !value.is_i64() && !value.is_u64())
            .then(|| format!("Invalid value: {}: must be an integer or a string", kind_of(value)));
    }
    let wanted = schema.text("/type");
    let fits = match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    };
    (!fits).then(|| {
        format!("Invalid value: {:?}: must be of type {wanted}: {:?}", kind_of(value), kind_of(value))
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "required": ["config"],
            "properties": {
                "config": {"type": "string"},
                "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                "count": {"type": "integer", "minimum": 1},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }}})
    }

    #[test]
    fn unknown_fields_are_pruned_and_defaults_filled_in() {
        let mut object =
            json!({"kind": "X", "metadata": {"name": "a"}, "extra": 1, "spec": {"config": "{}", "other": 2}});
        assert_eq!(conform(&mut object, &schema()), []);
        assert_eq!(
            object,
            json!({"kind": "X", "metadata": {"name": "a"}, "spec": {"config": "{}", "mode": "a"}})
        );
    }

    #[test]
    fn wrong_values_are_named_by_their_path() {
        let mut object = json!({"spec": {"mode": "c", "count": 0, "labels": {"x/y": 5}}});
        let mut pointers: Vec<_> =
            conform(&mut object, &schema()).into_iter().map(|cause| cause.pointer).collect();
        pointers.sort();
        assert_eq!(pointers, ["/spec/config", "/spec/count", "/spec/labels/x~1y", "/spec/mode"]);
        let mut object = json!({"spec": []});
        assert_eq!(conform(&mut object, &schema()).len(), 1);
        assert_eq!(conform(&mut json!({"any": 1}), &Value::Bool(true)), []);
    }
}
