//! `virtsim up`: a node, as a daemon or in the foreground.

mod daemon;
mod preflight;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

use super::patience::Patience;
use super::{Context, screen, status};
use crate::control::Status;
use crate::options::Options;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    foreground: bool,
    /// The kubelet's folder
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// Network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The cache of CNI results
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cni_cache_dir: PathBuf,
    /// The Node object's name [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Where the API server listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Take a container's devices from one NUMA node where possible, as topology policy best-effort does
    #[arg(long)]
    align_numa: bool,
    /// Longest time to wait until the node is ready
    #[arg(long, default_value = "60s", value_name = "TIME")]
    timeout: Patience,
    /// What is logged: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "LEVEL", env = "VIRTSIM_LOG", default_value = "info")]
    log: String,
    /// Set for the process that is the node in the background
    #[arg(long, hide = true, value_name = "FILE")]
    daemon_log: Option<PathBuf>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<ExitCode> {
    let options = options(context, arguments)?;
    if let Some(log) = &arguments.daemon_log {
        // A session of its own: the terminal that it was started from may go.
        rustix::process::setsid().context("no session of its own")?;
        serve(options, log.clone(), &arguments.log, |_| {})?;
        return Ok(ExitCode::SUCCESS);
    }
    filter(&arguments.log)?;
    preflight::check(&options)?;
    if arguments.foreground {
        let tell = |status: &Status| screen::note(&status::text(status));
        serve(options, PathBuf::new(), &arguments.log, tell)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = daemon::start(&options, arguments.timeout, &arguments.log)?;
    screen::print(&status::text(&status))?;
    Ok(ExitCode::SUCCESS)
}

fn options(context: &Context, arguments: &Arguments) -> Result<Options> {
    // The node works in the root folder.
    let absolute = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("{} is no usable path", path.display()))
    };
    let mut options = Options::at(absolute(&context.dir)?);
    options.kubelet_dir = absolute(&arguments.kubelet_dir)?;
    options.cni_conf_dir = absolute(&arguments.cni_conf_dir)?;
    options.cni_bin_dir = absolute(&arguments.cni_bin_dir)?;
    options.cni_cache_dir = absolute(&arguments.cni_cache_dir)?;
    options.listen = arguments.listen;
    options.align_numa = arguments.align_numa;
    if let Some(name) = &arguments.node_name {
        options.node_name.clone_from(name);
    }
    Ok(options)
}

fn filter(text: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(text)
        .with_context(|| format!("--log {text:?} is neither a level nor a filter: try `info` or `debug`"))
}

/// Is the node, until it is told to end.
fn serve(options: Options, log: PathBuf, level: &str, ready: impl FnOnce(&Status) + Send) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("no async runtime can be had")?.block_on(crate::node::run(options, log, ready))
}
