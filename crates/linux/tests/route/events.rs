//! What the kernel tells by itself.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use linux::Netns;
use linux::route::{Event, Groups, LinkChange, Monitor};

use crate::{Space, address, name};

#[test]
fn a_monitor_hears_links_addresses_routes_and_moves() {
    let (mut host, pod) = (Space::new(), Space::new());
    let mut monitor = host.netns.run(|| Monitor::open(Groups::ALL)).unwrap().unwrap();
    assert_eq!(monitor.next_now().unwrap(), None);
    host.spare("dm0", "");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut until = |wanted: &dyn Fn(&Event) -> bool| {
        while let Some(event) = monitor.wait(deadline).unwrap() {
            if wanted(&event) {
                return;
            }
        }
        panic!("the event did not come");
    };
    until(&|event| matches!(event, Event::Link(link) if link.name == name("dm0") && !link.up));
    host.ip("addr add 10.0.0.2/24 dev dm0");
    until(
        &|event| matches!(event, Event::Address { address: a, gone: false } if a.ip == address("10.0.0.2")),
    );
    host.ip("link set dm0 up");
    until(&|event| *event == Event::Routes);
    let index = host.link("dm0").index;
    let to = LinkChange { netns: Some(pod.netns.as_fd()), ..LinkChange::default() };
    host.socket.change_link(index, &to).unwrap();
    until(&|event| matches!(event, Event::LinkGone { link, moved: true } if link.index == index));
    host.spare("dm1", "");
    host.ip("link del dm1");
    until(&|event| matches!(event, Event::LinkGone { link, moved: false } if link.name == name("dm1")));
}

#[test]
fn events_that_the_kernel_had_to_drop_are_told() {
    let mut space = Space::new();
    let mut monitor = space.netns.run(|| Monitor::open(Groups::LINKS)).unwrap().unwrap();
    let index = space.link("lo").index;
    // Each is more than a kilobyte; a socket's buffer has some hundred.
    for mtu in 2000..4000 {
        space.socket.change_link(index, &LinkChange { mtu: Some(mtu), ..LinkChange::default() }).unwrap();
    }
    let heard: Vec<Event> = std::iter::from_fn(|| monitor.next_now().unwrap()).collect();
    assert!(heard.contains(&Event::Missed));
    // And it goes on.
    space.socket.change_link(index, &LinkChange { mtu: Some(1999), ..LinkChange::default() }).unwrap();
    let next = monitor.wait(Instant::now() + Duration::from_secs(30)).unwrap();
    assert!(matches!(&next, Some(Event::Link(link)) if link.mtu == 1999), "{next:?}");
}

#[test]
fn a_link_that_left_is_heard_of_where_it_is_and_no_namespace_is_held_open_for_that() {
    let mut space = Space::new();
    let pod = Netns::create().unwrap();
    space.spare("dm0", "");
    space.ip("link set dm0 up");
    let mut monitor = space.netns.run(|| Monitor::open_for_all(Groups::LINKS)).unwrap().unwrap();
    let index = space.link("dm0").index;
    let change = LinkChange { netns: Some(pod.as_fd()), name: Some(&name("net1")), ..LinkChange::default() };
    space.socket.change_link(index, &change).unwrap();
    let mut wait_for = |what: &str, wanted: &dyn Fn(&Event) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !monitor.wait(deadline).unwrap().is_some_and(|event| wanted(&event)) {
            assert!(Instant::now() < deadline, "not heard: {what}");
        }
    };
    let of_pod = |event: &Event, up: bool| matches!(event, Event::Link(link) if link.name == name("net1") && link.up == up);
    pod.route_socket()
        .unwrap()
        .change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })
        .unwrap();
    wait_for("net1 is up", &|event| of_pod(event, true));
    // The namespace ends with its last handle: the veth end is deleted with it, and its peer goes, too.
    drop(pod);
    wait_for(
        "the peer is gone",
        &|event| matches!(event, Event::LinkGone { link, .. } if link.name == name("dm0-p")),
    );
}
