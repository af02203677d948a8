//! A kubelet that can be stopped and started again within the process.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kubelet_api::deviceplugin::registration_server::RegistrationServer;
use kubelet_api::podresources::pod_resources_lister_server::PodResourcesListerServer;
use kubelet_api::tonic::service::Routes;
use kubelet_api::{KubeletDir, ServeError, bind, serve};
use nic::ResourceName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::admission::{Applicant, admit_in_order, container_options};
use super::checkpoint::Data;
use super::devices::Devices;
use super::owner::{Owner, State, answer_of, own};
use super::plugin::Reception;
use super::pod_resources::{PodResourcesService, RateLimit};
use super::registration::RegistrationService;
use super::types::{
    AdmissionError, Capacities, ContainerAllocation, ContainerRequest, Options, Pod, PodKey, Pods,
};
use super::watcher;
use crate::chain;

/// Why the kubelet does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder cannot be made or read.
    #[error("cannot {step} {}", path.display())]
    Folder {
        /// What was tried.
        step: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A socket cannot be served.
    #[error("cannot serve the kubelet's sockets")]
    Serve(#[source] ServeError),
    /// The folder for plugins cannot be watched.
    #[error("cannot watch {}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It was stopped for good.
    #[error("the kubelet was stopped")]
    Stopped,
}

/// A simulated kubelet. Clones speak to the same one; it runs until [`Kubelet::stop`], or until the last clone is gone.
#[derive(Clone)]
pub struct Kubelet {
    commands: mpsc::Sender<Command>,
    session: watch::Receiver<Option<Handle>>,
    capacities: watch::Receiver<Capacities>,
    pods: watch::Sender<Pods>,
}

enum Command {
    Restart(oneshot::Sender<Result<(), StartError>>),
    Stop(oneshot::Sender<()>),
}

/// The way into a running session.
#[derive(Clone)]
struct Handle {
    owner: Owner,
    applicants: mpsc::Sender<Applicant>,
}

impl Kubelet {
    /// Starts a kubelet on this folder: removes the sockets that an earlier one left, serves its own, and reads the
    /// checkpoint.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(dir: KubeletDir, options: Options) -> Result<Kubelet, StartError> {
        let (commands, inbox) = mpsc::channel(8);
        let (capacities, capacities_out) = watch::channel(Capacities::new());
        let (pods, pods_in) = watch::channel(Pods::new());
        let (session, session_out) = watch::channel(None);
        let recipe = Recipe { dir, options, capacities, pods: pods_in };
        let first = recipe.start(&session)?;
        tokio::spawn(supervise(recipe, first, inbox, session));
        Ok(Kubelet { commands, session: session_out, capacities: capacities_out, pods })
    }

    /// The node's extended resources, now and whenever they change.
    #[must_use]
    pub fn capacity(&self) -> watch::Receiver<Capacities> {
        self.capacities.clone()
    }

    /// Gives a pod its devices, or says why it must fail. Containers come in the pod's order, init containers first.
    ///
    /// A pod that already has its devices, from the checkpoint or because it asks again, keeps them: Allocate is not
    /// called once more. A pod that is refused keeps what it got until [`Kubelet::remove_pod`].
    ///
    /// # Errors
    /// See [`AdmissionError`].
    pub async fn admit(
        &self,
        pod: PodKey,
        containers: Vec<ContainerRequest>,
    ) -> Result<Vec<ContainerAllocation>, AdmissionError> {
        let entry = Pod {
            key: pod.clone(),
            containers: containers.iter().map(|container| (container.name.clone(), container.kind)).collect(),
        };
        let uid = pod.uid.clone();
        self.pods.send_modify(|pods| drop(pods.insert(uid.clone(), entry)));
        let outcome = self.apply(pod, containers).await;
        if matches!(outcome, Err(AdmissionError::Unexpected(_))) {
            self.pods.send_modify(|pods| drop(pods.remove(&uid)));
        }
        outcome
    }

    async fn apply(
        &self,
        pod: PodKey,
        containers: Vec<ContainerRequest>,
    ) -> Result<Vec<ContainerAllocation>, AdmissionError> {
        let (reply, answer) = oneshot::channel();
        let handle = self.handle()?;
        let applicant = Applicant { pod, containers, reply };
        handle.applicants.send(applicant).await.map_err(|_| AdmissionError::Stopped)?;
        answer_of(&handle.applicants, answer).await.ok_or(AdmissionError::Stopped)?
    }

    /// What a container is given, to be asked before each of its starts: PreStartContainer is called where the plugin
    /// wants it.
    ///
    /// # Errors
    /// [`AdmissionError::Unexpected`] when PreStartContainer fails; the container cannot be started now.
    pub async fn container_options(
        &self,
        uid: &str,
        container: &str,
    ) -> Result<ContainerAllocation, AdmissionError> {
        container_options(&self.handle()?.owner, uid.to_owned(), container.to_owned()).await
    }

    /// The pod is gone: its devices are free. A pod that is not known is no error.
    pub async fn remove_pod(&self, uid: &str) {
        self.pods.send_modify(|pods| drop(pods.remove(uid)));
        let Ok(handle) = self.handle() else { return };
        let uid = uid.to_owned();
        let removal = handle.owner.ask(move |state| {
            if state.devices.remove_pod(&uid) {
                state.changed();
            }
        });
        // A kubelet that stops leaves the entry in its checkpoint, as the real one does.
        let _ = removal.await;
    }

    /// Frees the devices of all pods but these: to be called after a start with what the API server knows.
    pub async fn retain_pods(&self, uids: &std::collections::BTreeSet<String>) {
        let Ok(handle) = self.handle() else { return };
        let known = handle.owner.ask(|state| state.devices.pods()).await.unwrap_or_default();
        for uid in known.difference(uids) {
            self.remove_pod(uid).await;
        }
    }

    /// Closes the connection to the plugin of a resource, as the kubelet does after an error of its own: the plugin's devices are
    /// unhealthy until it registers anew. A resource without plugin is no error.
    pub async fn disconnect(&self, resource: &ResourceName) {
        let Ok(handle) = self.handle() else { return };
        let resource = resource.clone();
        // A kubelet that stops closes all of them.
        let _ = handle.owner.ask(move |state| state.disconnect(&resource, Instant::now())).await;
    }

    /// Stops and starts again, as when the kubelet's process is restarted: connections break, sockets are removed,
    /// plugins must register anew; pods stay and keep their devices.
    ///
    /// # Errors
    /// Why it does not start again; it can be tried once more.
    pub async fn restart(&self) -> Result<(), StartError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Restart(reply)).await.map_err(|_| StartError::Stopped)?;
        answer.await.map_err(|_| StartError::Stopped)?
    }

    /// Stops for good and removes its own two sockets. The checkpoint stays.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).await.is_ok() {
            // An error means that it stopped already.
            let _ = answer.await;
        }
    }

    /// Whether it serves its sockets.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.session.borrow().is_some()
    }

    fn handle(&self) -> Result<Handle, AdmissionError> {
        self.session.borrow().clone().ok_or(AdmissionError::Stopped)
    }
}

/// What each session is made from.
struct Recipe {
    dir: KubeletDir,
    options: Options,
    capacities: watch::Sender<Capacities>,
    pods: watch::Receiver<Pods>,
}

/// A kubelet's life between start and stop.
struct Session {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Session {
    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn supervise(
    recipe: Recipe,
    first: Session,
    mut commands: mpsc::Receiver<Command>,
    session: watch::Sender<Option<Handle>>,
) {
    let mut running = Some(first);
    let mut stopped = None;
    while let Some(command) = commands.recv().await {
        match command {
            Command::Restart(reply) => {
                end(&mut running, &session).await;
                let outcome = recipe.start(&session).map(|new| running = Some(new));
                if let Err(error) = &outcome {
                    error!(error = chain(error), "the kubelet does not start again");
                }
                // Whoever asked may have gone.
                let _ = reply.send(outcome);
            }
            Command::Stop(reply) => {
                stopped = Some(reply);
                break;
            }
        }
    }
    end(&mut running, &session).await;
    for socket in [recipe.dir.registration_socket(), recipe.dir.pod_resources_socket()] {
        // It may never have been made.
        let _ = std::fs::remove_file(socket);
    }
    if let Some(reply) = stopped {
        // Whoever asked may have gone.
        let _ = reply.send(());
    }
}

async fn end(running: &mut Option<Session>, session: &watch::Sender<Option<Handle>>) {
    session.send_replace(None);
    if let Some(session) = running.take() {
        session.end().await;
        info!("kubelet stopped");
    }
}

impl Recipe {
    fn start(&self, session: &watch::Sender<Option<Handle>>) -> Result<Session, StartError> {
        let dir = &self.dir;
        let pod_resources = dir.pod_resources_socket();
        for folder in [dir.device_plugins(), dir.plugins_registry()] {
            make_folder(&folder)?;
        }
        if let Some(folder) = pod_resources.parent() {
            make_folder(folder)?;
        }
        remove_sockets(&dir.device_plugins())?;
        remove_file(&pod_resources)?;

        let mut devices = Devices::new(self.options.grace_period, self.options.align_numa);
        match Data::read(&dir.checkpoint()) {
            Ok(data) => devices.restore(data, Instant::now()),
            // The real one goes on, too.
            Err(error) => warn!(error = chain(&error), "starting without the checkpoint"),
        }
        let state = State::new(devices, self.options.old_stream_ends_new);

        let (owner, jobs) = Owner::channel();
        let (applicants, queue) = mpsc::channel(64);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let reception = Reception {
            owner: owner.clone(),
            dial_timeout: self.options.dial_timeout,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let registry = watcher::Watcher::open(dir.plugins_registry())
            .map_err(|source| StartError::Watch { path: dir.plugins_registry(), source })?;
        let registration = RegistrationService { reception: reception.clone(), folder: dir.device_plugins() };
        let resources = PodResourcesService {
            owner: owner.clone(),
            pods: self.pods.clone(),
            get_enabled: self.options.pod_resources_get,
            limit: Mutex::new(RateLimit::new(std::time::Instant::now())),
        };
        let servers = [
            (pod_resources, Routes::new(PodResourcesListerServer::new(resources))),
            (dir.registration_socket(), Routes::new(RegistrationServer::new(registration))),
        ];

        let mut listeners = Vec::new();
        for (socket, routes) in servers {
            listeners.push((bind(&socket).map_err(StartError::Serve)?, routes));
        }
        for (listener, routes) in listeners {
            let stop = stop.clone();
            tasks.spawn(async move {
                if let Err(error) = serve(listener, routes, stop.cancelled_owned()).await {
                    error!(error = chain(&error), "a socket of the kubelet is not served any more");
                }
            });
        }
        tasks.spawn(own(state, jobs, self.capacities.clone(), dir.checkpoint(), stop.clone()));
        tasks.spawn(admit_in_order(owner.clone(), queue, stop.clone()));
        tasks.spawn(registry.run(reception, stop.clone()));
        session.send_replace(Some(Handle { owner, applicants }));
        info!(root = %dir.root().display(), "kubelet started");
        Ok(Session { tasks, stop })
    }
}

fn make_folder(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|source| StartError::Folder { step: "make", path: path.to_owned(), source })
}

/// Removes every unix socket of the folder, whoever's it is, and every link that leads to one.
fn remove_sockets(folder: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Folder { step: "read", path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), StartError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StartError::Folder { step: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
