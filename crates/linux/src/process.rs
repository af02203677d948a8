//! Namespaces of a process's own.

use rustix::thread::UnshareFlags;

use crate::Error;

/// A namespace that a process can have for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// CLONE_NEWNS: mounts. Needs a process with one thread.
    Mount,
    /// CLONE_NEWUTS: the host name.
    Uts,
    /// CLONE_NEWPID: process numbers; the next child is number 1 there, the caller stays where it is.
    ChildPid,
}

/// Gives the calling thread new namespaces of these kinds.
///
/// # Errors
/// [`Error::Unshare`]: the caller lacks CAP_SYS_ADMIN.
pub fn unshare(namespaces: &[Namespace]) -> Result<(), Error> {
    let flags = namespaces.iter().fold(UnshareFlags::empty(), |flags, namespace| {
        flags
            | match namespace {
                Namespace::Mount => UnshareFlags::NEWNS,
                Namespace::Uts => UnshareFlags::NEWUTS,
                Namespace::ChildPid => UnshareFlags::NEWPID,
            }
    });
    // SAFETY: only CLONE_FILES would let threads see different descriptor tables; no `Namespace` stands for it.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(|errno| Error::Unshare { namespaces: namespaces.to_vec(), source: errno.into() })
}
