//! What the NIC becomes in the pod before it has addresses: queues, rings, and the VLAN upon it where the pod is to see only that.

use cni::{Code, Error};
use ledger::Node;
use linux::route::{LinkChange, Socket};
use nic::{Channels, IfName, Link, Rings, Tunable};

use super::Pod;
use crate::code::{self, DEVICE_NOT_FOUND};
use crate::config::{Interface, Ring};

/// What the driver of a NIC tells about its queues and rings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    pub(super) channels: Option<Tunable<Channels>>,
    pub(super) rings: Option<Tunable<Rings>>,
}

/// The queues and rings that the configuration asks for, as far as they differ from what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retuning {
    channels: Option<Channels>,
    rings: Option<Rings>,
}

impl Tuning {
    pub(super) fn of(node: &mut Node, link: &Link) -> Result<Tuning, Error> {
        Ok(Tuning {
            channels: node.routes.channels(&link.name).map_err(code::io("look at the NIC's queues"))?,
            rings: node.routes.rings(&link.name).map_err(code::io("look at the NIC's rings"))?,
        })
    }

    /// Sees to it that the driver allows what the configuration asks for, while the NIC is still at home.
    ///
    /// # Errors
    /// Code 2 where the driver allows nothing of the kind, 7 where it does not allow so many.
    pub(super) fn plan(&self, wanted: &Interface, link: &Link) -> Result<Retuning, Error> {
        let channels = wanted.queues.map(|queues| self.queues(queues, link)).transpose()?;
        let rings = wanted.ring.map(|ring| self.ring(ring, link)).transpose()?;
        Ok(Retuning {
            channels: channels.filter(|wanted| self.channels.is_some_and(|is| is.now != *wanted)),
            rings: rings.filter(|wanted| self.rings.is_some_and(|is| is.now != *wanted)),
        })
    }

    fn queues(&self, queues: u32, link: &Link) -> Result<Channels, Error> {
        let Tunable { now, most } = self.channels.ok_or_else(|| unsupported("queues", link))?;
        within("queues", queues, most.most_queues(), link)?;
        Ok(now.with_queues(queues, most))
    }

    fn ring(&self, wanted: Ring, link: &Link) -> Result<Rings, Error> {
        let Tunable { mut now, most } = self.rings.ok_or_else(|| unsupported("ring", link))?;
        if let Some(rx) = wanted.rx {
            within("ring.rx", rx, most.rx, link)?;
            now.rx = rx;
        }
        if let Some(tx) = wanted.tx {
            within("ring.tx", tx, most.tx, link)?;
            now.tx = tx;
        }
        Ok(now)
    }
}

fn within(key: &str, wanted: u32, most: u32, link: &Link) -> Result<(), Error> {
    if (1..=most).contains(&wanted) {
        return Ok(());
    }
    let message = format!("{key} {wanted} is not from 1 to {most}, which is what {} can have", link.name);
    Err(Error::new(Code::INVALID_CONFIG, message))
}

fn unsupported(key: &str, link: &Link) -> Error {
    let message = format!("{key}: the driver of {} does not let it be set", link.name);
    Error::new(Code::UNSUPPORTED_FIELD, message)
}

/// What a NIC in the pod is called: the interface itself, or, below a VLAN that has this name, as it was at home.
pub(super) fn name_in_pod<'a>(wanted: &Interface, link: &'a Link, if_name: &'a IfName) -> &'a IfName {
    if wanted.vlan.is_some() { &link.name } else { if_name }
}

/// Tunes the NIC and makes the VLAN, with the NIC below it up; returns the interface that the pod is to use.
pub(super) fn shape(
    pod: &mut Pod,
    nic: &Link,
    wanted: &Interface,
    retuning: Retuning,
    if_name: &IfName,
) -> Result<Link, Error> {
    let Pod { routes, .. } = pod;
    if let Some(channels) = retuning.channels {
        routes.set_channels(&nic.name, channels).map_err(code::io("set the NIC's queues"))?;
    }
    if let Some(rings) = retuning.rings {
        routes.set_rings(&nic.name, rings).map_err(code::io("set the NIC's rings"))?;
    }
    match wanted.vlan {
        Some(tag) => vlan(routes, nic, tag, if_name),
        None => Ok(nic.clone()),
    }
}

fn vlan(routes: &mut Socket, nic: &Link, tag: u16, if_name: &IfName) -> Result<Link, Error> {
    let what = || format!("make VLAN {tag} upon {} in the pod", nic.name);
    // An IPAM plugin that asks the network (dhcp) sets the VLAN up, which the kernel refuses while the NIC is down.
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    routes.change_link(nic.index, &up).map_err(code::io(format!("set up {} in the pod", nic.name)))?;
    routes.add_vlan(nic.index, if_name, tag).map_err(code::io(what()))?;
    routes
        .link_by_name(if_name.as_str())
        .map_err(code::io(what()))?
        .filter(|made| made.lower == Some(nic.index))
        .ok_or_else(|| Error::new(DEVICE_NOT_FOUND, format!("{if_name} vanished from the pod")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux::Netns;

    fn link() -> Link {
        Netns::create().unwrap().route_socket().unwrap().link_by_name("lo").unwrap().unwrap()
    }

    #[test]
    fn the_nic_below_a_vlan_is_up_before_the_vlan_is_made() {
        let netns = Netns::create().unwrap();
        let mut pod = Pod { routes: netns.route_socket().unwrap(), netns };
        let nic = |pod: &mut Pod| pod.routes.link_by_name("lo").unwrap().unwrap();
        let wanted = Interface { vlan: Some(5), ..Interface::default() };
        let before = nic(&mut pod);
        // No VLAN can be made upon this one.
        shape(&mut pod, &before, &wanted, Retuning::default(), &"net1".parse().unwrap()).unwrap_err();
        assert!(!before.up && nic(&mut pod).up);
    }

    #[test]
    fn what_the_driver_does_not_allow_is_refused_in_words() {
        let most = Channels { combined: 4, ..Channels::default() };
        let now = Channels { combined: 1, ..Channels::default() };
        let tuning = Tuning {
            channels: Some(Tunable { now, most }),
            rings: Some(Tunable {
                now: Rings { rx: 256, tx: 256, ..Rings::default() },
                most: Rings { rx: 256, tx: 512, ..Rings::default() },
            }),
        };
        let queues = |queues| Interface { queues: Some(queues), ..Interface::default() };
        let ring = |rx, tx| Interface { ring: Some(Ring { rx, tx }), ..Interface::default() };
        assert_eq!(tuning.plan(&queues(2), &link()).unwrap().channels, Some(Channels { combined: 2, ..now }));
        assert_eq!(tuning.plan(&queues(1), &link()).unwrap(), Retuning::default());
        let larger = tuning.plan(&ring(None, Some(512)), &link()).unwrap().rings.unwrap();
        assert_eq!((larger.rx, larger.tx), (256, 512));
        let none = Tuning { channels: None, rings: None };
        let all: Vec<String> = [
            tuning.plan(&queues(5), &link()),
            tuning.plan(&queues(0), &link()),
            tuning.plan(&ring(Some(257), None), &link()),
            tuning.plan(&ring(None, Some(0)), &link()),
            none.plan(&queues(1), &link()),
            none.plan(&ring(Some(1), None), &link()),
        ]
        .into_iter()
        .map(|refused| refused.unwrap_err().to_string())
        .collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        queues 5 is not from 1 to 4, which is what lo can have (code 7)
        queues 0 is not from 1 to 4, which is what lo can have (code 7)
        ring.rx 257 is not from 1 to 256, which is what lo can have (code 7)
        ring.tx 0 is not from 1 to 512, which is what lo can have (code 7)
        queues: the driver of lo does not let it be set (code 2)
        ring: the driver of lo does not let it be set (code 2)
        ");
    }
}
