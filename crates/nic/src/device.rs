//! A NIC as a device: what it is and where it sits, whatever network namespace its interface is in.

use std::fmt;

use crate::{DeviceId, IfName, PciAddress};

/// The driver that hands a device to a program: who has bound a NIC to it wants it without an interface.
pub const VFIO_PCI: &str = "vfio-pci";

/// A network device on a bus, with the interfaces of it that can be seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The PCI address, or the parent's bus name where the parent is no PCI device.
    pub id: DeviceId,
    /// The device that the driver sits on, as its own bus calls it: `virtio2`, `0000:00:05.0` (e1000).
    pub bus_name: String,
    /// The nearest PCI function above (or the device itself).
    pub pci: Option<PciAddress>,
    /// The PCI devices above that function, nearest first: the physical function of a virtual one, bridges, root ports.
    pub above: Vec<PciAddress>,
    /// The number that the firmware gave it, where it gave one.
    pub acpi_index: Option<u32>,
    /// The bound driver: `virtio_net`, `e1000`, `vfio-pci`.
    pub driver: Option<String>,
    /// What the hardware says it is.
    pub hardware: Option<HardwareId>,
    /// The NUMA node it is close to, where the platform knows.
    pub numa_node: Option<u16>,
    /// Its interfaces in the network namespace that sysfs shows. None while the NIC is in a pod.
    pub interfaces: Vec<Interface>,
    /// Its driver has made an interface, wherever that is now. Not so while the driver begins, and with drivers that make none: vfio-pci,
    /// `uio_pci_generic`.
    pub has_interface: bool,
}

/// Vendor and device number, written `1af4:1041`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareId {
    /// The vendor, as PCI-SIG assigned it.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
}

impl fmt::Display for HardwareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// A network interface as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// The interface's index in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// There is a device behind it: it is not virtual.
    pub hardware: bool,
}
