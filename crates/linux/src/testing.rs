//! For tests: a folder that looks like sysfs, where only what is put into it is there, down to the form of its links; a flood of
//! messages, as when the kernel has more to say than anybody reads; and a program that is killed at a system call of one's choice.
#![allow(clippy::unwrap_used)]

pub mod bpf;
mod call;
mod switch;
pub mod trace;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub use self::switch::{close_open_vswitch, open_vswitch};

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{Socket, SocketAddr};

/// Sends more messages to the group of the kernel's uevents, in the caller's network namespace, than any socket there holds.
///
/// # Panics
/// Where the caller lacks CAP_NET_ADMIN there.
pub fn flood() {
    // Each takes 2 KiB of a listener's buffer, which has 2 MiB where the system allows what we ask for.
    const MESSAGES: usize = 8_000;
    let mut sender = Socket::new(NETLINK_KOBJECT_UEVENT).unwrap();
    sender.bind_auto().unwrap();
    let everybody = SocketAddr::new(0, 1);
    for _ in 0..MESSAGES {
        // A listener that loses it is what this is for.
        let _ = sender.send_to(&[b'x'; 1024], &everybody, 0);
    }
}

/// A sysfs of one's own. It ends with the value.
#[derive(Debug)]
pub struct Tree(tempfile::TempDir);

/// PCI class 02h (network), subclass 00h (Ethernet).
pub const ETHERNET: u32 = 0x02_0000;

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// A sysfs without any device or interface.
    ///
    /// # Panics
    /// As all here: where the files cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let tree = Tree(tempfile::tempdir().unwrap());
        for folder in ["bus/pci/devices", "bus/virtio/devices", "class/net", "devices"] {
            fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        tree
    }

    /// Its root.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A PCI function at `position` below `devices/`, whose last component is its address.
    pub fn pci(&self, position: &str, class: u32, vendor: u16, device: u16) {
        self.device("pci", position);
        let [_, base, sub, interface] = class.to_be_bytes();
        let ids = format!("v{vendor:08X}d{device:08X}sv00000000sd00000000");
        self.write(position, "modalias", &format!("pci:{ids}bc{base:02X}sc{sub:02X}i{interface:02X}"));
        self.write(position, "numa_node", "-1");
    }

    /// A virtio device at `position`, whose last component is its name. `kind` is its `VIRTIO_ID`: 1 is a NIC.
    pub fn virtio(&self, position: &str, kind: u16, driver: Option<&str>) {
        self.device("virtio", position);
        self.write(position, "modalias", &format!("virtio:d{kind:08X}v00001AF4"));
        if let Some(driver) = driver {
            self.driver("virtio", position, driver);
        }
    }

    /// A virtio NIC in the PCI function at `position`, with its driver and an empty `net/`; gives the virtio device's position.
    pub fn virtio_nic(&self, position: &str, name: &str) -> String {
        self.pci(position, ETHERNET, 0x1af4, 0x1041);
        self.driver("pci", position, "virtio-pci");
        let virtio = format!("{position}/{name}");
        self.virtio(&virtio, 1, Some("virtio_net"));
        fs::create_dir(self.folder(&virtio).join("net")).unwrap();
        virtio
    }

    /// Binds a driver to a device of `bus`.
    pub fn driver(&self, bus: &str, position: &str, driver: &str) {
        let drivers = format!("bus/{bus}/drivers/{driver}");
        fs::create_dir_all(self.path().join(&drivers)).unwrap();
        self.link(position, "driver", &drivers);
    }

    /// Puts the device at `position` into an IOMMU group. vfio without IOMMU names the group.
    pub fn iommu_group(&self, position: &str, number: u32, name: Option<&str>) {
        let group = format!("kernel/iommu_groups/{number}");
        fs::create_dir_all(self.path().join(&group)).unwrap();
        if let Some(name) = name {
            fs::write(self.path().join(&group).join("name"), format!("{name}\n")).unwrap();
        }
        self.link(position, "iommu_group", &group);
    }

    /// An interface of the device at `position`, or one without a device.
    pub fn interface(&self, position: Option<&str>, name: &str, index: u32) {
        let folder = match position {
            Some(position) => format!("{position}/net/{name}"),
            None => format!("virtual/net/{name}"),
        };
        fs::create_dir_all(self.folder(&folder)).unwrap();
        self.write(&folder, "ifindex", &index.to_string());
        if position.is_some() {
            symlink("../..", self.folder(&folder).join("device")).unwrap();
        }
        symlink(Path::new("../../devices").join(&folder), self.path().join("class/net").join(name)).unwrap();
    }

    /// Takes an interface away, as when it goes to another network namespace: the device and its `net/` stay.
    pub fn remove_interface(&self, name: &str) {
        let link = self.path().join("class/net").join(name);
        let folder = link.canonicalize().unwrap();
        fs::remove_file(link).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    /// Unplugs the device at `position`, and what is below it.
    pub fn unplug(&self, position: &str) {
        let folder = self.folder(position);
        for list in ["bus/pci/devices", "bus/virtio/devices", "class/net"] {
            for entry in fs::read_dir(self.path().join(list)).unwrap() {
                let entry = entry.unwrap().path();
                if entry.canonicalize().unwrap().starts_with(folder.canonicalize().unwrap()) {
                    fs::remove_file(entry).unwrap();
                }
            }
        }
        fs::remove_dir_all(folder).unwrap();
    }

    /// Writes an attribute of a device.
    pub fn write(&self, position: &str, attribute: &str, content: &str) {
        fs::write(self.folder(position).join(attribute), format!("{content}\n")).unwrap();
    }

    /// The folder of a device.
    #[must_use]
    pub fn folder(&self, position: &str) -> PathBuf {
        self.path().join("devices").join(position)
    }

    fn device(&self, bus: &str, position: &str) {
        let folder = self.folder(position);
        fs::create_dir_all(&folder).unwrap();
        let name = folder.file_name().unwrap();
        let list = self.path().join("bus").join(bus).join("devices");
        symlink(Path::new("../../../devices").join(position), list.join(name)).unwrap();
        self.link(position, "subsystem", &format!("bus/{bus}"));
    }

    /// A link in a device's folder to another place in the tree.
    fn link(&self, position: &str, name: &str, target: &str) {
        let up: PathBuf = Path::new("devices").join(position).components().map(|_| "..").collect();
        symlink(up.join(target), self.folder(position).join(name)).unwrap();
    }
}
