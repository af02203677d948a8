//! Where the kubelet keeps its sockets.

use std::path::{Path, PathBuf};

/// The kubelet's root folder: `/var/lib/kubelet`, unless `--root-dir` moved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletDir {
    root: PathBuf,
}

impl KubeletDir {
    /// The kubelet's folder at `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        KubeletDir { root: root.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sockets of device plugins, the kubelet's registration socket and its checkpoint.
    #[must_use]
    pub fn device_plugins(&self) -> PathBuf {
        self.root.join("device-plugins")
    }

    /// Where device plugins register: `device-plugins/kubelet.sock`.
    #[must_use]
    pub fn registration_socket(&self) -> PathBuf {
        self.device_plugins().join("kubelet.sock")
    }

    /// The device manager's checkpoint: `device-plugins/kubelet_internal_checkpoint`.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.device_plugins().join("kubelet_internal_checkpoint")
    }

    /// Where the kubelet looks for sockets of plugins that wait to be called.
    #[must_use]
    pub fn plugins_registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// The pod resources service: `pod-resources/kubelet.sock`.
    #[must_use]
    pub fn pod_resources_socket(&self) -> PathBuf {
        self.root.join("pod-resources").join("kubelet.sock")
    }
}

impl Default for KubeletDir {
    fn default() -> Self {
        KubeletDir::at("/var/lib/kubelet")
    }
}
