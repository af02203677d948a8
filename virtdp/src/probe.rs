//! For a pod's probes: does an agent on this node answer at its socket, as the kubelet asks it?

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kubelet_api::deviceplugin::Empty;
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;

use crate::advertise::SOCKET_PREFIX;
use crate::cli::Settings;

/// A probe that takes longer has failed.
const PATIENCE: Duration = Duration::from_millis(800);

/// Succeeds if one of our sockets in the kubelet's folder is served.
///
/// # Errors
/// None is.
pub(crate) fn run(settings: &Settings) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up the runtime")?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, any_answers(&settings.kubelet.device_plugins()))
            .await
            .unwrap_or_else(|_| bail!("no agent answered within {} ms", PATIENCE.as_millis()))
    })
}

async fn any_answers(folder: &Path) -> Result<()> {
    let files = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut silent = Vec::new();
    for file in files {
        let name = file.with_context(|| format!("cannot list {}", folder.display()))?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(SOCKET_PREFIX)) else { continue };
        match answers(&folder.join(name)).await {
            Ok(()) => return Ok(()),
            Err(error) => silent.push(format!("{name}: {error:#}")),
        }
    }
    if silent.is_empty() {
        bail!("no agent serves a socket {SOCKET_PREFIX}*.sock in {}", folder.display());
    }
    bail!("no agent answers: {}", silent.join("; "))
}

async fn answers(socket: &Path) -> Result<()> {
    let channel = kubelet_api::connect(socket, kubelet_api::LOCALHOST, PATIENCE).await?;
    DevicePluginClient::new(channel).get_device_plugin_options(Empty {}).await?;
    Ok(())
}
