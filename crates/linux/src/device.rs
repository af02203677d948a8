//! From a device's ID to the names under which IFLA_PARENT_DEV_NAME knows it, and back.
//!
//! A virtio NIC's link names the virtio device (`virtio2`) as its parent, while people, the kubelet and CNI know the
//! function or device that this sits on (`0000:00:0a.0`, `vd0`). The way between is in `/sys/bus/virtio/devices`, which
//! is the same in all network namespaces, so a NIC can be recognised in whichever it is. On any other bus (Xen, VMBus,
//! USB, platform) the parent is the device itself.

use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use nic::{DeviceId, Link};

use crate::Error;

/// The devices of the machine, seen through sysfs.
#[derive(Clone, Debug)]
pub struct Devices {
    sysfs: PathBuf,
}

impl Devices {
    /// The devices below a sysfs root, usually `/sys`.
    #[must_use]
    pub fn at(sysfs: impl Into<PathBuf>) -> Self {
        Devices { sysfs: sysfs.into() }
    }

    /// The names that a link of this device can have as its parent. Empty if there is no such device on any bus.
    ///
    /// # Errors
    /// The bus folders cannot be read.
    pub fn parent_names(&self, id: &DeviceId) -> Result<Vec<String>, Error> {
        let bus = self.sysfs.join("bus");
        let on = |kind: &Path| bus.join(kind).join("devices").join(id.as_str());
        let is_on = |kind: &Path| on(kind).exists();
        let [pci, virtio] = ["pci", "virtio"].map(Path::new);
        let virtio_devices = bus.join(virtio).join("devices");
        let mut names = Vec::new();
        // The virtio devices, of which a machine can have hundreds: where there is a folder of the one below them, it has them.
        let candidates = if is_on(pci) {
            names.push(id.as_str().to_owned());
            list(on(pci))?
        } else if is_on(virtio) {
            names.push(id.as_str().to_owned());
            Vec::new()
        } else {
            list(virtio_devices.clone())?
        };
        for name in candidates.iter().map(DirEntry::file_name) {
            if let Some(name) = name.to_str().filter(|name| name.starts_with("virtio"))
                && above(&virtio_devices.join(name)).as_deref() == Some(id.as_str())
            {
                names.push(name.to_owned());
            }
        }
        // Some dozens of buses, which nobody asks where the device is on those two.
        if names.is_empty() && list(bus.clone())?.iter().any(|kind| is_on(kind.file_name().as_ref())) {
            names.push(id.as_str().to_owned());
        }
        Ok(names)
    }

    /// The ID under which a device is known everywhere: for a virtio device that of what it sits on.
    #[must_use]
    pub fn canonical(&self, id: DeviceId) -> DeviceId {
        let virtio = self.sysfs.join("bus/virtio/devices").join(id.as_str());
        above(&virtio).and_then(|above| above.parse().ok()).unwrap_or(id)
    }

    /// The ID of the device behind a link: none for virtual links, and where the kernel (before 5.14) does not say.
    #[must_use]
    pub fn id_of(&self, link: &Link) -> Option<DeviceId> {
        let parent = link.parent_device.as_deref()?;
        let id = parent.parse().ok()?;
        Some(if link.parent_bus.as_deref() == Some("virtio") { self.canonical(id) } else { id })
    }

    /// The driver bound to a PCI function, for messages: `vfio-pci`.
    #[must_use]
    pub fn driver(&self, id: &DeviceId) -> Option<String> {
        let driver = std::fs::read_link(self.sysfs.join("bus/pci/devices").join(id.as_str()).join("driver"));
        Some(driver.ok()?.file_name()?.to_str()?.to_owned())
    }
}

/// What is in a folder: nothing, where the kernel does not have that bus.
fn list(folder: PathBuf) -> Result<Vec<DirEntry>, Error> {
    match std::fs::read_dir(&folder) {
        Ok(listed) => Ok(listed.flatten().collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { step: "list", path: folder, source }),
    }
}

/// The last component but one of what a device's link leads to: `../../../devices/pci0000:00/0000:00:0a.0/virtio2`.
fn above(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.parent()?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_nic_is_known_by_its_device_on_any_bus_and_a_virtio_nic_by_the_one_below_it() {
        let root = tempfile::tempdir().unwrap();
        let make = |bus: &str, name: &str, path: &str| {
            let folder = root.path().join("bus").join(bus).join("devices");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::create_dir_all(root.path().join(path)).unwrap();
            symlink(Path::new("../../..").join(path), folder.join(name)).unwrap();
        };
        make("pci", "0000:00:0a.0", "devices/pci0000:00/0000:00:0a.0");
        make("virtio", "virtio2", "devices/pci0000:00/0000:00:0a.0/virtio2");
        make("pci", "0000:81:00.0", "devices/pci0000:80/0000:80:00.0/0000:81:00.0");
        make("virtio", "virtio3", "devices/vd0/virtio3");
        make("xen", "vif-0", "devices/vif-0");
        let netvsc = "f8615163-0000-1000-2000-00155d000101";
        make("vmbus", netvsc, &format!("devices/LNXSYSTM:00/VMBUS:00/{netvsc}"));
        make("usb", "2-1:1.0", "devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0");
        let devices = Devices::at(root.path());
        let names = |id: &str| devices.parent_names(&id.parse().unwrap()).unwrap();
        assert_eq!(names("0000:00:0a.0"), ["0000:00:0a.0", "virtio2"]);
        assert_eq!(names("0000:81:00.0"), ["0000:81:00.0"]);
        assert_eq!(names("vd0"), ["virtio3"]);
        assert_eq!(names("virtio2"), ["virtio2"]);
        assert!(names("0000:00:0b.0").is_empty());
        for elsewhere in ["vif-0", netvsc, "2-1:1.0"] {
            assert_eq!(names(elsewhere), [elsewhere]);
        }
        let canonical = |id: &str| devices.canonical(id.parse().unwrap()).to_string();
        assert_eq!((canonical("virtio2"), canonical("vd0")), ("0000:00:0a.0".to_owned(), "vd0".to_owned()));
        // A link is read from the kernel in the other tests; here only its parent matters.
        let netns = crate::Netns::create().unwrap();
        let mut link = netns.route_socket().unwrap().link_by_name("lo").unwrap().unwrap();
        assert_eq!(devices.id_of(&link), None);
        for (bus, parent, id) in [
            ("virtio", "virtio2", "0000:00:0a.0"),
            ("virtio", "virtio3", "vd0"),
            ("pci", "0000:81:00.0", "0000:81:00.0"),
            ("xen", "vif-0", "vif-0"),
            ("vmbus", netvsc, netvsc),
            ("usb", "2-1:1.0", "2-1:1.0"),
        ] {
            link.parent_bus = Some(bus.to_owned());
            link.parent_device = Some(parent.to_owned());
            assert_eq!(devices.id_of(&link).unwrap().as_str(), id);
        }
    }
}
