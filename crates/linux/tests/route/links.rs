//! Links: how they are read, moved, renamed and changed.

use std::os::fd::AsFd;

use linux::Error;
use linux::route::{LinkChange, NewRoute};
use nic::{MacAddr, Offloads};

use crate::{Space, address, name};

#[test]
fn links_are_read_with_all_that_we_need_of_them() {
    let mut space = Space::new();
    space.spare("dm0", "address 02:00:00:00:00:01 mtu 1400 txqueuelen 321");
    space.ip("link set dm0 alias spare up");
    space.ip("link property add dev dm0 altname a-name-with-more-than-fifteen-bytes altname short");
    space.ip("link add br0 type bridge");
    space.ip("link set dm0 master br0");
    space.ip("link add link br0 name over type macvlan");
    let bridge = space.link("br0");
    let spare = space.link("dm0");
    assert_eq!(spare.kind.as_deref(), Some("veth"));
    assert_eq!(spare.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
    assert_eq!((spare.mtu, spare.tx_queue_len, spare.up), (1400, 321, true));
    assert_eq!(spare.alias.as_deref(), Some("spare"));
    assert_eq!(spare.alt_names, ["a-name-with-more-than-fifteen-bytes", "short"]);
    assert_eq!(spare.master, Some(bridge.index));
    assert_eq!(space.link("over").lower, Some(bridge.index));
    assert!(!space.link("over").lower_elsewhere);
    assert_eq!(space.link("a-name-with-more-than-fifteen-bytes"), spare);
    assert_eq!(space.link("short"), spare);
    assert_eq!(space.socket.link_by_index(spare.index).unwrap(), Some(spare.clone()));
    assert_eq!(space.socket.link_by_name("absent").unwrap(), None);
    assert_eq!(space.socket.link_by_index(9999).unwrap(), None);
    let all = space.socket.links().unwrap();
    assert!(all.contains(&spare) && all.contains(&bridge));
    assert!(all.iter().any(|link| link.loopback && link.name == name("lo")));
}

#[test]
fn one_message_moves_renames_and_changes_a_link() {
    let (mut host, mut pod) = (Space::new(), Space::new());
    host.spare("dm0", "");
    let index = host.link("dm0").index;
    let change = LinkChange {
        netns: Some(pod.netns.as_fd()),
        name: Some(&name("net1")),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
        mtu: Some(1300),
        tx_queue_len: Some(77),
        alias: Some("moved"),
        up: Some(true),
        ..LinkChange::default()
    };
    host.socket.change_link(index, &change).unwrap();
    assert_eq!(host.socket.link_by_name("dm0").unwrap(), None);
    let moved = pod.link("net1");
    assert_eq!((moved.mtu, moved.tx_queue_len, moved.up), (1300, 77, true));
    assert_eq!((moved.mac, moved.alias.as_deref()), (Some(MacAddr([2, 0, 0, 0, 0, 9])), Some("moved")));
    // An alias can be taken away again.
    pod.socket.change_link(moved.index, &LinkChange { alias: Some(""), ..LinkChange::default() }).unwrap();
    assert_eq!(pod.link("net1").alias, None);
}

#[test]
fn a_new_name_that_is_taken_leaves_the_link_moved_under_its_old_name() {
    let (mut host, mut pod) = (Space::new(), Space::new());
    host.spare("dm0", "");
    pod.spare("net1", "");
    let index = host.link("dm0").index;
    let to =
        LinkChange { netns: Some(pod.netns.as_fd()), name: Some(&name("net1")), ..LinkChange::default() };
    let error = host.socket.change_link(index, &to).unwrap_err();
    assert!(error.is_exists(), "{}", error.chain());
    // The kernel fact on which the order of our steps rests; should this change, they may become simpler.
    assert_eq!(host.socket.link_by_name("dm0").unwrap(), None);
    let stray = pod.link("dm0").index;
    let home =
        LinkChange { netns: Some(host.netns.as_fd()), name: Some(&name("dm0")), ..LinkChange::default() };
    pod.socket.change_link(stray, &home).unwrap();
    assert_eq!(host.link("dm0").name, name("dm0"));
}

#[test]
fn an_alternative_name_that_is_taken_keeps_the_link_where_it_is() {
    let (mut host, pod) = (Space::new(), Space::new());
    host.spare("dm0", "");
    host.ip("link property add dev dm0 altname spare-nic");
    pod.spare("other", "");
    pod.ip("link property add dev other altname spare-nic");
    let index = host.link("dm0").index;
    let to =
        LinkChange { netns: Some(pod.netns.as_fd()), name: Some(&name("net1")), ..LinkChange::default() };
    assert!(host.socket.change_link(index, &to).unwrap_err().is_exists());
    assert_eq!(host.link("dm0").alt_names, ["spare-nic"]);
}

#[test]
fn alternative_names_come_and_go() {
    let mut space = Space::new();
    space.spare("dm0", "");
    let index = space.link("dm0").index;
    let names = ["first".to_owned(), "the-second-and-longer-one".to_owned()];
    space.socket.add_alt_names(index, &names).unwrap();
    assert_eq!(space.link("dm0").alt_names, names);
    assert!(space.socket.add_alt_names(index, &names[..1]).unwrap_err().is_exists());
    space.socket.remove_alt_names(index, &names).unwrap();
    assert!(space.link("dm0").alt_names.is_empty());
}

#[test]
fn offloads_are_switched_and_switched_back() {
    let mut space = Space::new();
    space.ip("link add veth0 type veth peer name veth0-p");
    let veth = name("veth0");
    let before = space.socket.offloads(&veth).unwrap().unwrap();
    assert_ne!(before, Offloads::default(), "a veth wants some");
    space.socket.set_offloads(&veth, Offloads::default()).unwrap();
    assert_eq!(space.socket.offloads(&veth).unwrap(), Some(Offloads::default()));
    space.socket.set_offloads(&veth, before).unwrap();
    assert_eq!(space.socket.offloads(&veth).unwrap(), Some(before));
    assert!(space.socket.offloads(&name("absent")).is_err());
}

#[test]
fn refusals_carry_the_kernels_words() {
    let mut space = Space::new();
    space.spare("dm0", "");
    let index = space.link("dm0").index;
    let error = space.socket.change_link(index, &LinkChange { mtu: Some(1), ..LinkChange::default() });
    assert!(error.unwrap_err().chain().contains("mtu less than device minimum"));
    let mut route = NewRoute::new(address("10.9.0.0"), 24, index);
    route.gateway = Some(address("192.0.2.1"));
    space.ip("link set dm0 up");
    let error = space.socket.add_route(&route).unwrap_err();
    assert_eq!(error.to_string(), format!("add route 10.9.0.0/24 via 192.0.2.1 through link {index}"));
    let Error::Refused { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.text.as_deref(), Some("Nexthop has invalid gateway"), "{source}");
    assert!(error.chain().contains("Nexthop has invalid gateway"), "{}", error.chain());
    let absent = space.socket.change_link(9999, &LinkChange { up: Some(true), ..LinkChange::default() });
    assert!(absent.unwrap_err().is_absent());
}
