//! Finding the network devices and interfaces. There may be thousands, and where the machine is emulated each system call is dear: so a
//! NIC costs a dozen of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nic::{DeviceId, HardwareId, Interface, Nic, PciAddress};
use rustix::io::Errno;

use super::{Found, Sysfs, Unreadable, attribute, below_devices, last_component_of_link, list};
use crate::Error;

/// PCI base class 02h: network controller.
const PCI_CLASS_NETWORK: u32 = 0x02;
/// `VIRTIO_ID_NET` in include/uapi/linux/virtio_ids.h.
const VIRTIO_ID_NET: u32 = 1;

impl Sysfs {
    /// Finds all interfaces, and all network devices on the PCI and virtio buses.
    ///
    /// # Errors
    /// `root` is no sysfs at all, a folder is there and cannot be listed, or an interface that does not vanish meanwhile cannot be read.
    pub fn find(&self) -> Result<Found, Error> {
        let bus = self.root.join("bus");
        if !bus.is_dir() {
            let source = io::Error::new(io::ErrorKind::NotFound, "this is not a sysfs");
            return Err(Error::File { step: "open", path: bus, source });
        }
        let mut found = Found::default();
        let mut folders: HashMap<PathBuf, Vec<Interface>> = HashMap::new();
        for (folder, interface) in self.interfaces()? {
            folders.entry(folder).or_default().push(interface.clone());
            found.interfaces.push(interface);
        }
        let functions: BTreeSet<PciAddress> =
            self.names("pci")?.iter().filter_map(|name| name.parse().ok()).collect();
        let buses = Buses { root: &self.root, functions: &functions, folders };
        let mut search = Search::default();
        let mut accounted: BTreeSet<PciAddress> = BTreeSet::new();
        // Virtio first: what is found there accounts for the PCI function below it.
        let virtio = self.names("virtio")?;
        for (name, nic) in shared_out(&virtio, |name| buses.virtio_nic(name)) {
            let Some((function, nic)) = nic else { continue };
            // One that cannot be read must not come back as a plain PCI function with driver virtio-pci.
            accounted.extend(function);
            search.take(name, nic);
        }
        let others: Vec<PciAddress> = functions.difference(&accounted).copied().collect();
        for (address, nic) in shared_out(&others, |address| buses.pci_nic(*address)) {
            if let Some(nic) = nic {
                search.take(&address.to_string(), nic);
            }
        }
        Ok(Found { nics: search.nics.into_values().collect(), unreadable: search.unreadable, ..found })
    }

    /// All interfaces, each with the folder below `devices/` that it is in.
    fn interfaces(&self) -> Result<Vec<(PathBuf, Interface)>, Error> {
        let class = self.root.join("class/net");
        let names = list(&class)?;
        let mut interfaces = Vec::with_capacity(names.len());
        for (name, read) in shared_out(&names, |name| self.interface(&class.join(name), name)) {
            match read {
                Ok(interface) => interfaces.extend(interface),
                Err(source) if vanished(&source) => {}
                Err(source) => {
                    return Err(Error::File { step: "read interface", path: class.join(name), source });
                }
            }
        }
        Ok(interfaces)
    }

    /// `None`: `bonding_masters` and the like are no links.
    fn interface(&self, link: &Path, name: &str) -> io::Result<Option<(PathBuf, Interface)>> {
        let Some(below) = fs::read_link(link).ok().and_then(|target| below_devices(&target)) else {
            return Ok(None);
        };
        let folder = below.parent().unwrap_or(Path::new("")).to_owned();
        // `get_device_parent` in drivers/base/core.c: there are those that have no device.
        let hardware = folder != Path::new("virtual/net");
        let interface = interface(&self.root.join("devices").join(&below), name, hardware)?;
        Ok(Some((folder, interface)))
    }

    /// The names of a bus's devices; none if the kernel does not have the bus.
    fn names(&self, bus: &str) -> Result<Vec<String>, Error> {
        match list(&self.root.join("bus").join(bus).join("devices")) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        }
    }
}

fn interface(path: &Path, name: &str, hardware: bool) -> io::Result<Interface> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let index = attribute(&path.join("ifindex"))?;
    let shown: String = index.chars().take(40).collect();
    Ok(Interface {
        index: index.parse().map_err(|_| invalid(format!("ifindex is {shown:?}")))?,
        name: name.parse().map_err(|error: nic::NameError| invalid(error.to_string()))?,
        hardware,
    })
}

/// Whether what was read is gone: before it was opened, or, as sysfs says of a device that is taken away, after that.
pub(super) fn vanished(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// What is known before the devices are read.
struct Buses<'a> {
    root: &'a Path,
    /// All of the PCI bus.
    functions: &'a BTreeSet<PciAddress>,
    /// The interfaces in each folder below `devices/`.
    folders: HashMap<PathBuf, Vec<Interface>>,
}

impl Buses<'_> {
    /// The NIC that a virtio device is, if it is one, and the PCI function that it sits on.
    fn virtio_nic(&self, name: &str) -> Option<(Option<PciAddress>, Result<Nic, String>)> {
        let device = self.device("virtio", name);
        let is_nic = device.driver.as_deref() == Some("virtio_net")
            || Alias::of(&device.path)?.number("d") == Some(VIRTIO_ID_NET);
        if !is_nic {
            return None;
        }
        let position = match &device.below {
            Ok(below) => self.position(below),
            Err(why) => return Some((None, Err(why.clone()))),
        };
        // The driver core lets a virtio device sit on a PCI function, a platform device, a channel subsystem or a vDPA
        // device; what ethtool calls bus-info is the name of that parent.
        let id = match position.first() {
            Some(Ancestor { function: Some(address), .. }) => Ok(DeviceId::from(*address)),
            Some(Ancestor { name, .. }) => name.parse(),
            None => device.name.parse(),
        };
        let function = position.last().and_then(|above| Some((above.function?, above.path.as_path())));
        let alias = Alias::of(function.map_or(&device.path, |(_, path)| path));
        let nic = id.map_err(|error: nic::NameError| error.to_string());
        let nic = nic.and_then(|id| self.nic(id, device, function, alias));
        Some((function.map(|(address, _)| address), nic))
    }

    /// The NIC that a PCI function is, if it is one.
    fn pci_nic(&self, address: PciAddress) -> Option<Result<Nic, String>> {
        let device = self.device("pci", &address.to_string());
        let alias = Alias::of(&device.path)?;
        let path = device.path.clone();
        (alias.number("bc") == Some(PCI_CLASS_NETWORK))
            .then(|| self.nic(address.into(), device, Some((address, &path)), Some(alias)))
    }

    /// `function` is the PCI function that the device is or sits on: what PCI says of a NIC, it says of that.
    fn nic(
        &self,
        id: DeviceId,
        device: Device,
        function: Option<(PciAddress, &Path)>,
        alias: Option<Alias>,
    ) -> Result<Nic, String> {
        let folder = device.below?.join("net");
        let found = match self.folders.get(&folder) {
            Some(interfaces) => Some(interfaces.clone()),
            None => self.unlisted(&folder)?,
        };
        let has_interface = found.is_some();
        let mut interfaces = found.unwrap_or_default();
        interfaces.sort();
        let path = function.map(|(_, path)| path);
        Ok(Nic {
            id,
            pci: function.map(|(address, _)| address),
            above: path.map(above).unwrap_or_default(),
            acpi_index: path.and_then(acpi_index),
            hardware: alias.and_then(|alias| alias.hardware()),
            numa_node: path.and_then(numa_node),
            interfaces,
            has_interface,
            bus_name: device.name,
            driver: device.driver,
        })
    }

    /// The interfaces of a device that has none in `class/net`. There are none while they are elsewhere, and no folder (`None`) where no
    /// driver has made any; what is there all the same is coming, going or not of this world, and must not be taken for a NIC in a pod.
    fn unlisted(&self, folder: &Path) -> Result<Option<Vec<Interface>>, String> {
        let folder = self.root.join("devices").join(folder);
        let names = match list(&folder) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            listed => listed.map_err(|error| error.chain())?,
        };
        let mut interfaces = Vec::new();
        for name in names {
            match interface(&folder.join(&name), &name, true) {
                Ok(interface) => interfaces.push(interface),
                Err(error) if vanished(&error) => {}
                Err(error) => return Err(format!("its interface cannot be read: {error}")),
            }
        }
        Ok(Some(interfaces))
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

    /// The devices above, nearest first, up to a PCI function: what lies above that (bridges, root ports) says nothing about the NIC.
    /// Folders that are no device on a bus are passed over.
    fn position(&self, below: &Path) -> Vec<Ancestor> {
        let devices = self.root.join("devices");
        let mut ancestors = Vec::new();
        for above in below.ancestors().skip(1) {
            let Some(name) = above.file_name().and_then(|name| name.to_str()) else { continue };
            let path = devices.join(above);
            let function = name.parse().ok().filter(|address| self.functions.contains(address));
            if function.is_some() || last_component_of_link(&path.join("subsystem")).is_some() {
                ancestors.push(Ancestor { function, name: name.to_owned(), path });
            }
            if function.is_some() {
                break;
            }
        }
        ancestors
    }
}

/// How many devices are worth a thread of their own.
pub(super) const SHARE: usize = 512;

/// Each of `items` with what `read` makes of it: where there are thousands, all processors share them.
fn shared_out<'a, I: Sync, T: Send>(items: &'a [I], read: impl Fn(&'a I) -> T + Sync) -> Vec<(&'a I, T)> {
    let each = |item: &'a I| (item, read(item));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(items.len().div_ceil(SHARE));
    if threads <= 1 {
        return items.iter().map(each).collect();
    }
    let (own, others) = items.split_at(items.len().div_ceil(threads));
    thread::scope(|scope| {
        let work = |share: &'a [I]| share.iter().map(each).collect::<Vec<_>>();
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
    function: Option<PciAddress>,
    name: String,
    path: PathBuf,
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

/// What a device says that it is, in one line by which udev finds a driver: `pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00`,
/// `virtio:d00000001v00001AF4`. Names are in small letters, numbers in capital hexadecimal.
///
/// Source: `modalias_show` in drivers/pci/pci-sysfs.c and drivers/virtio/virtio.c.
struct Alias(String);

impl Alias {
    fn of(folder: &Path) -> Option<Alias> {
        attribute(&folder.join("modalias")).ok().map(Alias)
    }

    fn number(&self, wanted: &str) -> Option<u32> {
        let (_, mut rest) = self.0.split_once(':')?;
        loop {
            let (name, after) = rest.split_at_checked(rest.find(|c: char| !c.is_ascii_lowercase())?)?;
            let end = after.find(|c: char| c.is_ascii_lowercase()).unwrap_or(after.len());
            let (digits, next) = after.split_at_checked(end)?;
            if name == wanted {
                return u32::from_str_radix(digits, 16).ok();
            }
            rest = next;
        }
    }

    fn hardware(&self) -> Option<HardwareId> {
        let number = |name| self.number(name).and_then(|number| u16::try_from(number).ok());
        Some(HardwareId { vendor: number("v")?, device: number("d")? })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_modalias_says_what_a_device_is() {
        let pci = Alias("pci:v00001AF4d00001041sv00008086sd00001100bc02sc00i01".to_owned());
        assert_eq!(pci.hardware().unwrap().to_string(), "1af4:1041");
        assert_eq!((pci.number("bc"), pci.number("i"), pci.number("x")), (Some(2), Some(1), None));
        let virtio = Alias("virtio:d00000001v00001AF4".to_owned());
        assert_eq!((virtio.number("d"), virtio.number("bc")), (Some(VIRTIO_ID_NET), None));
        for bad in
            ["", "pci", "pci:", "pci:v", "pci:vd00000001", "pci:vXYZd1", "pci:v00011AF4d00001041", "v1d1"]
        {
            assert_eq!(Alias(bad.to_owned()).hardware(), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_hang(text in "\\PC{0,10}:\\PC{0,40}") {
            let _ = Alias(text).hardware();
        }
    }
}
