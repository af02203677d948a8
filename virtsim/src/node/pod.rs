//! What of a pod the kubelet's parts and the runtime are told: pure conversions.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nic::ResourceName;
use serde_json::Value;

use super::requests::is_sidecar;
use crate::api::json::Json;
use crate::api::quantity::Quantity;
use crate::kubelet::{ContainerKind, ContainerRequest, PodKey};
use crate::runtime::{Dns, PortMapping, SandboxConfig};

pub(super) fn key(pod: &Value) -> PodKey {
    PodKey { uid: pod.uid().to_owned(), namespace: pod.namespace().to_owned(), name: pod.name().to_owned() }
}

/// Which devices its containers want, in the pod's order.
pub(super) fn device_requests(pod: &Value) -> Vec<ContainerRequest> {
    let request = |container: &Value, kind| ContainerRequest {
        name: container.text("/name").to_owned(),
        kind,
        limits: extended(container),
    };
    let init = pod.items("/spec/initContainers").iter().map(|container| {
        request(container, if is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init })
    });
    let apps = pod.items("/spec/containers").iter().map(|container| request(container, ContainerKind::App));
    init.chain(apps).collect()
}

fn extended(container: &Value) -> BTreeMap<ResourceName, u64> {
    let limits = container.map("/resources/limits").into_iter().flatten();
    let read = |(name, value): (&String, &Value)| {
        let amount = Quantity::of(value).ok()?.as_whole()?;
        Some((name.parse::<ResourceName>().ok()?, amount))
    };
    limits.filter(|(name, _)| crate::api::validate::is_extended(name)).filter_map(read).collect()
}

/// What its sandbox is made from.
pub(super) fn sandbox(pod: &Value) -> SandboxConfig {
    let hostname = Some(pod.text("/spec/hostname")).filter(|name| !name.is_empty()).unwrap_or(pod.name());
    SandboxConfig {
        pod: key(pod),
        // A host name has 63 bytes at most: `GeneratePodHostNameAndDomain`.
        hostname: hostname.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
        host_network: pod.is_true("/spec/hostNetwork"),
        annotations: pod.annotations(),
        port_mappings: pod.items("/spec/containers").iter().flat_map(port_mappings).collect(),
        dns: dns(pod),
    }
}

fn port_mappings(container: &Value) -> Vec<PortMapping> {
    let port = |port: &Value, field: &str| port.integer(field).and_then(|port| u16::try_from(port).ok());
    let mapping = |spec: &Value| {
        let protocol = Some(spec.text("/protocol")).filter(|text| !text.is_empty()).unwrap_or("TCP");
        Some(PortMapping {
            host_port: port(spec, "/hostPort").filter(|port| *port != 0)?,
            container_port: port(spec, "/containerPort")?,
            protocol: protocol.to_lowercase(),
            host_ip: spec.text("/hostIP").to_owned(),
        })
    };
    container.items("/ports").iter().filter_map(mapping).collect()
}

fn dns(pod: &Value) -> Option<Dns> {
    let config = pod.pointer("/spec/dnsConfig")?;
    let texts = |field: &str| {
        config.items(field).iter().filter_map(|text| text.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let option = |option: &Value| match option.text("/value") {
        "" => option.text("/name").to_owned(),
        value => format!("{}:{value}", option.text("/name")),
    };
    Some(Dns {
        servers: texts("/nameservers"),
        searches: texts("/searches"),
        options: config.items("/options").iter().map(option).collect(),
    })
}

/// How long its containers have between SIGTERM and SIGKILL.
pub(super) fn grace(pod: &Value) -> Duration {
    let seconds = pod
        .integer("/metadata/deletionGracePeriodSeconds")
        .or_else(|| pod.integer("/spec/terminationGracePeriodSeconds"))
        .unwrap_or(30);
    // One second at least, as the kubelet has it (`minimumGracePeriodInSeconds`).
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default().max(1))
}

/// A folder or file of the node that a pod wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostPath {
    pub(super) volume: String,
    pub(super) path: PathBuf,
    pub(super) kind: String,
}

/// Its `hostPath` volumes.
pub(super) fn host_paths(pod: &Value) -> Vec<HostPath> {
    let host_path = |volume: &Value| {
        let path = volume.text("/hostPath/path");
        (!path.is_empty()).then(|| HostPath {
            volume: volume.text("/name").to_owned(),
            path: PathBuf::from(path),
            kind: volume.text("/hostPath/type").to_owned(),
        })
    };
    pod.items("/spec/volumes").iter().filter_map(host_path).collect()
}

impl HostPath {
    /// Makes or checks it, as its type says; the error is the kubelet's, as it stands in the event `FailedMount`.
    pub(super) fn provide(&self) -> Result<(), String> {
        use std::os::unix::fs::FileTypeExt;
        let path = self.path.display();
        let failed = |why: String| format!("MountVolume.SetUp failed for volume {:?} : {why}", self.volume);
        let check = |what: &str, is: fn(&std::fs::FileType) -> bool| match std::fs::metadata(&self.path) {
            Ok(found) if is(&found.file_type()) => Ok(()),
            _ => Err(failed(format!("hostPath type check failed: {path} is not a {what}"))),
        };
        match self.kind.as_str() {
            "DirectoryOrCreate" => std::fs::create_dir_all(&self.path)
                .map_err(|error| failed(format!("cannot make {path}: {error}"))),
            "FileOrCreate" => {
                let opened = std::fs::OpenOptions::new().create(true).append(true).open(&self.path);
                opened.map(drop).map_err(|error| failed(format!("cannot make {path}: {error}")))
            }
            "Directory" => check("directory", std::fs::FileType::is_dir),
            "File" => check("file", std::fs::FileType::is_file),
            "Socket" => check("socket file", FileTypeExt::is_socket),
            "CharDevice" => check("character device", FileTypeExt::is_char_device),
            "BlockDevice" => check("block device", FileTypeExt::is_block_device),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_read_for_kubelet_and_runtime() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "annotations": {"a": "b"}},
            "spec": {
                "initContainers": [{"name": "s", "restartPolicy": "Always"}],
                "containers": [{
                    "name": "c",
                    "resources": {"limits": {"kernel.org/virt": "2", "memory": "1Gi"}},
                    "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}],
                }],
                "dnsConfig": {"nameservers": ["192.0.2.1"], "options": [{"name": "ndots", "value": "5"}]},
                "terminationGracePeriodSeconds": 0,
            },
        });
        let requests = device_requests(&pod);
        assert_eq!(requests[0].kind, ContainerKind::Sidecar);
        assert_eq!(requests[1].limits, BTreeMap::from([("kernel.org/virt".parse().unwrap(), 2)]));
        let sandbox = sandbox(&pod);
        assert_eq!((sandbox.hostname.as_str(), sandbox.host_network), ("p", false));
        assert_eq!(
            serde_json::to_value(&sandbox.port_mappings).unwrap(),
            json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            ])
        );
        assert_eq!(sandbox.dns.unwrap().options, ["ndots:5"]);
        assert_eq!(grace(&pod), Duration::from_secs(1));
        assert_eq!(grace(&json!({})), Duration::from_secs(30));
    }

    #[test]
    fn host_paths_are_made_or_checked() {
        let folder = tempfile::tempdir().unwrap();
        let volume = |kind: &str, name: &str| HostPath {
            volume: "v".to_owned(),
            path: folder.path().join(name),
            kind: kind.to_owned(),
        };
        let why = volume("Directory", "a").provide().unwrap_err();
        assert!(
            why.starts_with("MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: /"),
            "{why}"
        );
        volume("DirectoryOrCreate", "a/b").provide().unwrap();
        volume("Directory", "a").provide().unwrap();
        volume("FileOrCreate", "f").provide().unwrap();
        volume("File", "f").provide().unwrap();
        assert!(volume("Socket", "f").provide().is_err());
        volume("", "nothing").provide().unwrap();
    }
}
