//! What can go wrong with a VM, always with what was touched and, where a guest is involved, its console's last lines.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vm_guest::protocol::Ended;

/// The last lines of a guest's console and of QEMU's own messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Console(pub Vec<String>);

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "(its console is empty)");
        }
        write!(f, "last lines of its console:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Why something with a VM failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine cannot run the guest.
    #[error("the VM needs an x86-64 Linux machine, this is {0}")]
    Machine(String),
    /// The environment does not say where things are.
    #[error("{what} not found: run `cargo xtask test`, or `cargo xtask build` and set {variable}")]
    NotBuilt {
        /// What is missing.
        what: String,
        /// The variable that would say where it is.
        variable: &'static str,
    },
    /// The caller wants a machine that cannot be.
    #[error("this machine cannot be built: {0}")]
    Spec(String),
    /// A file or socket on the host.
    #[error("{what} {path}")]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file on the host has contents that make no sense.
    #[error("{path}: {why}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A program on the host could not be run, or failed.
    #[error("cannot run {program}: {why}")]
    Host {
        /// Which one.
        program: String,
        /// What happened.
        why: String,
    },
    /// The guest did not come up.
    #[error("the guest did not boot within {limit:?}; {console}")]
    Boot {
        /// How long it was given.
        limit: Duration,
        /// What it said.
        console: Console,
    },
    /// The guest panicked, switched itself off, or QEMU ended.
    #[error("the guest died; {console}")]
    Died {
        /// What it said.
        console: Console,
    },
    /// The guest runs but does not answer.
    #[error("the guest hangs: no answer for {silent:?}; {console}")]
    Hung {
        /// For how long.
        silent: Duration,
        /// What it said.
        console: Console,
    },
    /// A command ran for too long and was killed.
    #[error("`{command}` did not end within {limit:?}")]
    Timeout {
        /// Which one.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
    /// A command could not be started in the guest.
    #[error("cannot start in the guest: {0}")]
    Start(String),
    /// A command ended with another code than 0.
    #[error("`{command}` {}: {stderr}", ended_text(ended))]
    Command {
        /// Which one.
        command: String,
        /// How it ended.
        ended: Ended,
        /// What it said on standard error (or output, where that is empty).
        stderr: String,
    },
    /// QEMU refused a QMP command.
    #[error("QEMU refused {command}: {why}")]
    Qmp {
        /// Which one.
        command: String,
        /// QEMU's words.
        why: String,
    },
    /// QEMU did not report something in time.
    #[error("QEMU did not report {event} within {limit:?}")]
    NoEvent {
        /// What was awaited.
        event: String,
        /// How long.
        limit: Duration,
    },
    /// The terminal of this process.
    #[error("terminal")]
    Terminal {
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// `ended with code 3`, `was killed by signal 9`.
pub(crate) fn ended_text(ended: &Ended) -> String {
    match ended {
        Ended::Code(code) => format!("ended with code {code}"),
        Ended::Signal(signal) => format!("was killed by signal {signal}"),
    }
}

/// Makes an [`Error::File`].
pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { what, path, source }
}
