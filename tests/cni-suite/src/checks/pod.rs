//! What a pod may do to a NIC that it has: root in a network namespace can do all of this, and the next user must not inherit it.

use std::fs;

use anyhow::Context as _;

use super::DEL;
use crate::bed::Bed;
use crate::check::{Area, Check, Verdict};

pub(super) fn area() -> Area {
    let check = |name, expects, run| Check { name, expects, section: DEL, run };
    Area {
        title: "pod",
        checks: vec![
            check("renames", "the pod renames the NIC: it comes home under its own name", |bed| {
                after(bed, &["link set net1 down", "link set net1 name mine"])
            }),
            check("sets-down", "the pod sets it down: it comes home as it was", |bed| {
                after(bed, &["link set net1 down"])
            }),
            check(
                "changes-mac-and-mtu",
                "the pod changes MAC, MTU and queue length: they are restored",
                |bed| after(bed, &["link set net1 address 02:00:00:00:00:99 mtu 1280 txqueuelen 5"]),
            ),
            check(
                "sets-an-alias",
                "the pod sets an alias, in place of whatever it finds there: the NIC comes home under its own name",
                |bed| after(bed, &["link set net1 alias theirs"]),
            ),
            check(
                "gives-alternative-names",
                "the pod gives it alternative names, one of them the NIC's own name at home: they are gone",
                |bed| after(bed, &["link property add dev net1 altname eth1 altname another"]),
            ),
            check(
                "promiscuous",
                "the pod makes it promiscuous and all-multicast: it is neither at home",
                |bed| after(bed, &["link set net1 promisc on", "link set net1 allmulticast on"]),
            ),
            check(
                "without-arp",
                "the pod switches ARP and multicast off, which stays with a link: they are on again",
                |bed| after(bed, &["link set net1 arp off", "link set net1 multicast off"]),
            ),
            check("in-a-bridge", "the pod makes it a bridge's port: it comes home", |bed| {
                port(bed, "link add upon type bridge")
            }),
            check("in-a-bond", "the pod makes it a bond's port: it comes home", |bed| {
                port(bed, "link add upon type bond")
            }),
            check("in-a-vrf", "the pod makes it a VRF's port: it comes home", |bed| {
                port(bed, "link add upon type vrf table 10")
            }),
            check("vlan-upon-it", "the pod builds a VLAN upon it: the NIC comes home without", |bed| {
                upon(bed, "vlan id 5")
            }),
            check("macvlan-upon-it", "the pod builds a macvlan upon it: the NIC comes home without", |bed| {
                upon(bed, "macvlan mode bridge")
            }),
            check("ipvlan-upon-it", "the pod builds an ipvlan upon it: the NIC comes home without", |bed| {
                upon(bed, "ipvlan")
            }),
            check("macsec-upon-it", "the pod builds a MACsec upon it: the NIC comes home without", |bed| {
                upon(bed, "macsec")
            }),
            check(
                "xdp",
                "the pod puts an XDP program on it, which moves with a link: it is gone, or it would see the node's packets",
                xdp,
            ),
            check(
                "more-addresses",
                "the pod adds addresses and routes: none of them is on the node afterwards",
                |bed| after(bed, &["addr add 10.66.0.1/24 dev net1", "route add 10.67.0.0/24 via 10.66.0.2"]),
            ),
        ],
    }
}

/// ADD, what the pod does then, DEL: the node as before, and no NIC in the pod.
fn after(bed: &Bed<'_>, pods: &[&str]) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    for arguments in pods {
        bed.pod.ip(arguments)?;
    }
    bed.del(&config)?;
    bed.node_is_again(&before, "after DEL")
}

fn port(bed: &Bed<'_>, master: &str) -> Verdict {
    bed.pod.can(master)?;
    after(bed, &["link set net1 down", master, "link set net1 master upon"])
}

fn upon(bed: &Bed<'_>, kind: &str) -> Verdict {
    let add = format!("link add link net1 name upon type {kind}");
    bed.pod.can(&add)?;
    after(bed, &[&add, "link set upon up"])
}

fn xdp(bed: &Bed<'_>) -> Verdict {
    let object = bed.folder().join("xdp-pass.o");
    // An object of one XDP program: `return XDP_PASS`.
    fs::write(&object, include_bytes!("xdp-pass.o")).context("cannot write the program")?;
    let put = format!("link set net1 xdpgeneric obj {} sec xdp", object.display());
    bed.pod.can(&put)?;
    after(bed, &[&put])
}
