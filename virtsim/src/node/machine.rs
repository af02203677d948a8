//! What the node's machine has: processors, memory, an address.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use serde_json::{Value, json};

/// Facts about the machine, read once.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// Processors that we may use.
    processors: usize,
    /// Memory in KiB.
    memory: u64,
    /// The address that other hosts know it by: `status.hostIP` of its pods.
    pub(super) address: IpAddr,
    info: Value,
}

impl Machine {
    pub(super) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let os_release = read("/etc/os-release");
        let image = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Machine {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory(&read("/proc/meminfo")),
            address: address(),
            info: json!({
                "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH },
                "bootID": read("/proc/sys/kernel/random/boot_id"),
                "containerRuntimeVersion": concat!("virtsim://", env!("CARGO_PKG_VERSION")),
                "kernelVersion": read("/proc/sys/kernel/osrelease"),
                "kubeProxyVersion": "",
                "kubeletVersion": concat!("v1.36.0-virtsim.", env!("CARGO_PKG_VERSION")),
                "machineID": read("/etc/machine-id"),
                "operatingSystem": "linux",
                "osImage": image.unwrap_or_default().trim_matches('"'),
                "systemUUID": "",
            }),
        }
    }

    /// What a node has without any device plugin.
    pub(super) fn resources(&self) -> Value {
        json!({
            "cpu": self.processors.to_string(),
            "memory": format!("{}Ki", self.memory),
            "ephemeral-storage": "100Gi",
            "pods": "110",
        })
    }

    /// `status.nodeInfo`.
    pub(super) fn info(&self) -> Value {
        self.info.clone()
    }
}

/// `MemTotal` in KiB.
fn memory(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|total| total.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// The address from which packets would go out; loopback where there is no route. Nothing is sent: connect(2) on UDP only
/// chooses a route.
fn address() -> IpAddr {
    let chosen = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // TEST-NET-1 (RFC 5737): whatever is not more specific goes by the default route.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    chosen().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_total() {
        assert_eq!(memory("MemTotal:       16374544 kB\nMemFree:  1 kB\n"), 16_374_544);
        assert_eq!(memory(""), 0);
    }

    #[test]
    fn this_machine_has_something() {
        let resources = Machine::look().resources();
        assert_ne!(resources["cpu"], "0");
        assert_ne!(resources["memory"], "0Ki");
    }
}
