//! The kubelet's folder where our socket is: noticing that sockets come and go, and clearing away what we left there.
//!
//! inotify tells at once; a look each second is the safety net, for folders that are replaced and file systems that tell
//! nothing.
//!
//! Other agents for the same resource that serve sockets beside ours are rivals. When one that registered after us goes, the
//! kubelet takes the resource for lost, while our stream stays open: only here can that be noticed. A rival that was killed
//! leaves its socket, and no event: while there are any, the looks are more frequent.

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
use super::names::{HIDDEN, Mark, is_like_ours};
use super::session::{Ended, Socket};
use crate::readable::readable;

const LOOK_EACH: Duration = Duration::from_secs(1);
/// While there are rivals, which is during an update.
const LOOK_AT_RIVALS_EACH: Duration = Duration::from_millis(200);
/// Whoever serves a socket of this machine accepts at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

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

    pub(super) fn is_older_than(&self, other: &Identity) -> bool {
        self.made < other.made
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
    /// Of the resource whose agents are rivals.
    mark: Mark,
    watched: Option<Watched>,
    cleared: bool,
    /// Sockets of other agents that were served when they were looked at last.
    rivals: Vec<(PathBuf, Identity)>,
    /// Those that nobody serves, of which that is known.
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
    pub(crate) fn new(path: PathBuf, mark: Mark) -> Self {
        Folder {
            path,
            mark,
            watched: None,
            cleared: false,
            rivals: Vec::new(),
            dead: Vec::new(),
            stirred: Vec::new(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn mark(&self) -> &Mark {
        &self.mark
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

    /// Returns when a registration is worth nothing any more, as far as the folder shows. `kubelet` is the socket by which it was
    /// made.
    pub(crate) async fn spoils(&mut self, own: &Socket, kubelet: Option<(&Path, Identity)>) -> Ended {
        // At once, too: what came before [`Folder::note_rivals`] tells nobody any more.
        loop {
            if !own.is_there() {
                return Ended::SocketRemoved;
            }
            // Where there is none, the stream tells whether the kubelet lives.
            if kubelet.is_some_and(|(path, was)| Identity::of(path).is_some_and(|now| now != was)) {
                return Ended::NewKubelet;
            }
            if self.rival_gone(own).await {
                return Ended::RivalGone;
            }
            self.changed().await;
        }
    }

    /// Returns when something in the folder may have changed, after a second at the latest.
    async fn changed(&mut self) {
        self.rewatch();
        let pause = if self.rivals.is_empty() { LOOK_EACH } else { LOOK_AT_RIVALS_EACH };
        let Some(watched) = &mut self.watched else { return sleep(pause).await };
        tokio::select! {
            ready = watched.inotify.readable_mut() => {
                let Ok(mut ready) = ready else {
                    self.watched = None;
                    return sleep(pause).await;
                };
                // What has changed is looked up, not believed.
                let rivals = names(ready.get_inner_mut()).into_iter().filter(|name| self.mark.may_have(name));
                self.stirred.extend(rivals.map(|name| self.path.join(name)));
                ready.clear_ready();
            }
            () = sleep(pause) => {}
        }
    }

    /// From here on, [`Folder::rival_gone`] counts. To be called before registering, with our own socket in place.
    pub(crate) async fn note_rivals(&mut self, own: &Socket) {
        self.rewatch();
        if let Some(watched) = &mut self.watched {
            names(watched.inotify.get_mut());
        }
        self.stirred.clear();
        let others = self.others(own).await;
        self.dead = others.unserved.into_iter().map(|(_, identity)| identity).collect();
        self.rivals = others.served;
    }

    /// Whether another agent has gone since [`Folder::note_rivals`], however short it was there, and it is up to us to register
    /// anew: of those that stay, only the newest does. If all did, each would take the other's change of sockets for its end,
    /// and so on for ever. Then what it left may be removed again.
    async fn rival_gone(&mut self, own: &Socket) -> bool {
        let others = self.others(own).await;
        let is_there =
            |path: &Path| others.served.iter().chain(&others.unserved).any(|(other, _)| other == path);
        // Sockets of ours are served when they get their names. Who does not answer has died.
        let went = self.rivals.iter().any(|rival| !others.served.contains(rival))
            || self.stirred.iter().any(|path| path != own.path() && !is_there(path))
            || others.unserved.iter().any(|(_, identity)| !self.dead.contains(identity));
        self.dead = others.unserved.into_iter().map(|(_, identity)| identity).collect();
        self.stirred.clear();
        self.rivals = others.served;
        if went {
            self.cleared = false;
        }
        went && !self.rivals.iter().any(|(_, rival)| own.is_older_than(rival))
    }

    async fn others(&self, own: &Socket) -> Others {
        let mut others = Others::default();
        for path in self.sockets(|name| self.mark.may_have(name)) {
            let Some(identity) = Identity::of(&path).filter(|_| path != own.path()) else { continue };
            let list = if is_dead(&path).await { &mut others.unserved } else { &mut others.served };
            list.push((path, identity));
        }
        others
    }

    fn sockets(&self, named: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let some = entries.filter(|entry| {
            entry.file_name().to_str().is_some_and(&named)
                && entry.file_type().is_ok_and(|kind| kind.is_socket())
        });
        some.map(|entry| entry.path()).collect()
    }

    /// Returns when `path` exists and is not the file that it was. Never where there is no path.
    pub(crate) async fn replaced(&mut self, path: Option<&Path>, was: Option<Identity>) {
        loop {
            let is = path.and_then(Identity::of);
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

    /// Removes, once, the sockets that an earlier run left and nobody serves, whatever resource they were for: it may not be
    /// offered any more.
    pub(crate) async fn remove_stale_sockets(&mut self) {
        if self.cleared {
            return;
        }
        if !self.path.is_dir() {
            return;
        }
        self.cleared = true;
        for path in self.sockets(|name| is_like_ours(name.trim_start_matches(HIDDEN))) {
            if !is_dead(&path).await {
                let name = path.file_name().and_then(|name| name.to_str());
                if name.is_some_and(|name| self.mark.may_have(name)) {
                    info!(socket = %path.display(), "left alone: somebody serves this socket");
                }
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

/// Whether nobody serves the socket any more.
async fn is_dead(path: &Path) -> bool {
    let answer = tokio::time::timeout(ANSWER_WITHIN, UnixStream::connect(path)).await;
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    matches!(&answer, Ok(Err(error)) if refused(error))
}

/// The names of files in the events that wait, which are then forgotten.
fn names(inotify: &mut Inotify) -> Vec<String> {
    let mut names = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut any = false;
        // An error means that none wait.
        for event in inotify.read_events(&mut buffer).into_iter().flatten() {
            any = true;
            names.extend(event.name.and_then(|name| name.to_str()).map(str::to_owned));
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

    fn watch(folder: &Path) -> Folder {
        Folder::new(folder.to_owned(), Mark::of(&"kernel.org/virt".parse().unwrap()))
    }

    #[tokio::test]
    async fn a_socket_that_is_made_anew_is_noticed_even_with_the_same_inode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("kubelet.sock");
        let first = UnixListener::bind(&path).unwrap();
        let was = Identity::of(&path);
        let mut folder = watch(root.path());
        assert!(timeout(Duration::from_millis(20), folder.replaced(Some(&path), was)).await.is_err());
        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert!(timeout(Duration::from_millis(20), folder.replaced(Some(&path), was)).await.is_err());
        let _second = UnixListener::bind(&path).unwrap();
        timeout(Duration::from_secs(30), folder.replaced(Some(&path), was)).await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("device-plugins");
        let mut folder = watch(&path);
        assert!(matches!(folder.check(), Err(Trouble::NoFolder(_))));
        folder.changed().await;
        std::fs::create_dir(&path).unwrap();
        let socket = path.join("kubelet.sock");
        let (replaced, ()) =
            tokio::join!(timeout(Duration::from_secs(30), folder.replaced(Some(&socket), None)), async {
                drop(UnixListener::bind(&socket).unwrap());
            });
        replaced.unwrap();
        assert!(folder.check().is_ok());
    }

    #[tokio::test]
    async fn rivals_that_go_are_noticed_however_short_they_were_there() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let own = at("virtNet-own.sock");
        let _own = UnixListener::bind(&own).unwrap();
        let own = Socket::at(own);
        drop(UnixListener::bind(at("virtNet-dead.sock")).unwrap());
        let stays = UnixListener::bind(at("virtNet-stays.sock")).unwrap();
        let mut folder = watch(root.path());
        folder.note_rivals(&own).await;
        assert!(!folder.rival_gone(&own).await);
        // Killed: its socket is there, and nobody serves it.
        drop(stays);
        assert!(folder.rival_gone(&own).await);
        folder.note_rivals(&own).await;
        assert!(!folder.rival_gone(&own).await);
        let of_another_resource = at("virtNet-01234567-abc-1.sock");
        for other in [at("other.sock"), of_another_resource] {
            drop(UnixListener::bind(&other).unwrap());
            std::fs::remove_file(&other).unwrap();
            folder.changed().await;
            assert!(!folder.rival_gone(&own).await, "{}", other.display());
        }
        for removed in [true, false] {
            drop(UnixListener::bind(at("virtNet-short.sock")).unwrap());
            if removed {
                std::fs::remove_file(at("virtNet-short.sock")).unwrap();
            }
            timeout(Duration::from_secs(30), async {
                while !folder.rival_gone(&own).await {
                    folder.changed().await;
                }
            })
            .await
            .unwrap();
            // Once for each.
            assert!(!folder.rival_gone(&own).await);
        }
    }

    #[tokio::test]
    async fn of_two_that_stay_only_the_newer_is_concerned() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let first = at("virtNet-first.sock");
        let _older = UnixListener::bind(&first).unwrap();
        let third = UnixListener::bind(at("virtNet-third.sock")).unwrap();
        // The kernel's time of files goes on every few milliseconds.
        let second = at("virtNet-second.sock");
        let _newer = loop {
            let newer = UnixListener::bind(&second).unwrap();
            if Socket::at(first.clone()).is_older_than(&Identity::of(&second).unwrap()) {
                break newer;
            }
            std::fs::remove_file(&second).unwrap();
        };
        let (mut older, mut newer) = (watch(root.path()), watch(root.path()));
        let (first, second) = (Socket::at(first), Socket::at(second));
        older.note_rivals(&first).await;
        newer.note_rivals(&second).await;
        drop(third);
        assert!(!older.rival_gone(&first).await);
        assert!(newer.rival_gone(&second).await);
        assert!(!newer.rival_gone(&second).await);
    }

    #[tokio::test]
    async fn only_sockets_of_ours_that_nobody_serves_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        drop(UnixListener::bind(at("virtNet-dead.sock")).unwrap());
        drop(UnixListener::bind(at("virtNet.sock")).unwrap());
        drop(UnixListener::bind(at("virtNet@01234567-abc-1.sock")).unwrap());
        drop(UnixListener::bind(at(".virtNet-unfinished.sock")).unwrap());
        drop(UnixListener::bind(at("other.sock")).unwrap());
        let _served = UnixListener::bind(at("virtNet-alive.sock")).unwrap();
        std::fs::write(at("virtNet-file.sock"), "").unwrap();
        watch(root.path()).remove_stale_sockets().await;
        let mut left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other.sock", "virtNet-alive.sock", "virtNet-file.sock"]);
    }
}
