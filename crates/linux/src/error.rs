//! What can go wrong, with what was touched.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

/// A failed step of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network namespace's file cannot be opened.
    #[error("open network namespace {}", path.display())]
    OpenNetns {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there, but is no handle of a network namespace.
    #[error("{} is not a network namespace", path.display())]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// A thread of ours could not enter (or make) a network namespace.
    #[error("{step} network namespace")]
    EnterNetns {
        /// `enter`, `create`, `pin`.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread of ours could not have a namespace of its own.
    #[error("make new namespaces: {namespaces:?}")]
    Unshare {
        /// Of which kinds.
        namespaces: Vec<crate::process::Namespace>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not say what this process may do.
    #[error("read this process's capabilities")]
    Capabilities {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket cannot be opened or set up.
    #[error("open a {kind} socket")]
    Socket {
        /// `netlink`, `packet`, `ICMPv6`.
        kind: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Sending or receiving on a socket failed.
    #[error("{what}: talk to the kernel")]
    Transport {
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{what}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's words.
        #[source]
        source: Refusal,
    },
    /// The kernel did not answer in time.
    #[error("{what}: no answer from the kernel within {} ms", after.as_millis())]
    Timeout {
        /// What was asked for.
        what: String,
        /// How long we waited.
        after: Duration,
    },
    /// A dump was interrupted by changes each time it was tried.
    #[error("{what}: the kernel's tables kept changing, no consistent answer in {attempts} attempts")]
    Unsteady {
        /// What was asked for.
        what: String,
        /// How often we tried.
        attempts: u32,
    },
    /// The kernel's answer is cut off or not what was asked for.
    #[error("{what}: the kernel's answer cannot be read: {why}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A step on a file or folder failed.
    #[error("{step} {}", path.display())]
    File {
        /// `create`, `write`, `rename`, `lock`, ...
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A lock is held by somebody else for too long.
    #[error("{} is locked by another process, waited {} ms", path.display(), after.as_millis())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        after: Duration,
    },
}

impl Error {
    /// The kernel's error number, where the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { source, .. } => Some(source.errno),
            Error::OpenNetns { source, .. }
            | Error::EnterNetns { source, .. }
            | Error::Unshare { source, .. }
            | Error::Capabilities { source }
            | Error::Socket { source, .. }
            | Error::Transport { source, .. }
            | Error::File { source, .. } => source.raw_os_error(),
            Error::NotNetns { .. }
            | Error::Timeout { .. }
            | Error::Unsteady { .. }
            | Error::Malformed { .. }
            | Error::Locked { .. } => None,
        }
    }

    /// EEXIST: the name, address or route is already there.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST.raw_os_error())
    }

    /// EROFS: the file system is read-only, as `/proc/sys` is in many containers.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.errno() == Some(Errno::ROFS.raw_os_error())
    }

    /// What was named is not there: ENODEV, ENOENT, EADDRNOTAVAIL, ESRCH.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        [Errno::NODEV, Errno::NOENT, Errno::NXIO, Errno::ADDRNOTAVAIL, Errno::SRCH]
            .iter()
            .any(|errno| self.errno() == Some(errno.raw_os_error()))
    }

    /// A failure of the moment rather than of what was asked for: no memory, no descriptor, no answer. The same may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        const PASSING: [Errno; 8] = [
            Errno::NOMEM,
            Errno::NOBUFS,
            Errno::MFILE,
            Errno::NFILE,
            Errno::AGAIN,
            Errno::INTR,
            Errno::BUSY,
            Errno::IO,
        ];
        match self {
            Error::NotNetns { .. } | Error::Malformed { .. } => false,
            _ => {
                self.errno().is_none_or(|errno| PASSING.iter().any(|passing| passing.raw_os_error() == errno))
            }
        }
    }

    /// The whole chain of causes in one line, for callers that hand errors on as text.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes in one line, for whoever hands errors on as text.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A negative answer of netlink: the error number and, where the kernel gives one, its extended-ack text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The positive error number.
    pub errno: i32,
    /// NLMSGERR_ATTR_MSG.
    pub text: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = io::Error::from_raw_os_error(self.errno);
        match &self.text {
            Some(text) => write!(f, "{text} ({system})"),
            None => write!(f, "{system}"),
        }
    }
}

impl std::error::Error for Refusal {}
