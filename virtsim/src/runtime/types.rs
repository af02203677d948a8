//! What goes in and out of the runtime.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::oneshot;

use crate::kubelet::PodKey;

/// Where the runtime finds and keeps things.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its own state: records of pods, logs.
    pub dir: PathBuf,
    /// Where network namespaces are mounted, `cni-<uuid>` each.
    pub netns_dir: PathBuf,
    /// Network configurations; the first file in order of names is the cluster's network.
    pub cni_conf_dir: PathBuf,
    /// CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// libcni's memory of results.
    pub cni_cache_dir: PathBuf,
    /// A program whose `main` calls [`super::init::run_if_asked`] first: virtsim itself.
    pub program: PathBuf,
}

impl Options {
    /// The defaults of containerd, with virtsim's own state in `dir` and `program` as helper.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        Options {
            dir: dir.into(),
            netns_dir: "/var/run/netns".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cni_cache_dir: "/var/lib/cni/results".into(),
            program: program.into(),
        }
    }
}

/// What a pod's sandbox is made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod.
    pub pod: PodKey,
    /// Its host name.
    pub hostname: String,
    /// Whether it shares the node's network: no network namespace, no CNI calls.
    pub host_network: bool,
    /// metadata.annotations, for plugins with the capability `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Ports of all containers that have a `hostPort`, for plugins with the capability `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// Name servers, for plugins with the capability `dns`.
    pub dns: Option<Dns>,
}

/// A port of the node that leads to the pod, as the capability `portMappings` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the node.
    pub host_port: u16,
    /// In the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The node's address, all of them when empty.
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
}

/// Name servers, as the capability `dns` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Their addresses.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

/// A pod that has its network.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// 64 hexadecimal digits, `K8S_POD_INFRA_CONTAINER_ID`.
    pub id: String,
    /// The network namespace; none for a pod on the node's network.
    pub netns: Option<PathBuf>,
    /// The addresses of `eth0`, the first of which is `status.podIP`; none for a pod on the node's network.
    pub ips: Vec<IpAddr>,
    /// What the plugins returned.
    pub result: Option<cni::Success>,
    /// The process that is number 1 in the pod.
    pub pid: u32,
    /// What the pod had to do without, for people: `/sys` of its own where the kernel refuses the mount.
    pub notes: Vec<String>,
}

/// A container to start.
#[derive(Clone, Debug, Default)]
pub struct ContainerConfig {
    /// Unique in the pod.
    pub name: String,
    /// `command` and `args` together. Empty: the image's own command, which nobody knows here.
    pub argv: Vec<String>,
    /// The whole environment; `PATH`, `HOME` and `HOSTNAME` are added where they are missing.
    pub env: BTreeMap<String, String>,
    /// `workingDir`, `/` where there is none or the host has no such folder.
    pub working_dir: Option<PathBuf>,
}

/// A container that was started.
#[derive(Clone, Debug)]
pub struct Started {
    /// What runs instead of the container's command, and why, for people.
    pub note: Option<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// What became of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerStatus {
    /// It runs.
    Running {
        /// Since when.
        since: SystemTime,
    },
    /// It ended.
    Exited {
        /// Its exit code; 128 and the signal's number where a signal ended it.
        code: i32,
        /// From when it ran.
        since: SystemTime,
        /// Until when.
        until: SystemTime,
    },
}

/// Containers by pod UID and name. A pod's disappear with the pod.
pub type ContainerStatuses = BTreeMap<(String, String), ContainerStatus>;

/// A command that runs in a container.
#[derive(Debug)]
pub struct Exec {
    /// What it reads; to be dropped when there is no more.
    pub stdin: Option<ChildStdin>,
    /// What it writes.
    pub stdout: ChildStdout,
    /// What it writes as errors.
    pub stderr: ChildStderr,
    /// The command itself.
    pub running: Running,
}

/// A command that runs in a container. It gets SIGTERM when this is dropped.
#[derive(Debug)]
pub struct Running {
    pub(super) exit: oneshot::Receiver<i32>,
}

impl Running {
    /// Waits for its end: its exit code, 128 and the signal's number where a signal ended it.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the runtime has ended meanwhile.
    pub async fn wait(self) -> Result<i32, Error> {
        self.exit.await.map_err(|_| Error::Stopped)
    }
}

impl Exec {
    /// Waits for its end, reading nothing: its exit code, 128 and the signal's number where a signal ended it.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the runtime has ended meanwhile.
    pub async fn wait(self) -> Result<i32, Error> {
        drop(self.stdin);
        self.running.wait().await
    }

    /// Waits for its end and takes in what it writes: exit code, output, errors.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the runtime has ended meanwhile; [`Error::Process`] when reading fails.
    pub async fn output(mut self) -> Result<(i32, Vec<u8>, Vec<u8>), Error> {
        use tokio::io::AsyncReadExt;
        drop(self.stdin);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read = tokio::try_join!(self.stdout.read_to_end(&mut out), self.stderr.read_to_end(&mut err));
        read.map_err(|source| Error::Process {
            step: "read the output of",
            what: "the command".into(),
            source,
        })?;
        Ok((self.running.wait().await?, out, err))
    }
}

/// What went wrong. Errors of a sandbox have the kubelet's words, as they stand in events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CNI ADD failed, and was undone.
    #[error(
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox {id:?}: {reason}"
    )]
    SetUpNetwork {
        /// The sandbox.
        id: String,
        /// What the plugin said: `plugin type="..." failed (add): ...`.
        reason: String,
    },
    /// CNI DEL failed: the pod keeps its network namespace, and stopping it can be tried again.
    #[error(
        "error killing pod: failed to \"KillPodSandbox\" for {uid:?} with KillPodSandboxError: \"rpc error: code = Unknown desc = failed to destroy network for sandbox {id:?}: {reason}\""
    )]
    TearDownNetwork {
        /// The pod.
        uid: String,
        /// The sandbox.
        id: String,
        /// What the plugin said: `plugin type="..." failed (delete): ...`.
        reason: String,
    },
    /// The network namespace could not be made or removed.
    #[error("Failed to create pod sandbox: cannot {step} the network namespace")]
    Netns {
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        #[source]
        source: linux::Error,
    },
    /// A process could not be started, or did not do its part.
    #[error("cannot {step} {what}")]
    Process {
        /// What was tried.
        step: &'static str,
        /// Which process.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the runtime could not be read or written.
    #[error("cannot {step} {}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pod's record could not be written.
    #[error("cannot record the pod")]
    Record(#[source] linux::Error),
    /// There is a pod of this UID already.
    #[error("pod {0} has a sandbox already")]
    Exists(String),
    /// There is no pod of this UID.
    #[error("pod {0} has no sandbox")]
    UnknownPod(String),
    /// The container does not run.
    #[error("container {container:?} of pod {uid} is not running")]
    NotRunning {
        /// The pod.
        uid: String,
        /// The container.
        container: String,
    },
    /// Somebody else stops it already, and has the answer.
    #[error("pod {0} is being stopped")]
    Stopping(String),
    /// The runtime has ended.
    #[error("the runtime was stopped")]
    Stopped,
}
