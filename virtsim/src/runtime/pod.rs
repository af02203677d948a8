//! The task of one pod: its namespaces, its containers, its end.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linux::Netns;
use rustix::process::Signal;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::init::{NOT_RUN, Role, Shape, code};
use super::network::{PodNetwork, addresses};
use super::process::{Handle, Holder, Output, enter};
use super::record::{Record, log_folder};
use super::types::{
    ContainerConfig, ContainerStatus, ContainerStatuses, Error, Exec, Options, Running, Sandbox,
    SandboxConfig, Started,
};

/// What containers search when their environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a pod can be asked.
pub(super) enum Command {
    Start(ContainerConfig, oneshot::Sender<Result<Started, Error>>),
    Exec {
        container: String,
        argv: Vec<String>,
        reply: oneshot::Sender<Result<Exec, Error>>,
    },
    ExecOnTerminal {
        container: String,
        argv: Vec<String>,
        terminal: OwnedFd,
        reply: oneshot::Sender<Result<Running, Error>>,
    },
    /// The pod's task ends when this succeeds.
    Stop {
        grace: Duration,
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

impl Command {
    /// Answers that there is no such pod.
    pub(super) fn refuse(self, uid: &str) {
        let error = Error::UnknownPod(uid.to_owned());
        match self {
            Command::Start(_, reply) => answer(reply, Err(error)),
            Command::Exec { reply, .. } => answer(reply, Err(error)),
            Command::ExecOnTerminal { reply, .. } => answer(reply, Err(error)),
            Command::Stop { reply, .. } => answer(reply, Err(error)),
        }
    }
}

/// A command's three streams.
struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

pub(super) struct Pod {
    options: Arc<Options>,
    statuses: watch::Sender<ContainerStatuses>,
    record: Record,
    holder: Option<Holder>,
    containers: BTreeMap<String, Container>,
    exits: JoinSet<(String, ExitStatus)>,
}

struct Container {
    /// The helper; gone when the container has ended.
    helper: Option<Handle>,
    env: BTreeMap<String, String>,
    working_dir: PathBuf,
    since: SystemTime,
}

impl Pod {
    /// Makes the network namespace, attaches it, and starts the pod's first process. What fails is undone.
    pub(super) async fn create(
        options: Arc<Options>,
        statuses: watch::Sender<ContainerStatuses>,
        config: SandboxConfig,
    ) -> Result<(Pod, Sandbox), Error> {
        let id = random(2)?;
        let netns = match config.host_network {
            true => None,
            false => Some(options.netns_dir.join(format!("cni-{}", random(1)?))),
        };
        let record = Record { id, netns, config };
        record.write(&options)?;
        match Self::build(&options, &record).await {
            Ok((holder, sandbox)) => {
                info!(pod = %record.config.pod, sandbox = sandbox.id, ips = ?sandbox.ips, "pod has its sandbox");
                let (containers, exits) = (BTreeMap::new(), JoinSet::new());
                Ok((Pod { options, statuses, record, holder: Some(holder), containers, exits }, sandbox))
            }
            Err(error) => {
                if let Err(error) = undo(&options, &record).await {
                    warn!(pod = %record.config.pod, error = crate::chain(&error), "something of the failed pod stays");
                }
                Err(error)
            }
        }
    }

    async fn build(options: &Arc<Options>, record: &Record) -> Result<(Holder, Sandbox), Error> {
        let Record { id, netns, config } = record;
        let mut sandbox = Sandbox {
            id: id.clone(),
            netns: netns.clone(),
            ips: Vec::new(),
            result: None,
            pid: 0,
            notes: Vec::new(),
        };
        if let Some(path) = netns {
            let (options, record, path) = (options.clone(), record.clone(), path.clone());
            let result = blocking(move || set_up_network(&options, &record, &path)).await??;
            sandbox.ips = addresses(&result);
            sandbox.result = Some(result);
        }
        let shape =
            Shape { netns: netns.clone(), hostname: (!config.host_network).then(|| config.hostname.clone()) };
        let holder = Holder::start(&options.program, shape).await?;
        sandbox.pid = holder.first.pid;
        sandbox.notes.clone_from(&holder.notes);
        Ok((holder, sandbox))
    }

    /// Serves the pod until it is stopped.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Start(config, reply)) => answer(reply, self.start(config)),
                    Some(Command::Exec { container, argv, reply }) => answer(reply, self.exec(&container, argv)),
                    Some(Command::ExecOnTerminal { container, argv, terminal, reply }) => {
                        let running = self.run_in(&container, argv, Output::Terminal(terminal));
                        answer(reply, running.map(|(_, running)| running));
                    }
                    Some(Command::Stop { grace, reply }) => {
                        let outcome = self.stop(grace, &mut commands).await;
                        let stopped = outcome.is_ok();
                        answer(reply, outcome);
                        if stopped {
                            break;
                        }
                    }
                    None => return,
                },
                Some(exit) = self.exits.join_next() => self.exited(exit),
            }
        }
        commands.close();
        while let Some(command) = commands.recv().await {
            command.refuse(&self.record.config.pod.uid);
        }
    }

    fn start(&mut self, config: ContainerConfig) -> Result<Started, Error> {
        let ContainerConfig { name, argv, mut env, working_dir } = config;
        let uid = self.record.config.pod.uid.clone();
        let Some(holder) = &self.holder else { return Err(Error::UnknownPod(uid)) };
        env.entry("PATH".to_owned()).or_insert_with(|| PATH.to_owned());
        env.entry("HOME".to_owned()).or_insert_with(|| "/root".to_owned());
        env.entry("HOSTNAME".to_owned()).or_insert_with(|| self.record.config.hostname.clone());
        let working_dir = working_dir.unwrap_or_else(|| "/".into());

        let note = stand_in(&argv, env.get("PATH").map_or(PATH, String::as_str));
        let folder = log_folder(&self.options, &self.record.config);
        let log = folder.join(format!("{name}.log"));
        let failed = |source| Error::File { step: "open", path: log.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let mut file = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
        let argv = match &note {
            Some(note) => {
                use std::io::Write;
                writeln!(file, "virtsim: {note}").map_err(failed)?;
                Vec::new()
            }
            None => argv,
        };
        let role = Role::Enter {
            first: holder.first.pid,
            argv,
            env: env.clone(),
            working_dir: working_dir.clone(),
            on_terminal: false,
        };
        let failed = |source| Error::Process { step: "start", what: format!("container {name:?}"), source };
        let mut child = enter(&self.options.program, &role, Output::Log(file)).map_err(failed)?;
        let helper = child.id().map(Handle::open).transpose().map_err(failed)?;
        let since = SystemTime::now();
        let exited = name.clone();
        self.exits.spawn(async move {
            // It is our child, and nobody else waits for it.
            (exited, child.wait().await.unwrap_or_default())
        });
        self.report(&name, ContainerStatus::Running { since });
        info!(pod = %self.record.config.pod, container = name, note = note.as_deref(), "container started");
        self.containers.insert(name, Container { helper, env, working_dir, since });
        Ok(Started { note, log })
    }

    fn exec(&self, container: &str, argv: Vec<String>) -> Result<Exec, Error> {
        let (pipes, running) = self.run_in(container, argv, Output::Pipes)?;
        let Pipes { stdin, stdout: Some(stdout), stderr: Some(stderr) } = pipes else {
            let source = std::io::Error::other("it has no pipes");
            return Err(Error::Process { step: "run", what: "the command".to_owned(), source });
        };
        Ok(Exec { stdin, stdout, stderr, running })
    }

    /// Runs a command in a container until it ends, or nobody waits for it any more.
    fn run_in(&self, container: &str, argv: Vec<String>, output: Output) -> Result<(Pipes, Running), Error> {
        let failed = |source| Error::Process { step: "run", what: format!("{argv:?}"), source };
        let on_terminal = matches!(output, Output::Terminal(_));
        let role = self.enter(container, argv.clone(), on_terminal)?;
        let mut child = enter(&self.options.program, &role, output).map_err(failed)?;
        let helper = child.id().map(Handle::open).transpose().map_err(failed)?;
        let pipes =
            Pipes { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() };
        let (mut exited, exit) = oneshot::channel();
        tokio::spawn(async move {
            let status = tokio::select! {
                status = child.wait() => status,
                () = exited.closed() => {
                    if let Some(helper) = helper {
                        helper.signal(Signal::TERM);
                    }
                    child.wait().await
                }
            };
            // Whoever asked may have gone.
            let _ = exited.send(status.map_or(NOT_RUN, code));
        });
        Ok((pipes, Running { exit }))
    }

    fn enter(&self, container: &str, argv: Vec<String>, on_terminal: bool) -> Result<Role, Error> {
        let not_running =
            || Error::NotRunning { uid: self.record.config.pod.uid.clone(), container: container.to_owned() };
        let holder = self.holder.as_ref().ok_or_else(not_running)?;
        let container = self.containers.get(container).filter(|container| container.helper.is_some());
        let container = container.ok_or_else(not_running)?;
        Ok(Role::Enter {
            first: holder.first.pid,
            argv,
            env: container.env.clone(),
            working_dir: container.working_dir.clone(),
            on_terminal,
        })
    }

    fn exited(&mut self, exit: Result<(String, ExitStatus), tokio::task::JoinError>) {
        // A task that only waits neither panics nor is cancelled before the pod ends.
        let Ok((name, status)) = exit else { return };
        let code = code(status);
        info!(pod = %self.record.config.pod, container = name, code, "container ended");
        if let Some(container) = self.containers.get_mut(&name) {
            container.helper = None;
            let since = container.since;
            self.report(&name, ContainerStatus::Exited { code, since, until: SystemTime::now() });
        }
    }

    fn report(&self, name: &str, status: ContainerStatus) {
        let key = (self.record.config.pod.uid.clone(), name.to_owned());
        self.statuses.send_modify(|statuses| {
            statuses.insert(key, status);
        });
    }

    /// SIGTERM to each container, SIGKILL after `grace`, then the network. Whoever asks meanwhile can only shorten the grace.
    async fn stop(
        &mut self,
        grace: Duration,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), Error> {
        for helper in self.containers.values().filter_map(|container| container.helper.as_ref()) {
            helper.signal(Signal::TERM);
        }
        let mut deadline = Instant::now() + grace;
        loop {
            tokio::select! {
                exit = self.exits.join_next() => match exit {
                    Some(exit) => self.exited(exit),
                    None => break,
                },
                () = sleep_until(deadline) => break,
                Some(command) = commands.recv() => match command {
                    Command::Stop { grace, reply } => {
                        deadline = deadline.min(Instant::now() + grace);
                        answer(reply, Err(Error::Stopping(self.record.config.pod.uid.clone())));
                    }
                    command => command.refuse(&self.record.config.pod.uid),
                }
            }
        }
        if let Some(holder) = self.holder.take() {
            let failed =
                |source| Error::Process { step: "end", what: "the pod's first process".to_owned(), source };
            holder.end().await.map_err(failed)?;
        }
        while let Some(exit) = self.exits.join_next().await {
            self.exited(exit);
        }
        undo(&self.options, &self.record).await?;
        let uid = &self.record.config.pod.uid;
        self.statuses.send_modify(|statuses| statuses.retain(|(pod, _), _| pod != uid));
        info!(pod = %self.record.config.pod, "pod is gone");
        Ok(())
    }
}

fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    // Whoever asked may have gone.
    let _ = reply.send(value);
}

fn set_up_network(options: &Options, record: &Record, path: &Path) -> Result<cni::Success, Error> {
    let failed = |step| move |source| Error::Netns { step, source };
    std::fs::create_dir_all(&options.netns_dir).map_err(|source| Error::File {
        step: "make",
        path: options.netns_dir.clone(),
        source,
    })?;
    let netns = Netns::create().map_err(failed("create"))?;
    netns.pin(path).map_err(failed("mount"))?;
    let failed = |reason| Error::SetUpNetwork { id: record.id.clone(), reason };
    let network = PodNetwork::new(options, &record.id, path, &record.config).map_err(failed)?;
    network.set_up(&netns).map_err(failed)
}

async fn undo(options: &Arc<Options>, record: &Record) -> Result<(), Error> {
    let (options, record) = (options.clone(), record.clone());
    blocking(move || record.undo(&options)).await?
}

/// CNI plugins are waited for on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Stopped)
}

/// What runs instead of the command, and why; none where the command can run.
fn stand_in(argv: &[String], path: &str) -> Option<String> {
    let Some(program) = argv.first() else {
        return Some(
            "the pod names no command, and there are no images here: an idle process runs instead".to_owned(),
        );
    };
    let is_program = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let found = match program.contains('/') {
        true => is_program(Path::new(program)),
        false => path.split(':').any(|folder| is_program(&Path::new(folder).join(program))),
    };
    (!found).then(|| format!("the host has no program {program:?}: an idle process runs instead"))
}

/// 32 hexadecimal digits a piece, from the kernel.
fn random(pieces: usize) -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/uuid";
    let piece = || std::fs::read_to_string(path).map(|uuid| uuid.trim().replace('-', ""));
    (0..pieces).map(|_| piece()).collect::<Result<String, _>>().map_err(|source| Error::File {
        step: "read",
        path: path.into(),
        source,
    })
}
