//! Addresses: given, kept, known to be unique, and told to the neighbours.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use linux::route::{DuplicateDetection, KeptAddress, LinkChange};

use crate::{Space, address};

#[test]
fn addresses_come_with_broadcast_and_go() {
    let mut space = Space::new();
    space.spare("dm0", "");
    space.ip("link set dm0 up");
    let index = space.link("dm0").index;
    let ip = address("10.56.217.2");
    space.socket.add_address(index, ip, 24).unwrap();
    assert!(space.socket.add_address(index, ip, 24).unwrap_err().is_exists());
    let shown = space.lines_of_ip("-4 addr show dm0").join("\n");
    assert!(shown.contains("inet 10.56.217.2/24 brd 10.56.217.255 scope global"), "{shown}");
    let found = space.socket.addresses().unwrap();
    assert!(found.iter().any(|a| a.index == index && a.ip == ip && a.prefix_len == 24 && !a.tentative));
    space.socket.remove_address(index, ip, 24).unwrap();
    assert!(space.socket.remove_address(index, ip, 24).unwrap_err().is_absent());
}

#[test]
fn addresses_are_kept_and_given_back_as_they_were() {
    let mut space = Space::new();
    space.spare("one", "");
    space.batch(
        "link set one up\naddress add 10.0.0.1/24 dev one\naddress add 10.0.0.2/24 brd + dev one\n\
         address add 10.0.1.1/24 brd 10.0.1.9 dev one label one:storage noprefixroute metric 70\n\
         address add 10.0.2.1 peer 10.0.2.2/32 dev one scope link\n\
         address add fd00::1/64 dev one nodad home\naddress add fd00::2/128 dev one nodad noprefixroute\n\
         address add 10.0.3.1/24 dev one valid_lft 300 preferred_lft 300\n",
    );
    let show = |space: &Space| {
        let mut all = space.lines_of_ip("-d address show dev one permanent scope global");
        all.extend(space.lines_of_ip("-d address show dev one permanent scope link to 10.0.0.0/8"));
        all.retain(|line| line.contains("inet"));
        all
    };
    let before = show(&space);
    assert_eq!(before.len(), 6, "{before:#?}");
    let index = space.link("one").index;
    let kept = space.socket.kept_addresses(index).unwrap();
    assert_eq!(kept.len(), 6, "{kept:?}");
    for address in &kept {
        assert_eq!(KeptAddress::try_from(String::from(address.clone())).unwrap(), *address);
    }
    space.ip("address flush dev one");
    assert_eq!(show(&space), Vec::<String>::new());
    for address in &kept {
        space.socket.give_address(index, address).unwrap();
        assert!(space.socket.give_address(index, address).unwrap_err().is_exists());
    }
    assert_eq!(show(&space), before);
    assert_eq!(space.socket.kept_addresses(index).unwrap(), kept);
}

#[test]
fn duplicate_detection_is_waited_for_and_a_duplicate_is_named() {
    let (mut one, mut two) = (Space::new(), Space::new());
    one.ip("link add va type veth peer name vb");
    let (a, b) = (one.link("va").index, one.link("vb").index);
    one.socket.change_link(a, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let over = LinkChange { netns: Some(two.netns.as_fd()), up: Some(true), ..LinkChange::default() };
    one.socket.change_link(b, &over).unwrap();
    let b = two.link("vb").index;
    let soon = || Instant::now() + Duration::from_secs(20);
    one.socket.add_address(a, address("fd00::2"), 64).unwrap();
    let ended = one
        .netns
        .run(|| one.socket.await_duplicate_detection(a, &[address("fd00::2")], soon()))
        .unwrap()
        .unwrap();
    assert_eq!(ended, DuplicateDetection::Unique);
    two.socket.add_address(b, address("fd00::2"), 64).unwrap();
    let ended = two
        .netns
        .run(|| two.socket.await_duplicate_detection(b, &[address("fd00::2")], soon()))
        .unwrap()
        .unwrap();
    assert_eq!(ended, DuplicateDetection::Duplicate(vec![address("fd00::2")]));
}

#[test]
fn without_carrier_duplicate_detection_ends_at_the_deadline() {
    let mut space = Space::new();
    space.ip("link add va type veth peer name vb");
    space.ip("link set va up");
    let index = space.link("va").index;
    space.socket.add_address(index, address("fd00::2"), 64).unwrap();
    let deadline = Instant::now() + Duration::from_millis(100);
    let ended = space
        .netns
        .run(|| space.socket.await_duplicate_detection(index, &[address("fd00::2")], deadline))
        .unwrap()
        .unwrap();
    assert_eq!(ended, DuplicateDetection::Undecided(vec![address("fd00::2")]));
    assert!(Instant::now() < deadline + Duration::from_secs(5));
}

#[test]
fn neighbours_learn_a_new_owner_of_an_address() {
    let (mut one, mut two) = (Space::new(), Space::new());
    one.ip("link add va type veth peer name vb");
    let b = one.link("vb").index;
    let over = LinkChange { netns: Some(two.netns.as_fd()), up: Some(true), ..LinkChange::default() };
    one.socket.change_link(b, &over).unwrap();
    one.ip("link set va up");
    one.ip("addr add fd00::2/64 dev va nodad");
    one.ip("addr add 10.0.0.2/24 dev va");
    one.ip("addr add 10.0.0.3/24 dev va");
    two.ip("addr add 10.0.0.9/24 dev vb");
    // What the neighbour believes beforehand is wrong.
    two.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:99 dev vb nud stale");
    two.ip("neigh add 10.0.0.3 lladdr 02:00:00:00:00:99 dev vb nud stale");
    two.ip("neigh add fd00::2 lladdr 02:00:00:00:00:99 dev vb nud stale");
    let link = one.link("va");
    let mac = link.mac.unwrap();
    one.socket.announce(link.index, "10.0.0.2".parse().unwrap()).unwrap();
    one.netns
        .run(|| {
            linux::announce::gratuitous_arp(link.index, mac, "10.0.0.3".parse().unwrap()).unwrap();
            linux::announce::unsolicited_advertisement(link.index, mac, "fd00::2".parse().unwrap()).unwrap();
        })
        .unwrap();
    let shown = two.lines_of_ip("neigh show dev vb").join("\n");
    for ip in ["10.0.0.2", "10.0.0.3", "fd00::2"] {
        assert!(shown.contains(&format!("{ip} lladdr {mac}")), "{shown}");
    }
    let _ = two.link("vb");
}
