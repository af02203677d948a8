//! The kubelet's `device-plugins` folder: noticing that sockets come and go, and clearing away what we left there.
//!
//! inotify tells at once; a look each second is the safety net, for folders that are replaced and file systems that tell
//! nothing.
//!
//! Other agents that serve sockets beside ours are rivals. When one that registered after us goes, the kubelet takes the
//! resource for lost, while our stream stays open: only here can that be noticed.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
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
    /// How the names of this process's own sockets begin, of all resources.
    own: String,
    watched: Option<Watched>,
    cleared: bool,
    /// Sockets of other agents that were served when they were looked at last.
    rivals: Vec<(PathBuf, Identity)>,
    /// Those that nobody serves, since when, and those of which that is known to mean nothing.
    unserved: Vec<(Identity, Instant)>,
    dead: Vec<Identity>,
    /// Names of sockets like ours that came or went since the last look.
    stirred: Vec<PathBuf>,
}

/// Sockets like ours that are not ours.
#[derive(Default)]
struct Others {
    served: Vec<(PathBuf, Identity)>,
    unserved: Vec<(PathBuf, Identity)>,
}

struct Watched {
    inotify: AsyncFd<Inotify>,
    device: u64,
    inode: u64,
}

impl Folder {
    pub(crate) fn new(path: PathBuf, own: String) -> Self {
        Folder {
            path,
            own,
            watched: None,
            cleared: false,
            rivals: Vec::new(),
            unserved: Vec::new(),
            dead: Vec::new(),
            stirred: Vec::new(),
        }
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
                let names = names(ready.get_inner_mut());
                self.stirred.extend(names.into_iter().map(|name| self.path.join(name)));
                ready.clear_ready();
            }
            () = sleep(LOOK_EACH) => {}
        }
    }

    /// From here on, [`Folder::rival_gone`] counts. To be called before registering, with our own socket in place.
    pub(crate) async fn note_rivals(&mut self) {
        self.rewatch();
        if let Some(watched) = &mut self.watched {
            names(watched.inotify.get_mut());
        }
        self.stirred.clear();
        self.unserved.clear();
        let others = self.others().await;
        self.dead = others.unserved.into_iter().map(|(_, identity)| identity).collect();
        self.rivals = others.served;
    }

    /// Whether another agent has gone since [`Folder::note_rivals`], however short it was there. Then what it left may be
    /// removed again.
    pub(crate) async fn rival_gone(&mut self) -> bool {
        let others = self.others().await;
        let now = Instant::now();
        let is_there =
            |path: &Path| others.served.iter().chain(&others.unserved).any(|(other, _)| other == path);
        let mut went = self.rivals.iter().any(|rival| !others.served.contains(rival))
            || self.stirred.iter().any(|path| !self.is_own(path) && !is_there(path));
        let before = std::mem::take(&mut self.unserved);
        for (_, identity) in others.unserved {
            if self.dead.contains(&identity) {
                continue;
            }
            // A socket is bound first, and served a moment later.
            let since = before.iter().find(|(known, _)| *known == identity).map_or(now, |(_, since)| *since);
            went |= now.saturating_duration_since(since) >= LOOK_EACH;
            self.unserved.push((identity, since));
        }
        self.stirred.clear();
        self.rivals = others.served;
        if went {
            self.cleared = false;
        }
        went
    }

    async fn others(&self) -> Others {
        let mut others = Others::default();
        for path in self.sockets_like_ours() {
            let Some(identity) = Identity::of(&path).filter(|_| !self.is_own(&path)) else { continue };
            let list = if is_dead(&path).await { &mut others.unserved } else { &mut others.served };
            list.push((path, identity));
        }
        others
    }

    /// Whether this process made the socket: for another resource, or for an earlier registration.
    fn is_own(&self, path: &Path) -> bool {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&self.own))
    }

    fn sockets_like_ours(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| {
            entry.file_name().to_str().is_some_and(is_like_ours)
                && entry.file_type().is_ok_and(|kind| kind.is_socket())
        });
        ours.map(|entry| entry.path()).collect()
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
        if !self.path.is_dir() {
            return;
        }
        self.cleared = true;
        for path in self.sockets_like_ours() {
            if self.is_own(&path) {
                continue;
            }
            if !is_dead(&path).await {
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

fn is_like_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(".sock")
}

/// Whether nobody serves the socket any more.
async fn is_dead(path: &Path) -> bool {
    let answer = tokio::time::timeout(ANSWER_WITHIN, UnixStream::connect(path)).await;
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    matches!(&answer, Ok(Err(error)) if refused(error))
}

/// The names of sockets like ours in the events that wait, which are then forgotten.
fn names(inotify: &mut Inotify) -> Vec<String> {
    let mut names = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut any = false;
        // An error means that none wait.
        for event in inotify.read_events(&mut buffer).into_iter().flatten() {
            any = true;
            names.extend(
                event
                    .name
                    .and_then(|name| name.to_str())
                    .filter(|name| is_like_ours(name))
                    .map(str::to_owned),
            );
        }
        if !any {
            return names;
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
        let mut folder = Folder::new(root.path().to_owned(), "virtNet-own".to_owned());
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
        let mut folder = Folder::new(path.clone(), "virtNet-own".to_owned());
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
    async fn rivals_that_go_are_noticed_however_short_they_were_there() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        // One for each resource, and they come and go.
        let _own = UnixListener::bind(at("virtNet-own-1.sock")).unwrap();
        let sibling = UnixListener::bind(at("virtNet-own-2.sock")).unwrap();
        drop(UnixListener::bind(at("virtNet-dead.sock")).unwrap());
        let stays = UnixListener::bind(at("virtNet-stays.sock")).unwrap();
        let mut folder = Folder::new(root.path().to_owned(), "virtNet-own".to_owned());
        folder.note_rivals().await;
        assert!(!folder.rival_gone().await);
        drop(sibling);
        std::fs::remove_file(at("virtNet-own-2.sock")).unwrap();
        folder.changed().await;
        assert!(!folder.rival_gone().await);
        // Killed: its socket is there, and nobody serves it.
        drop(stays);
        assert!(folder.rival_gone().await);
        folder.note_rivals().await;
        assert!(!folder.rival_gone().await);
        drop(UnixListener::bind(at("other.sock")).unwrap());
        folder.changed().await;
        assert!(!folder.rival_gone().await);
        for removed in [true, false] {
            // Bound, and not served yet: that is how each begins.
            drop(UnixListener::bind(at("virtNet-short.sock")).unwrap());
            assert!(!folder.rival_gone().await);
            if removed {
                std::fs::remove_file(at("virtNet-short.sock")).unwrap();
            }
            timeout(Duration::from_secs(30), async {
                while !folder.rival_gone().await {
                    folder.changed().await;
                }
            })
            .await
            .unwrap();
        }
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
        Folder::new(root.path().to_owned(), "virtNet-own".to_owned()).remove_stale_sockets().await;
        let mut left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other.sock", "virtNet-alive.sock", "virtNet-file.sock"]);
    }
}
