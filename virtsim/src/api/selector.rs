//! `labelSelector` and `fieldSelector` of list, watch and deletecollection.

use std::collections::BTreeSet;

use serde_json::Value;

use super::error::Error;
use super::json::Json;

/// Which objects of a kind are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelTerm {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    pointer: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads both selectors as they stand in a query; empty ones select everything.
    ///
    /// # Errors
    /// A term that cannot be read, or a field that is not served.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Error> {
        Ok(Selector {
            labels: split(labels).into_iter().map(label_term).collect::<Result<_, _>>()?,
            fields: split(fields).into_iter().map(field_term).collect::<Result<_, _>>()?,
        })
    }

    /// Whether `object` is wanted.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.labels();
        let by_labels = self.labels.iter().all(|term| match term {
            LabelTerm::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            LabelTerm::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            LabelTerm::Exists(key) => labels.contains_key(key),
            LabelTerm::Absent(key) => !labels.contains_key(key),
        });
        by_labels && self.fields.iter().all(|term| (object.text(&term.pointer) == term.value) == term.equal)
    }
}

/// Splits at commas that are not inside `( )`.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let terms = text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    terms.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn label_term(term: &str) -> Result<LabelTerm, Error> {
    let unreadable = || Error::BadRequest(format!("unable to parse requirement: {term:?}"));
    let one = |value: &str| BTreeSet::from([value.trim().to_owned()]);
    let key = |key: &str| key.trim().to_owned();
    if let Some((left, right)) = term.split_once("!=") {
        return Ok(LabelTerm::NotIn(key(left), one(right)));
    }
    if let Some((left, right)) = term.split_once('=') {
        return Ok(LabelTerm::In(key(left), one(right.trim_start_matches('='))));
    }
    if let Some((left, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let words: Vec<_> = left.split_whitespace().collect();
        return match words.as_slice() {
            [name, "in"] => Ok(LabelTerm::In(key(name), values)),
            [name, "notin"] => Ok(LabelTerm::NotIn(key(name), values)),
            _ => Err(unreadable()),
        };
    }
    let absent = term.strip_prefix('!');
    let name = absent.unwrap_or(term).trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(unreadable());
    }
    Ok(if absent.is_some() { LabelTerm::Absent(name.to_owned()) } else { LabelTerm::Exists(name.to_owned()) })
}

/// The fields that some kind's real strategy lets one select by.
const FIELDS: [&str; 14] = [
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.unschedulable",
    "status.phase",
    "status.podIP",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
    "reason",
    "type",
    "source",
];

fn field_term(term: &str) -> Result<FieldTerm, Error> {
    let (left, right, equal) = match (term.split_once("!="), term.split_once('=')) {
        (Some((left, right)), _) => (left, right, false),
        (None, Some((left, right))) => (left, right.trim_start_matches('='), true),
        (None, None) => {
            return Err(Error::BadRequest(format!("invalid selector: {term:?}; can't understand {term:?}")));
        }
    };
    let left = left.trim();
    if !FIELDS.contains(&left) {
        return Err(Error::BadRequest(format!("field label not supported: {left}")));
    }
    let pointer = match left {
        "source" => "/source/component".to_owned(),
        _ => format!("/{}", left.replace('.', "/")),
    };
    Ok(FieldTerm { pointer, value: right.trim().to_owned(), equal })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(labels: &str, fields: &str) -> bool {
        let pod = json!({
            "metadata": {"name": "a", "namespace": "default", "labels": {"app": "virtdp", "env": "test"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        Selector::parse(labels, fields).unwrap().matches(&pod)
    }

    #[test]
    fn labels_are_selected_by_every_operator() {
        for good in
            ["", "app=virtdp", "app==virtdp,env!=prod", "app in (a, virtdp)", "app", "!other", "x notin (a)"]
        {
            assert!(selects(good, ""), "{good:?}");
        }
        for bad in ["app=x", "!app", "other", "env notin (test,prod)", "app,env=prod"] {
            assert!(!selects(bad, ""), "{bad:?}");
        }
        for unreadable in ["a b", "a of (b)", "!"] {
            assert!(Selector::parse(unreadable, "").is_err(), "{unreadable:?}");
        }
    }

    #[test]
    fn only_served_fields_can_be_selected() {
        assert!(selects("", "metadata.name=a,spec.nodeName=n1,status.phase!=Failed"));
        assert!(!selects("", "spec.nodeName="));
        assert!(Selector::parse("", "spec.color=red").is_err());
        assert!(Selector::parse("", "spec").is_err());
    }
}
