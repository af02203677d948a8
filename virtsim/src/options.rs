//! Where a simulated node keeps its things, and where it finds what it uses.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use kubelet_api::KubeletDir;

/// A node's settings. Every path can be moved, so that a node can run beside a real kubelet and beside another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The node's own folder: control socket, kubeconfig, log. What is in it does not survive the node.
    pub dir: PathBuf,
    /// The kubelet's root, where device plugins look for it.
    pub kubelet_dir: PathBuf,
    /// Network configurations of the container runtime.
    pub cni_conf_dir: PathBuf,
    /// CNI plugins.
    pub cni_bin_dir: PathBuf,
    /// libcni's cache of results.
    pub cni_cache_dir: PathBuf,
    /// Where pods' network namespaces are mounted: `/var/run/netns`, or `netns` in the node's folder where that cannot be
    /// written.
    pub netns_dir: PathBuf,
    /// The Node object's name.
    pub node_name: String,
    /// Where the API server listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether the devices of a container come from one NUMA node where that is possible.
    pub align_numa: bool,
}

impl Options {
    /// The defaults of a real node, with the node's own things in `dir`.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Options {
            netns_dir: netns_dir(&dir),
            dir,
            kubelet_dir: PathBuf::from("/var/lib/kubelet"),
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dir: PathBuf::from("/opt/cni/bin"),
            cni_cache_dir: PathBuf::from("/var/lib/cni"),
            node_name: node_name(&std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            align_numa: false,
        }
    }

    /// The socket that `virtsim`'s commands talk to.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.dir)
    }

    /// How clients of the API server find it.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig(&self.dir)
    }

    /// What the node said while it ran.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("virtsim.log")
    }

    /// Locked as long as the node runs; the kernel unlocks it when the node dies, however it dies.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("virtsim.lock")
    }

    /// The kubelet's sockets.
    #[must_use]
    pub fn kubelet(&self) -> KubeletDir {
        KubeletDir::at(&self.kubelet_dir)
    }
}

/// The control socket of the node in `dir`.
#[must_use]
pub fn control_socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// The kubeconfig of the node in `dir`.
#[must_use]
pub fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

/// Where `ip netns` looks; in the node's folder where only a real root may write there.
fn netns_dir(dir: &Path) -> PathBuf {
    use rustix::fs::{Access, access};
    let usual = Path::new("/var/run/netns");
    // It is made by whoever needs it first.
    let place = if usual.exists() { usual } else { Path::new("/var/run") };
    match access(place, Access::WRITE_OK) {
        Ok(()) => usual.to_owned(),
        Err(_) => dir.join("netns"),
    }
}

/// A host's name as the kubelet would make a node's name of it.
fn node_name(hostname: &str) -> String {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let name: String = hostname.trim().to_lowercase().chars().filter(|c| fits(*c)).take(63).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "virtsim".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_name_is_a_dns_name() {
        assert_eq!(node_name("Node_1.example\n"), "node1.example");
        for empty in ["", "--", "\n"] {
            assert_eq!(node_name(empty), "virtsim");
        }
    }
}
