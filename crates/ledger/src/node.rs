//! The node as who handles leases sees it, and how the NIC of a lease is recognised wherever it is.

use std::path::Path;

use linux::route::Socket;
use linux::{Devices, Netns};
use nic::{DeviceId, IfName, Link};

use crate::{Lease, Stage};

/// The node's network namespace, a socket in it, and the machine's devices.
#[derive(Debug)]
pub struct Node {
    /// The namespace in which NICs are at home.
    pub netns: Netns,
    /// A socket in it.
    pub routes: Socket,
    /// The machine's devices.
    pub devices: Devices,
}

impl Node {
    /// The node as seen from the calling thread, which must be in its network namespace.
    ///
    /// # Errors
    /// No /proc, or no socket.
    pub fn here() -> Result<Node, linux::Error> {
        Ok(Node { netns: Netns::current()?, routes: Socket::open()?, devices: Devices::at("/sys") })
    }

    /// The ID under which a link's lease is kept: that of its device, or one made from its name where it has no device.
    ///
    /// # Errors
    /// Never, as far as the grammars of both names go (a test tries all bytes); total rather than panicking.
    pub fn device_of(&self, link: &Link) -> Result<DeviceId, nic::NameError> {
        self.devices.id_of(link).map_or_else(|| virtual_id(&link.name), Ok)
    }
}

const VIRTUAL: &str = "link:";

/// An ID for a link without a device: `link:veth0`. Bytes that cannot stand in an ID are written as `_` and two
/// hexadecimal digits, so 15 bytes make 50 at most.
fn virtual_id(name: &IfName) -> Result<DeviceId, nic::NameError> {
    let mut text = VIRTUAL.to_owned();
    for byte in name.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => text.push(char::from(byte)),
            _ => text.push_str(&format!("_{byte:02x}")),
        }
    }
    text.parse()
}

/// What tells the NIC of a lease from all others.
#[derive(Debug)]
pub(crate) enum Identity {
    /// The device behind it.
    Parents(Vec<String>),
    /// It has none: where it was, and what it was called.
    Virtual,
}

impl Identity {
    pub(crate) fn of(lease: &Lease, devices: &Devices) -> Result<Identity, linux::Error> {
        if lease.device.as_str().starts_with(VIRTUAL) {
            Ok(Identity::Virtual)
        } else {
            devices.parent_names(&lease.device).map(Identity::Parents)
        }
    }

    /// The NIC among the links of the node's namespace. `expected` is the name under which it was just sent there.
    pub(crate) fn among_node<'a>(
        &self,
        lease: &Lease,
        expected: Option<&IfName>,
        links: &'a [Link],
    ) -> Option<&'a Link> {
        match self {
            Identity::Parents(parents) => by_parent(parents, links),
            // A link of that name may be another by now, so something else must agree.
            Identity::Virtual => links.iter().find(|link| {
                let known = [Some(&lease.home.name), Some(&lease.owner.if_name), displaced(lease), expected];
                known.contains(&Some(&link.name))
                    && (link.index == lease.home.index || (link.mac.is_some() && link.mac == lease.home.mac))
            }),
        }
    }

    /// The NIC among the links of its owner's namespace.
    pub(crate) fn among_pod<'a>(&self, lease: &Lease, links: &'a [Link]) -> Option<&'a Link> {
        match self {
            Identity::Parents(parents) => by_parent(parents, links),
            Identity::Virtual => {
                let plumbed = match lease.stage {
                    Stage::Plumbed { index } => links.iter().find(|link| link.index == index),
                    _ => None,
                };
                // An ADD that died between the move and the last step: the name is the new or, where the rename
                // failed, still the old one.
                plumbed.or_else(|| {
                    let named = |name: &IfName| links.iter().find(|link| link.name == *name);
                    let same = |link: &&Link| link.index == lease.home.index || link.mac == lease.home.mac;
                    named(&lease.owner.if_name).filter(same).or_else(|| named(&lease.home.name).filter(same))
                })
            }
        }
    }
}

fn displaced(lease: &Lease) -> Option<&IfName> {
    match &lease.stage {
        Stage::Displaced { name } => Some(name),
        Stage::Prepared | Stage::Plumbed { .. } | Stage::Returning { .. } => None,
    }
}

fn by_parent<'a>(parents: &[String], links: &'a [Link]) -> Option<&'a Link> {
    links.iter().find(|link| link.parent_device.as_ref().is_some_and(|parent| parents.contains(parent)))
}

/// A namespace other than the node's, if `path` still is one.
pub(crate) fn open_pod(node: &Node, path: &Path) -> Option<(Netns, Socket)> {
    let netns = Netns::open(path).ok().filter(|netns| !netns.same(&node.netns))?;
    let socket = netns.route_socket().ok()?;
    Some((netns, socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn links_without_a_device_have_an_id_that_can_stand_in_a_file_name() {
        let id = |name: &str| virtual_id(&name.parse().unwrap()).unwrap().to_string();
        assert_eq!(id("veth0"), "link:veth0");
        assert_eq!(id("a_b@c"), "link:a_5fb_40c");
    }

    proptest! {
        #[test]
        fn every_interface_name_makes_an_id_and_no_two_the_same(one in "[^/:\\s\\x00-\\x1f]{1,15}", two in "[!-~]{1,15}") {
            let (Ok(one), Ok(two)) = (one.parse::<IfName>(), two.parse::<IfName>()) else { return Ok(()) };
            let ids = (virtual_id(&one), virtual_id(&two));
            prop_assert!(ids.0.is_ok() && ids.1.is_ok());
            prop_assert_eq!(ids.0 == ids.1, one == two);
        }
    }
}
