//! The two ways in which kubelet and agent find each other.

use std::path::PathBuf;

use kubelet_api::KubeletDir;

/// How the agent registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// The agent calls the kubelet on `device-plugins/kubelet.sock`, as every device plugin does.
    #[default]
    KubeletSocket,
    /// The kubelet finds the agent's socket in `plugins_registry` and asks it who it is.
    PluginsRegistry,
}

impl Way {
    /// Where our sockets are.
    pub(crate) fn folder(self, kubelet: &KubeletDir) -> PathBuf {
        match self {
            Way::KubeletSocket => kubelet.device_plugins(),
            Way::PluginsRegistry => kubelet.plugins_registry(),
        }
    }

    /// The socket that the agent calls.
    pub(super) fn kubelet_socket(self, kubelet: &KubeletDir) -> Option<PathBuf> {
        match self {
            Way::KubeletSocket => Some(kubelet.registration_socket()),
            Way::PluginsRegistry => None,
        }
    }
}
