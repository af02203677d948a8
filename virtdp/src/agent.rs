//! The agent as a whole: its tasks, started here and joined here.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::advertise::{self, Desk};
use crate::cli::Settings;
use crate::configure::Configuration;
use crate::discover::{self, Sight};
use crate::observe::{self, Metrics, View};
use crate::repatriate;

/// How long the tasks may take to end. Whoever sent SIGTERM waits.
const END_WITHIN: Duration = Duration::from_millis(800);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The process lacks what any process has (descriptors, signals), or a task of ours ended on its own.
pub(crate) fn main(settings: Settings) -> Result<()> {
    // One thread is enough for one kubelet, and memory is dear on each node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The node is read, a kubelet's file, a name is looked up.
        .max_blocking_threads(3)
        .build()
        .context("set up the runtime")?;
    let outcome = runtime.block_on(run(settings));
    // A thread that still reads the node does not hold us up.
    runtime.shutdown_background();
    outcome
}

async fn run(settings: Settings) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = settings.config.as_deref().map(|file| file.display().to_string()),
        kubelet = %settings.kubelet.root().display(),
        "virtdp starts"
    );
    let stop = CancellationToken::new();
    let mut tasks = start(&settings, &stop).context("watch the configuration")?;
    let early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = tasks.join_next() => Some(ended),
    };
    info!("virtdp stops");
    stop.cancel();
    let ended = tokio::time::timeout(END_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        error!("not all tasks ended in time");
    }
    match early {
        None => Ok(()),
        Some(Some(Err(panicked))) => Err(panicked).context("a task of the agent ended"),
        Some(_) => Err(anyhow!("a task of the agent ended on its own")),
    }
}

fn start(settings: &Settings, stop: &CancellationToken) -> Result<JoinSet<()>> {
    let configuration = Configuration::start(settings)?;
    let config = configuration.config();
    let (sight, sight_out) = watch::channel(Sight::Unknown);
    let (lists, lists_out) = watch::channel(None);
    let (desk, requests) = Desk::new();
    let metrics = Metrics::default();
    let view =
        View::new(metrics.clone(), sight_out.clone(), lists_out.clone(), desk.clone(), configuration.state());
    // Who answers the kubelet ends last: an Allocate under way must have its answer, or a pod fails.
    let unregistered = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let to_pods = sight_out.clone();
    tasks.spawn(configuration.follow(stop.clone()));
    tasks.spawn(observe::tell(settings.events.clone(), to_pods, metrics.clone(), stop.clone()));
    tasks.spawn(discover::follow(settings.clone(), config, sight, metrics.clone(), unregistered.clone()));
    tasks.spawn(repatriate::run(settings.clone(), sight_out.clone(), metrics, stop.clone()));
    tasks.spawn(advertise::offer(settings.clone(), sight_out, requests, lists, unregistered.clone()));
    tasks.spawn(observe::serve(settings.listen.clone(), view.clone(), stop.clone()));
    let register = advertise::register(settings.clone(), lists_out, desk, view, stop.clone());
    tasks.spawn(async move {
        let _at_the_end = unregistered.drop_guard();
        register.await;
    });
    Ok(tasks)
}
