//! The device manager's checkpoint ([`crate::KubeletDir::checkpoint`]), read as a hint: which pod has which device.
//!
//! Source: `pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go`. The checksum is over Go's own rendering of the content and is
//! not checked: nothing may rest on this alone.

use std::collections::BTreeMap;

use nic::{DeviceId, ResourceName};
use serde::Deserialize;

/// A device that a pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The UID of the pod.
    pub pod_uid: String,
    /// The resource as which it was given.
    pub resource: ResourceName,
    /// The device.
    pub device: DeviceId,
}

#[derive(Deserialize)]
struct Checkpoint {
    #[serde(rename = "Data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "PodDeviceEntries")]
    entries: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "PodUID", default)]
    pod_uid: String,
    #[serde(rename = "ResourceName")]
    resource: String,
    /// By NUMA node.
    #[serde(rename = "DeviceIDs")]
    devices: Option<BTreeMap<String, Vec<String>>>,
}

/// What pods have, of all resources. What has no name or ID that one of ours could have is left out: it is somebody else's.
///
/// # Errors
/// It is no checkpoint, or torn.
pub fn holdings(bytes: &[u8]) -> Result<Vec<Holding>, serde_json::Error> {
    let checkpoint: Checkpoint = serde_json::from_slice(bytes)?;
    let mut holdings = Vec::new();
    for entry in checkpoint.data.entries.into_iter().flatten() {
        let Ok(resource) = entry.resource.parse::<ResourceName>() else { continue };
        let ids = entry.devices.into_iter().flat_map(BTreeMap::into_values).flatten();
        holdings.extend(ids.filter_map(|id| {
            let (pod_uid, resource) = (entry.pod_uid.clone(), resource.clone());
            Some(Holding { pod_uid, resource, device: id.parse().ok()? })
        }));
    }
    Ok(holdings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<Vec<String>, serde_json::Error> {
        let one = |held: Holding| format!("{} {} {}", held.pod_uid, held.resource, held.device);
        Ok(holdings(text.as_bytes())?.into_iter().map(one).collect())
    }

    #[test]
    fn devices_are_read_with_their_pods_and_resources() {
        // As kubelet 1.36 writes it.
        let text = r#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"a","ContainerName":"c","ResourceName":"kernel.org/virt","DeviceIDs":{"-1":["0000:00:0a.0"],"0":["0000:00:09.0"]},"AllocResp":"CgA="},
            {"PodUID":"b","ContainerName":"c","ResourceName":"example.com/gpu","DeviceIDs":{"-1":["gpu0","../x"]},"AllocResp":""},
            {"PodUID":"c","ContainerName":"c","ResourceName":"kernel.org/virt","DeviceIDs":null,"AllocResp":null}],
            "RegisteredDevices":{"kernel.org/virt":["0000:00:0b.0"]}},"Checksum":3014321}"#;
        assert_eq!(
            shown(text).unwrap(),
            ["a kernel.org/virt 0000:00:0a.0", "a kernel.org/virt 0000:00:09.0", "b example.com/gpu gpu0"]
        );
        let none = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#;
        assert_eq!(shown(none).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_torn_is_an_error() {
        for torn in ["", "{", "[]", r#"{"Data":7}"#, "\u{0}\u{0}"] {
            assert!(shown(torn).is_err(), "{torn:?} was taken");
        }
    }
}
