//! Namespaces of a process's own, and what it may do.

use rustix::thread::{CapabilitySet, UnshareFlags};

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

/// Whether the calling thread has CAP_NET_ADMIN, which changing links takes. In a user namespace that holds for the network
/// namespaces that belong to it.
///
/// # Errors
/// [`Error::Capabilities`]: the kernel does not say.
pub fn may_change_network() -> Result<bool, Error> {
    has(CapabilitySet::NET_ADMIN)
}

/// Whether the calling thread has CAP_SYS_ADMIN, which takes most of what is not about networks.
///
/// # Errors
/// [`Error::Capabilities`]: the kernel does not say.
pub(crate) fn may_administer() -> Result<bool, Error> {
    has(CapabilitySet::SYS_ADMIN)
}

fn has(capability: CapabilitySet) -> Result<bool, Error> {
    let sets =
        rustix::thread::capabilities(None).map_err(|errno| Error::Capabilities { source: errno.into() })?;
    Ok(sets.effective.contains(capability))
}

/// Keeps programs that are started from now on from inheriting descriptors other than standard input, output and error: those
/// that the caller itself inherited, open for its parent's sake. Where /proc is not mounted, nothing is changed.
pub fn inherit_only_standard_streams() {
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if number <= 2 {
            continue;
        }
        // SAFETY: the descriptor is borrowed for one fcntl(2), which neither reads, writes nor closes it. Where it was closed
        // meanwhile (as the one of the folder itself), the kernel answers EBADF.
        #[allow(unsafe_code)]
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC);
    }
}
