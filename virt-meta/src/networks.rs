//! Where it is known which networks a pod asks for, and what they are.

use std::path::Path;
use std::time::Duration;

use cluster::get::{self, Client};
use cluster::{Label, NetworkAttachmentDefinition, Pod};
use cni::{Code, Error};

/// A source of pods and networks.
pub(crate) enum Networks {
    /// The API server, one GET each.
    ApiServer(Client),
    /// No source: enough for pods that ask for no network, where the runtime hands over their annotations.
    Nowhere,
}

impl Networks {
    pub(crate) fn of_api_server(kubeconfig: &Path, patience: Duration) -> Result<Networks, Error> {
        Client::from_kubeconfig(kubeconfig, patience).map(Networks::ApiServer).map_err(error)
    }

    pub(crate) fn pod(&self, namespace: &Label, name: &str) -> Result<Pod, Error> {
        match self {
            Networks::ApiServer(client) => client.pod(namespace.as_str(), name).map_err(error),
            Networks::Nowhere => Err(Error::new(
                Code::INVALID_CONFIG,
                format!(
                    "the annotations of pod {namespace}/{name} are unknown: the runtime does not pass them, and the \
                     configuration has no kubeconfig"
                ),
            )),
        }
    }

    pub(crate) fn definition(
        &self,
        namespace: &Label,
        name: &Label,
    ) -> Result<NetworkAttachmentDefinition, Error> {
        match self {
            Networks::ApiServer(client) => {
                client.network_attachment_definition(namespace, name).map_err(error)
            }
            Networks::Nowhere => Err(Error::new(
                Code::INVALID_CONFIG,
                format!(
                    "network {namespace}/{name} cannot be looked up: the configuration has no kubeconfig"
                ),
            )),
        }
    }
}

fn error(error: get::Error) -> Error {
    let code = match &error {
        _ if error.is_passing() => Code::TRY_AGAIN,
        get::Error::File { .. } => Code::IO,
        get::Error::Answer { .. } => Code::DECODE,
        _ => Code::INVALID_CONFIG,
    };
    Error::from_chain(code, &error)
}
