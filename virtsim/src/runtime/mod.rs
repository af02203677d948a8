//! What a container runtime does for a pod: a network namespace under a path, the CNI calls, and processes in namespaces
//! of their own.
//!
//! The order of calls, their arguments and the words of their errors are containerd's. What differs, since there are no
//! images: a container's command is a program of the host. Where the host has none of that name, or the pod names no
//! command, an idle process takes its place, and [`Started::note`] says so. Volumes are not mounted: a container sees
//! the host's files, with its own `/proc` and with the `/sys` of its network namespace.
//!
//! For each pod there is a task, and a process that is number 1 in the pod's namespace of processes. All of them live on
//! one thread, because a process that asks to die with its parent dies with the *thread* that started it. Whatever ends
//! virtsim, SIGKILL included, so ends every process of every pod; [`Runtime::start`] then undoes what is left: CNI
//! attachments and network namespaces of pods that no longer run.

pub mod init;
mod network;
mod pod;
mod process;
mod record;
mod thread;
mod types;

pub use thread::Runtime;
pub use types::{
    ContainerConfig, ContainerStatus, ContainerStatuses, Dns, Error, Exec, Options, PortMapping, Running,
    Sandbox, SandboxConfig, Started,
};
