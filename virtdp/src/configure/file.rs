//! The configuration file, watched: its folder by inotify, which also tells of the link `..data` that the kubelet swaps for a new
//! ConfigMap; and by looking now and then, for files that are links to elsewhere.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::readable::readable;

/// A ConfigMap holds no more.
const LARGEST: u64 = 1024 * 1024;
const LOOK_EACH: Duration = Duration::from_secs(10);
/// Who writes a file in pieces should be done: it is read when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(100);

/// Reads a configuration file.
///
/// # Errors
/// It cannot be read, is no file, or is too large.
pub(super) fn read(path: &Path) -> Result<String> {
    let shown = || path.display().to_string();
    // A pipe would never end.
    if !std::fs::metadata(path).with_context(shown)?.is_file() {
        bail!("{}: this is no file", path.display());
    }
    let mut bytes = Vec::new();
    File::open(path).with_context(shown)?.take(LARGEST + 1).read_to_end(&mut bytes).with_context(shown)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LARGEST {
        bail!("{}: is larger than {} KiB", path.display(), LARGEST >> 10);
    }
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{}: is not UTF-8 text", path.display()))
}

/// A file whose changes are heard.
pub(super) struct ConfigFile {
    path: PathBuf,
    watched: Option<Watched>,
}

struct Watched {
    inotify: AsyncFd<Inotify>,
    folder: (u64, u64),
}

impl ConfigFile {
    pub(super) fn new(path: PathBuf) -> Self {
        ConfigFile { path, watched: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the file may have changed.
    pub(super) async fn changed(&mut self) {
        let fresh = self.rewatch();
        let Some(watched) = &mut self.watched else { return sleep(LOOK_EACH).await };
        // What happened before the folder was watched is seen by looking.
        if fresh || timeout(LOOK_EACH, watched.drain()).await.is_err() {
            return;
        }
        while timeout(QUIET, watched.drain()).await.is_ok() {}
    }

    /// Whether the folder is watched only now.
    fn rewatch(&mut self) -> bool {
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let Ok(metadata) = std::fs::metadata(folder) else {
            self.watched = None;
            return false;
        };
        let identity = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|watched| watched.folder == identity) {
            return false;
        }
        let watch = || -> io::Result<AsyncFd<Inotify>> {
            let inotify = Inotify::init()?;
            let mask = WatchMask::CREATE
                | WatchMask::DELETE
                | WatchMask::MOVE
                | WatchMask::CLOSE_WRITE
                | WatchMask::DELETE_SELF;
            inotify.watches().add(folder, mask)?;
            readable(inotify)
        };
        self.watched = match watch() {
            Ok(inotify) => Some(Watched { inotify, folder: identity }),
            Err(error) => {
                debug!(reason = %error, folder = %folder.display(), "looking now and then instead of inotify");
                None
            }
        };
        self.watched.is_some()
    }
}

impl Watched {
    /// Waits for events, and forgets them: what has changed is looked up.
    async fn drain(&mut self) {
        let Ok(mut ready) = self.inotify.readable_mut().await else { return sleep(LOOK_EACH).await };
        let mut buffer = [0; 4096];
        // An error means that none wait.
        while ready.get_inner_mut().read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {
        }
        ready.clear_ready();
    }
}
