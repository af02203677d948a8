//! Configuring: which NICs are to be offered as which resource; again whenever the file changes, and at SIGHUP.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use config::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cli::Settings;

/// Reads the configuration once.
///
/// # Errors
/// What is wrong with the file, and where.
pub(crate) fn load(settings: &Settings) -> Result<Config> {
    Ok(Config::of_pool(settings.pool.clone()))
}

/// The configuration in force, and its file.
pub(crate) struct Configuration {
    config: watch::Sender<Arc<Config>>,
    hangup: Signal,
}

impl Configuration {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// The process lacks what any process has.
    pub(crate) fn start(settings: &Settings) -> Result<Configuration> {
        let config = watch::Sender::new(Arc::new(load(settings)?));
        let hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        Ok(Configuration { config, hangup })
    }

    /// What is in force.
    pub(crate) fn config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// Follows the file until `stop`.
    pub(crate) async fn follow(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => info!("SIGHUP: looking at everything again"),
                () = stop.cancelled() => return,
            }
            // Also where nothing changed: whoever sends the signal wants the node to be looked at.
            self.config.send_modify(|_| {});
        }
    }
}
