//! The worker of one pod: from admission to the end, one step after the other.
//!
//! Source: `syncPod`, `syncTerminatingPod` and `syncTerminatedPod` in `pkg/kubelet/kubelet.go`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::containers::Containers;
use super::events::{Level, Recorder};
use super::status::{self, Known};
use super::{environment, pod};
use crate::api::json::Json;
use crate::api::store::{Deletion, Part};
use crate::api::time::Timestamp;
use crate::api::{Api, Error};
use crate::chain;
use crate::kubelet::{AdmissionError, ContainerKind, Kubelet};
use crate::runtime::{self, Runtime, Started};

/// How long to wait before what failed is tried again: doubled each time. (The real kubelet begins with seconds.)
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often to ask a kubelet that is being restarted.
const RESTARTING: Duration = Duration::from_millis(100);

/// What every worker works with.
pub(super) struct Context {
    pub(super) api: Api,
    pub(super) kubelet: Kubelet,
    pub(super) runtime: Runtime,
    pub(super) events: Recorder,
    /// The node's address.
    pub(super) host: IpAddr,
    /// Where containers look for programs when their environment does not say.
    pub(super) path: Option<String>,
}

/// The pod as the API server has it, or had it last.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) pod: Arc<Value>,
    /// It was removed without waiting for us.
    pub(super) gone: bool,
}

impl Seen {
    fn must_go(&self) -> bool {
        self.gone || self.pod.is_terminating()
    }

    /// How long its containers have; the least time there is where nobody waits for them.
    fn grace(&self) -> Duration {
        if self.gone { Duration::from_secs(1) } else { pod::grace(&self.pod) }
    }
}

/// The pod is to go: what was being done is left.
struct Leave;

/// Works until the pod is gone from the API server.
pub(super) async fn work(context: Arc<Context>, seen: watch::Receiver<Seen>) {
    let pod = seen.borrow().pod.clone();
    let mut worker = Worker {
        known: Known {
            containers: Containers::of(&pod),
            since: Timestamp::now(),
            host: context.host,
            sandbox: None,
            ended: None,
            refused: None,
        },
        uid: pod.uid().to_owned(),
        pod,
        context,
        seen,
    };
    // Whether it ended by itself or has to go: what it has is taken back at once.
    let ended = worker.live().await;
    worker.stop().await;
    if ended.is_ok() {
        worker.left().await;
    }
    worker.finish().await;
}

struct Worker {
    context: Arc<Context>,
    /// As it was first seen: a pod's description does not change.
    pod: Arc<Value>,
    uid: String,
    seen: watch::Receiver<Seen>,
    known: Known,
}

impl Worker {
    /// Runs the pod until it ends by itself.
    async fn live(&mut self) -> Result<(), Leave> {
        match self.pod.text("/status/phase") {
            "Succeeded" | "Failed" => return Ok(()),
            _ if self.seen.borrow().must_go() => return Err(Leave),
            _ => self.publish().await,
        }
        if !self.admit().await? {
            self.publish().await;
            return Ok(());
        }
        self.make_sandbox().await?;
        self.publish().await;
        self.run().await
    }

    /// Gets the pod its devices; says whether it may run.
    async fn admit(&mut self) -> Result<bool, Leave> {
        loop {
            let requests = pod::device_requests(&self.pod);
            match self.context.kubelet.admit(pod::key(&self.pod), requests).await {
                Ok(_) => return Ok(true),
                Err(AdmissionError::Stopped) => self.pause(RESTARTING).await?,
                Err(error) => {
                    self.event(Level::Warning, error.reason(), error.to_string()).await;
                    // What it got before the refusal is free again.
                    self.context.kubelet.remove_pod(&self.uid).await;
                    self.known.refused = Some((error.reason(), error.to_string()));
                    return Ok(false);
                }
            }
        }
    }

    /// Provides volumes and network, again and again until that succeeds.
    async fn make_sandbox(&mut self) -> Result<(), Leave> {
        let mut pause = FIRST_PAUSE;
        loop {
            let volumes = pod::host_paths(&self.pod);
            let provided: Result<Vec<()>, String> = volumes.iter().map(pod::HostPath::provide).collect();
            match provided {
                Err(why) => self.event(Level::Warning, "FailedMount", why).await,
                Ok(_) => {
                    let pod = self.seen.borrow().pod.clone();
                    match self.context.runtime.create(pod::sandbox(&pod)).await {
                        Ok(sandbox) => {
                            for note in &sandbox.notes {
                                warn!(pod = %pod::key(&self.pod), note, "the pod goes without");
                            }
                            let ips = match sandbox.netns {
                                Some(_) => sandbox.ips,
                                None => vec![self.context.host],
                            };
                            self.known.sandbox = Some((sandbox.id, ips));
                            return Ok(());
                        }
                        Err(error) => {
                            let mut message = chain(&error);
                            if !message.starts_with("Failed to create pod sandbox") {
                                message = format!("Failed to create pod sandbox: {message}");
                            }
                            self.event(Level::Warning, "FailedCreatePodSandBox", message).await;
                        }
                    }
                }
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Starts containers as their turn comes, until the pod has ended.
    async fn run(&mut self) -> Result<(), Leave> {
        let mut statuses = self.context.runtime.statuses();
        loop {
            if self.seen.borrow().must_go() {
                return Err(Leave);
            }
            self.hear(&mut statuses);
            let now = Instant::now();
            let name = format!("{}_{}({})", self.pod.name(), self.pod.namespace(), self.uid);
            for container in self.known.containers.back_off(&name, now) {
                let message = format!("Back-off restarting failed container {container} in pod {name}");
                self.container_event(&container, Level::Warning, "BackOff", message).await;
            }
            let plan = self.known.containers.plan(now);
            if plan.ended.is_some() {
                self.known.ended = plan.ended;
                return Ok(());
            }
            for container in &plan.start {
                self.start(container).await?;
            }
            self.publish().await;
            if !plan.start.is_empty() {
                continue;
            }
            let look_again = async {
                match plan.look_again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = leaving(&mut self.seen) => return Err(Leave),
                changed = statuses.changed() => if changed.is_err() {
                    // The runtime has ended: so does everything else.
                    leaving(&mut self.seen).await;
                    return Err(Leave);
                },
                () = look_again => {}
            }
        }
    }

    /// Takes in what the runtime says of our containers.
    fn hear(&mut self, statuses: &mut watch::Receiver<runtime::ContainerStatuses>) {
        let statuses = statuses.borrow_and_update();
        let now = Instant::now();
        for container in &mut self.known.containers.all {
            if let Some(status) = statuses.get(&(self.uid.clone(), container.name.clone())) {
                container.hear(status, now);
            }
        }
    }

    /// Starts one container, or notes why not.
    async fn start(&mut self, name: &str) -> Result<(), Leave> {
        let given = loop {
            match self.context.kubelet.container_options(&self.uid, name).await {
                Ok(given) => break given,
                Err(AdmissionError::Stopped) => self.pause(RESTARTING).await?,
                Err(error) => {
                    self.not_started(name, "CreateContainerConfigError", error.to_string()).await;
                    return Ok(());
                }
            }
        };
        let (pod, container) = (self.pod.clone(), name.to_owned());
        let configured = self.context.api.run(move |store| {
            // With its status of now: the downward API tells the pod's addresses.
            let pod = store.core("pods", pod.namespace(), pod.name()).unwrap_or(pod);
            let mut all = pod.items("/spec/containers").iter().chain(pod.items("/spec/initContainers"));
            let Some(spec) = all.find(|one| one.text("/name") == container) else {
                return Ok(Err(format!("container {container} is gone")));
            };
            Ok(environment::configure(store, &pod, spec, &given.options.envs))
        });
        let mut config = match configured.await {
            Ok(Ok(config)) => config,
            Ok(Err(why)) => {
                self.not_started(name, "CreateContainerConfigError", why).await;
                return Ok(());
            }
            Err(error) => {
                self.not_started(name, "CreateContainerConfigError", error.to_string()).await;
                return Ok(());
            }
        };
        if let Some(path) = &self.context.path {
            config.env.entry("PATH".to_owned()).or_insert_with(|| path.clone());
        }
        let since = SystemTime::now();
        match self.context.runtime.start_container(&self.uid, config).await {
            Ok(Started { note, .. }) => {
                if let Some(container) = self.known.containers.find(name) {
                    container.started(since);
                }
                self.container_event(name, Level::Normal, "Created", format!("Created container: {name}"))
                    .await;
                if let Some(note) = note {
                    self.container_event(name, Level::Normal, "Idle", note).await;
                }
                self.container_event(name, Level::Normal, "Started", format!("Started container {name}"))
                    .await;
            }
            Err(error) => self.not_started(name, "RunContainerError", chain(&error)).await,
        }
        Ok(())
    }

    async fn not_started(&mut self, name: &str, reason: &'static str, why: String) {
        self.container_event(name, Level::Warning, "Failed", format!("Error: {why}")).await;
        if let Some(container) = self.known.containers.find(name) {
            container.not_started(reason, why, Instant::now());
        }
    }

    /// Ends the pod's processes and takes its network and devices back, again and again until that succeeds.
    async fn stop(&mut self) {
        let running: Vec<_> = self
            .known
            .containers
            .all
            .iter()
            .filter(|one| one.is_running())
            .map(|one| one.name.clone())
            .collect();
        for name in running {
            self.container_event(&name, Level::Normal, "Killing", format!("Stopping container {name}")).await;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            match self.stop_once().await {
                Ok(()) | Err(runtime::Error::UnknownPod(_)) => break,
                Err(runtime::Error::Stopped) => return,
                Err(error) => self.event(Level::Warning, "FailedKillPod", chain(&error)).await,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.known.sandbox = self.known.sandbox.take().filter(|_| self.known.ended.is_some());
        self.context.kubelet.remove_pod(&self.uid).await;
        self.publish().await;
    }

    /// Meanwhile the pod's status tells which containers have ended.
    async fn stop_once(&mut self) -> Result<(), runtime::Error> {
        let context = self.context.clone();
        let mut statuses = context.runtime.statuses();
        let uid = self.uid.clone();
        let mut seen = self.seen.clone();
        let mut grace = seen.borrow_and_update().grace();
        let mut stopping = std::pin::pin!(context.runtime.stop(&uid, grace));
        loop {
            tokio::select! {
                // The first call must be out before the second.
                biased;
                outcome = &mut stopping => return outcome,
                // Deleted once more, with less patience.
                Ok(()) = seen.changed() => {
                    let now = seen.borrow_and_update().grace();
                    if now < grace {
                        grace = now;
                        // The first call has the answer.
                        let _ = context.runtime.stop(&uid, grace).await;
                    }
                }
                Ok(()) = statuses.changed() => {
                    self.hear(&mut statuses);
                    self.publish().await;
                }
            }
        }
    }

    /// Nothing of the pod is left on the node: its object can go.
    async fn finish(&mut self) {
        self.context.runtime.remove_logs(&pod::sandbox(&self.pod)).await;
        let pod = self.pod.clone();
        let removed = self.context.api.run(move |store| {
            let kind = store.kind("", "v1", "pods")?;
            let deletion =
                Deletion { grace: Some(0), uid: Some(pod.uid().to_owned()), ..Deletion::default() };
            match store.delete(&kind, pod.namespace(), pod.name(), &deletion, Timestamp::now()) {
                // It was removed by force, and another one may have its name.
                Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
                other => other.map(drop),
            }
        });
        if let Err(error) = removed.await {
            warn!(pod = %pod::key(&self.pod), %error, "the pod's object stays");
        }
    }

    /// Writes the pod's status where it differs.
    async fn publish(&self) {
        let (pod, known) = (self.pod.clone(), self.known.clone());
        let written = self.context.api.run(move |store| {
            let kind = store.kind("", "v1", "pods")?;
            let now = store.get(&kind, pod.namespace(), pod.name())?;
            if now.uid() != pod.uid() {
                return Ok(());
            }
            let mut new = Value::clone(&now);
            status::write(&known, &mut new, Timestamp::now());
            store.update(&kind, pod.namespace(), pod.name(), Part::Status, new).map(drop)
        });
        match written.await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => warn!(pod = %pod::key(&self.pod), %error, "the pod's status is not up to date"),
        }
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), Leave> {
        tokio::select! {
            () = leaving(&mut self.seen) => Err(Leave),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    async fn left(&mut self) {
        leaving(&mut self.seen).await;
    }

    async fn event(&self, level: Level, reason: &'static str, message: String) {
        self.context.events.pod(&self.pod, level, reason, message).await;
    }

    async fn container_event(&self, name: &str, level: Level, reason: &'static str, message: String) {
        let mut all = self.known.containers.all.iter();
        let is_app = all.any(|one| one.name == name && one.kind == ContainerKind::App);
        let list = if is_app { "containers" } else { "initContainers" };
        self.context.events.container(&self.pod, (list, name), level, reason, message).await;
    }
}

/// Returns when the pod is to go.
async fn leaving(seen: &mut watch::Receiver<Seen>) {
    // An error means that the node ends, and this task with it.
    if seen.wait_for(Seen::must_go).await.is_err() {
        std::future::pending().await
    }
}
