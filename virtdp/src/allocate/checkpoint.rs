//! The kubelet's checkpoint, a hint which of our devices pods have.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use kubelet_api::checkpoint::{Holding, holdings};
use nic::{DeviceId, ResourceName};

/// 250 pods with ten devices each make less than one megabyte.
const LARGEST: u64 = 16 * 1024 * 1024;

/// The devices that pods have, of all resources, each with the resource as which it was given. None if there is no checkpoint.
///
/// # Errors
/// It is there and cannot be read.
pub(crate) fn given(path: &Path) -> Result<BTreeMap<DeviceId, ResourceName>> {
    let held = read(path)?.into_iter().flatten();
    Ok(held.map(|Holding { device, resource, .. }| (device, resource)).collect())
}

/// Which pod, by its UID, has which device, of all resources.
///
/// # Errors
/// It cannot be read, or the kubelet's folder is not there: then nobody can tell what pods have.
pub(crate) fn holders(path: &Path) -> Result<BTreeMap<DeviceId, String>> {
    let Some(held) = read(path)? else {
        let folder = path.parent().unwrap_or(path);
        return if folder.is_dir() {
            Ok(BTreeMap::new())
        } else {
            Err(anyhow!("{} is not there", folder.display()))
        };
    };
    Ok(held.into_iter().map(|Holding { device, pod_uid, .. }| (device, pod_uid)).collect())
}

/// What pods have by the checkpoint, if there is one.
fn read(path: &Path) -> Result<Option<Vec<Holding>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).context(path.display().to_string())?;
    holdings(&bytes).context(path.display().to_string()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_checkpoint_is_empty_a_torn_one_an_error_and_without_the_folder_nobody_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        assert!(given(&path).unwrap().is_empty() && holders(&path).unwrap().is_empty());
        assert!(given(&folder.path().join("no-folder/checkpoint")).unwrap().is_empty());
        assert!(holders(&folder.path().join("no-folder/checkpoint")).is_err());
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"a","ContainerName":"c","ResourceName":"kernel.org/virt",
            "DeviceIDs":{"-1":["0000:00:0a.0"]},"AllocResp":""}],"RegisteredDevices":{}},"Checksum":3014321}"#;
        std::fs::write(&path, text).unwrap();
        let device: DeviceId = "0000:00:0a.0".parse().unwrap();
        assert_eq!(given(&path).unwrap(), [(device.clone(), "kernel.org/virt".parse().unwrap())].into());
        assert_eq!(holders(&path).unwrap(), [(device, "a".to_owned())].into());
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(given(&path).is_err() && holders(&path).is_err());
    }
}
