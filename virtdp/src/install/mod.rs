//! Puts the CNI programs, and on request virt-meta's configuration, on the node; and takes them away again.
//!
//! Everything is looked at before anything is changed. A file is replaced by renaming a complete one over it, so that a
//! container runtime that starts a plugin at that very moment starts the old one or the new one. What stood at a name
//! before us is kept beside it and comes back when we go; what is not ours any more is left alone.

mod network;
pub(crate) use self::network::server_from_environment;
mod programs;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ledger::{Ledger, Stage};

use network::MetaPlugin;
use programs::Programs;

/// How often the service account's token is looked at: the kubelet renews it long before it expires.
const TOKEN_INTERVAL: Duration = Duration::from_secs(30);

/// Where things come from and where they go. Paths are those of the node, below `--host`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The folder with the programs to install
    #[arg(long, value_name = "DIR", default_value = "/opt/virtnet/cni")]
    from: PathBuf,
    /// Where the node's root folder is seen from here
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
    /// Where the container runtime looks for CNI programs
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Also make virt-meta the node's first CNI plugin, in front of the cluster's network. Not beside Multus
    #[arg(long)]
    meta: bool,
    /// Let virt-meta keep pods to the networks of their own namespace
    #[arg(long, requires = "meta")]
    namespace_isolation: bool,
    /// How long to wait for the cluster's own network configuration, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    /// Where the pod's service account is: virt-meta's way to the API server
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    service_account: PathBuf,
    /// The API server as the node reaches it [default: from KUBERNETES_SERVICE_HOST and _PORT]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Stay, and keep the copy of the service account's token fresh until SIGTERM
    #[arg(long, requires = "meta")]
    follow: bool,
}

/// What is taken away.
#[derive(Clone, Debug, Args)]
pub(crate) struct Removal {
    /// Where the node's root folder is seen from here
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
    /// Where the container runtime looks for CNI programs
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Take the programs away even while pods have NICs, which could then not come home
    #[arg(long)]
    force: bool,
    /// Stay until SIGTERM when all is done: for a pod on each node, which is then ready
    #[arg(long)]
    stay: bool,
}

/// Installs; `kubelet_dir` is the kubelet's folder as the node calls it.
///
/// # Errors
/// What stands in the way, and what to do. Then nothing was changed, or the message says what was.
pub(crate) fn install(options: &Options, kubelet_dir: &Path) -> Result<()> {
    let host = Host::at(&options.host);
    let bin_dir = host.path(&options.cni_bin_dir);
    let mut wanted = vec!["ehost-device"];
    if options.meta {
        wanted.push("virt-meta");
    }
    let programs = Programs::read(&options.from, &wanted)?;
    let meta = match options.meta {
        true => Some(meta_plugin(options, &host, kubelet_dir)?),
        false => None,
    };
    for done in programs.install(&bin_dir)? {
        println!("{done}");
    }
    let Some(meta) = meta else { return Ok(()) };
    for done in meta.install()? {
        println!("{done}");
    }
    if !options.follow {
        return Ok(());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up the runtime")?;
    runtime.block_on(meta.follow(TOKEN_INTERVAL))
}

/// Takes everything away, in an order in which no pod is left without a way home for its NIC.
///
/// # Errors
/// Pods still have NICs or networks from us, or a file cannot be changed.
pub(crate) fn uninstall(removal: &Removal, state: &Path) -> Result<()> {
    let host = Host::at(&removal.host);
    // The configuration first: from here on new pods get the cluster's network alone, and old ones still find our programs.
    for done in network::uninstall(&host.path(&removal.cni_conf_dir))? {
        println!("{done}");
    }
    let left = left_behind(&host.path(state))?;
    if !left.is_empty() && !removal.force {
        bail!(
            "the programs stay in {}, because they are still needed to bring NICs home: {}; delete those pods and run this \
             again, or add --force",
            removal.cni_bin_dir.display(),
            left.join(", ")
        );
    }
    for done in programs::uninstall(&host.path(&removal.cni_bin_dir))? {
        println!("{done}");
    }
    if !removal.stay {
        return Ok(());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up the runtime")?;
    runtime.block_on(async {
        let told = network::told_to_end()?;
        println!("nothing of virtnet is left here but its state in {}", state.display());
        told.await;
        Ok(())
    })
}

/// Who still has something from us, in words.
fn left_behind(state: &Path) -> Result<Vec<String>> {
    let listing = Ledger::at(state).list().context("cannot tell which pods have NICs")?;
    let mut left: Vec<String> = listing
        .leases
        .iter()
        .map(|lease| match (&lease.stage, &lease.owner.pod) {
            (Stage::Displaced { .. }, _) => {
                format!("{} is home, and the DEL of {} has not come", lease.device, lease.owner)
            }
            (_, Some(pod)) => format!("{} in pod {}/{}", lease.device, pod.namespace, pod.name),
            (_, None) => format!("{} in container {}", lease.device, lease.owner.container_id),
        })
        .collect();
    left.extend(listing.unusable.iter().map(ToString::to_string));
    let attachments = match std::fs::read_dir(state.join("attachments")) {
        Ok(files) => files.filter_map(Result::ok).filter(|file| is_record(&file.path())).count(),
        Err(_) => 0,
    };
    if attachments > 0 {
        left.push(format!("{attachments} pods whose networks virt-meta set up"));
    }
    Ok(left)
}

fn is_record(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Waits for the cluster's network, which another pod may be installing at this moment.
fn meta_plugin(options: &Options, host: &Host, kubelet_dir: &Path) -> Result<MetaPlugin> {
    let deadline = Instant::now() + Duration::from_secs(options.wait);
    let conf_dir = host.path(&options.cni_conf_dir);
    let mut told = false;
    let cluster = loop {
        match network::cluster_network(&conf_dir)? {
            Some(cluster) => break cluster,
            None if Instant::now() < deadline => {
                if !told {
                    println!("waiting for the cluster's network configuration in {}", conf_dir.display());
                    told = true;
                }
                thread::sleep(Duration::from_millis(500));
            }
            None => bail!(
                "there is no network configuration in {}: install the cluster's network first, virt-meta only adds to it",
                options.cni_conf_dir.display()
            ),
        }
    };
    MetaPlugin::new(
        &options.cni_conf_dir,
        conf_dir,
        &cluster,
        kubelet_dir,
        &options.service_account,
        options.server.as_deref(),
        options.namespace_isolation,
    )
}

/// The node's files as they are seen from here.
struct Host {
    root: PathBuf,
}

impl Host {
    fn at(root: &Path) -> Host {
        Host { root: root.to_owned() }
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

#[cfg(test)]
mod tests;
