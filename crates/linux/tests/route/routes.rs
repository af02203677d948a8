//! Routes: given and kept, and which of them lead out of the node.

use linux::route::{KeptAddress, KeptRoute, NewRoute};

use crate::{Space, address};

#[test]
fn routes_are_added_with_their_details() {
    let mut space = Space::new();
    space.spare("dm0", "");
    space.ip("link set dm0 up");
    let index = space.link("dm0").index;
    space.socket.add_address(index, address("10.0.0.2"), 24).unwrap();
    let mut route = NewRoute::new(address("10.9.0.0"), 16, index);
    route.gateway = Some(address("172.16.0.1"));
    route.onlink = true;
    route.table = Some(1000);
    route.priority = Some(50);
    route.mtu = Some(1280);
    route.advmss = Some(1200);
    route.source = Some(address("10.0.0.2"));
    space.socket.add_route(&route).unwrap();
    let shown = space.lines_of_ip("route show table 1000").join("\n");
    for part in [
        "10.9.0.0/16 via 172.16.0.1 dev dm0",
        "src 10.0.0.2",
        "metric 50",
        "onlink",
        "mtu 1280",
        "advmss 1200",
    ] {
        assert!(shown.contains(part), "no {part:?} in {shown:?}");
    }
    let read = space.socket.routes().unwrap();
    let found = read.iter().find(|found| found.table == 1000).unwrap();
    assert_eq!((found.priority, found.prefix_len, found.unicast), (50, 16, true));
    assert_eq!((found.outputs.as_slice(), found.gateway), ([index].as_slice(), route.gateway));
    let mut mixed = NewRoute::new(address("10.10.0.0"), 16, index);
    mixed.gateway = Some(address("fe80::1"));
    mixed.table = Some(1001);
    space.socket.add_route(&mixed).unwrap();
    let read = space.socket.routes().unwrap();
    assert_eq!(read.iter().find(|found| found.table == 1001).unwrap().gateway, mixed.gateway);
    space.socket.remove_route(&route).unwrap();
    assert!(!space.socket.routes().unwrap().iter().any(|found| found.table == 1000));
}

#[test]
fn routes_that_an_administrator_set_are_kept_and_given_back_as_they_were() {
    let mut space = Space::new();
    space.spare("one", "");
    space.spare("two", "");
    space.batch(
        "link set one up\nlink set two up\naddress add 10.0.0.1/24 dev one\naddress add fd00::1/64 dev one nodad\n\
         address add 10.0.1.1/24 dev two\n\
         route add 198.51.100.0/24 via 10.0.0.2 dev one proto static metric 7 mtu 1280 advmss 1200 window 4000 initcwnd 20 src 10.0.0.1\n\
         route add 198.51.100.0/24 dev one tos 0x10 table 1000\n\
         route add 203.0.113.0/24 via 192.0.2.1 dev one onlink\n\
         route add 192.0.2.0/24 via inet6 fd00::9 dev one\n\
         route add fd01::/64 via fd00::2 dev one metric 7 pref high hoplimit 9\n\
         route add fd02::/64 dev one table 1000\n\
         route add 10.1.0.0/16 dev one proto dhcp\nroute add fd03::/64 dev one expires 300\n\
         route add 10.2.0.0/16 nexthop via 10.0.0.2 dev one nexthop via 10.0.1.2 dev two\nroute add 10.3.0.0/16 dev two\n",
    );
    let show = |space: &Space| {
        let mut mine = space.lines_of_ip("-d route show table all dev one");
        mine.retain(|line| !["proto kernel", "dhcp", "expires"].iter().any(|not| line.contains(not)));
        mine
    };
    let before = show(&space);
    assert_eq!(before.len(), 6, "{before:#?}");
    let index = space.link("one").index;
    let kept = space.socket.kept_routes(index).unwrap();
    assert_eq!(kept.len(), 6, "{kept:?}");
    for route in &kept {
        let text = String::from(route.clone());
        assert_eq!(KeptRoute::try_from(text).unwrap(), *route);
    }
    for text in ["", "0", "zz", "02", "é1"] {
        assert!(KeptRoute::try_from(text.to_owned()).is_err(), "{text}");
        assert!(KeptAddress::try_from(text.to_owned()).is_err(), "{text}");
    }
    // The kernel drops them with the link's state.
    space.batch("link set one down\nlink set one up\naddress add fd00::1/64 dev one nodad\n");
    assert_eq!(show(&space), Vec::<String>::new());
    for route in &kept {
        space.socket.give_route(index, route).unwrap();
        assert!(space.socket.give_route(index, route).unwrap_err().is_exists());
    }
    assert_eq!(show(&space), before);
    assert_eq!(space.socket.kept_routes(index).unwrap().len(), 6);
}

#[test]
fn default_routes_of_both_families_and_every_form_lead_to_their_links() {
    let mut space = Space::new();
    space.spare("dm0", "");
    space.spare("dm1", "");
    space.batch(
        "link set dm0 up\nlink set dm1 up\n\
         addr add 10.0.0.2/24 dev dm0\naddr add 10.1.0.2/24 dev dm1\n\
         addr add fd00::2/64 dev dm0 nodad\naddr add fd01::2/64 dev dm1 nodad\n\
         route add default metric 1 nexthop via 10.0.0.1 nexthop via 10.1.0.1\n\
         route add default via 10.1.0.1 table 77\n\
         route add blackhole default metric 9000\n\
         nexthop add id 5 via 10.0.0.1 dev dm0\nnexthop add id 6 via 10.1.0.1 dev dm1\n\
         nexthop add id 7 group 5/6\n\
         route add default nhid 7 table 78\n\
         route add ::/0 via fd01::1\n\
         route add ::/0 table 79 nexthop via fd00::1 dev dm0 nexthop via fd01::1 dev dm1\n",
    );
    let (first, second) = (space.link("dm0").index, space.link("dm1").index);
    let check = |space: &mut Space| {
        let defaults: Vec<_> =
            space.socket.routes().unwrap().into_iter().filter(nic::Route::is_default).collect();
        let outputs = |table: u32, ipv4: bool, metric: Option<u32>| {
            let mut outputs: Vec<u32> = defaults
                .iter()
                .filter(|r| r.table == table && r.destination.is_ipv4() == ipv4 && r.unicast)
                .filter(|r| metric.is_none_or(|metric| r.priority == metric))
                .flat_map(|r| r.outputs.clone())
                .collect();
            outputs.sort_unstable();
            outputs
        };
        assert_eq!(outputs(254, true, Some(1)), [first, second]);
        assert_eq!(outputs(77, true, None), [second]);
        assert_eq!(outputs(78, true, None), [first, second]);
        assert_eq!(outputs(254, false, None), [second]);
        assert_eq!(outputs(79, false, None), [first, second]);
        assert!(defaults.iter().any(|r| !r.unicast && r.priority == 9000 && r.outputs.is_empty()));
    };
    check(&mut space);
    // Now the kernel no longer spells nexthop objects out in the routes that use them.
    space
        .netns
        .run(|| std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0"))
        .unwrap()
        .expect("net.ipv4.nexthop_compat_mode is writable");
    check(&mut space);
}

#[test]
fn thousands_of_routes_and_links_are_read_whole_while_they_change() {
    let mut space = Space::new();
    space.spare("dm0", "");
    space.ip("link set dm0 up");
    let routes: String =
        (0..5000).map(|n| format!("route add 10.{}.{}.0/24 dev dm0 table 500\n", n / 250, n % 250)).collect();
    space.batch(&routes);
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let mut other = space.netns.route_socket().unwrap();
        let index = space.link("dm0").index;
        scope.spawn(move || {
            let mut route = NewRoute::new(address("203.0.113.0"), 24, index);
            route.table = Some(501);
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                other.add_route(&route).unwrap();
                other.remove_route(&route).unwrap();
            }
        });
        for _ in 0..5 {
            let read = space.socket.routes().unwrap();
            assert_eq!(read.iter().filter(|route| route.table == 500).count(), 5000);
        }
        drop(stop);
    });
    let links: String = (0..150).map(|n| format!("link add v{n} type veth peer name w{n}\n")).collect();
    space.batch(&links);
    assert_eq!(space.socket.links().unwrap().len(), 303);
}
