//! Network namespaces as handles. Nobody "is" in another namespace while working: a thread of its own enters it,
//! opens a socket there (which stays bound to it for ever) and hands it back.
//!
//! Source: namespaces(7), setns(2), ioctl_nsfs(2).

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::{Error, fault};

/// An open network namespace. It lives at least as long as this handle.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl Netns {
    /// Opens the namespace that `path` stands for: a bind mount, or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// [`Error::OpenNetns`] where it cannot be opened, [`Error::NotNetns`] where it is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        // A pinned namespace that was unmounted leaves an empty file, and a caller may name a FIFO, which would block.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        let open = || rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        let file =
            match fault::step(|| format!("open network namespace {}", path.display()), |errno| errno, open) {
                Ok(fd) => File::from(fd),
                Err(errno) => return Err(Error::OpenNetns { path, source: errno.into() }),
            };
        Self::from_file(file, path)
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// A new, empty namespace (its `lo` is down). It ends when the last handle, socket, mount and process in it is gone.
    ///
    /// # Errors
    /// The caller lacks CAP_SYS_ADMIN.
    pub fn create() -> Result<Self, Error> {
        on_a_thread(|| {
            // SAFETY: only CLONE_FILES would let threads see different descriptor tables; we do not pass it.
            #[allow(unsafe_code)]
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| Error::EnterNetns { step: "create", source: errno.into() })?;
            Self::current()
        })?
    }

    fn from_file(file: File, path: PathBuf) -> Result<Self, Error> {
        // SAFETY: NS_GET_NSTYPE takes no argument and only answers a number; on other files the kernel says ENOTTY.
        #[allow(unsafe_code)]
        let kind = unsafe { rustix::ioctl::ioctl(&file, NamespaceType) };
        if kind != Ok(CLONE_NEWNET) {
            return Err(Error::NotNetns { path });
        }
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::OpenNetns { path, source }),
        };
        Ok(Netns { file, path, identity: (metadata.dev(), metadata.ino()) })
    }

    /// The path by which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode: what tells two namespaces apart while both live. An inode may be used again after its end.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Whether both handles stand for one namespace.
    #[must_use]
    pub fn same(&self, other: &Netns) -> bool {
        self.identity == other.identity
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// [`Error::EnterNetns`] where the thread cannot be started or may not enter.
    ///
    /// # Panics
    /// Where `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_a_thread(|| {
            let enter = || {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.file.as_fd(), kind)
            };
            fault::step(|| "enter network namespace".to_owned(), |errno| errno, enter)
                .map_err(|errno| Error::EnterNetns { step: "enter", source: errno.into() })?;
            Ok(work())
        })?
    }

    /// A route socket that is bound to this namespace.
    ///
    /// # Errors
    /// As [`Netns::run`] and [`crate::route::Socket::open`].
    pub fn route_socket(&self) -> Result<crate::route::Socket, Error> {
        self.run(crate::route::Socket::open)?
    }

    /// A second handle of the same namespace.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> Result<Self, Error> {
        match self.file.try_clone() {
            Ok(file) => Ok(Netns { file, path: self.path.clone(), identity: self.identity }),
            Err(source) => Err(Error::OpenNetns { path: self.path.clone(), source }),
        }
    }

    /// Gives the namespace a name in the file system: bind-mounts it over `path`, which is created.
    /// [`Netns::unpin`] undoes it.
    ///
    /// # Errors
    /// The caller lacks CAP_SYS_ADMIN in its mount namespace, or the path exists.
    pub fn pin(&self, path: &Path) -> Result<(), Error> {
        let failed = |step, source| Error::File { step, path: path.to_owned(), source };
        File::create_new(path).map_err(|source| failed("create", source))?;
        // A bind mount wants a path, and this one is ours whatever happened to the one we were opened by.
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        rustix::mount::mount_bind(source.as_str(), path).map_err(|errno| {
            let _ = std::fs::remove_file(path);
            failed("bind-mount the network namespace at", errno.into())
        })
    }

    /// Unmounts and removes what [`Netns::pin`] made. What is not there is no error.
    ///
    /// # Errors
    /// The path is there and cannot be unmounted or removed.
    pub fn unpin(path: &Path) -> Result<(), Error> {
        let failed = |step, source| Error::File { step, path: path.to_owned(), source };
        match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(failed("unmount", errno.into())),
        }
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", source)),
            _ => Ok(()),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The usual stack is as large as a huge page. Where those are switched on, the kernel may zero one for it and its neighbours: 2 MB that
/// nobody needs.
const STACK: usize = 256 * 1024;

/// Runs `work` on a fresh thread: whatever it does to its namespaces ends with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|source| Error::EnterNetns { step: "start a thread for", source })?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// `CLONE_NEWNET`, as NS_GET_NSTYPE answers it.
const CLONE_NEWNET: i32 = 0x4000_0000;

/// NS_GET_NSTYPE of ioctl_nsfs(2): `_IO(0xb7, 0x3)`, kernel 4.11+.
struct NamespaceType;

// SAFETY: the opcode takes no argument, writes no memory and answers through its return value.
#[allow(unsafe_code)]
unsafe impl Ioctl for NamespaceType {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        0xb703
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_another_one_and_a_thread_can_be_in_it() {
        let here = Netns::current().unwrap();
        let there = Netns::create().unwrap();
        assert!(!here.same(&there));
        let seen = there.run(|| Netns::current().unwrap().identity()).unwrap();
        assert_eq!(seen, there.identity());
        assert!(Netns::current().unwrap().same(&here), "the caller was moved");
    }

    #[test]
    fn what_is_not_a_network_namespace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("empty");
        std::fs::write(&file, "").unwrap();
        for path in [file.as_path(), Path::new("/proc/self/ns/mnt"), Path::new("/dev/null"), folder.path()] {
            assert!(matches!(Netns::open(path), Err(Error::NotNetns { .. })), "{}", path.display());
        }
        let absent = Netns::open(folder.path().join("absent")).unwrap_err();
        assert!(matches!(absent, Error::OpenNetns { .. }) && absent.is_absent());
    }

    #[test]
    fn a_pinned_namespace_is_found_by_its_path_until_it_is_unpinned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod");
        let netns = Netns::create().unwrap();
        netns.pin(&path).unwrap();
        assert!(Netns::open(&path).unwrap().same(&netns));
        assert!(netns.pin(&path).unwrap_err().is_exists());
        Netns::unpin(&path).unwrap();
        Netns::unpin(&path).unwrap();
        assert!(!path.exists());
    }
}
