//! Advertising: what is offered, and the registration with the kubelet that carries it there.
//!
//! The kubelet never asks again by itself. So a registration is watched for as long as it lasts: when its stream ends, its
//! socket vanishes or the kubelet has a new socket, the old one is closed first, and then everything is done anew under a
//! new name. Source: `pkg/kubelet/cm/devicemanager` of v1.36.
//!
//! There is no lock between two agents, as during an update: whoever registers last is the one that the kubelet believes, and
//! when any of them ends, the newest of those that stay registers anew ([`folder`]). A lock would make the gap between both no
//! shorter, and an agent that is hung would keep it.

mod desk;
mod folder;
mod introduction;
mod names;
mod offers;
mod patience;
mod released;
mod remembered;
mod resources;
mod service;
mod session;
mod way;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kubelet_api::{LOCALHOST, connect};
use nic::ResourceName;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::folder::{Folder, Identity};
use self::names::Mark;
use self::patience::{Backoff, Complaint};
use self::service::Service;
use self::session::{Lingering, Session};
use crate::cli::Settings;
use crate::observe::View;

pub(crate) use self::desk::{Desk, List, Lists, run as offer};
pub(crate) use self::names::PREFIX as SOCKET_PREFIX;
#[cfg(test)]
pub(crate) use self::offers::LastUse;
pub(crate) use self::offers::{Offer, Refusal};
pub(crate) use self::resources::register;
pub(crate) use self::session::Ended;
pub(crate) use self::way::Way;

/// How long the kubelet may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A registration that lasted this long is made anew without delay. Others have a short pause after them, so that who ends
/// them at once does so a few times a second.
const GOOD_AFTER: Duration = Duration::from_secs(1);

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
    #[error(
        "waiting for the kubelet: it did not ask who serves our socket in {} within {} s; is the kubelet running?",
        folder.display(), within.as_secs()
    )]
    NotAsked { folder: PathBuf, within: Duration },
}

impl Trouble {
    /// All that [`Trouble::class`] may be.
    pub(crate) const CLASSES: [&str; 9] = [
        "no_folder",
        "not_a_folder",
        "no_socket",
        "connect",
        "bind",
        "refused",
        "silent",
        "no_stream",
        "not_asked",
    ];

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
            Trouble::NotAsked { .. } => "not_asked",
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
}

/// Keeps one resource registered until `stop`.
async fn keep_registered(
    settings: Settings,
    subject: Subject,
    desk: Desk,
    view: View,
    stop: CancellationToken,
) {
    let Subject { resource, list } = subject;
    let metrics = view.metrics().clone();
    metrics.begins(&resource);
    let started = Instant::now();
    let (way, kubelet) = (settings.registration, &settings.kubelet);
    let mut folder = Folder::new(way.folder(kubelet), Mark::of(&resource));
    let mut backoff = Backoff::default();
    let mut past = Past::default();
    let mut number = 0_u32;
    loop {
        number = number.saturating_add(1);
        folder.remove_stale_sockets().await;
        let service =
            Service::new(&settings, resource.clone(), list.clone(), desk.clone(), view.clone(), started);
        let kubelet_socket = way.kubelet_socket(kubelet);
        let before = kubelet_socket.as_deref().and_then(Identity::of);
        let since = Instant::now();
        match registration(way, kubelet_socket.as_deref(), service, &mut folder, &mut past, number, &stop)
            .await
        {
            Ok(Ended::Stopped) => {
                past.close().await;
                return;
            }
            Ok(why) => {
                metrics.ended(&resource, why);
                info!(%resource, reason = %why, "the registration with the kubelet has ended, registering anew");
                if why != Ended::ServerFailed {
                    backoff.reset();
                }
                if since.elapsed() >= GOOD_AFTER {
                    continue;
                }
            }
            Err(trouble) => {
                metrics.trouble(&resource, &trouble);
                // A kubelet that starts looks who is there.
                if matches!(trouble, Trouble::NotAsked { .. }) {
                    backoff.reset();
                }
                let text = trouble.to_string();
                if past.complaint.is_due(&text, Instant::now()) {
                    warn!(%resource, "{text}");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = folder.replaced(kubelet_socket.as_deref(), before) => backoff.reset(),
            () = stop.cancelled() => {
                past.close().await;
                return;
            }
        }
    }
}

/// What registrations leave to the next one.
#[derive(Default)]
struct Past {
    /// What was complained of last.
    complaint: Complaint,
    /// Connections of the last one, on which the kubelet may still call.
    lingering: Option<Lingering>,
}

impl Past {
    async fn close(&mut self) {
        if let Some(lingering) = self.lingering.take() {
            lingering.close().await;
        }
    }
}

/// One registration, from the first look at the kubelet's folder to its end. What lingers of the one before is closed once this one holds.
async fn registration(
    way: Way,
    kubelet_socket: Option<&Path>,
    service: Service,
    folder: &mut Folder,
    past: &mut Past,
    number: u32,
    stop: &CancellationToken,
) -> Result<Ended, Trouble> {
    folder.check()?;
    let mut kubelet = None;
    let mut channel = None;
    if let Some(socket) = kubelet_socket {
        let Some(identity) = Identity::of(socket) else { return Err(Trouble::NoSocket(socket.to_owned())) };
        kubelet = Some((socket, identity));
        channel = tokio::select! {
            connected = connect(socket, LOCALHOST, CONNECT_WITHIN) => Some(connected.map_err(Trouble::Connect)?),
            () = stop.cancelled() => return Ok(Ended::Stopped),
        };
    }
    // The process ID does not tell two agents apart: in containers it is always the same.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = folder.mark().socket(way, now.as_micros(), number);
    let (metrics, resource) = (service.view.metrics().clone(), service.resource().clone());
    let mut session = Session::open(folder.path(), &name, service).map_err(Trouble::Bind)?;
    let socket = session.socket().clone();
    folder.note_rivals(&socket).await;
    let life = async {
        match channel {
            Some(channel) => session.register(channel).await?,
            None => session.be_found().await?,
        }
        past.complaint.forget();
        metrics.registered(&resource);
        past.close().await;
        Ok(session.lasts().await)
    };
    let ended = tokio::select! {
        ended = life => ended,
        why = folder.spoils(&socket, kubelet) => Ok(why),
        () = stop.cancelled() => Ok(Ended::Stopped),
    };
    // The old stream must be closed before the next registration, or its end takes the new one with it.
    let open = session.end().await;
    if open.is_some() {
        // No more than one: a kubelet calls on the newest that it knows.
        past.close().await;
        past.lingering = open;
    }
    ended
}
