//! The kubelet's checkpoint, read as a hint: which of our devices pods have.
//!
//! Source: `pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go`. The checksum is over Go's own rendering of the content and is
//! not checked: nothing rests on this alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use nic::{DeviceId, ResourceName};
use serde::Deserialize;

/// 250 pods with ten devices each make less than one megabyte.
const LARGEST: u64 = 16 * 1024 * 1024;

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

/// The devices that pods have, of all resources, each with the resource as which it was given. None if there is no checkpoint.
///
/// # Errors
/// It is there and cannot be read.
pub(crate) fn given(path: &Path) -> Result<BTreeMap<DeviceId, ResourceName>> {
    let mut given = BTreeMap::new();
    let Some(checkpoint) = read(path)? else { return Ok(given) };
    for entry in checkpoint.data.entries.into_iter().flatten() {
        // Whatever is no name or no ID of ours to be is somebody else's.
        let Ok(resource) = entry.resource.parse::<ResourceName>() else { continue };
        let ids = entry.devices.into_iter().flat_map(BTreeMap::into_values).flatten();
        given.extend(ids.filter_map(|id| Some((id.parse().ok()?, resource.clone()))));
    }
    Ok(given)
}

/// Which pod, by its UID, has which device, of all resources.
///
/// # Errors
/// It cannot be read, or the kubelet's folder is not there: then nobody can tell what pods have.
pub(crate) fn holders(path: &Path) -> Result<BTreeMap<DeviceId, String>> {
    let Some(checkpoint) = read(path)? else {
        let folder = path.parent().unwrap_or(path);
        return if folder.is_dir() {
            Ok(BTreeMap::new())
        } else {
            Err(anyhow!("{} is not there", folder.display()))
        };
    };
    let mut holders = BTreeMap::new();
    for entry in checkpoint.data.entries.into_iter().flatten() {
        for id in entry.devices.into_iter().flat_map(BTreeMap::into_values).flatten() {
            holders.extend(id.parse().map(|id: DeviceId| (id, entry.pod_uid.clone())));
        }
    }
    Ok(holders)
}

/// The checkpoint, if there is one.
fn read(path: &Path) -> Result<Option<Checkpoint>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).context(path.display().to_string())?;
    serde_json::from_slice(&bytes).context(path.display().to_string()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        std::fs::write(&path, text).unwrap();
        Ok(given(&path)?.into_iter().map(|(id, resource)| format!("{id} {resource}")).collect())
    }

    #[test]
    fn devices_are_read_of_a_checkpoint_with_their_resources() {
        // As kubelet 1.36 writes it.
        let text = r#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"a","ContainerName":"c","ResourceName":"kernel.org/virt","DeviceIDs":{"-1":["0000:00:0a.0"],"0":["0000:00:09.0"]},"AllocResp":"CgA="},
            {"PodUID":"b","ContainerName":"c","ResourceName":"example.com/gpu","DeviceIDs":{"-1":["gpu0"]},"AllocResp":""},
            {"PodUID":"c","ContainerName":"c","ResourceName":"kernel.org/virt","DeviceIDs":null,"AllocResp":null}],
            "RegisteredDevices":{"kernel.org/virt":["0000:00:0b.0"]}},"Checksum":3014321}"#;
        let all = ["0000:00:09.0 kernel.org/virt", "0000:00:0a.0 kernel.org/virt", "gpu0 example.com/gpu"];
        assert_eq!(read(text).unwrap(), all);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        assert_eq!(holders(&path).unwrap(), BTreeMap::new());
        std::fs::write(&path, text).unwrap();
        let shown: Vec<String> =
            holders(&path).unwrap().into_iter().map(|(id, pod)| format!("{id} {pod}")).collect();
        assert_eq!(shown, ["0000:00:09.0 a", "0000:00:0a.0 a", "gpu0 b"]);
        assert!(holders(&folder.path().join("no-folder/checkpoint")).is_err());
        assert!(
            read(r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_missing_checkpoint_is_empty_and_a_torn_one_an_error() {
        let missing = given(Path::new("/nonexistent/checkpoint"));
        assert!(missing.unwrap().is_empty());
        for torn in ["", "{", "[]", r#"{"Data":7}"#, "\u{0}\u{0}"] {
            assert!(read(torn).is_err(), "{torn:?} was taken");
        }
    }
}
