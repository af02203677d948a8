//! The device manager's checkpoint, byte for byte what the kubelet writes and reads: who has which device, and what
//! Allocate answered.
//!
//! The checksum is FNV-1a over the text that Go's `spew` prints for the data with `%#v`; [`Data::checksum`] prints the
//! same. A test holds it against a file of a real kubelet.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// The NUMA node of devices whose plugin did not say any.
pub(super) const NO_TOPOLOGY: i64 = -1;

/// Why a checkpoint is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckpointError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a checkpoint", path.display())]
    Decode {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is corrupt: its checksum is {found}, that of its data {expected}", path.display())]
    Checksum { path: PathBuf, found: u64, expected: u64 },
}

#[derive(Serialize, Deserialize)]
struct File {
    #[serde(rename = "Data")]
    data: Data,
    #[serde(rename = "Checksum")]
    checksum: u64,
}

/// What the checkpoint says. `None` is Go's nil, which counts for the checksum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Data {
    pub(super) pod_device_entries: Option<Vec<Entry>>,
    pub(super) registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

/// One container's devices of one resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "PodUID")]
    pub(super) pod_uid: String,
    #[serde(rename = "ContainerName")]
    pub(super) container_name: String,
    #[serde(rename = "ResourceName")]
    pub(super) resource_name: String,
    /// By NUMA node.
    #[serde(rename = "DeviceIDs")]
    pub(super) device_ids: BTreeMap<i64, Option<Vec<String>>>,
    /// An encoded `ContainerAllocateResponse`.
    #[serde(rename = "AllocResp", with = "base64_bytes")]
    pub(super) alloc_resp: Option<Vec<u8>>,
}

impl Data {
    /// Reads the file; no file is no data.
    pub(super) fn read(path: &Path) -> Result<Data, CheckpointError> {
        let path = || path.to_owned();
        let bytes = match std::fs::read(path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Data::default()),
            Err(source) => return Err(CheckpointError::Read { path: path(), source }),
        };
        let file: File = serde_json::from_slice(&bytes)
            .map_err(|source| CheckpointError::Decode { path: path(), source })?;
        let expected = file.data.checksum();
        if file.checksum != expected {
            return Err(CheckpointError::Checksum { path: path(), found: file.checksum, expected });
        }
        Ok(file.data)
    }

    /// The file's content.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let file = File { checksum: self.checksum(), data: self.clone() };
        // Only maps with keys that are no text can fail, and ours are numbers and text.
        serde_json::to_vec(&file).unwrap_or_default()
    }

    fn checksum(&self) -> u64 {
        let mut text =
            String::from("(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)");
        text += &list(self.pod_device_entries.as_deref(), Entry::spew);
        text += " RegisteredDevices:(map[string][]string)";
        text += &map(self.registered_devices.as_ref());
        text.push('}');
        u64::from(fnv1a(text.as_bytes()))
    }
}

impl Entry {
    fn spew(&self) -> String {
        format!(
            "{{PodUID:(string){} ContainerName:(string){} ResourceName:(string){} \
             DeviceIDs:(checkpoint.DevicesPerNUMA){} AllocResp:([]uint8){}}}",
            self.pod_uid,
            self.container_name,
            self.resource_name,
            map(Some(&self.device_ids)),
            list(self.alloc_resp.as_deref(), u8::to_string),
        )
    }
}

fn list<T>(items: Option<&[T]>, print: impl Fn(&T) -> String) -> String {
    match items {
        None => "<nil>".to_owned(),
        Some(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
    }
}

fn map<K: std::fmt::Display>(map: Option<&BTreeMap<K, Option<Vec<String>>>>) -> String {
    let Some(map) = map else { return "<nil>".to_owned() };
    let mut text = String::from("map[");
    for (index, (key, values)) in map.iter().enumerate() {
        let space = if index == 0 { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{space}{key}:{}", list(values.as_deref(), String::clone));
    }
    text.push(']');
    text
}

/// FNV-1a, 32 bits: <https://datatracker.ietf.org/doc/html/rfc9923>.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

mod base64_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{BASE64_STANDARD, Engine};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_str(&BASE64_STANDARD.encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by a kubelet.
    const REAL: &str = concat!(
        r#"{"Data":{"PodDeviceEntries":[{"PodUID":"bf52b2cd-b611-4e79-86b1-280b283185c3","ContainerName":"check","#,
        r#""ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["tegra"]},"#,
        r#""AllocResp":"Ch8KFk5WSURJQV9WSVNJQkxFX0RFVklDRVMSBXRlZ3Jh"}],"#,
        r#""RegisteredDevices":{"nvidia.com/gpu":["tegra"]}},"Checksum":3660592824}"#,
    );

    #[test]
    fn a_real_kubelets_checkpoint_is_read_and_written_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubelet_internal_checkpoint");
        std::fs::write(&path, REAL).unwrap();
        let data = Data::read(&path).unwrap();
        assert_eq!(String::from_utf8(data.to_bytes()).unwrap(), REAL);
    }

    #[test]
    fn nil_and_empty_are_told_apart_as_in_go() {
        let nil = Data { pod_device_entries: None, registered_devices: Some(BTreeMap::new()) };
        let empty = Data { pod_device_entries: Some(Vec::new()), ..nil.clone() };
        assert_ne!(nil.checksum(), empty.checksum());
        assert!(String::from_utf8(nil.to_bytes()).unwrap().contains(r#""PodDeviceEntries":null"#));
    }

    #[test]
    fn a_changed_or_torn_checkpoint_is_refused_and_an_absent_one_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubelet_internal_checkpoint");
        assert_eq!(Data::read(&path).unwrap(), Data::default());
        std::fs::write(&path, REAL.replace("tegra", "other")).unwrap();
        assert!(matches!(Data::read(&path), Err(CheckpointError::Checksum { .. })));
        std::fs::write(&path, REAL.split_at(100).0).unwrap();
        assert!(matches!(Data::read(&path), Err(CheckpointError::Decode { .. })));
    }
}
