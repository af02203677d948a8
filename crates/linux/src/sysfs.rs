//! Network devices as sysfs shows them, from a root that is passed in.
//!
//! Found are all network devices of the PCI and virtio buses, whether or not their interface is in this network
//! namespace: the kernel hides only `net/*`, not the device and its driver. Positions come from the `devices/` path that a
//! link leads to, component by component, so a NIC may sit behind any number of bridges and root ports, in any PCI
//! domain, or on no PCI bus at all.
//!
//! Whatever a file contains, and if it vanishes while we read, one device is skipped with the reason; the others are
//! found. Source: Documentation/filesystems/sysfs.rst, Documentation/ABI/testing/sysfs-bus-pci.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::thread;

use nic::{DeviceId, HardwareId, IfName, Interface, Nic, PciAddress};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::Error;

/// A mounted sysfs, or a tree that looks like one.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

/// What was found on the buses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
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

/// PCI base class 02h: network controller.
const PCI_CLASS_NETWORK: u32 = 0x02;
/// `VIRTIO_ID_NET` in include/uapi/linux/virtio_ids.h.
const VIRTIO_ID_NET: u32 = 1;
/// One page is the most that a sysfs attribute holds.
const ATTRIBUTE_LIMIT: usize = 4096;

impl Sysfs {
    /// The tree below `root`, usually `/sys`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Sysfs { root: root.into() }
    }

    /// Finds all network devices on the PCI and virtio buses.
    ///
    /// # Errors
    /// The folder of a bus is there and cannot be listed, or `root` is no sysfs at all.
    pub fn nics(&self) -> Result<Found, Error> {
        let bus = self.root.join("bus");
        if !bus.is_dir() {
            let source = io::Error::new(io::ErrorKind::NotFound, "this is not a sysfs");
            return Err(Error::File { step: "open", path: bus, source });
        }
        let mut search = Search::default();
        let mut accounted: HashSet<PciAddress> = HashSet::new();
        // Virtio first: what is found there accounts for the PCI function below it.
        let virtio = self.names("virtio")?;
        for (name, nic) in shared_out(&virtio, |name| self.virtio_nic(name)) {
            let Some((function, nic)) = nic else { continue };
            // One that cannot be read must not come back as a plain PCI function with driver virtio-pci.
            accounted.extend(function);
            search.take(name, nic);
        }
        let mut pci = self.names("pci")?;
        pci.retain(|name| name.parse().is_ok_and(|address| !accounted.contains(&address)));
        for (name, nic) in shared_out(&pci, |name| self.pci_nic(name)) {
            if let Some(nic) = nic {
                search.take(name, nic);
            }
        }
        Ok(Found { nics: search.nics.into_values().collect(), unreadable: search.unreadable })
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

    /// All interfaces of the network namespace that this sysfs was mounted in. Those of `nics` are not read once more.
    ///
    /// # Errors
    /// `class/net` cannot be listed, or an interface that does not vanish meanwhile cannot be read.
    pub fn interfaces(&self, nics: &[Nic]) -> Result<Vec<Interface>, Error> {
        let known: HashMap<&str, &Interface> =
            nics.iter().flat_map(|nic| &nic.interfaces).map(|known| (known.name.as_str(), known)).collect();
        let folder = self.root.join("class/net");
        let mut interfaces = Vec::new();
        for name in list(&folder)? {
            if let Some(known) = known.get(name.as_str()) {
                interfaces.push((*known).clone());
                continue;
            }
            let path = folder.join(&name);
            // `bonding_masters` and the like are plain files beside the interfaces.
            if !path.is_dir() {
                continue;
            }
            match interface(&path, &name, |path| path.join("device").symlink_metadata().is_ok()) {
                Ok(interface) => interfaces.push(interface),
                Err(source) if vanished(&source) => {}
                Err(source) => return Err(Error::File { step: "read interface", path, source }),
            }
        }
        Ok(interfaces)
    }

    /// The names of a bus's devices; none if the kernel does not have the bus.
    fn names(&self, bus: &str) -> Result<Vec<String>, Error> {
        match list(&self.root.join("bus").join(bus).join("devices")) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn device(&self, bus: &str, name: &str) -> Device {
        let link = self.root.join("bus").join(bus).join("devices").join(name);
        let below = fs::read_link(&link)
            .map_err(|error| format!("its link cannot be read: {error}"))
            .and_then(|target| {
                below_devices(&target).ok_or_else(|| "its link does not lead into devices/".to_owned())
            });
        // Through the link each file would be looked up by twice as many steps.
        let path = below.as_ref().map_or(link, |below| self.root.join("devices").join(below));
        Device { name: name.to_owned(), driver: last_component_of_link(&path.join("driver")), path, below }
    }

    /// The NIC that a virtio device is, if it is one, and the PCI function that it sits on.
    fn virtio_nic(&self, name: &str) -> Option<(Option<PciAddress>, Result<Nic, String>)> {
        let device = self.device("virtio", name);
        if device.driver.as_deref() != Some("virtio_net") && device.hex("device") != Ok(VIRTIO_ID_NET) {
            return None;
        }
        let position = match self.position(&device) {
            Ok(position) => position,
            Err(why) => return Some((None, Err(why))),
        };
        let function = position.iter().find_map(Ancestor::pci);
        Some((function, virtio_nic(device, &position)))
    }

    /// The NIC that a PCI function is, if it is one.
    fn pci_nic(&self, name: &str) -> Option<Result<Nic, String>> {
        let address: PciAddress = name.parse().ok()?;
        let device = self.device("pci", name);
        let class = device.hex("class").ok()?;
        (class >> 16 == PCI_CLASS_NETWORK).then(|| {
            Ok(Nic {
                id: address.into(),
                pci: Some(address),
                above: device.below.as_ref().map(|_| above(&device.path)).unwrap_or_default(),
                acpi_index: acpi_index(&device.path),
                hardware: hardware(&device.path),
                numa_node: numa_node(&device.path),
                interfaces: device.interfaces()?,
                bus_name: device.name,
                driver: device.driver,
            })
        })
    }

    /// The devices above, nearest first, each with its bus. Folders that are no device on a bus are passed over.
    fn position(&self, device: &Device) -> Result<Vec<Ancestor>, String> {
        let below = device.below.as_ref().map_err(Clone::clone)?;
        let devices = self.root.join("devices");
        let mut ancestors = Vec::new();
        for above in below.ancestors().skip(1).take_while(|path| path.file_name().is_some()) {
            let path = devices.join(above);
            let Some(bus) = last_component_of_link(&path.join("subsystem")) else { continue };
            let Some(name) = above.file_name().and_then(|name| name.to_str()) else { continue };
            let nearest_pci = bus == "pci" && name.parse::<PciAddress>().is_ok();
            ancestors.push(Ancestor { bus, name: name.to_owned(), path });
            // What lies above the function (bridges, root ports) says nothing about the NIC.
            if nearest_pci {
                break;
            }
        }
        Ok(ancestors)
    }
}

fn virtio_nic(device: Device, position: &[Ancestor]) -> Result<Nic, String> {
    // The driver core lets a virtio device sit on a PCI function, a platform device, a channel subsystem or a vDPA
    // device; what ethtool calls bus-info is the name of that parent.
    let id = match position.first() {
        Some(Ancestor { bus, name, .. }) if bus == "pci" => {
            DeviceId::from(name.parse::<PciAddress>().map_err(|error| error.to_string())?)
        }
        Some(Ancestor { name, .. }) => name.parse().map_err(|error: nic::NameError| error.to_string())?,
        None => device.name.parse().map_err(|error: nic::NameError| error.to_string())?,
    };
    let pci_path = position.iter().find(|above| above.pci().is_some()).map(|above| above.path.as_path());
    Ok(Nic {
        id,
        pci: position.iter().find_map(Ancestor::pci),
        above: pci_path.map(above).unwrap_or_default(),
        acpi_index: pci_path.and_then(acpi_index),
        hardware: hardware(pci_path.unwrap_or(&device.path)),
        numa_node: pci_path.and_then(numa_node),
        interfaces: device.interfaces()?,
        bus_name: device.name,
        driver: device.driver,
    })
}

/// How many devices are worth a thread of their own.
const SHARE: usize = 512;

/// Each of `names` with what `read` makes of it. A device is a dozen of system calls: where there are thousands, all processors share them.
fn shared_out<'a, T: Send>(names: &'a [String], read: impl Fn(&str) -> T + Sync) -> Vec<(&'a str, T)> {
    let each = |name: &'a String| (name.as_str(), read(name));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(names.len().div_ceil(SHARE));
    if threads <= 1 {
        return names.iter().map(each).collect();
    }
    let (own, others) = names.split_at(names.len().div_ceil(threads));
    thread::scope(|scope| {
        let work = |share: &'a [String]| share.iter().map(each).collect::<Vec<_>>();
        let started: Vec<_> = others
            .chunks(own.len())
            .map(|share| {
                // Where there is no thread to be had, the work is done here.
                let builder = thread::Builder::new().name("sysfs".to_owned());
                builder.spawn_scoped(scope, move || work(share)).map_err(|_| share)
            })
            .collect();
        let mut all = work(own);
        for share in started {
            all.extend(match share {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(share) => work(share),
            });
        }
        all
    })
}

/// A device above another.
struct Ancestor {
    bus: String,
    name: String,
    path: PathBuf,
}

impl Ancestor {
    fn pci(&self) -> Option<PciAddress> {
        (self.bus == "pci").then(|| self.name.parse().ok()).flatten()
    }
}

/// What has been found so far.
#[derive(Default)]
struct Search {
    nics: BTreeMap<DeviceId, Nic>,
    unreadable: Vec<Unreadable>,
}

impl Search {
    fn take(&mut self, name: &str, nic: Result<Nic, String>) {
        let why = match nic {
            Ok(nic) => match self.nics.get(&nic.id) {
                None => {
                    self.nics.insert(nic.id.clone(), nic);
                    return;
                }
                Some(other) => format!("its ID {} is already taken by {}", nic.id, other.bus_name),
            },
            Err(why) => why,
        };
        let device = name.chars().take(64).flat_map(char::escape_debug).collect();
        self.unreadable.push(Unreadable { device, why });
    }
}

/// A device on a bus.
struct Device {
    name: String,
    /// Its folder.
    path: PathBuf,
    /// The same below `devices/`, or why that is not known.
    below: Result<PathBuf, String>,
    driver: Option<String>,
}

impl Device {
    fn hex(&self, attribute: &str) -> Result<u32, String> {
        hex(&self.path.join(attribute))
    }

    /// The interfaces in `net/`: the folder is missing without a driver, and empty while they are elsewhere.
    fn interfaces(&self) -> Result<Vec<Interface>, String> {
        let folder = self.path.join("net");
        let names = match list(&folder) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            listed => listed.map_err(|error| error.chain())?,
        };
        let mut interfaces = Vec::new();
        for name in names {
            match interface(&folder.join(&name), &name, |_| true) {
                Ok(interface) => interfaces.push(interface),
                Err(error) if vanished(&error) => {}
                Err(error) => return Err(format!("its interface cannot be read: {error}")),
            }
        }
        interfaces.sort();
        Ok(interfaces)
    }
}

fn interface(path: &Path, name: &str, hardware: impl Fn(&Path) -> bool) -> io::Result<Interface> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let index = attribute(&path.join("ifindex"))?;
    Ok(Interface {
        index: index.parse().map_err(|_| invalid(format!("ifindex is {:?}", shorten(&index))))?,
        name: IfName::from_str(name).map_err(|error| invalid(error.to_string()))?,
        hardware: hardware(path),
    })
}

/// Whether what was read is gone: before it was opened, or, as sysfs says of a device that is taken away, after that.
fn vanished(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

fn hardware(path: &Path) -> Option<HardwareId> {
    let number = |attribute| hex(&path.join(attribute)).ok().and_then(|number| u16::try_from(number).ok());
    Some(HardwareId { vendor: number("vendor")?, device: number("device")? })
}

/// The PCI devices above the one whose folder this is: a physical function stands beside its virtual ones, so a link leads to it.
fn above(folder: &Path) -> Vec<PciAddress> {
    let physical = last_component_of_link(&folder.join("physfn"));
    let names = folder.ancestors().skip(1).filter_map(|above| above.file_name()?.to_str());
    physical.as_deref().into_iter().chain(names).filter_map(|name| name.parse().ok()).collect()
}

/// There is a file only where the firmware gave a number.
fn acpi_index(folder: &Path) -> Option<u32> {
    attribute(&folder.join("acpi_index")).ok()?.parse().ok()
}

/// -1 where the platform does not know.
fn numa_node(path: &Path) -> Option<u16> {
    attribute(&path.join("numa_node")).ok()?.parse().ok()
}

fn hex(path: &Path) -> Result<u32, String> {
    let text = attribute(path).map_err(|error| error.to_string())?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    u32::from_str_radix(digits, 16).map_err(|_| format!("{:?} is not a hexadecimal number", shorten(&text)))
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

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
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

mod details;

#[cfg(test)]
mod tests;
