//! The kubelet's gRPC services on unix sockets: device plugin v1beta1, plugin registration v1, pod resources v1.
//!
//! The messages are generated from the `.proto` files in `proto/` and checked in; a test regenerates and compares.
//! `client`, `server` and `blocking` are features, because a CNI plugin that asks one question must not carry a server.

#[cfg(feature = "blocking")]
pub mod blocking;
pub mod checkpoint;
#[cfg(feature = "client")]
mod connect;
mod dir;
#[cfg(feature = "server")]
mod serve;

#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "client")]
pub use connect::{ConnectError, LOCALHOST, MAX_MESSAGE, connect};
pub use dir::KubeletDir;
#[cfg(feature = "server")]
pub use serve::{ServeError, bind, serve, serve_counting};
pub use tonic;

/// Device plugin API v1beta1: `Registration`, which the kubelet serves, and `DevicePlugin`, which plugins serve.
///
/// <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>
pub mod deviceplugin {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::restriction)]
    include!("gen/v1beta1.rs");

    /// The only version that the kubelet takes in [`RegisterRequest`].
    pub const VERSION: &str = "v1beta1";
    /// [`Device::health`] of a device that may be allocated.
    pub const HEALTHY: &str = "Healthy";
    /// [`Device::health`] of a device that may not be allocated; one in use keeps its pod.
    pub const UNHEALTHY: &str = "Unhealthy";
}

/// Plugin registration API v1: served by a plugin on a socket in `plugins_registry/`.
pub mod pluginregistration {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::restriction)]
    include!("gen/pluginregistration.rs");

    /// `PluginInfo::type` of a device plugin.
    pub const DEVICE_PLUGIN: &str = "DevicePlugin";
    /// `PluginInfo::type` of a driver for dynamic resource allocation.
    pub const DRA_PLUGIN: &str = "DRAPlugin";
}

/// Pod resources API v1: which devices the kubelet gave to which container.
///
/// <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/#monitoring-device-plugin-resources>
pub mod podresources {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::restriction)]
    include!("gen/v1.rs");

    impl PodResources {
        /// The device IDs of one resource, container by container in the pod's order.
        pub fn devices_of<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a str> {
            self.containers
                .iter()
                .flat_map(|container| &container.devices)
                .filter(move |devices| devices.resource_name == resource)
                .flat_map(|devices| devices.device_ids.iter().map(String::as_str))
        }
    }
}
