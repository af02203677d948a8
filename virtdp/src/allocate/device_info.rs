//! Device-info files: what plugins on the node look up about a device by resource and ID.
//!
//! Source: Network Plumbing Working Group, device-info specification 1.1.0: `<folder>/<resource>-<id>-device.json`. A NIC that sits on no
//! PCI function gets no file, as the specification has no type for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nic::{DeviceId, PciAddress, ResourceName};
use serde::Serialize;
use tracing::debug;

use super::Extras;
use super::grant::VHOST_NET;
use super::published;
use crate::advertise::Offer;

const VERSION: &str = "1.1.0";
const SUFFIX: &str = "-device.json";

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
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost_net: Option<&'static str>,
}

impl DeviceInfo {
    pub(crate) fn new(folder: &Path, resource: &ResourceName) -> Self {
        DeviceInfo { folder: folder.to_owned(), resource: resource.clone() }
    }

    /// Writes the file of a device, if it is a PCI function. What says the same already is left alone.
    ///
    /// # Errors
    /// The folder cannot be made, or the file not be written.
    pub(crate) fn write(&self, offer: &Offer, extras: Extras) -> Result<()> {
        let Some(pci) = function(offer) else {
            debug!(device = %offer.id, "no device-info file: the device is no PCI function");
            return Ok(());
        };
        let pci = Pci { pci_address: pci.to_string(), vhost_net: extras.vhost_net.then_some(VHOST_NET) };
        let wanted = serde_json::to_vec(&Document { r#type: "pci", version: VERSION, pci })?;
        let name = self.file_name(&offer.id);
        published::write(&self.folder, &name, &wanted)
    }

    /// Removes the files of this resource's devices that are not in the list any more.
    ///
    /// # Errors
    /// The folder cannot be listed, or a file not be removed.
    pub(crate) fn forget_others(&self, list: &[Offer]) -> Result<()> {
        let keep: BTreeSet<String> = list.iter().map(|offer| self.file_name(&offer.id)).collect();
        for name in published::names(&self.folder)? {
            let Ok(name) = name.into_string() else { continue };
            if self.is_ours(&name) && !keep.contains(&name) {
                published::remove(&self.folder.join(&name))?;
                debug!(file = name, "removed the device-info file of a device that is gone");
            }
        }
        Ok(())
    }

    fn file_name(&self, id: &DeviceId) -> String {
        format!("{}-{id}{SUFFIX}", self.resource.file_stem())
    }

    /// Whether we wrote this file: for a PCI function of our resource. Other plugins have theirs in the same folder, and `a.b/c-d` is another
    /// resource than `a.b/c`.
    fn is_ours(&self, name: &str) -> bool {
        let id = name
            .strip_prefix(&self.resource.file_stem())
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.strip_suffix(SUFFIX));
        id.is_some_and(|id| id.parse::<PciAddress>().is_ok_and(|pci| pci.to_string() == id))
    }
}

/// The PCI function that a device is, and not only sits on.
fn function(offer: &Offer) -> Option<PciAddress> {
    offer.pci.filter(|pci| DeviceId::from(*pci) == offer.id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::tests::offer;
    use super::*;

    fn device_info(folder: &Path) -> DeviceInfo {
        DeviceInfo::new(folder, &"kernel.org/virt".parse().unwrap())
    }

    #[test]
    fn a_file_is_written_as_the_specification_says_and_replaced_when_asked_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("devinfo/dp");
        let device_info = device_info(&folder);
        let path = folder.join("kernel.org-virt-0000:00:0a.0-device.json");
        for _ in 0..2 {
            device_info.write(&offer("0000:00:0a.0", None), Extras::default()).unwrap();
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:00:0a.0"}}"#
            );
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
            // Nothing may be torn while a reader looks: damage it, and it is whole again.
            std::fs::write(&path, "{").unwrap();
        }
        let vhost_net = Extras { vhost_net: true, ..Extras::default() };
        device_info.write(&offer("0000:00:0a.0", None), vhost_net).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:00:0a.0","vhost-net":"/dev/vhost-net"}}"#
        );
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_nic_without_pci_has_no_file_and_a_bad_folder_is_named() {
        let root = tempfile::tempdir().unwrap();
        device_info(root.path()).write(&offer("vd0", None), Extras::default()).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        let file = root.path().join("file");
        std::fs::write(&file, "in the way").unwrap();
        let failed = device_info(&file).write(&offer("0000:00:0a.0", None), Extras::default()).unwrap_err();
        assert!(format!("{failed:#}").contains("/file"), "{failed:#}");
        device_info(&file).forget_others(&[]).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "in the way");
    }

    #[test]
    fn files_of_devices_that_are_gone_go_too_and_those_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let others = [
            "kernel.org-virt-fast-0000:00:0b.0-device.json",
            "kernel.org-virt-0000:00:0b.0-device.json.bak",
            "kernel.org-virt-0-device.json",
            "example.com-nic-0000:00:0b.0-device.json",
        ];
        let ours = ["kernel.org-virt-0000:00:0a.0-device.json", "kernel.org-virt-0000:00:0b.0-device.json"];
        for name in others.iter().chain(&ours) {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        device_info(folder.path()).forget_others(&[offer("0000:00:0a.0", None)]).unwrap();
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: BTreeSet<String> = left.map(|name| name.into_string().unwrap()).collect();
        assert_eq!(left, others.iter().chain(&ours[..1]).map(ToString::to_string).collect());
    }
}
