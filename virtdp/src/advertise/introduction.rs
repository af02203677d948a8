//! What the kubelet asks a socket that it finds in `plugins_registry`: who is there; and what it says then.
//!
//! It asks once for each file: a socket that it took in is asked again only when the kubelet starts, or when the file is
//! made anew. Source: `pkg/kubelet/pluginmanager` of v1.36.

use kubelet_api::deviceplugin::VERSION;
use kubelet_api::pluginregistration::registration_server::Registration;
use kubelet_api::pluginregistration::{
    DEVICE_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use kubelet_api::tonic::{self, Request, Response, Status};
use nic::ResourceName;
use tokio::sync::watch;
use tracing::debug;

/// What the kubelet said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    #[default]
    None,
    TakenIn,
    /// It will ask again, after a pause of its own.
    Refused(String),
}

/// The service for one socket.
#[derive(Clone)]
pub(super) struct Introduction {
    resource: ResourceName,
    verdict: watch::Sender<Verdict>,
}

impl Introduction {
    pub(super) fn new(resource: ResourceName) -> Self {
        Introduction { resource, verdict: watch::Sender::default() }
    }

    pub(super) fn verdict(&self) -> watch::Receiver<Verdict> {
        self.verdict.subscribe()
    }
}

#[tonic::async_trait]
impl Registration for Introduction {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        debug!("GetInfo");
        Ok(Response::new(PluginInfo {
            r#type: DEVICE_PLUGIN.to_owned(),
            name: self.resource.to_string(),
            // The same socket.
            endpoint: String::new(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        debug!(plugin_registered, error, "NotifyRegistrationStatus");
        self.verdict.send_replace(if plugin_registered { Verdict::TakenIn } else { Verdict::Refused(error) });
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
