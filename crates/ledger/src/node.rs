//! The node as who handles leases sees it, and how the NIC of a lease is recognised wherever it is.

use std::path::Path;

use linux::route::{Socket, Vital};
use linux::{Devices, Netns};
use nic::lifeline::TornFacts;
use nic::{DeviceId, IfName, Lifeline, Link, VFIO_PCI};

use crate::homecoming::is_child;
use crate::{Error, Lease, Notes, Stage};

/// The node's network namespace, a socket in it, and the machine's devices.
#[derive(Debug)]
pub struct Node {
    /// The namespace in which NICs are at home.
    pub netns: Netns,
    /// A socket in it.
    pub routes: Socket,
    /// The machine's devices.
    pub devices: Devices,
    /// This boot ([`linux::boot_id`]).
    pub boot_id: String,
    /// What is vital for the node, as far as somebody told.
    pub vital: Vital,
}

/// How often the facts for the lifeline are read again when they contradict each other.
const ATTEMPTS: u32 = 5;

impl Node {
    /// The node as seen from the calling thread, which must be in its network namespace.
    ///
    /// # Errors
    /// No /proc, or no socket.
    pub fn here() -> Result<Node, linux::Error> {
        Ok(Node {
            netns: Netns::current()?,
            routes: Socket::open()?,
            devices: Devices::at("/sys"),
            boot_id: linux::boot_id()?,
            vital: Vital::default(),
        })
    }

    /// Takes in what was named to the agent as vital.
    ///
    /// # Errors
    /// The note cannot be used: then what the kernel shows is all there is.
    pub fn heed(&mut self, notes: &Notes) -> Result<(), Error> {
        self.vital = notes.vital()?;
        Ok(())
    }

    /// Which links carry the node.
    ///
    /// # Errors
    /// Links, routes or addresses cannot be read, or keep changing: then nobody knows, and no link may be touched.
    pub fn lifeline(&mut self) -> Result<Lifeline, linux::Error> {
        steady(|| Ok(self.routes.look(&self.vital)?.map(|look| look.lifeline)))
    }

    /// The ID under which a link's lease is kept: that of its device, or one made from its name where it has no device.
    ///
    /// # Errors
    /// Never, as far as the grammars of both names go (a test tries all bytes); total rather than panicking.
    pub fn device_of(&self, link: &Link) -> Result<DeviceId, nic::NameError> {
        self.devices.id_of(link).map_or_else(|| virtual_id(&link.name), Ok)
    }
}

fn steady<T>(
    mut look: impl FnMut() -> Result<Result<T, TornFacts>, linux::Error>,
) -> Result<T, linux::Error> {
    for _ in 0..ATTEMPTS {
        if let Ok(found) = look()? {
            return Ok(found);
        }
    }
    Err(linux::Error::Unsteady { what: "find out what carries the node".to_owned(), attempts: ATTEMPTS })
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
            Identity::Parents(parents) => by_parent(lease, parents, links),
            // A link of that name may be another by now, so something else must agree.
            Identity::Virtual => links.iter().find(|link| {
                let known = [Some(&lease.home.name), Some(&lease.owner.if_name), displaced(lease), expected];
                known.contains(&Some(&link.name))
                    && (link.index == lease.home.index || (link.mac.is_some() && link.mac == lease.home.mac))
            }),
        }
    }

    /// Whether it exists no more, where it is among neither the links of its owner's namespace, nor these, of the node's.
    /// Its interface, that is: the driver of a device that vfio-pci holds by now took it away, and will make a new one.
    pub(crate) fn is_gone(&self, lease: &Lease, devices: &Devices, links: &[Link]) -> bool {
        self.is_replaced(lease, links)
            || !self.outlives_its_namespace()
            || devices.driver(&lease.device).as_deref() == Some(VFIO_PCI)
    }

    /// Whether the kernel sends it to the initial namespace when its own ends: not virtual links, which it deletes, and
    /// not what is unplugged.
    fn outlives_its_namespace(&self) -> bool {
        matches!(self, Identity::Parents(parents) if !parents.is_empty())
    }

    /// Whether there is a device by which it is known wherever it is.
    pub(crate) fn has_a_device(&self) -> bool {
        matches!(self, Identity::Parents(_))
    }

    /// Whether another NIC is where this one was.
    fn is_replaced(&self, lease: &Lease, links: &[Link]) -> bool {
        match self {
            Identity::Parents(parents) => {
                links.iter().any(|link| is_at(parents, link) && is_other(lease, link))
            }
            Identity::Virtual => false,
        }
    }

    /// The NIC among the links of its owner's namespace.
    pub(crate) fn among_pod<'a>(&self, lease: &Lease, links: &'a [Link]) -> Option<&'a Link> {
        match self {
            Identity::Parents(parents) => by_parent(lease, parents, links),
            Identity::Virtual => {
                let plumbed = match lease.stage {
                    Stage::Plumbed { index } => links.iter().find(|link| link.index == index),
                    _ => None,
                };
                // An ADD that died between the move and the last step: the name is the new or, where the rename
                // failed, still the old one.
                plumbed.or_else(|| {
                    // A VLAN upon it has its MAC, and may have its name.
                    let is_upon = |link: &Link| links.iter().any(|lower| is_child(link, lower.index));
                    let named =
                        |name: &IfName| links.iter().find(|link| link.name == *name && !is_upon(link));
                    let same = |link: &&Link| link.index == lease.home.index || link.mac == lease.home.mac;
                    named(&lease.owner.if_name).filter(same).or_else(|| named(&lease.home.name).filter(same))
                })
            }
        }
    }
}

fn displaced(lease: &Lease) -> Option<&IfName> {
    match &lease.stage {
        Stage::Displaced { name, .. } => Some(name),
        Stage::Prepared | Stage::Plumbed { .. } | Stage::Returning { .. } => None,
    }
}

fn by_parent<'a>(lease: &Lease, parents: &[String], links: &'a [Link]) -> Option<&'a Link> {
    links.iter().find(|link| is_at(parents, link) && !is_other(lease, link))
}

fn is_at(parents: &[String], link: &Link) -> bool {
    link.parent_device.as_ref().is_some_and(|parent| parents.contains(parent))
}

/// PCI addresses change across reboots of VMs, so the address must agree with the MAC that the NIC was made with.
fn is_other(lease: &Lease, link: &Link) -> bool {
    match (lease.permanent_mac, link.permanent_mac) {
        (Some(then), Some(now)) => then != now,
        // A device that names none can only be known by where it sits.
        (None, _) | (_, None) => false,
    }
}

/// The owner's network namespace, if it lives and is the one of then.
pub(crate) fn open_owners(node: &Node, lease: &Lease) -> Result<Option<(Netns, Socket)>, linux::Error> {
    Ok(open_pod(node, &lease.owner.netns)?.filter(|(netns, _)| is_owners(node, lease, netns)))
}

/// Whether a namespace is the owner's: a path under /proc may stand for another by now, and after a reboot an inode, too.
pub(crate) fn is_owners(node: &Node, lease: &Lease, netns: &Netns) -> bool {
    lease.boot_id == node.boot_id && lease.owner.netns_inode.is_none_or(|inode| netns.identity().1 == inode)
}

/// The NIC of a lease where its owner has it. `None` where that cannot be told: it is not there, or the caller may not look into the
/// owner's network namespace, which takes CAP_SYS_ADMIN and the path of then.
#[must_use]
pub fn look_into_pod(lease: &Lease, devices: &Devices, boot_id: &str) -> Option<Link> {
    // Without an inode the path may stand for another namespace by now.
    let inode = lease.owner.netns_inode.filter(|_| lease.boot_id == boot_id)?;
    let netns = Netns::open(&lease.owner.netns).ok().filter(|netns| netns.identity().1 == inode)?;
    let links = netns.route_socket().ok()?.links().ok()?;
    Identity::of(lease, devices).ok()?.among_pod(lease, &links).cloned()
}

/// A namespace other than the node's, if `path` still is one that may be looked into.
///
/// # Errors
/// Whether it is one cannot be told now. A virtual NIC that is not found anywhere counts as gone, so this must not pass for its absence.
pub(crate) fn open_pod(node: &Node, path: &Path) -> Result<Option<(Netns, Socket)>, linux::Error> {
    let open = || {
        let netns = Netns::open(path)?;
        let socket = netns.route_socket()?;
        Ok((netns, socket))
    };
    match open() {
        Err(error) if linux::Error::is_passing(&error) => Err(error),
        opened => Ok(opened.ok().filter(|(netns, _)| !netns.same(&node.netns))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nobody_knows_the_lifeline_when_the_facts_cannot_be_read_or_contradict_each_other() {
        let unreadable = || linux::Error::Malformed { what: "list routes".to_owned(), why: "a test" };
        let error = steady::<Lifeline>(|| Err(unreadable())).unwrap_err();
        assert!(matches!(error, linux::Error::Malformed { .. }), "{error}");
        let address = nic::Address {
            index: 7,
            ip: "192.0.2.2".parse().unwrap(),
            prefix_len: 24,
            tentative: false,
            duplicate: false,
            permanent: true,
        };
        let mut read = 0;
        let error = steady(|| {
            read += 1;
            Ok(Lifeline::find(&[], &[], std::slice::from_ref(&address), &[]))
        });
        assert!(matches!(error, Err(linux::Error::Unsteady { .. })));
        assert_eq!(read, ATTEMPTS);
    }

    #[test]
    fn links_without_a_device_have_an_id_that_can_stand_in_a_file_name() {
        let id = |name: &str| virtual_id(&name.parse().unwrap()).unwrap().to_string();
        assert_eq!(id("veth0"), "link:veth0");
        assert_eq!(id("a_b@c"), "link:a_5fb_40c");
    }

    #[test]
    fn a_nic_at_the_same_address_with_another_mac_is_another_nic() {
        let mut link = Netns::create().unwrap().route_socket().unwrap().link_by_name("lo").unwrap().unwrap();
        link.parent_device = Some("virtio2".to_owned());
        link.permanent_mac = Some(nic::MacAddr([2, 0, 0, 0, 0, 1]));
        let mut lease = crate::tests::lease("0000:00:0a.0");
        let identity = Identity::Parents(vec!["0000:00:0a.0".to_owned(), "virtio2".to_owned()]);
        let links = [link];
        assert!(identity.is_replaced(&lease, &links));
        assert!(identity.among_node(&lease, None, &links).is_none());
        for same in [None, links[0].permanent_mac] {
            lease.permanent_mac = same;
            assert!(!identity.is_replaced(&lease, &links));
            assert!(identity.among_pod(&lease, &links).is_some());
        }
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
