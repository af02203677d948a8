//! Network devices as sysfs shows them, from a root that is passed in.
//!
//! Found are all network devices of the PCI and virtio buses, whether or not their interface is in this network
//! namespace: the kernel hides only `net/*`, not the device and its driver. Positions come from the `devices/` path that a
//! link leads to, component by component, so a NIC may sit behind any number of bridges and root ports, in any PCI
//! domain, or on no PCI bus at all.
//!
//! Whatever a device's files contain, and if they vanish while we read, one device is skipped with the reason; the others are
//! found. An interface that is there and cannot be read is an error: nobody could say whose it is.
//! Source: Documentation/filesystems/sysfs.rst, Documentation/ABI/testing/sysfs-bus-pci.

mod details;
mod find;

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nic::{Interface, Nic, PciAddress};
use rustix::fs::OFlags;

use crate::Error;

/// A mounted sysfs, or a tree that looks like one.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// All interfaces of the network namespace that this sysfs was mounted in.
    pub interfaces: Vec<Interface>,
    /// The network devices, in no particular order; no two have the same ID.
    pub nics: Vec<Nic>,
    /// The devices that could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// A device that looks like a NIC and cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What its bus calls it, shortened and with control characters escaped.
    pub device: String,
    /// What is wrong.
    pub why: String,
}

/// The group through which a process drives a PCI function that vfio-pci holds: one group, one file.
///
/// Source: Documentation/driver-api/vfio.rst, `vfio_noiommu_group_alloc` in drivers/vfio/group.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfioGroup {
    /// An IOMMU keeps the device away from what is not its user's.
    Iommu(u32),
    /// There is no IOMMU (module parameter `enable_unsafe_noiommu_mode`), and the device can reach all memory.
    NoIommu(u32),
}

impl VfioGroup {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            VfioGroup::Iommu(number) | VfioGroup::NoIommu(number) => number,
        }
    }

    /// Its file on the node.
    #[must_use]
    pub fn device_node(self) -> String {
        match self {
            VfioGroup::Iommu(number) => format!("/dev/vfio/{number}"),
            VfioGroup::NoIommu(number) => format!("/dev/vfio/noiommu-{number}"),
        }
    }
}

/// One page is the most that a sysfs attribute holds.
const ATTRIBUTE_LIMIT: usize = 4096;

impl Sysfs {
    /// The tree below `root`, usually `/sys`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Sysfs { root: root.into() }
    }

    /// The group of a PCI function that vfio-pci holds.
    ///
    /// # Errors
    /// The function is in no group, or its group has no number.
    pub fn vfio_group(&self, address: PciAddress) -> Result<VfioGroup, Error> {
        let path = self.root.join("bus/pci/devices").join(address.to_string()).join("iommu_group");
        let failed = |source| Error::File { step: "read the IOMMU group", path: path.clone(), source };
        let target = fs::read_link(&path).map_err(failed)?;
        let number = target.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let number =
            number.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "it has no number")))?;
        // Only vfio gives a group a name.
        match attribute(&path.join("name")).as_deref() {
            Ok("vfio-noiommu") => Ok(VfioGroup::NoIommu(number)),
            _ => Ok(VfioGroup::Iommu(number)),
        }
    }
}

/// The content of a small file, without the newline. sysfs gives all of an attribute at the first read.
fn attribute(path: &Path) -> io::Result<String> {
    // What is no file of sysfs, a FIFO for one, must not keep us waiting.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let mut buffer = [0; ATTRIBUTE_LIMIT];
    let length = loop {
        match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    let bytes = buffer.get(..length).unwrap_or_default();
    let text =
        std::str::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(text.trim_end().to_owned())
}

/// The names in a folder. Names that are not UTF-8 belong to nothing of ours.
fn list(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::File { step: "list", path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn last_component_of_link(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// What follows `devices/` in a link of the form `../../../devices/pci0000:00/...`.
fn below_devices(target: &Path) -> Option<PathBuf> {
    let mut components = target.components();
    let top = components.by_ref().find(|component| *component != Component::ParentDir)?;
    let below = components.as_path();
    let plain = below.components().all(|component| matches!(component, Component::Normal(_)));
    (top == Component::Normal("devices".as_ref()) && plain).then(|| below.to_owned())
}

#[cfg(test)]
mod tests;
