//! The thread that all pods live on, and the way to them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::pod::{Command, Pod};
use super::record;
use super::types::{
    ContainerConfig, ContainerStatuses, Error, Exec, Options, Running, Sandbox, SandboxConfig, Started,
};

/// A container runtime. Clones speak to the same one. It runs until [`Runtime::shutdown`]; when the last clone is gone,
/// or the process, its pods' processes end and their networks stay until the next start.
#[derive(Clone)]
pub struct Runtime {
    options: Arc<Options>,
    orders: mpsc::Sender<Order>,
    statuses: watch::Receiver<ContainerStatuses>,
}

enum Order {
    Create(Box<SandboxConfig>, oneshot::Sender<Result<Sandbox, Error>>),
    /// For the pod of this UID.
    Pod(String, Command),
    Shutdown(oneshot::Sender<()>),
}

impl Runtime {
    /// Starts the runtime, and undoes what pods of an earlier process left.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub async fn start(options: Options) -> Result<Runtime, Error> {
        let options = Arc::new(options);
        let (orders, inbox) = mpsc::channel(64);
        let (statuses, statuses_out) = watch::channel(ContainerStatuses::new());
        let (ready, started) = oneshot::channel();
        let failed =
            |source| Error::Process { step: "start", what: "the runtime's thread".to_owned(), source };
        let for_thread = options.clone();
        std::thread::Builder::new()
            .name("runtime".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(async {
                        record::undo_all(&for_thread);
                        // Whoever started us may have gone.
                        let _ = ready.send(Ok(()));
                        direct(for_thread, statuses, inbox).await;
                    }),
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(failed)?;
        started.await.map_err(|_| Error::Stopped)?.map_err(failed)?;
        Ok(Runtime { options, orders, statuses: statuses_out })
    }

    /// Makes a pod's sandbox: network namespace, CNI ADD, first process. What fails is undone.
    ///
    /// # Errors
    /// See [`Error`]; those of the network have the kubelet's words.
    pub async fn create(&self, config: SandboxConfig) -> Result<Sandbox, Error> {
        self.ask(|reply| Order::Create(Box::new(config), reply)).await
    }

    /// Starts a container of a pod. A container of that name that has ended is started anew.
    ///
    /// # Errors
    /// The pod is not known, or the process cannot be started.
    pub async fn start_container(&self, uid: &str, config: ContainerConfig) -> Result<Started, Error> {
        self.ask(|reply| Order::Pod(uid.to_owned(), Command::Start(config, reply))).await
    }

    /// Runs a command in a running container, with its environment and pipes to its three streams.
    ///
    /// # Errors
    /// The pod is not known, or the container does not run. A command that cannot be run says so on its standard error
    /// and has exit code 127.
    pub async fn exec(&self, uid: &str, container: &str, argv: Vec<String>) -> Result<Exec, Error> {
        let container = container.to_owned();
        self.ask(|reply| Order::Pod(uid.to_owned(), Command::Exec { container, argv, reply })).await
    }

    /// Runs a command in a running container on a terminal, the lower end of a pair.
    ///
    /// # Errors
    /// As [`Runtime::exec`].
    pub async fn exec_on_terminal(
        &self,
        uid: &str,
        container: &str,
        argv: Vec<String>,
        terminal: OwnedFd,
    ) -> Result<Running, Error> {
        let container = container.to_owned();
        let order = |reply| Command::ExecOnTerminal { container, argv, terminal, reply };
        self.ask(|reply| Order::Pod(uid.to_owned(), order(reply))).await
    }

    /// Ends a pod that [`Runtime::create`] has returned: SIGTERM, SIGKILL after `grace`, CNI DEL, network namespace.
    /// Its logs stay, see [`Runtime::remove_logs`].
    ///
    /// # Errors
    /// When CNI DEL fails, the pod's processes are gone and its network stays; it can be tried again. While it is being
    /// stopped, another call shortens the grace, and fails with [`Error::Stopping`].
    pub async fn stop(&self, uid: &str, grace: Duration) -> Result<(), Error> {
        self.ask(|reply| Order::Pod(uid.to_owned(), Command::Stop { grace, reply })).await
    }

    /// What became of each container, now and whenever it changes.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<ContainerStatuses> {
        self.statuses.clone()
    }

    /// Where a container's output is.
    #[must_use]
    pub fn log(&self, config: &SandboxConfig, container: &str) -> std::path::PathBuf {
        record::log_folder(&self.options, config).join(format!("{container}.log"))
    }

    /// Removes the logs of a pod that is gone.
    pub async fn remove_logs(&self, config: &SandboxConfig) {
        // Logs are for people, and a folder that stays hurts nobody.
        let _ = tokio::fs::remove_dir_all(record::log_folder(&self.options, config)).await;
    }

    /// Ends all pods at once, without grace, and then the runtime.
    pub async fn shutdown(&self) {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(Order::Shutdown(reply)).await.is_ok() {
            // An error means that it has ended already.
            let _ = answer.await;
        }
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Order,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

/// A pod as the others see it.
enum Entry {
    /// Its network is being made.
    Coming,
    There(mpsc::UnboundedSender<Command>),
}

/// Hands orders to the pods they are for.
async fn direct(
    options: Arc<Options>,
    statuses: watch::Sender<ContainerStatuses>,
    mut orders: mpsc::Receiver<Order>,
) {
    let mut pods: BTreeMap<String, Entry> = BTreeMap::new();
    let (arrived, mut arrivals) = mpsc::channel::<(String, Option<Pod>)>(16);
    let mut tasks: JoinSet<String> = JoinSet::new();
    let mut shutdown = None;
    loop {
        tokio::select! {
            // Pods that have come are known before the next order is looked at: it may be for one of them.
            biased;
            Some((uid, pod)) = arrivals.recv() => {
                match pod {
                    Some(pod) => pods.insert(uid.clone(), Entry::There(spawn(&mut tasks, uid, pod))),
                    None => pods.remove(&uid),
                };
            }
            order = orders.recv() => match order {
                Some(Order::Create(config, reply)) => {
                    let uid = config.pod.uid.clone();
                    if pods.contains_key(&uid) {
                        // Whoever asked may have gone, here and below.
                        let _ = reply.send(Err(Error::Exists(uid)));
                        continue;
                    }
                    pods.insert(uid.clone(), Entry::Coming);
                    let (options, statuses, arrived) = (options.clone(), statuses.clone(), arrived.clone());
                    tokio::spawn(async move {
                        let (pod, outcome) = match Pod::create(options, statuses, *config).await {
                            Ok((pod, sandbox)) => (Some(pod), Ok(sandbox)),
                            Err(error) => (None, Err(error)),
                        };
                        // The pod is known before whoever asked for it hears of it.
                        let _ = arrived.send((uid, pod)).await;
                        let _ = reply.send(outcome);
                    });
                }
                Some(Order::Pod(uid, command)) => match pods.get(&uid) {
                    Some(Entry::There(pod)) => {
                        if let Err(mpsc::error::SendError(command)) = pod.send(command) {
                            command.refuse(&uid);
                        }
                    }
                    Some(Entry::Coming) | None => command.refuse(&uid),
                },
                Some(Order::Shutdown(reply)) => {
                    shutdown = Some(reply);
                    break;
                }
                None => break,
            },
            Some(ended) = tasks.join_next() => {
                if let Ok(uid) = ended {
                    pods.remove(&uid);
                }
            }
        }
    }
    orders.close();
    let Some(reply) = shutdown else { return };
    while pods.values().any(|pod| matches!(pod, Entry::Coming)) {
        let Some((uid, pod)) = arrivals.recv().await else { break };
        match pod {
            Some(pod) => pods.insert(uid.clone(), Entry::There(spawn(&mut tasks, uid, pod))),
            None => pods.remove(&uid),
        };
    }
    let mut stops = JoinSet::new();
    for (uid, entry) in pods {
        let Entry::There(pod) = entry else { continue };
        stops.spawn(async move {
            let (reply, answer) = oneshot::channel();
            // A pod that just ended needs no stop.
            let _ = pod.send(Command::Stop { grace: Duration::ZERO, reply });
            if let Ok(Err(error)) = answer.await {
                warn!(uid, error = crate::chain(&error), "something of the pod stays until the next start");
            }
        });
    }
    stops.join_all().await;
    let _ = reply.send(());
}

fn spawn(tasks: &mut JoinSet<String>, uid: String, pod: Pod) -> mpsc::UnboundedSender<Command> {
    let (commands, inbox) = mpsc::unbounded_channel();
    tasks.spawn(async move {
        pod.run(inbox).await;
        uid
    });
    commands
}
