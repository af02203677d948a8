//! The plugin watcher: sockets that appear in `plugins_registry/` are asked who they are, and told what became of it.
//!
//! A socket whose plugin is not taken in is asked again, after a pause that doubles. One that is taken in is asked again
//! only when its file is made anew; when the file goes, so does the plugin.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubelet_api::deviceplugin::VERSION;
use kubelet_api::pluginregistration::{
    DEVICE_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use nic::ResourceName;
use rustix::fs::inotify;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::owner::at;
use super::plugin::Reception;
use super::verbatim::call;
use crate::chain;

/// The kubelet's deadlines for the two calls.
const INFO_TIMEOUT: Duration = Duration::from_secs(1);
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Its pause before it asks again, and the longest (`initialDurationBeforeRetry` and `maxDurationBeforeRetry` of
/// pkg/util/goroutinemap/exponentialbackoff).
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(2 * 60 + 2);

/// Which file: a socket that is made anew under the same path is another one.
type Identity = (u64, u64, i64, i64);

pub(super) struct Watcher {
    folder: PathBuf,
    /// inotify's descriptor, which is read like a pipe.
    inotify: pipe::Receiver,
}

/// A socket that was found.
struct Known {
    identity: Identity,
    standing: Standing,
}

enum Standing {
    /// It is being asked.
    Asked,
    /// It registered this resource.
    TakenIn(ResourceName),
    /// It was not taken in.
    Refused,
}

/// When to ask a path again. It outlives the socket: a plugin that comes back after an error waits, too.
struct Backoff {
    until: Instant,
    pause: Duration,
}

impl Backoff {
    fn after(earlier: Option<&Backoff>, now: Instant) -> Self {
        let pause = earlier.map_or(FIRST_PAUSE, |earlier| (earlier.pause * 2).min(LONGEST_PAUSE));
        Backoff { until: now + pause, pause }
    }
}

impl Watcher {
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let watcher = Watcher { folder, inotify: pipe::Receiver::from_file_unchecked(File::from(fd))? };
        watcher.watch(&watcher.folder)?;
        Ok(watcher)
    }

    fn watch(&self, folder: &Path) -> io::Result<()> {
        use inotify::WatchFlags;
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.inotify, folder, flags)?;
        Ok(())
    }

    pub(super) async fn run(mut self, reception: Reception, stop: CancellationToken) {
        let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
        let mut pauses: BTreeMap<PathBuf, Backoff> = BTreeMap::new();
        let (finished, mut outcomes) = mpsc::channel::<(PathBuf, Identity, Option<ResourceName>)>(16);
        loop {
            let found = self.sockets();
            let gone: Vec<_> = known
                .iter()
                .filter(|(path, known)| found.get(*path) != Some(&known.identity))
                .map(|(path, _)| path.clone())
                .collect();
            for path in gone {
                if let Some(Known { standing: Standing::TakenIn(resource), .. }) = known.remove(&path) {
                    info!(%resource, socket = %path.display(), "plugin's socket is gone");
                    if reception.dismiss(resource).await.is_err() {
                        return;
                    }
                }
            }
            let now = Instant::now();
            let mut next = None;
            for (path, identity) in found {
                if known.get(&path).is_some_and(|known| !matches!(known.standing, Standing::Refused)) {
                    continue;
                }
                if let Some(Backoff { until, .. }) = pauses.get(&path)
                    && now < *until
                {
                    next = Some(next.map_or(*until, |next: Instant| next.min(*until)));
                    continue;
                }
                known.insert(path.clone(), Known { identity, standing: Standing::Asked });
                let (reception, finished) = (reception.clone(), finished.clone());
                reception.tasks.clone().spawn(async move {
                    let stop = reception.stop.clone();
                    tokio::select! {
                        () = stop.cancelled() => {}
                        // The watcher ends before its questions only when the kubelet stops.
                        resource = take_in(&reception, &path) => {
                            let _ = finished.send((path, identity, resource)).await;
                        }
                    }
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                outcome = outcomes.recv() => {
                    let Some((path, identity, resource)) = outcome else { return };
                    let standing = match resource {
                        Some(resource) => {
                            pauses.remove(&path);
                            Standing::TakenIn(resource)
                        }
                        None => {
                            let pause = Backoff::after(pauses.get(&path), Instant::now());
                            pauses.insert(path.clone(), pause);
                            Standing::Refused
                        }
                    };
                    match known.get_mut(&path) {
                        Some(known) if known.identity == identity => known.standing = standing,
                        _ => {}
                    }
                }
                () = at(next) => {}
                changed = self.changed() => {
                    if let Err(error) = changed {
                        warn!(%error, folder = %self.folder.display(), "plugins are not watched any more");
                        return stop.cancelled().await;
                    }
                }
            }
        }
    }

    /// Waits until something changed. What it was does not matter: the folder itself is looked at.
    async fn changed(&mut self) -> io::Result<()> {
        let mut events = [0; 4096];
        self.inotify.read(&mut events).await.map(drop)
    }

    /// All sockets in the folder and those below it, each folder watched from now on.
    fn sockets(&self) -> BTreeMap<PathBuf, Identity> {
        let mut sockets = BTreeMap::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            // What vanishes meanwhile makes another event.
            if self.watch(&folder).is_err() {
                continue;
            }
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else if metadata.file_type().is_socket() {
                    let identity = (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
                    sockets.insert(entry.path(), identity);
                }
            }
        }
        sockets
    }
}

/// Asks a socket who it is, takes the plugin in, and tells it; returns the resource of a device plugin.
async fn take_in(reception: &Reception, socket: &Path) -> Option<ResourceName> {
    const INFO: &str = "/pluginregistration.Registration/GetInfo";
    const NOTIFY: &str = "/pluginregistration.Registration/NotifyRegistrationStatus";
    let refused = |reason: String| warn!(socket = %socket.display(), reason, "plugin refused");
    let info: PluginInfo = match timeout(INFO_TIMEOUT, call(socket, INFO, &InfoRequest {})).await {
        Ok(Ok(info)) => info,
        Ok(Err(error)) => {
            refused(format!("failed to get plugin info using RPC GetInfo: {}", chain(&error)));
            return None;
        }
        Err(_) => {
            refused("GetInfo was not answered within a second".to_owned());
            return None;
        }
    };
    let outcome = judge(reception, socket, info).await;
    let status = RegistrationStatus {
        plugin_registered: outcome.is_ok(),
        error: outcome.as_ref().err().cloned().unwrap_or_default(),
    };
    let told = timeout(NOTIFY_TIMEOUT, call::<_, RegistrationStatusResponse>(socket, NOTIFY, &status)).await;
    match told {
        Ok(Ok(RegistrationStatusResponse {})) => {}
        Ok(Err(error)) => warn!(socket = %socket.display(), error = chain(&error), "plugin was not told"),
        Err(_) => warn!(socket = %socket.display(), "plugin was not told within 5 seconds"),
    }
    outcome.map_err(refused).ok()
}

/// Takes the plugin in, or says why not in the kubelet's words.
async fn judge(reception: &Reception, socket: &Path, info: PluginInfo) -> Result<ResourceName, String> {
    if info.r#type != DEVICE_PLUGIN {
        return Err(format!(
            "RegisterPlugin error -- no handler registered for plugin type: {} at socket {}",
            info.r#type,
            socket.display()
        ));
    }
    let invalid = |error| format!("RegisterPlugin error -- plugin validation failed with err: {error}");
    let PluginInfo { name, endpoint, supported_versions: versions, .. } = info;
    if !versions.iter().any(|version| version == VERSION) {
        let versions = versions.join(" ");
        return Err(invalid(format!(
            "manager version, {VERSION}, is not among plugin supported versions [{versions}]"
        )));
    }
    if name.parse::<ResourceName>().is_err() {
        return Err(invalid(format!(
            "invalid name of device plugin socket: the ResourceName {name:?} is invalid"
        )));
    }
    let endpoint = if endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(endpoint) };
    let admitted = reception.admit(VERSION, &name, endpoint).await;
    admitted.map_err(|error| format!("RegisterPlugin error -- plugin registration failed with err: {error}"))
}
