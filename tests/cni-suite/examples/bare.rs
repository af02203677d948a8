//! A NIC to a pod and home again, and nothing else: the bare kernel operations below an ADD and a DEL. `cargo xtask bench cni` measures
//! `ehost-device` beside it; no lease, no question, no way back: not for use.
//!
//!     bare out|home LINK NETNS NAME
//!
//! `LINK` is its name on the node, `NETNS` the path of the pod's network namespace, `NAME` what it is called there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::AsFd as _;

use linux::Netns;
use linux::route::{LinkChange, Socket};
use nic::IfName;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [way, link, netns, name] = words.as_slice() else { panic!("bare out|home LINK NETNS NAME") };
    let (link, name): (IfName, IfName) = (link.parse().unwrap(), name.parse().unwrap());
    let (node, pod) = (Netns::current().unwrap(), Netns::open(netns).unwrap());
    let mut here = (link, Socket::open().unwrap(), node);
    let mut there = (name, pod.route_socket().unwrap(), pod);
    if way == "home" {
        std::mem::swap(&mut here, &mut there);
    }
    let (from, source, _) = &mut here;
    let (to, target, into) = &mut there;
    let index = source.link_by_name(from.as_str()).unwrap().expect("the link is there").index;
    let change = LinkChange { netns: Some(into.as_fd()), name: Some(to), ..LinkChange::default() };
    source.change_link(index, &change).unwrap();
    // The kernel keeps the index unless it is taken there, which it is not here.
    target.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
}
