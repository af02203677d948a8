//! NetworkAttachmentDefinition, `k8s.cni.cncf.io/v1`: a network that pods can ask for.

use nic::{NameError, ResourceName};
use serde::{Deserialize, Serialize};

use crate::Metadata;

/// The annotation that ties a network to an extended resource.
pub const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// A network that pods can ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentDefinition {
    /// Its names and annotations.
    pub metadata: Metadata,
    /// spec
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Spec {
    #[serde(default)]
    config: Option<String>,
}

/// What is wrong with a definition.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The resource is not one that a pod could request.
    #[error("annotation {RESOURCE_NAME} of network {namespace}/{name} names no resource")]
    ResourceName {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        source: NameError,
    },
}

impl NetworkAttachmentDefinition {
    /// A definition with this configuration.
    #[must_use]
    pub fn new(metadata: Metadata, config: Option<String>) -> Self {
        NetworkAttachmentDefinition { metadata, spec: Spec { config } }
    }

    /// spec.config: a CNI configuration, one plugin or a list. `None`: a network of this name is to be read from the
    /// node's configuration folder.
    #[must_use]
    pub fn config(&self) -> Option<&str> {
        self.spec.config.as_deref().filter(|config| !config.trim().is_empty())
    }

    /// The resource from which the pod must have been given a device for each attachment to this network.
    ///
    /// # Errors
    /// When the annotation names no resource. To go on without a device would be to fail open.
    pub fn resource_name(&self) -> Result<Option<ResourceName>, DefinitionError> {
        let Some(text) = self.metadata.annotations.get(RESOURCE_NAME) else { return Ok(None) };
        text.parse().map(Some).map_err(|source| DefinitionError::ResourceName {
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition(value: serde_json::Value) -> NetworkAttachmentDefinition {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_definition_is_read_as_the_api_server_sends_it() {
        let net = definition(json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": "virt-net1", "namespace": "default", "generation": 1,
                "annotations": {RESOURCE_NAME: "kernel.org/virt"}},
            "spec": {"config": "{\"type\":\"ehost-device\"}"}
        }));
        assert_eq!(net.resource_name().unwrap().unwrap().as_str(), "kernel.org/virt");
        assert_eq!(net.config(), Some("{\"type\":\"ehost-device\"}"));
    }

    #[test]
    fn an_empty_configuration_is_none() {
        for spec in [json!({}), json!({"config": ""}), json!({"config": " \n"}), json!({"config": null})] {
            assert_eq!(definition(json!({"metadata": {"name": "a"}, "spec": spec})).config(), None);
        }
        assert_eq!(definition(json!({"metadata": {"name": "a"}})).config(), None);
    }

    #[test]
    fn a_resource_name_that_is_none_is_an_error() {
        let net = definition(
            json!({"metadata": {"name": "a", "namespace": "b", "annotations": {RESOURCE_NAME: ""}}}),
        );
        insta::assert_snapshot!(net.resource_name().unwrap_err(), @"annotation k8s.v1.cni.cncf.io/resourceName of network b/a names no resource");
    }
}
