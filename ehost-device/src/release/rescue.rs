//! A DEL without a lease: the ledger was lost, or torn. The kernel still shows whether the NIC that the configuration
//! names is in the container's namespace under the name that the runtime gave it; then it is ours to bring home, if not
//! quite as it was, since nobody knows how that was.

use cni::Error;
use cni::plugin::Del;
use ledger::{Addresses, Fault, Home, Homecoming, Lease, Ledger, Node, Owner, Stage};
use linux::Netns;
use nic::{DeviceId, IfName, Link};

use super::LOCK_PATIENCE;
use crate::code;
use crate::config::{Selector, selector};
use crate::plumb::ARRIVAL_PATIENCE;

/// Brings home what the container has without a lease.
///
/// # Errors
/// It was found and could not be brought home.
pub(super) fn without_lease(node: &mut Node, ledger: &Ledger, del: &Del) -> Result<(), Error> {
    // By its name alone a link in the pod cannot be told from one that the pod made.
    let Ok(Selector::Device(id)) = selector(&del.config) else { return Ok(()) };
    let id = node.devices.canonical(id);
    let Some((netns, link)) = find(node, del, &id) else { return Ok(()) };
    let entry = ledger.lock(&id, LOCK_PATIENCE).map_err(code::ledger)?;
    match entry.read() {
        Ok(None) => {}
        // Somebody else's: a DEL for them brings it home.
        Ok(Some(_)) => return Ok(()),
        Err(error @ ledger::Error::Unusable { source: Fault::Newer { .. }, .. }) => {
            return Err(code::ledger(error));
        }
        Err(_) => entry.set_aside().map_err(code::ledger)?,
    }
    let name = home_name(&link);
    cni::tell!(
        "ehost-device: device {id} has no lease: it comes home as {name}, down, since nothing is known of its past"
    );
    let lease = Lease {
        device: id,
        permanent_mac: link.permanent_mac,
        boot_id: linux::boot_id().map_err(code::io("read the boot ID"))?,
        home: Home {
            name,
            mac: link.permanent_mac.or(link.mac),
            up: false,
            flags: Link::MULTICAST,
            xdp: Vec::new(),
            tcx: Some(Vec::new()),
            ..Home::of(&link, Vec::new(), None)
        },
        owner: Owner {
            container_id: del.container_id.as_str().to_owned(),
            if_name: del.if_name.clone(),
            netns: netns.path().to_owned(),
            netns_inode: Some(netns.identity().1),
            network: del.config.name().as_str().to_owned(),
            pod: None,
        },
        stage: Stage::Returning { fault: None },
    };
    match ledger::bring_home(node, &entry, &lease, None, ARRIVAL_PATIENCE, Addresses::GivenBack)
        .map_err(code::not_home)?
    {
        Homecoming::Home | Homecoming::Gone => Ok(()),
        // A name that was only made up is as good as another.
        Homecoming::Displaced { .. } => entry.close().map_err(code::ledger),
        Homecoming::OutOfSight => Ok(()),
    }
}

fn find(node: &Node, del: &Del, id: &DeviceId) -> Option<(Netns, Link)> {
    let netns = Netns::open(del.netns.as_deref()?).ok().filter(|netns| !netns.same(&node.netns))?;
    let parents = node.devices.parent_names(id).ok()?;
    let links = netns.route_socket().ok()?.links().ok()?;
    // The runtime's name is that of the NIC, or of the VLAN upon it.
    let named = links.iter().find(|link| link.name == del.if_name)?;
    let is_it = |link: &&Link| link.index == named.index || Some(link.index) == named.lower;
    let ours = |link: &&Link| link.parent_device.as_ref().is_some_and(|parent| parents.contains(parent));
    let link = links.iter().find(|link| is_it(link) && ours(link)).cloned()?;
    Some((netns, link))
}

/// `dev<index>`, as the kernel calls a NIC whose namespace ended while its name was taken.
fn home_name(link: &Link) -> IfName {
    format!("dev{}", link.index).parse().unwrap_or_else(|_| link.name.clone())
}
