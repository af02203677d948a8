//! Which machine to build: processors, memory, NICs and where they sit. Pure; [`crate::Bed`] turns it into a running guest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use nic::{MacAddr, PciAddress};

use crate::error::Error;

/// QEMU's machine types that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chipset {
    /// PCI Express: hot-plug behind root ports.
    Q35,
    /// Plain PCI: hot-plug on bus 0.
    Pc,
}

/// A kind of NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// virtio_net.
    Virtio,
    /// Intel e1000, emulated.
    E1000,
}

/// What is at the other end of a NIC's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// A hub inside QEMU with this number: all NICs on it share one Ethernet segment.
    Hub(u32),
    /// A router inside QEMU (10.0.2.2), with nothing behind it. IPv4 only: what a router advertises comes when it likes, and the node
    /// would change while a test looks at it.
    Router,
    /// The same, and behind it whatever the host can reach.
    OpenRouter,
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub(crate) address: PciAddress,
    pub(crate) mac: MacAddr,
    pub(crate) model: Model,
    pub(crate) cable: Cable,
    pub(crate) numa: Option<u8>,
    pub(crate) modern: bool,
    pub(crate) default_route: bool,
}

impl Nic {
    /// A virtio NIC on hub 0.
    ///
    /// An address on bus 0 is a slot of the machine's root bus. Any other bus is that of a root port which is made for it: buses of
    /// root ports on the root bus count from 1, those of a NUMA node from the node's own bus.
    pub fn virtio(address: PciAddress, mac: MacAddr) -> Self {
        let cable = Cable::Hub(0);
        Self { address, mac, model: Model::Virtio, cable, numa: None, modern: false, default_route: false }
    }

    /// The same as an Intel e1000, whose driver is no virtio.
    #[must_use]
    pub fn e1000(mut self) -> Self {
        self.model = Model::E1000;
        self
    }

    /// Says that a virtio device has only the modern interface, with device ID 1041 instead of 1000.
    #[must_use]
    pub fn modern(mut self) -> Self {
        self.modern = true;
        self
    }

    /// Near this NUMA node: behind a PCI host bridge of its own. The address's bus must not be 0; the bridge gets the bus before it.
    #[must_use]
    pub fn numa(mut self, node: u8) -> Self {
        self.numa = Some(node);
        self
    }

    /// On another hub, in the router's network, ...
    #[must_use]
    pub fn cable(mut self, cable: Cable) -> Self {
        self.cable = cable;
        self
    }

    /// The node's management NIC: in an isolated router's network, with 10.0.2.15/24 and the default route set up at boot.
    #[must_use]
    pub fn management(mut self) -> Self {
        self.cable = Cable::Router;
        self.default_route = true;
        self
    }

    /// Its name for QEMU: for `set_link`, `device_del`, ...
    pub fn id(&self) -> String {
        format!("nic-{}", self.address).replace(':', ".")
    }

    /// Its address.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its MAC address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Name of its end of the cable for QEMU.
    pub(crate) fn netdev_id(&self) -> String {
        format!("cable-{}", self.id())
    }

    /// Key and value pairs for `-netdev` and `netdev_add`.
    pub(crate) fn netdev(&self) -> Vec<(&'static str, String)> {
        let mut netdev = match self.cable {
            Cable::Hub(number) => vec![("type", "hubport".to_owned()), ("hubid", number.to_string())],
            Cable::Router => {
                vec![("type", "user".to_owned()), ("restrict", "on".to_owned()), ("ipv6", "off".to_owned())]
            }
            Cable::OpenRouter => vec![("type", "user".to_owned())],
        };
        netdev.push(("id", self.netdev_id()));
        netdev
    }

    /// Key and value pairs for `-device` and `device_add`.
    pub(crate) fn device(&self, bus: &str) -> Vec<(&'static str, String)> {
        let driver = match self.model {
            Model::Virtio => "virtio-net-pci",
            Model::E1000 => "e1000",
        };
        let mut device = vec![
            ("driver", driver.to_owned()),
            ("id", self.id()),
            ("netdev", self.netdev_id()),
            ("mac", self.mac.to_string()),
            ("bus", bus.to_owned()),
            ("addr", format!("{:02x}.{:x}", self.address.device(), self.address.function())),
            ("romfile", String::new()),
        ];
        if self.address.function() == 0 && self.address.bus() == 0 {
            device.push(("multifunction", "on".to_owned()));
        }
        if self.modern && self.model == Model::Virtio {
            device.push(("disable-legacy", "on".to_owned()));
        }
        device
    }
}

/// A machine.
#[derive(Debug, Clone)]
pub struct Spec {
    pub(crate) chipset: Chipset,
    pub(crate) cpus: u32,
    pub(crate) memory: u32,
    pub(crate) nics: Vec<Nic>,
    pub(crate) ports: BTreeSet<u8>,
    pub(crate) persist: Option<PathBuf>,
    pub(crate) kernel_words: Vec<String>,
    pub(crate) qemu_arguments: Vec<String>,
    pub(crate) boot_limit: Duration,
    pub(crate) silence_limit: Duration,
    pub(crate) command_limit: Duration,
}

impl Default for Spec {
    fn default() -> Self {
        Self::new()
    }
}

impl Spec {
    /// A q35 machine with 2 processors, 512 MiB and no NIC.
    pub fn new() -> Self {
        Self {
            chipset: Chipset::Q35,
            cpus: 2,
            memory: 512,
            nics: Vec::new(),
            ports: BTreeSet::new(),
            persist: None,
            kernel_words: Vec::new(),
            qemu_arguments: Vec::new(),
            boot_limit: Duration::from_secs(60),
            silence_limit: Duration::from_secs(30),
            command_limit: Duration::from_secs(120),
        }
    }

    /// With this machine type.
    #[must_use]
    pub fn chipset(mut self, chipset: Chipset) -> Self {
        self.chipset = chipset;
        self
    }

    /// With this number of processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// With this much memory, in MiB.
    #[must_use]
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = mebibytes;
        self
    }

    /// With one NIC more.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// With an empty root port for this bus, for a NIC to be plugged in later (q35). Buses count from 1.
    #[must_use]
    pub fn root_port(mut self, bus: u8) -> Self {
        self.ports.insert(bus);
        self
    }

    /// With this folder of the host at `/persist`, writable; what is in it outlives the guest.
    #[must_use]
    pub fn persist(mut self, folder: impl Into<PathBuf>) -> Self {
        self.persist = Some(folder.into());
        self
    }

    /// With one word more on the kernel's command line.
    #[must_use]
    pub fn kernel_word(mut self, word: &str) -> Self {
        self.kernel_words.push(word.to_owned());
        self
    }

    /// With these arguments more for QEMU.
    #[must_use]
    pub fn qemu_arguments(mut self, arguments: &[&str]) -> Self {
        self.qemu_arguments.extend(arguments.iter().map(|word| (*word).to_owned()));
        self
    }

    /// The guest must run its first command within this time (60 s).
    #[must_use]
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.boot_limit = limit;
        self
    }

    /// A guest that does not answer for this long hangs (30 s).
    #[must_use]
    pub fn silence_limit(mut self, limit: Duration) -> Self {
        self.silence_limit = limit;
        self
    }

    /// A command that runs longer than this is killed, unless it says otherwise (120 s).
    #[must_use]
    pub fn command_limit(mut self, limit: Duration) -> Self {
        self.command_limit = limit;
        self
    }

    /// QEMU's name of bus 0.
    pub(crate) fn root_bus(&self) -> &'static str {
        match self.chipset {
            Chipset::Q35 => "pcie.0",
            Chipset::Pc => "pci.0",
        }
    }

    /// QEMU's name of the bus that a NIC sits on.
    ///
    /// # Errors
    /// [`Error::Spec`] when there is no such bus in this machine.
    pub(crate) fn bus(&self, nic: &Nic) -> Result<String, Error> {
        let address = nic.address;
        match (address.domain(), address.bus(), address.device()) {
            (0, 0, _) if nic.numa.is_none() => Ok(self.root_bus().to_owned()),
            (0, bus, 0) if self.ports().contains_key(&bus) => Ok(port_id(bus)),
            _ => Err(Error::Spec(format!(
                "no place for a NIC at {address}: bus 0, or device 0 on the bus of a root port"
            ))),
        }
    }

    /// All root ports: bus -> NUMA node.
    fn ports(&self) -> BTreeMap<u8, Option<u8>> {
        let mut ports: BTreeMap<u8, Option<u8>> = self.ports.iter().map(|bus| (*bus, None)).collect();
        ports.extend(
            self.nics.iter().filter(|nic| nic.address.bus() > 0).map(|nic| (nic.address.bus(), nic.numa)),
        );
        ports
    }

    /// The hubs of its NICs, and hub 0, where a NIC that comes later is.
    pub(crate) fn hubs(&self) -> BTreeSet<u32> {
        let hubs = self.nics.iter().filter_map(|nic| match nic.cable {
            Cable::Hub(number) => Some(number),
            _ => None,
        });
        hubs.chain([0]).collect()
    }

    /// QEMU's arguments for processors, memory, buses and NICs.
    ///
    /// # Errors
    /// [`Error::Spec`] when an address cannot be had.
    pub(crate) fn arguments(&self) -> Result<Vec<String>, Error> {
        let ports = self.ports();
        if self.chipset == Chipset::Pc && !ports.is_empty() {
            return Err(Error::Spec("root ports need the q35 machine".to_owned()));
        }
        let machine = match self.chipset {
            Chipset::Q35 => "q35,smbus=off,sata=off,usb=off,vmport=off,hpet=off",
            Chipset::Pc => "pc,usb=off,vmport=off,hpet=off",
        };
        let mut arguments = vec!["-machine".to_owned(), machine.to_owned()];
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-smp", self.cpus.to_string());
        add("-m", format!("{}M", self.memory));
        let nodes = ports.values().flatten().max().map_or(0, |node| u32::from(*node) + 1);
        for node in 0..nodes {
            // The last node takes what does not divide evenly.
            let share = self.memory / nodes;
            let share = if node + 1 == nodes { self.memory - share * (nodes - 1) } else { share };
            add("-object", format!("memory-backend-ram,id=memory{node},size={share}M"));
            let cpus: String =
                (0..self.cpus).filter(|cpu| cpu % nodes == node).map(|cpu| format!(",cpus={cpu}")).collect();
            add("-numa", format!("node,nodeid={node},memdev=memory{node}{cpus}"));
        }
        let mut next_of = BTreeMap::new();
        for (slot, (bus, numa)) in (0_u32..).zip(&ports) {
            let parent = match numa {
                None => "pcie.0".to_owned(),
                Some(node) => format!("node{node}"),
            };
            let next = next_of.entry(*numa).or_insert_with(|| match numa {
                None => 1,
                Some(node) => {
                    // The host bridge has a bus of its own, before that of its first root port.
                    add(
                        "-device",
                        format!("pxb-pcie,id={parent},bus_nr={},numa_node={node},bus=pcie.0", bus - 1),
                    );
                    *bus
                }
            });
            if bus != next {
                return Err(Error::Spec(format!(
                    "bus {bus:02x} cannot be had: the firmware numbers root ports one after the other, next is {next:02x}"
                )));
            }
            *next += 1;
            add(
                "-device",
                format!("pcie-root-port,id={},bus={parent},chassis={slot},slot={slot}", port_id(*bus)),
            );
        }
        for nic in &self.nics {
            add("-netdev", as_option(nic.netdev()));
            add("-device", as_option(nic.device(&self.bus(nic)?)));
        }
        arguments.extend(self.qemu_arguments.iter().cloned());
        Ok(arguments)
    }
}

fn port_id(bus: u8) -> String {
    format!("port{bus:02x}")
}

/// `driver,key=value,key=value`: QEMU takes the first key's name as understood.
fn as_option(pairs: Vec<(&'static str, String)>) -> String {
    let words = pairs.into_iter().enumerate().map(|(at, (key, value))| match at {
        0 => value,
        _ => format!("{key}={value}"),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(address: &str) -> Nic {
        Nic::virtio(address.parse().unwrap(), "52:54:00:00:00:01".parse().unwrap())
    }

    fn line(spec: &Spec) -> String {
        spec.arguments().unwrap().join(" ")
    }

    #[test]
    fn a_nic_on_bus_0_is_a_slot_of_the_root_bus() {
        let line = line(&Spec::new().nic(nic("0000:00:0a.0")));
        assert!(line.contains("-netdev hubport,hubid=0,id=cable-nic-0000.00.0a.0"), "{line}");
        let device = "-device virtio-net-pci,id=nic-0000.00.0a.0,netdev=cable-nic-0000.00.0a.0,mac=52:54:00:00:00:01,bus=pcie.0,addr=0a.0";
        assert!(line.contains(device), "{line}");
    }

    #[test]
    fn another_bus_makes_a_root_port_and_a_numa_node_a_host_bridge() {
        let line = line(&Spec::new().nic(nic("0000:01:00.0")).nic(nic("0000:81:00.0").numa(1)));
        assert!(line.contains("pcie-root-port,id=port01,bus=pcie.0"), "{line}");
        assert!(line.contains("pxb-pcie,id=node1,bus_nr=128,numa_node=1,bus=pcie.0"), "{line}");
        assert!(line.contains("pcie-root-port,id=port81,bus=node1"), "{line}");
        assert!(line.contains("-numa node,nodeid=1,memdev=memory1,cpus=1"), "{line}");
    }

    #[test]
    fn addresses_that_the_firmware_would_not_give_are_refused() {
        let refused = [
            Spec::new().nic(nic("0000:02:00.0")),
            Spec::new().nic(nic("0000:01:03.0")),
            Spec::new().nic(nic("0001:00:03.0")),
            Spec::new().nic(nic("0000:00:03.0").numa(0)),
            Spec::new().chipset(Chipset::Pc).nic(nic("0000:01:00.0")),
        ];
        for spec in refused {
            assert!(matches!(spec.arguments(), Err(Error::Spec(_))), "{spec:?}");
        }
    }

    #[test]
    fn the_management_nic_is_alone_with_its_router() {
        let line = line(&Spec::new().nic(nic("0000:00:03.0").management()));
        assert!(line.contains("-netdev user,restrict=on,ipv6=off"), "{line}");
    }
}
