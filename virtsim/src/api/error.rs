//! What the API server refuses, as `metav1.Status` objects.
//!
//! Source: `k8s.io/apimachinery/pkg/api/errors` for codes, reasons and wording.

use serde_json::{Value, json};

use super::json::Json;

/// A refused request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// No object of that name.
    #[error("{resource} {name:?} not found")]
    NotFound {
        /// `pods`, or `network-attachment-definitions.k8s.cni.cncf.io`.
        resource: String,
        /// Its name.
        name: String,
    },
    /// No such path: an unknown group, version, resource or subresource.
    #[error("the server could not find the requested resource")]
    NoSuchResource,
    /// The name is taken.
    #[error("{resource} {name:?} already exists")]
    AlreadyExists {
        /// `pods`.
        resource: String,
        /// Its name.
        name: String,
    },
    /// Somebody else was faster, or a precondition does not hold.
    #[error("Operation cannot be fulfilled on {resource} {name:?}: {why}")]
    Conflict {
        /// `pods`.
        resource: String,
        /// Its name.
        name: String,
        /// What differs.
        why: String,
    },
    /// Fields that do not hold what they must.
    #[error("{kind} {name:?} is invalid: {}", join(causes))]
    Invalid {
        /// `Pod`, or `NetworkAttachmentDefinition.k8s.cni.cncf.io`.
        kind: String,
        /// Its name.
        name: String,
        /// Each wrong field.
        causes: Vec<Cause>,
    },
    /// A well-formed request that must not be.
    #[error("{resource} {name:?} is forbidden: {why}")]
    Forbidden {
        /// `pods`.
        resource: String,
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// Not understood.
    #[error("{0}")]
    BadRequest(String),
    /// A body in an encoding that is not spoken here.
    #[error("the body of the request was in an unknown format - accepted media types include: {expected}")]
    UnsupportedMediaType {
        /// What is accepted.
        expected: &'static str,
    },
    /// The resource does not know this verb.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// The wanted resourceVersion has left the history.
    #[error("too old resource version: {wanted} ({oldest})")]
    Expired {
        /// What was asked for.
        wanted: u64,
        /// The oldest that could be had.
        oldest: u64,
    },
    /// Part of this node that failed or is stopping.
    #[error("{0}")]
    Internal(String),
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// JSON pointer to the field within its object.
    pub pointer: String,
    /// `FieldValueInvalid` and its kin.
    pub reason: &'static str,
    /// What is wrong with it, without the field's name.
    pub message: String,
}

impl Cause {
    /// A field that holds what it must not.
    pub fn invalid(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Cause { pointer: pointer.into(), reason: "FieldValueInvalid", message: message.into() }
    }

    /// A field that is missing.
    pub fn required(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Cause { pointer: pointer.into(), reason: "FieldValueRequired", message: message.into() }
    }

    /// The field as Kubernetes writes it: `spec.containers[0].name`.
    #[must_use]
    pub fn field(&self) -> String {
        field(&self.pointer)
    }
}

/// A JSON pointer as Kubernetes writes a field's path.
#[must_use]
pub fn field(pointer: &str) -> String {
    let mut field = String::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let plain = step.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !plain || step.bytes().all(|b| b.is_ascii_digit()) {
            field.push_str(&format!("[{step}]"));
        } else {
            if !field.is_empty() {
                field.push('.');
            }
            field.push_str(&step);
        }
    }
    field
}

fn join(causes: &[Cause]) -> String {
    let text = |cause: &Cause| format!("{}: {}", cause.field(), cause.message);
    match causes {
        [one] => text(one),
        many => format!("[{}]", many.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

impl Error {
    /// The HTTP status code.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Error::NotFound { .. } | Error::NoSuchResource => 404,
            Error::AlreadyExists { .. } | Error::Conflict { .. } => 409,
            Error::Invalid { .. } => 422,
            Error::Forbidden { .. } => 403,
            Error::BadRequest(_) => 400,
            Error::UnsupportedMediaType { .. } => 415,
            Error::MethodNotAllowed => 405,
            Error::Expired { .. } => 410,
            Error::Internal(_) => 500,
        }
    }

    /// `metav1.StatusReason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Error::NotFound { .. } | Error::NoSuchResource => "NotFound",
            Error::AlreadyExists { .. } => "AlreadyExists",
            Error::Conflict { .. } => "Conflict",
            Error::Invalid { .. } => "Invalid",
            Error::Forbidden { .. } => "Forbidden",
            Error::BadRequest(_) => "BadRequest",
            Error::UnsupportedMediaType { .. } => "UnsupportedMediaType",
            Error::MethodNotAllowed => "MethodNotAllowed",
            Error::Expired { .. } => "Expired",
            Error::Internal(_) => "InternalError",
        }
    }

    /// The `Status` object that goes over the wire.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut details = match self {
            Error::NotFound { resource, name }
            | Error::AlreadyExists { resource, name }
            | Error::Conflict { resource, name, .. }
            | Error::Forbidden { resource, name, .. } => details(resource, name),
            Error::Invalid { kind, name, .. } => details(kind, name),
            _ => json!({}),
        };
        if let Error::Invalid { causes, .. } = self {
            let causes = causes.iter().map(
                |cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field()}),
            );
            details.put("/causes", causes.collect::<Value>());
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(), "details": details, "code": self.code(),
        })
    }
}

fn details(resource: &str, name: &str) -> Value {
    match resource.split_once('.') {
        Some((kind, group)) => json!({"kind": kind, "group": group, "name": name}),
        None => json!({"kind": resource, "name": name}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_kubernetes_names_them() {
        assert_eq!(field("/spec/containers/0/name"), "spec.containers[0].name");
        assert_eq!(
            field("/spec/containers/0/resources/limits/kernel.org~1virt"),
            "spec.containers[0].resources.limits[kernel.org/virt]"
        );
    }

    #[test]
    fn a_refusal_is_a_status_object() {
        let error = Error::NotFound {
            resource: "network-attachment-definitions.k8s.cni.cncf.io".into(),
            name: "virt-net1".into(),
        };
        assert_eq!(
            error.status(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                "reason": "NotFound",
                "message": "network-attachment-definitions.k8s.cni.cncf.io \"virt-net1\" not found",
                "details": {
                    "kind": "network-attachment-definitions", "group": "k8s.cni.cncf.io", "name": "virt-net1"
                },
            })
        );
    }
}
