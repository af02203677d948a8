//! What goes in and out of the simulated kubelet.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kubelet_api::deviceplugin::ContainerAllocateResponse;
use nic::ResourceName;

/// How this kubelet differs from one with default settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the capacity of a resource stays after its plugin has gone. The kubelet's is 5 minutes.
    pub grace_period: Duration,
    /// How long Register waits for the plugin's socket to answer. The kubelet's is 10 seconds.
    pub dial_timeout: Duration,
    /// Whether the end of an old stream disconnects whoever is registered under the name now, as in 1.36.
    pub old_stream_ends_new: bool,
    /// Whether devices of one NUMA node are taken together where that is possible; off is topology policy `none`.
    pub align_numa: bool,
    /// Whether pod resources `Get` is served; off is a kubelet before 1.34 with default feature gates.
    pub pod_resources_get: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            grace_period: Duration::from_secs(5 * 60),
            dial_timeout: Duration::from_secs(10),
            old_stream_ends_new: true,
            align_numa: false,
            pod_resources_get: true,
        }
    }
}

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodKey {
    /// metadata.uid
    pub uid: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A container that wants to run, in the pod's order: init containers first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    /// Unique in the pod.
    pub name: String,
    /// Which kind of container it is.
    pub kind: ContainerKind,
    /// `resources.limits`, those that are extended resources.
    pub limits: BTreeMap<ResourceName, u64>,
}

/// When a container runs, which decides who may use its devices after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// Before the others; they may use its devices afterwards.
    Init,
    /// An init container with `restartPolicy: Always`, which keeps running and keeps its devices.
    Sidecar,
    /// An ordinary container.
    App,
}

/// What a container is given, merged from the Allocate answers of all its resources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerAllocation {
    /// The container's name.
    pub container: String,
    /// Which devices, by resource.
    pub devices: BTreeMap<ResourceName, Vec<String>>,
    /// What the plugins want set for them. Where two resources set the same variable, the first resource wins.
    pub options: ContainerAllocateResponse,
}

/// What the node has of one resource: what the kubelet puts into the Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Devices that the plugin listed.
    pub capacity: u64,
    /// Of these, the healthy ones, in use or not.
    pub allocatable: u64,
    /// Every device listed: its ID, whether it is healthy, and which pod has it (its UID).
    pub devices: BTreeMap<String, DeviceStatus>,
}

/// One device as the kubelet sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// What the plugin said last, and that the plugin is there.
    pub healthy: bool,
    /// UID of the pod that has it.
    pub pod: Option<String>,
}

/// All extended resources of the node.
pub type Capacities = BTreeMap<ResourceName, Capacity>;

/// Why a pod was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The device manager could not serve the pod; the pod fails for good.
    #[error("Allocate failed due to {0}, which is unexpected")]
    Unexpected(String),
    /// The kubelet is stopped or was stopped meanwhile: to be tried again, the pod stays as it is.
    #[error("the kubelet is not running")]
    Stopped,
}

impl AdmissionError {
    /// The pod's `status.reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            AdmissionError::Unexpected(_) => "UnexpectedAdmissionError",
            AdmissionError::Stopped => "KubeletStopped",
        }
    }
}

/// Pods as the kubelet's pod resources service lists them, by UID.
pub(super) type Pods = BTreeMap<String, Pod>;

/// A pod that is on the node.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) key: PodKey,
    pub(super) containers: Vec<(String, ContainerKind)>,
}
