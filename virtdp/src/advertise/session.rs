//! One registration: a socket of its own, a server on it, the call to the kubelet, and the watch over all of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubelet_api::deviceplugin::device_plugin_server::DevicePluginServer;
use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::{DevicePluginOptions, RegisterRequest, VERSION};
use kubelet_api::pluginregistration::registration_server::RegistrationServer;
use kubelet_api::tonic::service::Routes;
use kubelet_api::tonic::transport::Channel;
use kubelet_api::{ServeError, bind, serve_counting};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::folder::Identity;
use super::introduction::{Introduction, Verdict};
use super::names::HIDDEN;
use super::service::{Service, Streams};
use super::{Trouble, causes};

/// The kubelet dials back for up to 10 s while it blocks.
const REGISTER_WITHIN: Duration = Duration::from_secs(15);
/// A kubelet that took the registration asks for the devices in the same breath.
const STREAM_WITHIN: Duration = Duration::from_secs(5);
/// A kubelet that runs asks a new socket in `plugins_registry` within a second or two.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// How long the kubelet may take to hang up when our stream has ended. It takes milliseconds.
const HANGS_UP_WITHIN: Duration = Duration::from_millis(300);

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

/// A socket's file, as it was made.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    identity: Option<Identity>,
}

impl Socket {
    /// The file that is at `path` now.
    pub(super) fn at(path: PathBuf) -> Socket {
        Socket { identity: Identity::of(&path), path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this one was made before the file with that identity.
    pub(super) fn is_older_than(&self, other: &Identity) -> bool {
        self.identity.is_some_and(|identity| identity.is_older_than(other))
    }

    /// Whether the file is still the one that was made.
    pub(crate) fn is_there(&self) -> bool {
        Identity::of(&self.path) == self.identity
    }
}

/// A socket that is served.
pub(crate) struct Session {
    socket: Socket,
    service: Service,
    streams: watch::Receiver<Streams>,
    verdict: watch::Receiver<Verdict>,
    connections: watch::Receiver<usize>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Session {
    /// Serves on a new socket `name`.
    pub(crate) fn open(folder: &Path, name: &str, service: Service) -> Result<Session, ServeError> {
        // A kubelet that finds the socket in `plugins_registry` connects to it at once, and that fails between bind(2) and
        // listen(2).
        let (path, hidden) = (folder.join(name), folder.join(format!("{HIDDEN}{name}")));
        let listener = bind(&hidden)?;
        if let Err(source) = std::fs::rename(&hidden, &path) {
            return Err(ServeError::Bind { path, source });
        }
        let socket = Socket::at(path);
        let stop = CancellationToken::new();
        let introduction = Introduction::new(service.resource().clone());
        let verdict = introduction.verdict();
        let routes = Routes::new(DevicePluginServer::new(service.clone()));
        let routes = service.view.beside(routes.add_service(RegistrationServer::new(introduction)));
        let (counter, connections) = watch::channel(0);
        let server = tokio::spawn(serve_counting(listener, routes, counter, stop.clone().cancelled_owned()));
        let streams = service.streams();
        Ok(Session { socket, service, streams, verdict, connections, stop, server })
    }

    /// Where it is served.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Registers, and waits until the kubelet listens.
    pub(crate) async fn register(&mut self, channel: Channel) -> Result<(), Trouble> {
        let endpoint = self.socket.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: self.service.resource().to_string(),
            options: Some(options()),
        };
        debug!(endpoint, resource = %self.service.resource(), "Register");
        let mut client = RegistrationClient::new(channel);
        match timeout(REGISTER_WITHIN, client.register(request)).await {
            Ok(Ok(_)) => self.taken_in().await,
            Ok(Err(status)) => Err(Trouble::Refused(status.message().to_owned())),
            Err(_) => Err(Trouble::Silent(REGISTER_WITHIN)),
        }
    }

    /// Waits until the kubelet has found the socket in `plugins_registry`, and listens.
    pub(crate) async fn be_found(&mut self) -> Result<(), Trouble> {
        debug!(socket = %self.socket.path.display(), resource = %self.service.resource(), "waiting to be asked");
        let judged = self.verdict.wait_for(|verdict| *verdict != Verdict::None);
        let verdict = match timeout(ASKED_WITHIN, judged).await {
            Ok(Ok(verdict)) => verdict.clone(),
            // Our server would be gone, and nobody asked.
            Ok(Err(_)) | Err(_) => Verdict::None,
        };
        match verdict {
            Verdict::TakenIn => self.taken_in().await,
            Verdict::Refused(why) => Err(Trouble::Refused(why)),
            Verdict::None => {
                let folder = self.socket.path.parent().unwrap_or(&self.socket.path);
                Err(Trouble::NotAsked { folder: folder.to_owned(), within: ASKED_WITHIN })
            }
        }
    }

    async fn taken_in(&mut self) -> Result<(), Trouble> {
        self.service.accepted();
        let opened = timeout(STREAM_WITHIN, self.streams.wait_for(|streams| streams.opened > 0)).await;
        opened.map(drop).map_err(|_| Trouble::NoStream(STREAM_WITHIN))
    }

    /// Returns when the kubelet does not listen any more, or cannot.
    pub(crate) async fn lasts(&mut self) -> Ended {
        tokio::select! {
            () = closed(&mut self.streams) => Ended::StreamLost,
            _ = &mut self.server => Ended::ServerFailed,
        }
    }

    /// Ends all streams, waits until the kubelet has hung up, and removes the socket.
    ///
    /// No empty list is sent: to the kubelet that would mean that the devices are gone. A kubelet that has hung up has also dealt with
    /// the end of the stream: it will not take what we register next for ended. One that has not may go on calling, and each call
    /// is for a pod that would fail without answer: what is still open is given back, to be closed when it calls elsewhere.
    pub(crate) async fn end(mut self) -> Option<Lingering> {
        self.service.leave();
        // One that hangs does not keep us.
        let hung_up = timeout(HANGS_UP_WITHIN, self.connections.wait_for(|open| *open == 0)).await.is_ok();
        if self.socket.is_there() {
            // It may be gone in this moment; and what stays is cleared away at the next start.
            let _ = std::fs::remove_file(&self.socket.path);
        }
        let open = Lingering { stop: self.stop, server: self.server };
        if !hung_up {
            return Some(open);
        }
        open.close().await;
        None
    }
}

/// Connections of a registration that has ended, on which the kubelet may still call.
pub(crate) struct Lingering {
    stop: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Lingering {
    /// Closes them.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        if self.server.is_finished() {
            return;
        }
        match self.server.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(reason = causes(&error), "the server did not end in order"),
            Err(error) => warn!(reason = %error, "the server did not end in order"),
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
