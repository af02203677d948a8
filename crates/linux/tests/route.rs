//! The route socket against the kernel, each test in network namespaces of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use linux::route::{
    DuplicateDetection, Event, Groups, KeptAddress, KeptRoute, LinkChange, Monitor, NewRoute, Socket,
};
use linux::{Error, Netns};
use nic::{IfName, Link, MacAddr, Offloads};

/// A network namespace and a socket in it; both end with the test.
struct Space {
    netns: Netns,
    socket: Socket,
}

impl Space {
    fn new() -> Self {
        let netns = Netns::create().unwrap();
        let socket = netns.route_socket().unwrap();
        Space { netns, socket }
    }

    /// Runs `ip`, which knows the kernel better than we do, inside.
    fn ip(&self, arguments: &str) {
        let output = self
            .netns
            .run(|| {
                Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed")
            })
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {arguments}: {errors}");
    }

    /// A link that can go anywhere: one end of a veth pair, whose other end `<name>-p` stays and is up. (Not a dummy:
    /// small kernels lack it.)
    fn spare(&self, name: &str, options: &str) {
        self.ip(&format!("link add {name} {options} type veth peer name {name}-p"));
        self.ip(&format!("link set {name}-p up"));
    }

    /// Feeds lines to `ip -batch -`.
    fn batch(&self, lines: &str) {
        use std::io::Write;
        let status = self
            .netns
            .run(|| {
                let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
                ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
                ip.wait().unwrap()
            })
            .unwrap();
        assert!(status.success());
    }

    fn link(&mut self, name: &str) -> Link {
        self.socket.link_by_name(name).unwrap().unwrap_or_else(|| panic!("no link {name}"))
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

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

#[test]
fn addresses_come_with_broadcast_and_go() {
    let mut space = Space::new();
    space.spare("dm0", "");
    space.ip("link set dm0 up");
    let index = space.link("dm0").index;
    let ip = address("10.56.217.2");
    space.socket.add_address(index, ip, 24).unwrap();
    assert!(space.socket.add_address(index, ip, 24).unwrap_err().is_exists());
    let shown =
        space.netns.run(|| Command::new("ip").args(["-4", "addr", "show", "dm0"]).output().unwrap()).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("inet 10.56.217.2/24 brd 10.56.217.255 scope global"), "{shown}");
    let found = space.socket.addresses().unwrap();
    assert!(found.iter().any(|a| a.index == index && a.ip == ip && a.prefix_len == 24 && !a.tentative));
    space.socket.remove_address(index, ip, 24).unwrap();
    assert!(space.socket.remove_address(index, ip, 24).unwrap_err().is_absent());
}

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
    let shown = space
        .netns
        .run(|| Command::new("ip").args(["route", "show", "table", "1000"]).output().unwrap())
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
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
        let arguments = ["-d", "route", "show", "table", "all", "dev", "one"];
        let output = space.netns.run(|| Command::new("ip").args(arguments).output().unwrap()).unwrap();
        let all = String::from_utf8(output.stdout).unwrap();
        let mut mine: Vec<_> = all
            .lines()
            .filter(|line| {
                !line.contains("proto kernel") && !line.contains("dhcp") && !line.contains("expires")
            })
            .map(|line| line.trim_end().to_owned())
            .collect();
        mine.sort();
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
        let arguments = ["-d", "address", "show", "dev", "one", "permanent", "scope", "global"];
        let link = ["-d", "address", "show", "dev", "one", "permanent", "scope", "link", "to", "10.0.0.0/8"];
        let run = |arguments: &[&str]| {
            let output = space.netns.run(|| Command::new("ip").args(arguments).output().unwrap()).unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let all = run(&arguments) + &run(&link);
        let mut all: Vec<_> =
            all.lines().filter(|line| line.contains("inet")).map(|line| line.trim().to_owned()).collect();
        all.sort();
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
    let shown =
        two.netns.run(|| Command::new("ip").args(["neigh", "show", "dev", "vb"]).output().unwrap()).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for ip in ["10.0.0.2", "10.0.0.3", "fd00::2"] {
        assert!(shown.contains(&format!("{ip} lladdr {mac}")), "{shown}");
    }
    let _ = two.link("vb");
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
