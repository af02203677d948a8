//! The kubelet's `device-plugins` folder: noticing that sockets come and go, and clearing away what we left there.
//!
//! inotify tells at once; a look each second is the safety net, for folders that are replaced and file systems that tell
//! nothing.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Trouble;
use crate::readable::readable;

const LOOK_EACH: Duration = Duration::from_secs(1);
/// Whoever serves a socket of this machine accepts at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How the names of our sockets begin, since 2018.
pub(crate) const PREFIX: &str = "virtNet";

/// Which file it is. An inode's number may be used again at once, so the time of its making counts, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    made: (i64, i64),
}

impl Identity {
    /// The file at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Identity> {
        std::fs::symlink_metadata(path).ok().map(|metadata| Identity::from(&metadata))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        // Nobody writes to a socket's inode, so its mtime is the time of bind(2). Its ctime changes with chmod.
        let made = (metadata.mtime(), metadata.mtime_nsec());
        Identity { device: metadata.dev(), inode: metadata.ino(), made }
    }
}

/// The folder, watched.
pub(crate) struct Folder {
    path: PathBuf,
    watched: Option<Watched>,
    cleared: bool,
}

struct Watched {
    inotify: AsyncFd<Inotify>,
    device: u64,
    inode: u64,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Folder { path, watched: None, cleared: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a folder at all.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Trouble::NoFolder(self.path.clone()))
            }
            // Other errors say more where the socket is bound.
            _ if self.path.is_dir() => Ok(()),
            _ => Err(Trouble::NotFolder(self.path.clone())),
        }
    }

    /// Returns when something in the folder may have changed, after a second at the latest.
    pub(crate) async fn changed(&mut self) {
        self.rewatch();
        let Some(watched) = &mut self.watched else { return sleep(LOOK_EACH).await };
        tokio::select! {
            ready = watched.inotify.readable_mut() => {
                let Ok(mut ready) = ready else {
                    self.watched = None;
                    return sleep(LOOK_EACH).await;
                };
                // What has changed is looked up, not believed.
                let mut events = [0; 4096];
                while ready.get_inner_mut().read_events(&mut events).is_ok_and(|events| events.count() > 0) {}
                ready.clear_ready();
            }
            () = sleep(LOOK_EACH) => {}
        }
    }

    /// Returns when `path` exists and is not the file that it was.
    pub(crate) async fn replaced(&mut self, path: &Path, was: Option<Identity>) {
        loop {
            let is = Identity::of(path);
            if is.is_some() && is != was {
                return;
            }
            self.changed().await;
        }
    }

    fn rewatch(&mut self) {
        let Ok(metadata) = std::fs::metadata(&self.path) else {
            self.watched = None;
            return;
        };
        let (device, inode) = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|watched| (watched.device, watched.inode) == (device, inode)) {
            return;
        }
        let watch = || -> io::Result<AsyncFd<Inotify>> {
            let inotify = Inotify::init()?;
            let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::DELETE_SELF;
            inotify.watches().add(&self.path, mask)?;
            readable(inotify)
        };
        self.watched = match watch() {
            Ok(inotify) => Some(Watched { inotify, device, inode }),
            Err(error) => {
                debug!(reason = %error, folder = %self.path.display(), "looking each second instead of inotify");
                None
            }
        };
    }

    /// Removes, once, the sockets that an earlier run of ours left and nobody serves.
    pub(crate) async fn remove_stale_sockets(&mut self) {
        if self.cleared {
            return;
        }
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        self.cleared = true;
        for entry in entries.flatten() {
            let ours = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(".sock"));
            if !ours || !entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                continue;
            }
            let path = entry.path();
            let answer = tokio::time::timeout(ANSWER_WITHIN, UnixStream::connect(&path)).await;
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            if !matches!(&answer, Ok(Err(error)) if refused(error)) {
                info!(socket = %path.display(), "left alone: somebody serves this socket");
                continue;
            }
            match std::fs::remove_file(&path) {
                Ok(()) => info!(socket = %path.display(), "removed a socket that an earlier run left"),
                Err(error) => {
                    warn!(socket = %path.display(), reason = %error, "a left-over socket cannot be removed")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_socket_that_is_made_anew_is_noticed_even_with_the_same_inode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("kubelet.sock");
        let first = UnixListener::bind(&path).unwrap();
        let was = Identity::of(&path);
        let mut folder = Folder::new(root.path().to_owned());
        assert!(timeout(Duration::from_millis(20), folder.replaced(&path, was)).await.is_err());
        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert!(timeout(Duration::from_millis(20), folder.replaced(&path, was)).await.is_err());
        let _second = UnixListener::bind(&path).unwrap();
        timeout(Duration::from_secs(30), folder.replaced(&path, was)).await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("device-plugins");
        let mut folder = Folder::new(path.clone());
        assert!(matches!(folder.check(), Err(Trouble::NoFolder(_))));
        folder.changed().await;
        std::fs::create_dir(&path).unwrap();
        let socket = path.join("kubelet.sock");
        let (replaced, ()) =
            tokio::join!(timeout(Duration::from_secs(30), folder.replaced(&socket, None)), async {
                drop(UnixListener::bind(&socket).unwrap());
            });
        replaced.unwrap();
        assert!(folder.check().is_ok());
    }

    #[tokio::test]
    async fn only_sockets_of_ours_that_nobody_serves_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        drop(UnixListener::bind(at("virtNet-dead.sock")).unwrap());
        drop(UnixListener::bind(at("virtNet.sock")).unwrap());
        drop(UnixListener::bind(at("other.sock")).unwrap());
        let _served = UnixListener::bind(at("virtNet-alive.sock")).unwrap();
        std::fs::write(at("virtNet-file.sock"), "").unwrap();
        Folder::new(root.path().to_owned()).remove_stale_sockets().await;
        let mut left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other.sock", "virtNet-alive.sock", "virtNet-file.sock"]);
    }
}
