//! Configuring: which NICs are to be offered as which resource; again whenever the file changes, and at SIGHUP.
//!
//! A bad file ends nothing: what was in force stays in force, and the log, `/readyz` and the metrics say what is wrong. Where there was
//! nothing yet, nothing is offered.

mod file;
pub(crate) mod metadata;
pub(crate) mod validate;

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use config::{Config, Fault};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::file::ConfigFile;
use crate::cli::Settings;

/// Reads the configuration once.
///
/// # Errors
/// What is wrong with the file, and where.
pub(crate) fn load(settings: &Settings) -> Result<Config> {
    match &settings.config {
        Some(path) => Ok(config::parse(&file::read(path)?, path)?),
        None => Ok(Config::of_pool(settings.pool.clone())),
    }
}

/// Whether the file, as it is now, is in force: else what is wrong with it.
pub(crate) type InForce = Result<(), String>;

/// The configuration in force, and its file.
pub(crate) struct Configuration {
    config: watch::Sender<Arc<Config>>,
    state: watch::Sender<InForce>,
    file: Option<ConfigFile>,
    hangup: Signal,
    /// What was read last.
    text: Option<String>,
    /// What was said to be worth knowing.
    noted: BTreeSet<Fault>,
}

impl Configuration {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// The process lacks what any process has.
    pub(crate) fn start(settings: &Settings) -> Result<Configuration> {
        let hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let in_force = match settings.config {
            Some(_) => Config::default(),
            None => Config::of_pool(settings.pool.clone()),
        };
        let mut configuration = Configuration {
            config: watch::Sender::new(Arc::new(in_force)),
            state: watch::Sender::new(Ok(())),
            file: settings.config.clone().map(ConfigFile::new),
            hangup,
            text: None,
            noted: BTreeSet::new(),
        };
        configuration.read_again();
        Ok(configuration)
    }

    /// What is in force.
    pub(crate) fn config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// Whether that is what the file says.
    pub(crate) fn state(&self) -> watch::Receiver<InForce> {
        self.state.subscribe()
    }

    /// Follows the file until `stop`.
    pub(crate) async fn follow(mut self, stop: CancellationToken) {
        loop {
            let changed = async {
                match &mut self.file {
                    Some(file) => file.changed().await,
                    None => pending().await,
                }
            };
            let hangup = tokio::select! {
                () = changed => false,
                _ = self.hangup.recv() => true,
                () = stop.cancelled() => return,
            };
            self.read_again();
            if hangup {
                info!("SIGHUP: looking at everything again");
                // Also where nothing changed: whoever sends the signal wants the node to be looked at.
                self.config.send_modify(|_| {});
            }
        }
    }

    fn read_again(&mut self) {
        let Some(file) = &self.file else { return };
        let parsed = match file::read(file.path()) {
            Ok(text) if self.text.as_ref() == Some(&text) => return,
            Ok(text) => {
                let parsed = config::parse(&text, file.path()).map_err(|fault| fault.to_string());
                self.text = Some(text);
                parsed
            }
            Err(error) => {
                self.text = None;
                Err(format!("{error:#}"))
            }
        };
        match parsed {
            Ok(config) => self.put_in_force(config),
            Err(reason) if self.state.borrow().as_ref() != Err(&reason) => {
                let pools = self.config.borrow().pools.iter().count();
                error!(reason, pools, "the configuration is bad: what was in force stays in force");
                drop(self.state.send_replace(Err(reason)));
            }
            Err(_) => {}
        }
    }

    fn put_in_force(&mut self, config: Config) {
        let resources: Vec<&str> = config.pools.iter().map(|pool| pool.resource.as_str()).collect();
        info!(resources = resources.join(","), "the configuration is in force");
        let notes: BTreeSet<Fault> = config.notes.iter().cloned().collect();
        for note in notes.difference(&self.noted) {
            warn!("{note}");
        }
        self.noted = notes;
        self.state.send_if_modified(|state| std::mem::replace(state, Ok(())).is_err());
        self.config.send_if_modified(|old| {
            let differs = **old != config;
            *old = Arc::new(config);
            differs
        });
    }
}
