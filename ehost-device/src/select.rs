//! Finding the NIC, by the device behind it rather than by what it happens to be called.

use cni::{Code, Error};
use ledger::{Lease, Ledger, Node, Stage};
use linux::Devices;
use nic::{DeviceId, Link, MacAddr};

use crate::code::{self, DEVICE_NOT_FOUND};
use crate::config::Selector;

/// The NIC that a configuration means.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The key of its lease.
    pub(crate) id: DeviceId,
    /// Its interface, if that is in the node's network namespace.
    pub(crate) link: Option<Link>,
}

/// Finds the NIC in the node's network namespace, or, where it is away, the lease that names it.
///
/// # Errors
/// Code 100 when there is no such device; 7 when several fit.
pub(crate) fn choose(node: &mut Node, ledger: &Ledger, selector: &Selector) -> Result<Chosen, Error> {
    match look(node, ledger, selector) {
        // One that came home after the look at the node and before that at the ledger was in neither.
        Err(error) if error.code == DEVICE_NOT_FOUND => look(node, ledger, selector),
        found => found,
    }
}

fn look(node: &mut Node, ledger: &Ledger, selector: &Selector) -> Result<Chosen, Error> {
    match selector {
        Selector::Device(id) => by_device(node, id),
        Selector::Name(name) => {
            let link =
                node.routes.link_by_name(name).map_err(code::io(format!("look for interface {name:?}")))?;
            known(node, ledger, link, &format!("interface {name:?}"), |lease| {
                let home = &lease.home;
                home.name.as_str() == name || home.alt_names.iter().any(|alternative| alternative == name)
            })
        }
        Selector::Mac(mac) => {
            let links = node.routes.links().map_err(code::io("list interfaces"))?;
            let link = by_mac(&links, *mac)?.cloned();
            known(node, ledger, link, &format!("interface with MAC {mac}"), |lease| {
                lease.permanent_mac == Some(*mac) || lease.home.mac == Some(*mac)
            })
        }
    }
}

fn by_device(node: &mut Node, id: &DeviceId) -> Result<Chosen, Error> {
    let id = node.devices.canonical(id.clone());
    let parents = node.devices.parent_names(&id).map_err(code::io(format!("look for device {id}")))?;
    if parents.is_empty() {
        let message = format!("there is no device {id} on this node");
        return Err(Error::new(DEVICE_NOT_FOUND, message).with_details("all buses were searched"));
    }
    let links = node.routes.links().map_err(code::io("list interfaces"))?;
    let ours = |link: &Link| link.parent_device.as_ref().is_some_and(|parent| parents.contains(parent));
    Ok(Chosen { link: links.into_iter().find(ours), id })
}

/// Refuses a NIC that nobody would find again: one that has a device, but by a name that is on no bus. It would not be known in the pod, nor where
/// the kernel puts it when the pod ends.
///
/// # Errors
/// Code 100.
pub(crate) fn is_found_again(devices: &Devices, id: &DeviceId, link: &Link) -> Result<(), Error> {
    let Some(parent) = &link.parent_device else { return Ok(()) };
    let parents = devices.parent_names(id).map_err(code::io(format!("look for device {id}")))?;
    if parents.contains(parent) {
        return Ok(());
    }
    let message = format!("{} could not be brought home from a pod: its device is not found", link.name);
    let bus = link.parent_bus.as_deref().unwrap_or("no bus");
    let details = format!("the kernel says that it is {parent} on {bus}; all buses were searched");
    Err(Error::new(DEVICE_NOT_FOUND, message).with_details(details))
}

/// Takes the link that was found, or else the lease of a NIC that looked like that before it left.
fn known(
    node: &Node,
    ledger: &Ledger,
    link: Option<Link>,
    what: &str,
    was: impl Fn(&Lease) -> bool,
) -> Result<Chosen, Error> {
    let listing = ledger.list().map_err(code::ledger)?;
    if let Some(link) = link {
        // A link without a device is known by its name; one that is home under another keeps its lease's.
        let displaced = listing.leases.into_iter().find(|lease| {
            matches!(&lease.stage, Stage::Displaced { name, .. } if *name == link.name && link.parent_device.is_none())
        });
        let id = match displaced {
            Some(lease) => lease.device,
            None => node.device_of(&link).map_err(|error| Error::from_chain(Code::INTERNAL, &error))?,
        };
        return Ok(Chosen { id, link: Some(link) });
    }
    match listing.leases.into_iter().find(was) {
        Some(lease) => Ok(Chosen { id: lease.device, link: None }),
        None => Err(Error::new(DEVICE_NOT_FOUND, format!("there is no {what} on this node"))),
    }
}

/// The link with a MAC. VLANs and the like share that of the link below them, ports that of their bond: what the
/// hardware was made with decides, then what is no layer upon another link.
fn by_mac(links: &[Link], mac: MacAddr) -> Result<Option<&Link>, Error> {
    let same: Vec<_> = links.iter().filter(|link| link.permanent_mac == Some(mac)).collect();
    let same = if same.is_empty() {
        links.iter().filter(|link| link.mac == Some(mac) && !is_layer(link)).collect()
    } else {
        same
    };
    match same.as_slice() {
        [] => Ok(None),
        [link] => Ok(Some(link)),
        several => {
            let names: Vec<_> = several.iter().map(|link| link.name.as_str()).collect();
            let message = format!("several interfaces have MAC {mac}: {}", names.join(", "));
            Err(Error::new(Code::INVALID_CONFIG, message))
        }
    }
}

fn is_layer(link: &Link) -> bool {
    const LAYERS: [&str; 8] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "bond", "bridge", "team"];
    link.kind.as_deref().is_some_and(|kind| LAYERS.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux::Netns;
    use linux::testing::Tree;

    #[test]
    fn a_nic_whose_device_is_on_no_bus_is_refused_before_it_is_lost() {
        let tree = Tree::new();
        tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
        let devices = Devices::at(tree.path());
        let link = Netns::create().unwrap().route_socket().unwrap().link_by_name("lo").unwrap().unwrap();
        let judged = |id: &str, bus: &str, parent: Option<&str>| {
            let (parent_bus, parent_device) = (Some(bus.to_owned()), parent.map(str::to_owned));
            let link = Link { parent_bus, parent_device, ..link.clone() };
            is_found_again(&devices, &id.parse().unwrap(), &link)
        };
        judged("link:lo", "", None).unwrap();
        judged("0000:00:0a.0", "virtio", Some("virtio2")).unwrap();
        // A name that can be no ID, and one that sysfs does not have.
        for (id, parent) in [("link:lo", "a,b@7"), ("a-b", "a-b"), ("0000:00:0a.0", "virtio3")] {
            let refused = judged(id, "odd", Some(parent)).unwrap_err();
            assert_eq!(refused.code, DEVICE_NOT_FOUND);
            assert!(refused.details.contains(&format!("{parent} on odd")), "{refused}");
        }
    }
}
