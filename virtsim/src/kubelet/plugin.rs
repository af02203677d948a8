//! Connections to device plugins: dialled when a plugin registers, then a stream of lists until one side ends it.

use std::path::PathBuf;
use std::time::Duration;

use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::{Empty, VERSION};
use kubelet_api::tonic::transport::Channel;
use kubelet_api::{LOCALHOST, connect};
use nic::ResourceName;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::devices::PluginId;
use super::owner::{Owner, Plugin, Stopped};
use crate::chain;

/// How long gRPC waits between two attempts to reach a socket at first, doubled from then on. (The real one begins with
/// a second; the total is what counts.)
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Where plugins are taken in: shared by the registration service and the watcher of `plugins_registry/`.
#[derive(Clone)]
pub(super) struct Reception {
    pub(super) owner: Owner,
    pub(super) dial_timeout: Duration,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Reception {
    /// Checks a plugin's claims and connects to it. The error is in the kubelet's words.
    pub(super) async fn admit(
        &self,
        version: &str,
        resource: &str,
        socket: PathBuf,
    ) -> Result<ResourceName, String> {
        if version != VERSION {
            return Err(format!(
                "requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]"
            ));
        }
        let name: ResourceName = resource.parse().map_err(|error| {
            warn!(resource, %error, "registration refused");
            format!("the ResourceName {resource:?} is invalid")
        })?;
        let stopped = |Stopped| "the kubelet stops".to_owned();
        let registered = name.clone();
        let id = self.owner.ask(move |state| state.register(&registered)).await.map_err(stopped)?;
        let connection = tokio::select! {
            connection = self.connect(&name, id, socket) => connection,
            () = self.stop.cancelled() => Err("the kubelet stops".to_owned()),
        };
        match connection {
            Ok(plugin) => {
                self.tasks.spawn(run(self.owner.clone(), name.clone(), id, plugin, self.stop.clone()));
                Ok(name)
            }
            Err(error) => {
                warn!(resource = %name, error, "plugin refused");
                let failed = name.clone();
                self.owner.ask(move |state| state.deregister(&failed)).await.map_err(stopped)?;
                Err(error)
            }
        }
    }

    /// Disconnects the plugin of a resource.
    pub(super) async fn dismiss(&self, name: ResourceName) -> Result<(), Stopped> {
        self.owner.ask(move |state| state.disconnect(&name, Instant::now())).await
    }

    async fn connect(&self, name: &ResourceName, id: PluginId, socket: PathBuf) -> Result<Plugin, String> {
        let channel =
            self.dial(socket).await.map_err(|error| format!("failed to dial device plugin: {error}"))?;
        let mut client = DevicePluginClient::new(channel);
        let options = client.get_device_plugin_options(Empty {}).await;
        let options = options
            .map_err(|status| format!("failed to get device plugin options: {}", rpc_error(&status)))?
            .into_inner();
        let plugin = Plugin { client, closed: CancellationToken::new() };
        let (name, connected) = (name.clone(), plugin.clone());
        self.owner
            .ask(move |state| state.connected(&name, id, connected, options))
            .await
            .map_err(|Stopped| "the kubelet stops".to_owned())?;
        Ok(plugin)
    }

    /// Like gRPC's blocking dial: a socket that is not there yet is tried again until the time is up.
    async fn dial(&self, socket: PathBuf) -> Result<Channel, String> {
        let expiry = Instant::now() + self.dial_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = expiry.saturating_duration_since(Instant::now());
            let error = match connect(&socket, LOCALHOST, left).await {
                Ok(channel) => return Ok(channel),
                Err(error) => error,
            };
            if timeout_at(expiry, sleep(pause)).await.is_err() {
                // gRPC for Go keeps the reason to itself.
                warn!(socket = %socket.display(), error = chain(&error), "plugin cannot be reached");
                return Err("context deadline exceeded".to_owned());
            }
            pause *= 2;
        }
    }
}

/// A status as Go prints it.
pub(super) fn rpc_error(status: &kubelet_api::tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// Takes lists until the plugin or the kubelet ends the stream.
async fn run(owner: Owner, name: ResourceName, id: PluginId, plugin: Plugin, stop: CancellationToken) {
    let lists = async {
        let Plugin { mut client, .. } = plugin.clone();
        let mut lists = match client.list_and_watch(Empty {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return rpc_error(&status),
        };
        loop {
            match lists.next().await {
                Some(Ok(list)) => {
                    info!(resource = %name, devices = list.devices.len(), "plugin lists its devices");
                    let listed = name.clone();
                    if owner.ask(move |state| state.listed(&listed, list.devices)).await.is_err() {
                        return "the kubelet stops".to_owned();
                    }
                }
                Some(Err(status)) => return rpc_error(&status),
                None => return "EOF".to_owned(),
            }
        }
    };
    let reason = tokio::select! {
        () = stop.cancelled() => return,
        () = plugin.closed.cancelled() => "the kubelet closed the connection".to_owned(),
        reason = lists => reason,
    };
    info!(resource = %name, reason, "list-and-watch ended");
    // A kubelet that stops has no state to bring up to date.
    let _ = owner.ask(move |state| state.stream_ended(&name, id, Instant::now())).await;
}
