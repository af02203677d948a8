//! The node: API server, scheduler, kubelet and container runtime as one.
//!
//! Everything here is a task around the API server's store, as the real components are around theirs: the scheduler binds
//! pods, one worker for each pod brings it to life and to its end, the Node object follows what the kubelet offers.
//! Decisions are pure functions: `placement`, `containers`, `status`, `environment`.
//!
//! Nothing of the API survives the process. What a killed node left on the machine, its next start undoes, before it
//! serves anything.

mod containers;
mod daemonsets;
mod environment;
mod events;
mod exec;
mod folder;
mod machine;
mod object;
mod placement;
mod pod;
mod pods;
mod requests;
mod scheduler;
mod shutdown;
mod status;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use self::events::Recorder;
use self::machine::Machine;
use self::worker::Context;
use crate::api::json::Json;
use crate::api::{self, Api};
use crate::control::{self, Exec, Handler, Logs, Output, Status, Streams};
use crate::kubelet::{self, Kubelet};
use crate::options::Options;
use crate::runtime::{self, Runtime};

/// Runs a node until it is asked to shut down over the control socket, or gets SIGTERM or SIGINT; then ends all that it
/// made. `log` is where this process's log goes, empty in the foreground. `ready` is called once everything is served.
///
/// The program that calls this must call [`crate::runtime::init::run_if_asked`] first in its `main`.
///
/// # Errors
/// Another node runs in the same folder, something cannot be started, or not everything could be undone at the end.
pub async fn run(options: Options, log: PathBuf, ready: impl FnOnce(&Status) + Send) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be waited for")?;
    let program = std::env::current_exe().context("this program's file cannot be found")?;
    let mut node = Node::start(options, program, log).await?;
    ready(&node.status().await);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // Whoever asked has the answer by now.
        served = &mut node.control => {
            served.context("the control socket's task failed")?.context("the control socket failed")?;
        }
    }
    node.shutdown().await
}

/// A running node. It must be shut down: see [`Node::shutdown`].
pub struct Node {
    parts: Arc<Parts>,
    control: JoinHandle<std::io::Result<()>>,
    /// Given up last.
    _folder: folder::Folder,
}

/// What the node consists of.
struct Parts {
    options: Options,
    log: PathBuf,
    server: SocketAddr,
    api: Api,
    kubelet: Kubelet,
    runtime: Runtime,
    /// Those that give pods to the node.
    givers: Tasks,
    /// Those that serve pods and clients.
    servers: Tasks,
    shutdown: tokio::sync::OnceCell<Result<(), String>>,
}

/// Tasks that are stopped together.
#[derive(Default)]
struct Tasks {
    stop: CancellationToken,
    all: TaskTracker,
}

impl Tasks {
    async fn end(&self) {
        self.stop.cancel();
        self.all.close();
        self.all.wait().await;
    }
}

impl Node {
    /// Starts a node. `program` is one whose `main` calls [`crate::runtime::init::run_if_asked`] first: the pods' own
    /// processes are made from it. `log` is only told to those who ask.
    ///
    /// # Errors
    /// Another node runs in the same folder, or something cannot be started.
    pub async fn start(options: Options, program: PathBuf, log: PathBuf) -> Result<Node> {
        let folder = folder::Folder::take(&options)?;
        let listener = TcpListener::bind(options.listen);
        let listener =
            listener.await.with_context(|| format!("the API server cannot listen on {}", options.listen))?;
        let server = listener.local_addr().context("the API server has no address")?;
        let control_socket = options.control_socket();
        let control = UnixListener::bind(&control_socket)
            .with_context(|| format!("cannot serve {}", control_socket.display()))?;

        // Pods of a killed node end before its devices are given to others.
        let runtime =
            Runtime::start(runtime_options(&options, program)).await.context("the runtime does not start")?;
        let of_kubelet = kubelet::Options { align_numa: options.align_numa, ..kubelet::Options::default() };
        let kubelet = Kubelet::start(options.kubelet(), of_kubelet).await;
        let kubelet = kubelet.context("the kubelet does not start")?;
        kubelet.retain_pods(&std::collections::BTreeSet::new()).await;

        let (api, _store) = Api::start();
        let machine = Machine::look();
        let name = options.node_name.clone();
        object::register(&api, &name, &machine).await.context("the Node object cannot be made")?;
        let context = Arc::new(Context {
            api: api.clone(),
            kubelet: kubelet.clone(),
            runtime: runtime.clone(),
            events: Recorder::new(api.clone(), "kubelet", name.clone()),
            host: machine.address,
            path: std::env::var("PATH").ok(),
        });

        let (givers, servers) = (Tasks::default(), Tasks::default());
        let recorder = Recorder::new(api.clone(), "default-scheduler", "");
        givers.all.spawn(scheduler::run(api.clone(), recorder, givers.stop.clone()));
        givers.all.spawn(daemonsets::run(api.clone(), name.clone(), givers.stop.clone()));
        let stop = || servers.stop.clone();
        servers.all.spawn(object::keep_up_to_date(api.clone(), name.clone(), kubelet.clone(), stop()));
        servers.all.spawn(pods::run(context, name, stop()));
        let logs = Arc::new(LogFiles(runtime.clone()));
        let serving = api::rest::serve(listener, api.clone(), logs, stop());
        servers.all.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the API server failed");
            }
        });
        folder::write_kubeconfig(&options, server)?;
        let shutdown = tokio::sync::OnceCell::new();
        let parts =
            Arc::new(Parts { options, log, server, api, kubelet, runtime, givers, servers, shutdown });
        let control = tokio::spawn(control::serve(control, parts.clone()));
        info!(server = %parts.server, node = parts.options.node_name, "node is ready");
        Ok(Node { parts, control, _folder: folder })
    }

    /// The way to the node's objects from within the process; others use HTTP.
    #[must_use]
    pub fn api(&self) -> Api {
        self.parts.api.clone()
    }

    /// Its kubelet.
    #[must_use]
    pub fn kubelet(&self) -> Kubelet {
        self.parts.kubelet.clone()
    }

    /// How it is.
    pub async fn status(&self) -> Status {
        self.parts.status().await
    }

    /// Ends all pods and all that the node made: pods with devices first, then those on the node's network, which may be
    /// the devices' plugins.
    ///
    /// # Errors
    /// Some pod's network could not be taken back. The next start in the same folder tries again.
    pub async fn shutdown(self) -> Result<()> {
        let outcome = self.parts.end().await;
        if !self.control.is_finished() {
            self.control.abort();
            // What is aborted ends with an error, and that is what is waited for.
            let _ = self.control.await;
        }
        outcome
    }
}

fn runtime_options(options: &Options, program: PathBuf) -> runtime::Options {
    runtime::Options {
        netns_dir: options.netns_dir.clone(),
        cni_conf_dir: options.cni_conf_dir.clone(),
        cni_bin_dirs: vec![options.cni_bin_dir.clone()],
        cni_cache_dir: options.cni_cache_dir.join("results"),
        ..runtime::Options::new(options.dir.join("runtime"), program)
    }
}

/// Where logs are: the API server asks.
struct LogFiles(Runtime);

impl api::rest::Logs for LogFiles {
    fn of(&self, pod: &Value, container: &str) -> PathBuf {
        self.0.log(&pod::sandbox(pod), container)
    }
}

impl Parts {
    async fn pods(&self) -> Vec<Arc<Value>> {
        let name = self.options.node_name.clone();
        self.api.run(move |store| pods::on_node(store, &name)).await.unwrap_or_default()
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Value>> {
        let (space, of) = (namespace.to_owned(), name.to_owned());
        let pod = self.api.run(move |store| {
            let kind = store.kind("", "v1", "pods")?;
            store.get(&kind, &space, &of)
        });
        Ok(pod.await?)
    }
}

impl Handler for Parts {
    async fn status(&self) -> Status {
        Status {
            ready: true,
            pid: std::process::id(),
            node_name: self.options.node_name.clone(),
            server: format!("http://{}", self.server),
            kubeconfig: self.options.kubeconfig(),
            kubelet_dir: self.options.kubelet_dir.clone(),
            kubelet_running: self.kubelet.is_running(),
            cni_conf_dir: self.options.cni_conf_dir.clone(),
            log: self.log.clone(),
            pods: self.pods().await.len(),
        }
    }

    async fn exec(&self, exec: Exec, streams: Streams) -> Result<i32> {
        let pod = self.pod(&exec.namespace, &exec.pod).await?;
        exec::run(&self.runtime, &pod, exec, streams).await
    }

    async fn logs(&self, logs: Logs, output: Output) -> Result<()> {
        let pod = self.pod(&logs.namespace, &logs.pod).await?;
        let files = LogFiles(self.runtime.clone());
        let file = api::log::file(&pod, logs.container.as_deref().unwrap_or_default(), &files)?;
        let tail = logs.tail.map(|lines| u64::try_from(lines).unwrap_or(u64::MAX));
        let manner = api::log::Manner { follow: logs.follow, tail };
        let (chunks, mut out) = tokio::sync::mpsc::channel(16);
        let stop = self.servers.stop.clone();
        let reading = api::log::stream(self.api.clone(), pod, file, manner, chunks, stop);
        let writing = async {
            while let Some(chunk) = out.recv().await {
                output.stdout(&chunk).await?;
            }
            Ok(())
        };
        let ((), written): ((), Result<()>) = tokio::join!(reading, writing);
        written
    }

    async fn restart_kubelet(&self) -> Result<()> {
        self.kubelet.restart().await?;
        // Pods that went meanwhile could not give their devices back.
        let uids = self.pods().await.iter().map(|pod| pod.uid().to_owned()).collect();
        self.kubelet.retain_pods(&uids).await;
        Ok(())
    }

    async fn shutdown(&self) -> Result<()> {
        self.end().await
    }
}
