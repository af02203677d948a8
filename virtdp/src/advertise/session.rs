//! One registration: a socket of its own, a server on it, the call to the kubelet, and the watch over all of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubelet_api::deviceplugin::device_plugin_server::DevicePluginServer;
use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::{DevicePluginOptions, RegisterRequest, VERSION};
use kubelet_api::tonic::service::Routes;
use kubelet_api::tonic::transport::Channel;
use kubelet_api::{ServeError, bind, serve};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::folder::{Folder, Identity};
use super::service::{Service, Streams};
use super::{Trouble, causes};

/// The kubelet dials back for up to 10 s while it blocks.
const REGISTER_WITHIN: Duration = Duration::from_secs(15);
/// A kubelet that took the registration asks for the devices in the same breath.
const STREAM_WITHIN: Duration = Duration::from_secs(5);

/// Why a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The agent stops.
    Stopped,
    /// The kubelet does not listen any more.
    StreamLost,
    /// Somebody removed our socket: a kubelet does that when it starts.
    SocketRemoved,
    /// There is a new kubelet.
    NewKubelet,
    /// Another agent has gone. If it had registered after us, the kubelet believes that the resource went with it.
    RivalGone,
    /// Our server ended.
    ServerFailed,
}

impl Ended {
    /// All that [`Ended::class`] may be.
    pub(crate) const CLASSES: [&str; 5] =
        ["stream_lost", "socket_removed", "new_kubelet", "rival_gone", "server_failed"];

    /// The reason in one word, for metrics.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Ended::Stopped => "stopped",
            Ended::StreamLost => "stream_lost",
            Ended::SocketRemoved => "socket_removed",
            Ended::NewKubelet => "new_kubelet",
            Ended::RivalGone => "rival_gone",
            Ended::ServerFailed => "server_failed",
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ended::Stopped => "the agent stops",
            Ended::StreamLost => "the kubelet closed the stream",
            Ended::SocketRemoved => "our socket was removed, as a kubelet does when it starts",
            Ended::NewKubelet => "the kubelet has a new socket",
            Ended::RivalGone => {
                "another agent that was here has gone, and the kubelet may think that we have"
            }
            Ended::ServerFailed => "our server ended",
        })
    }
}

/// A socket that is served.
pub(crate) struct Session {
    path: PathBuf,
    identity: Option<Identity>,
    service: Service,
    streams: watch::Receiver<Streams>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Session {
    /// Serves on a new socket at `path`.
    pub(crate) fn open(path: PathBuf, service: Service) -> Result<Session, ServeError> {
        let listener = bind(&path)?;
        let identity = Identity::of(&path);
        let stop = CancellationToken::new();
        let routes = service.view.beside(Routes::new(DevicePluginServer::new(service.clone())));
        let server = tokio::spawn(serve(listener, routes, stop.clone().cancelled_owned()));
        let streams = service.streams();
        Ok(Session { path, identity, service, streams, stop, server })
    }

    /// Registers, and waits until the kubelet listens.
    pub(crate) async fn register(&mut self, channel: Channel) -> Result<(), Trouble> {
        let resource = self.service.resource();
        let endpoint = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: resource.to_string(),
            options: Some(options()),
        };
        debug!(endpoint, resource = %resource, "Register");
        let mut client = RegistrationClient::new(channel);
        match timeout(REGISTER_WITHIN, client.register(request)).await {
            Ok(Ok(_)) => self.service.accepted(),
            Ok(Err(status)) => return Err(Trouble::Refused(status.message().to_owned())),
            Err(_) => return Err(Trouble::Silent(REGISTER_WITHIN)),
        }
        let opened = timeout(STREAM_WITHIN, self.streams.wait_for(|streams| streams.opened > 0)).await;
        opened.map(drop).map_err(|_| Trouble::NoStream(STREAM_WITHIN))
    }

    /// Returns when the registration is worth nothing any more.
    pub(crate) async fn lasts(
        &mut self,
        folder: &mut Folder,
        kubelet_socket: &Path,
        kubelet: Identity,
    ) -> Ended {
        loop {
            tokio::select! {
                () = closed(&mut self.streams) => return Ended::StreamLost,
                _ = &mut self.server => return Ended::ServerFailed,
                () = folder.changed() => {
                    if Identity::of(&self.path) != self.identity {
                        return Ended::SocketRemoved;
                    }
                    // Where there is none, the stream tells whether the kubelet lives.
                    if Identity::of(kubelet_socket).is_some_and(|now| now != kubelet) {
                        return Ended::NewKubelet;
                    }
                    if folder.rival_gone().await {
                        return Ended::RivalGone;
                    }
                }
            }
        }
    }

    /// Closes all streams, waits until they are closed, and removes the socket. No empty list is sent: to the kubelet that would mean
    /// that the devices are gone.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        if !self.server.is_finished() {
            match self.server.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(reason = causes(&error), "the server did not end in order"),
                Err(error) => warn!(reason = %error, "the server did not end in order"),
            }
        }
        if Identity::of(&self.path) == self.identity {
            // It may be gone in this moment; and what stays is cleared away at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Returns when the kubelet does not listen any more.
async fn closed(streams: &mut watch::Receiver<Streams>) {
    // An error would mean that the service is gone, and its streams with it.
    let _ = streams.wait_for(|streams| streams.open == 0).await;
}

/// What the kubelet may ask of us.
pub(super) fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true }
}
