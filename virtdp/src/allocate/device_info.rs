//! Device-info files: what plugins on the node look up about a device by resource and ID.
//!
//! Source: Network Plumbing Working Group, device-info specification 1.1.0: `<folder>/<resource>-<id>-device.json`. A NIC that sits on no
//! PCI function gets no file, as the specification has no type for it.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use linux::files::write_atomically;
use nic::{DeviceId, PciAddress, ResourceName};
use serde::Serialize;
use tracing::{debug, warn};

use crate::advertise::Offer;
use crate::cli::Settings;

const VERSION: &str = "1.1.0";

/// Where the files are, and for which resource.
#[derive(Clone, Debug)]
pub(crate) struct DeviceInfo {
    folder: PathBuf,
    resource: ResourceName,
}

#[derive(Serialize)]
struct Document {
    r#type: &'static str,
    version: &'static str,
    pci: Pci,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Pci {
    pci_address: String,
}

impl DeviceInfo {
    pub(crate) fn new(settings: &Settings) -> Self {
        DeviceInfo { folder: settings.device_info.clone(), resource: settings.pool.resource.clone() }
    }

    /// Writes the files of these devices. A file that cannot be written is said and in nobody's way: pods get their NICs by the
    /// kubelet's word, not by this.
    pub(crate) async fn write(&self, offers: Vec<Offer>) {
        let this = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            for offer in offers {
                let Some(pci) = offer.pci.filter(|pci| DeviceId::from(*pci) == offer.id) else {
                    debug!(device = %offer.id, "no device-info file: the device is no PCI function");
                    continue;
                };
                if let Err(error) = this.write_one(&offer.id, pci) {
                    warn!(device = %offer.id, reason = format!("{error:#}"), "the device-info file cannot be written");
                }
            }
        });
        // It does not panic; and if it did, the device is allocated all the same.
        let _ = written.await;
    }

    fn write_one(&self, id: &DeviceId, pci: PciAddress) -> Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.folder)
            .with_context(|| format!("make {}", self.folder.display()))?;
        let document =
            Document { r#type: "pci", version: VERSION, pci: Pci { pci_address: pci.to_string() } };
        let name = format!("{}-{id}-device.json", self.resource.file_stem());
        write_atomically(&self.folder, &name, &serde_json::to_vec(&document)?)?;
        let path = self.folder.join(name);
        // It is no secret, and not only root looks it up.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
            .with_context(|| format!("open {} to readers", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device_info(folder: PathBuf) -> DeviceInfo {
        DeviceInfo { folder, resource: "kernel.org/virt".parse().unwrap() }
    }

    fn offer(id: &str) -> Offer {
        let id: DeviceId = id.parse().unwrap();
        Offer { pci: id.pci(), id, ill: None, numa_node: None, driver: None, mac: None }
    }

    #[tokio::test]
    async fn a_file_is_written_as_the_specification_says_and_replaced_when_asked_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("devinfo/dp");
        let device_info = device_info(folder.clone());
        for _ in 0..2 {
            device_info.write(vec![offer("0000:00:0a.0")]).await;
            let path = folder.join("kernel.org-virt-0000:00:0a.0-device.json");
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:00:0a.0"}}"#
            );
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
            // Nothing may be torn while a reader looks: damage it, and it is whole again.
            std::fs::write(&path, "{").unwrap();
        }
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_nic_without_pci_has_no_file_and_a_bad_folder_stops_nobody() {
        let root = tempfile::tempdir().unwrap();
        device_info(root.path().to_owned()).write(vec![offer("vd0")]).await;
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        let file = root.path().join("file");
        std::fs::write(&file, "in the way").unwrap();
        device_info(file.clone()).write(vec![offer("0000:00:0a.0")]).await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "in the way");
    }
}
