//! The kubelet's part that concerns devices: the device manager with its registration service, the watcher of
//! `plugins_registry/`, and the pod resources service, over the real sockets.
//!
//! It behaves as the kubelet 1.36 does where a plugin can notice:
//!
//! * at start every unix socket in `device-plugins/` is removed; resources that the checkpoint knows have capacity 0
//!   until they register again;
//! * Register dials back while it is still blocked and asks for the options, those in the request are ignored;
//! * each ListAndWatch message replaces the whole list; at the end of the stream every device is unhealthy, and after a
//!   grace period the resource is gone; nobody asks for a new stream;
//! * the end of an *old* stream disconnects whoever is registered under the resource's name now (a race of the real
//!   one, [`Options::old_stream_ends_new`]);
//! * allocations come back from the checkpoint, without another Allocate.
//!
//! What differs: `admit` looks at one pod at a time and keeps resources sorted where Go's maps are random, so that runs
//! can be repeated; of the topology manager there is only policy `none`, and [`Options::align_numa`] as a simple form of
//! `best-effort`.
//!
//! One task owns the state (`owner`); others send it work by channel, and capacity leaves through a `watch` channel.

mod admission;
mod checkpoint;
mod devices;
mod owner;
mod plugin;
mod pod_resources;
mod registration;
mod session;
mod types;
mod verbatim;
mod watcher;

pub use session::{Kubelet, StartError};
pub use types::{
    AdmissionError, Capacities, Capacity, ContainerAllocation, ContainerKind, ContainerRequest, DeviceStatus,
    Options, PodKey,
};

#[cfg(test)]
mod tests;
