//! The parts of Kubernetes objects that are read here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::NETWORKS;

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// metadata.name
    pub name: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.uid
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// metadata.annotations
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its names and annotations.
    pub metadata: Metadata,
}

impl Pod {
    /// The networks that it asks for besides the cluster's: the annotation, see [`crate::selections`].
    #[must_use]
    pub fn networks(&self) -> Option<&str> {
        self.metadata.annotations.get(NETWORKS).map(String::as_str)
    }
}
