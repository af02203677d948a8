//! A device as it is given to a container: the offer, and the device nodes of the node that belong to it.

use kubelet_api::deviceplugin::DeviceSpec;
use linux::{Sysfs, VfioGroup};
use nic::VFIO_PCI;
use serde_json::{Map, Value, json};

use super::Extras;
use crate::advertise::Offer;

const VFIO_CONTAINER: &str = "/dev/vfio/vfio";
pub(super) const VHOST_NET: &str = "/dev/vhost-net";
const TUN: &str = "/dev/net/tun";

/// A device that is given to a container.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) offer: Offer,
    vfio: Option<VfioGroup>,
}

/// A device node in the container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceNode {
    pub(crate) on_node: String,
    pub(crate) in_container: String,
}

impl Grant {
    /// Reads what belongs to an offer now.
    ///
    /// # Errors
    /// vfio-pci holds the device, and there is no group through which a process could use it.
    pub(crate) fn of(offer: Offer, sysfs: &Sysfs) -> Result<Grant, linux::Error> {
        let pci = offer.pci.filter(|_| offer.driver.as_deref() == Some(VFIO_PCI));
        let vfio = pci.map(|pci| sysfs.vfio_group(pci)).transpose()?;
        Ok(Grant { offer, vfio })
    }

    /// Its device nodes, without doubles. They are those of sriov-network-device-plugin.
    pub(crate) fn nodes(&self, extras: Extras) -> Vec<DeviceNode> {
        let extras = extras.with(&self.offer);
        let mut nodes = Vec::new();
        if let Some(group) = self.vfio {
            nodes.push(DeviceNode::same(VFIO_CONTAINER));
            nodes.push(DeviceNode { on_node: group.device_node(), in_container: in_container(group) });
        }
        if extras.vhost_net {
            nodes.push(DeviceNode::same(VHOST_NET));
        }
        if extras.vhost_net || extras.tun {
            nodes.push(DeviceNode::same(TUN));
        }
        nodes
    }

    /// What the container is told of it, in the form of sriov-network-device-plugin: by kind, and every value a string.
    pub(crate) fn info(&self, extras: Extras) -> Value {
        let extras = extras.with(&self.offer);
        let text = |value: &dyn ToString| Value::String(value.to_string());
        let mut netdevice = Map::new();
        netdevice.extend(self.offer.driver.as_ref().map(|driver| ("driver".to_owned(), text(driver))));
        netdevice.extend(self.offer.mac.map(|mac| ("mac".to_owned(), text(&mac))));
        netdevice.extend(self.offer.numa_node.map(|node| ("numaNode".to_owned(), text(&node))));
        let mut info = Map::from_iter([("generic".to_owned(), json!({ "deviceID": self.offer.id }))]);
        info.insert("netdevice".to_owned(), Value::Object(netdevice));
        if let Some(group) = self.vfio {
            let vfio = json!({ "mount": VFIO_CONTAINER, "dev-mount": in_container(group) });
            info.insert("vfio".to_owned(), vfio);
        }
        if extras.vhost_net {
            info.insert("vhost".to_owned(), json!({ "net-mount": VHOST_NET, "tun-mount": TUN }));
        } else if extras.tun {
            info.insert("tun".to_owned(), json!({ "mount": TUN }));
        }
        let told = self.offer.pool.additional_info_for(&self.offer.id);
        if !told.is_empty() {
            // Its README says `extraInfo`; its code does not (extraInfoProvider.go, `GetName`).
            info.insert("extra".to_owned(), json!(told));
        }
        Value::Object(info)
    }
}

/// A group without IOMMU has the plain name in the container: there is where DPDK looks first.
fn in_container(group: VfioGroup) -> String {
    format!("/dev/vfio/{}", group.number())
}

impl DeviceNode {
    /// What a container may do with a device node: read and write, not make others.
    pub(crate) const PERMISSIONS: &str = "rw";

    fn same(path: &str) -> Self {
        DeviceNode { on_node: path.to_owned(), in_container: path.to_owned() }
    }
}

impl From<DeviceNode> for DeviceSpec {
    fn from(node: DeviceNode) -> Self {
        DeviceSpec {
            container_path: node.in_container,
            host_path: node.on_node,
            permissions: DeviceNode::PERMISSIONS.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use linux::testing::{ETHERNET, Tree};

    use super::super::tests::offer;
    use super::*;

    const DEVICE: &str = "0000:00:0a.0";
    const POSITION: &str = "pci0000:00/0000:00:0a.0";

    fn on_vfio() -> Offer {
        Offer { driver: Some(VFIO_PCI.into()), mac: None, ..offer(DEVICE, None) }
    }

    fn shown(grant: &Grant, extras: Extras) -> Vec<String> {
        let one = |node: DeviceNode| format!("{} -> {}", node.on_node, node.in_container);
        grant.nodes(extras).into_iter().map(one).collect()
    }

    #[test]
    fn what_vfio_holds_comes_with_the_file_of_its_group() {
        let tree = Tree::new();
        tree.pci(POSITION, ETHERNET, 0x1af4, 0x1041);
        let sysfs = Sysfs::at(tree.path());
        let refused = Grant::of(on_vfio(), &sysfs).unwrap_err();
        assert!(refused.to_string().contains("iommu_group"), "{refused}");
        tree.iommu_group(POSITION, 7, None);
        let grant = Grant::of(on_vfio(), &sysfs).unwrap();
        let none = Extras::default();
        assert_eq!(shown(&grant, none), ["/dev/vfio/vfio -> /dev/vfio/vfio", "/dev/vfio/7 -> /dev/vfio/7"]);
        assert_eq!(
            grant.info(none).to_string(),
            r#"{"generic":{"deviceID":"0000:00:0a.0"},"netdevice":{"driver":"vfio-pci"},"vfio":{"dev-mount":"/dev/vfio/7","mount":"/dev/vfio/vfio"}}"#
        );
        tree.write("../kernel/iommu_groups/7", "name", "vfio-noiommu");
        let grant = Grant::of(on_vfio(), &sysfs).unwrap();
        assert_eq!(shown(&grant, none)[1], "/dev/vfio/noiommu-7 -> /dev/vfio/7");
    }

    #[test]
    fn vhost_net_brings_tun_and_tun_may_come_alone() {
        let grant = Grant::of(offer(DEVICE, None), &Sysfs::at("/nonexistent")).unwrap();
        let vhost_net = Extras { vhost_net: true, ..Extras::default() };
        let tun = Extras { tun: true, ..Extras::default() };
        assert_eq!(shown(&grant, Extras::default()), [""; 0]);
        let both = ["/dev/vhost-net -> /dev/vhost-net", "/dev/net/tun -> /dev/net/tun"];
        assert_eq!(shown(&grant, vhost_net), both);
        assert_eq!(shown(&grant, Extras { tun: true, ..vhost_net }), both);
        assert_eq!(shown(&grant, tun), ["/dev/net/tun -> /dev/net/tun"]);
        let info = grant.info(vhost_net);
        assert_eq!(info["vhost"], json!({ "net-mount": "/dev/vhost-net", "tun-mount": "/dev/net/tun" }));
        assert_eq!(grant.info(tun)["tun"], json!({ "mount": "/dev/net/tun" }));
    }

    /// Who reads the variable in Go reads it as a map of maps of maps of strings.
    #[test]
    fn every_value_that_a_container_is_told_is_a_string() {
        let grant = Grant::of(offer(DEVICE, Some(1)), &Sysfs::at("/nonexistent")).unwrap();
        let info = grant.info(Extras { vhost_net: true, tun: true, cdi: true });
        let read: std::collections::BTreeMap<String, std::collections::BTreeMap<String, String>> =
            serde_json::from_value(info).unwrap();
        assert_eq!(read["netdevice"]["numaNode"], "1");
    }

    #[test]
    fn a_pool_may_ask_for_device_nodes_and_add_words_of_its_own() {
        let mut pool = nic::Pool::empty("example.com/fast".parse().unwrap());
        for (about, key, value) in [("*", "zone", "a"), ("*", "token", "any"), (DEVICE, "token", "this")] {
            pool.additional_info.entry(about.into()).or_default().insert(key.into(), value.into());
        }
        let needs = nic::Needs { tun: true, ..nic::Needs::default() };
        let offer = Offer { pool: std::sync::Arc::new(pool), needs, ..offer(DEVICE, None) };
        let grant = Grant::of(offer, &Sysfs::at("/nonexistent")).unwrap();
        assert_eq!(shown(&grant, Extras::default()), ["/dev/net/tun -> /dev/net/tun"]);
        let info = grant.info(Extras::default());
        assert_eq!(info["extra"], json!({ "token": "this", "zone": "a" }));
        assert_eq!(info["tun"], json!({ "mount": "/dev/net/tun" }));
    }
}
