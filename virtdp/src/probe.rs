//! For a pod's probes: is there an agent on this node, does it answer at its socket, and is it well?
//!
//! Asked is the socket that the kubelet asks, so a node needs no open port for it. With `--ready` it is what `/readyz` says, else
//! `/healthz`. An agent in another pod of this node is not asked: in an update it would answer for the one that takes its place.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::UnixStream;

use crate::advertise::SOCKET_PREFIX;
use crate::cli::Settings;
use crate::observe;

/// A probe that takes longer has failed.
const PATIENCE: Duration = Duration::from_millis(800);

/// Succeeds if one of our sockets in the kubelet's folder is served by an agent that is well, or even ready.
///
/// # Errors
/// None is; for each the reason.
pub(crate) fn run(settings: &Settings, ready: bool) -> Result<()> {
    let path = if ready { "/readyz" } else { "/healthz" };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up the runtime")?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, any_answers(&settings.registration.folder(&settings.kubelet), path))
            .await
            .unwrap_or_else(|_| bail!("no agent answered within {} ms", PATIENCE.as_millis()))
    })
}

async fn any_answers(folder: &Path, path: &'static str) -> Result<()> {
    let files = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut silent = Vec::new();
    let mut elsewhere = 0_u32;
    for file in files {
        let name = file.with_context(|| format!("cannot list {}", folder.display()))?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(SOCKET_PREFIX)) else { continue };
        let socket = folder.join(name);
        if is_elsewhere(&socket).await {
            elsewhere += 1;
            continue;
        }
        match observe::probe(&socket, path, PATIENCE).await {
            Ok(()) => return Ok(()),
            Err(error) => silent.push(format!("{name}: {error:#}")),
        }
    }
    if silent.is_empty() {
        let but = if elsewhere > 0 { ", but in another container" } else { "" };
        bail!("no agent serves a socket {SOCKET_PREFIX}*.sock in {}{but}", folder.display());
    }
    bail!("no agent says that it is well: {}", silent.join("; "))
}

/// Whether the socket is served in a PID namespace that is neither ours nor below ours. The kernel writes 0 for such a process.
async fn is_elsewhere(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket).await else { return false };
    stream.peer_cred().is_ok_and(|peer| peer.pid() == Some(0))
}
