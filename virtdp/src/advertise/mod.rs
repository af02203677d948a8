//! Advertising: what is offered, and the registration with the kubelet that carries it there.
//!
//! The kubelet never asks again by itself. So a registration is watched for as long as it lasts: when its stream ends, its
//! socket vanishes or the kubelet has a new socket, the old one is closed first, and then everything is done anew under a
//! new name. Source: `pkg/kubelet/cm/devicemanager` of v1.36.

mod desk;
mod folder;
mod offers;
mod patience;
mod resources;
mod service;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use kubelet_api::{LOCALHOST, connect};
use nic::ResourceName;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::folder::{Folder, Identity};
use self::patience::{Backoff, Complaint};
use self::service::Service;
use self::session::Session;
use crate::cli::Settings;
use crate::observe::View;

pub(crate) use self::desk::{Desk, List, Lists, run as offer};
pub(crate) use self::folder::PREFIX as SOCKET_PREFIX;
#[cfg(test)]
pub(crate) use self::offers::LastUse;
pub(crate) use self::offers::{Offer, Refusal};
pub(crate) use self::resources::register;
pub(crate) use self::session::Ended;

/// How long the kubelet may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A registration that lasted this long was a good one: the next is tried without delay.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Why there is no registration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(
        "waiting for the kubelet: {} does not exist; is the kubelet running, and is its folder mounted here?", .0.display()
    )]
    NoFolder(PathBuf),
    #[error("waiting for the kubelet: {} is not a folder", .0.display())]
    NotFolder(PathBuf),
    #[error("waiting for the kubelet: {} does not exist; is the kubelet running?", .0.display())]
    NoSocket(PathBuf),
    #[error("waiting for the kubelet: {}; is the kubelet running?", causes(.0))]
    Connect(kubelet_api::ConnectError),
    #[error("waiting for the kubelet's folder: {}; is it mounted, and writable?", causes(.0))]
    Bind(kubelet_api::ServeError),
    #[error("waiting for the kubelet: it refused the registration: {0}")]
    Refused(String),
    #[error("waiting for the kubelet: it did not answer the registration within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("waiting for the kubelet: it took the registration, but did not ask for the devices within {} s", .0.as_secs())]
    NoStream(Duration),
}

impl Trouble {
    /// All that [`Trouble::class`] may be.
    pub(crate) const CLASSES: [&str; 8] =
        ["no_folder", "not_a_folder", "no_socket", "connect", "bind", "refused", "silent", "no_stream"];

    /// The reason in one word, for metrics.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Trouble::NoFolder(_) => "no_folder",
            Trouble::NotFolder(_) => "not_a_folder",
            Trouble::NoSocket(_) => "no_socket",
            Trouble::Connect(_) => "connect",
            Trouble::Bind(_) => "bind",
            Trouble::Refused(_) => "refused",
            Trouble::Silent(_) => "silent",
            Trouble::NoStream(_) => "no_stream",
        }
    }
}

/// An error with all its causes, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // The HTTP library repeats itself.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A resource to be registered.
struct Subject {
    resource: ResourceName,
    list: watch::Receiver<List>,
    /// How the names of its sockets begin.
    sockets: String,
    /// How the names of all sockets of this process begin.
    own: String,
}

/// Keeps one resource registered until `stop`.
async fn keep_registered(
    settings: Settings,
    subject: Subject,
    desk: Desk,
    view: View,
    stop: CancellationToken,
) {
    let Subject { resource, list, sockets, own } = subject;
    let metrics = view.metrics().clone();
    metrics.begins(&resource);
    let started = Instant::now();
    let kubelet_socket = settings.kubelet.registration_socket();
    let mut folder = Folder::new(settings.kubelet.device_plugins(), own);
    let mut backoff = Backoff::default();
    let mut complaint = Complaint::default();
    let mut number = 0_u32;
    loop {
        number = number.saturating_add(1);
        folder.remove_stale_sockets().await;
        let service =
            Service::new(&settings, resource.clone(), list.clone(), desk.clone(), view.clone(), started);
        let socket = folder.path().join(format!("{sockets}{number}.sock"));
        let before = Identity::of(&kubelet_socket);
        let since = Instant::now();
        match registration(&settings, service, &mut folder, &mut complaint, socket, &stop).await {
            Ok(Ended::Stopped) => return,
            Ok(why) => {
                metrics.ended(&resource, why);
                info!(%resource, reason = %why, "the registration with the kubelet has ended, registering anew");
                if since.elapsed() >= GOOD_AFTER {
                    backoff.reset();
                    continue;
                }
            }
            Err(trouble) => {
                metrics.trouble(&resource, &trouble);
                let text = trouble.to_string();
                if complaint.is_due(&text, Instant::now()) {
                    warn!(%resource, "{text}");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = folder.replaced(&kubelet_socket, before) => backoff.reset(),
            () = stop.cancelled() => return,
        }
    }
}

/// One registration, from the first look at the kubelet's folder to its end.
async fn registration(
    settings: &Settings,
    service: Service,
    folder: &mut Folder,
    complaint: &mut Complaint,
    socket: PathBuf,
    stop: &CancellationToken,
) -> Result<Ended, Trouble> {
    let kubelet_socket = settings.kubelet.registration_socket();
    folder.check()?;
    let Some(kubelet) = Identity::of(&kubelet_socket) else {
        return Err(Trouble::NoSocket(kubelet_socket));
    };
    let channel = tokio::select! {
        connected = connect(&kubelet_socket, LOCALHOST, CONNECT_WITHIN) => connected.map_err(Trouble::Connect)?,
        () = stop.cancelled() => return Ok(Ended::Stopped),
    };
    let metrics = service.view.metrics().clone();
    let resource = service.resource().clone();
    let mut session = Session::open(socket, service).map_err(Trouble::Bind)?;
    folder.note_rivals().await;
    let outcome = tokio::select! {
        outcome = session.register(channel) => outcome,
        () = stop.cancelled() => Ok(()),
    };
    let ended = match outcome {
        Ok(()) if stop.is_cancelled() => Ok(Ended::Stopped),
        Ok(()) => {
            complaint.forget();
            metrics.registered(&resource);
            tokio::select! {
                ended = session.lasts(folder, &kubelet_socket, kubelet) => Ok(ended),
                () = stop.cancelled() => Ok(Ended::Stopped),
            }
        }
        Err(trouble) => Err(trouble),
    };
    // The old stream must be closed before the next registration, or its end takes the new one with it.
    session.end().await;
    ended
}
