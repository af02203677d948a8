//! The node: API server, scheduler, kubelet and container runtime as one.

use std::path::PathBuf;

use crate::control::Status;
use crate::options::Options;

/// Runs a node until it is asked to shut down over the control socket, or gets SIGTERM or SIGINT; then ends all that it
/// made. `log` is where this process's log goes, empty in the foreground. `ready` is called once everything is served.
///
/// The program that calls this must call [`crate::runtime::init::run_if_asked`] first in its `main`.
///
/// # Errors
/// Another node runs in the same folder, something cannot be started, or not everything could be undone at the end.
pub async fn run(options: Options, log: PathBuf, ready: impl FnOnce(&Status) + Send) -> anyhow::Result<()> {
    let _ = (options, log, ready);
    anyhow::bail!("not written yet")
}
