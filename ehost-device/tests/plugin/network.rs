//! What the configuration asks of the interface beside addresses, and what the neighbours hear of it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use linux::Netns;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use serde_json::json;

use crate::bench::{Bench, ip, path_of};

/// A veth that can have four queues in each direction and uses one.
fn bench_with_queues() -> Bench {
    let bench = Bench::new();
    bench.on_node("link del eth1");
    bench.on_node(
        "link add eth1 numrxqueues 4 numtxqueues 4 address 52:54:00:c4:e6:cd type veth peer name wire numrxqueues 4 numtxqueues 4",
    );
    bench.on_node("link set wire up");
    for name in ["eth1", "wire"] {
        set_queues(&bench.node, name, 1);
    }
    bench
}

fn set_queues(netns: &Netns, name: &str, queues: u32) {
    let mut routes = netns.route_socket().unwrap();
    let name = name.parse().unwrap();
    let now = routes.channels(&name).unwrap().unwrap().now;
    routes.set_channels(&name, nic::Channels { rx: queues, tx: queues, ..now }).unwrap();
}

fn queues(netns: &Netns, name: &str) -> (u32, u32) {
    let channels = netns.route_socket().unwrap().channels(&name.parse().unwrap()).unwrap().unwrap();
    (channels.now.rx, channels.now.tx)
}

#[test]
fn queues_are_set_for_the_pod_and_taken_back_also_those_that_the_pod_set() {
    let bench = bench_with_queues();
    let before = bench.portrait();
    let config = bench.config(json!({"queues": 3}));
    bench.run("ADD", &config).expect();
    assert_eq!(queues(&bench.pod, "net1"), (3, 3));
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    assert_eq!(queues(&bench.node, "eth1"), (1, 1));

    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    assert_eq!(queues(&bench.pod, "net1"), (1, 1));
    set_queues(&bench.pod, "net1", 4);
    bench.run("DEL", &config).expect();
    assert_eq!(queues(&bench.node, "eth1"), (1, 1));
}

#[test]
fn queues_and_rings_that_the_driver_does_not_allow_are_refused_while_the_nic_is_at_home() {
    let bench = bench_with_queues();
    let before = bench.portrait();
    for (keys, code, words) in [
        (json!({"queues": 5}), 7, "queues 5 is not from 1 to 4, which is what eth1 can have"),
        (json!({"queues": 0}), 7, "queues 0"),
        (json!({"ring": {"rx": 1_000_000}}), 0, "ring"),
    ] {
        let refused = bench.run("ADD", &bench.config(keys.clone()));
        // A veth has rings or none, as the kernel's version has it.
        assert!(if code == 0 { [2, 7].contains(&refused.code()) } else { refused.code() == code }, "{keys}");
        assert!(refused.text().contains(words), "{}", refused.text());
        bench.assert_untouched(&before);
        assert!(bench.asked().is_empty());
    }
}

#[test]
fn a_vlan_and_the_nic_below_it_must_both_find_their_names_free() {
    let bench = Bench::new();
    let before = bench.portrait();
    // The NIC keeps its name.
    bench.in_pod("link add eth1 type veth peer name other");
    let refused = bench.run("ADD", &bench.config(json!({"vlan": 5})));
    assert_eq!(refused.code(), 102);
    assert!(refused.text().contains("there is an interface eth1 in the pod already"), "{}", refused.text());
    bench.in_pod("link del eth1");
    bench.assert_untouched(&before);
    bench.on_node("link set eth1 name net1");
    let refused = bench.run("ADD", &bench.config(json!({"vlan": 5, "device": "net1"})));
    assert_eq!(refused.code(), 102);
    assert!(refused.text().contains("would both be net1"), "{}", refused.text());
    assert!(bench.node_link("net1").is_some_and(|link| link.up));
    assert!(bench.pod_link("net1").is_none());
}

#[test]
fn sysctls_are_those_of_the_interface_and_a_bad_one_is_undone_and_told_in_the_kernels_words() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({"sysctl": {
        "net.ipv4.conf.IFNAME.arp_notify": "1", "net.ipv4.neigh.IFNAME.gc_stale_time": 77,
    }}));
    bench.run("ADD", &config).expect();
    let read = |path: &str| {
        bench
            .pod
            .run(|| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned())
            .unwrap()
    };
    assert_eq!(read("ipv4/conf/net1/arp_notify"), "1");
    assert_eq!(read("ipv4/neigh/net1/gc_stale_time"), "77");
    assert_eq!(read("ipv4/conf/default/arp_notify"), "0");
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    for (name, value, why) in
        [("no_such_setting", "1", "No such file"), ("arp_notify", "many", "Invalid argument")]
    {
        let config = bench.config(json!({"sysctl": {format!("net.ipv4.conf.IFNAME.{name}"): value}}));
        let failed = bench.run("ADD", &config);
        assert_eq!(failed.code(), 5);
        assert!(failed.text().contains(name) && failed.text().contains(why), "{}", failed.text());
        bench.assert_untouched(&before);
        assert_eq!(bench.asked().last().unwrap(), "DEL");
    }
}

#[test]
fn routes_of_the_configuration_join_those_of_ipam_with_all_that_a_route_can_have() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({"routes": [
        {"dst": "192.0.2.0/24", "mtu": 1280, "advmss": 1200, "priority": 7, "table": 100},
        {"dst": "198.51.100.0/24", "scope": 253},
        {"dst": "203.0.113.0/24", "gw": "10.56.217.7"},
    ]}));
    let result = bench.run("ADD", &config).expect().json;
    let told = result["routes"].as_array().unwrap();
    assert_eq!(told.len(), 6);
    assert_eq!(
        told[3],
        json!({"dst": "192.0.2.0/24", "mtu": 1280, "advmss": 1200, "priority": 7, "table": 100})
    );
    let shown = bench.in_pod("route show table 100");
    assert!(
        shown.contains("192.0.2.0/24 via 10.56.217.1 dev net1")
            && shown.contains("metric 7 mtu 1280 advmss 1200"),
        "{shown}"
    );
    let shown = bench.in_pod("route show");
    assert!(shown.contains("198.51.100.0/24 dev net1") && shown.contains("scope link"), "{shown}");
    assert!(shown.contains("203.0.113.0/24 via 10.56.217.7 dev net1"), "{shown}");
    let check = bench.config(json!({"prevResult": result}));
    bench.run("CHECK", &check).expect();
    // The same destination in another table is another route.
    bench.in_pod("route del 192.0.2.0/24 table 100");
    bench.in_pod("route add 192.0.2.0/24 dev net1");
    let failed = bench.run("CHECK", &check);
    assert_eq!(failed.code(), 106);
    assert!(failed.text().contains("the route to 192.0.2.0/24 is missing"), "{}", failed.text());
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    let unreachable = bench.config(json!({"routes": [{"dst": "fd01::/64", "gw": "10.0.0.9"}]}));
    assert_eq!(bench.run("ADD", &unreachable).code(), 5);
    bench.assert_untouched(&before);
}

/// A NIC with addresses and routes of its own. Nothing else leads out of this node, so it must be insisted that the NIC is spare.
fn bench_with_addresses() -> Bench {
    let bench = Bench::new();
    for line in [
        "address add 192.0.2.2/24 dev eth1",
        "address add fd07::2/64 dev eth1 nodad",
        "route add 198.51.100.0/24 via 192.0.2.1 dev eth1 proto static metric 50 mtu 1300 src 192.0.2.2",
        "route add 203.0.113.0/24 dev eth1 table 100",
        "route add fd08::/64 via fd07::1 dev eth1 metric 7",
    ] {
        bench.on_node(line);
    }
    bench
}

/// The addresses and routes of a link that do not come and go by themselves.
fn belongings(netns: &Netns, name: &str) -> Vec<String> {
    let addresses = ip(netns, &format!("-o address show dev {name} scope global"));
    let routes = ip(netns, &format!("-d route show table all dev {name}"));
    let address = |line: &str| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>().join(" ");
    let routes = routes.lines().filter(|line| !line.contains("proto kernel"));
    let mut all: Vec<String> =
        addresses.lines().map(address).chain(routes.map(|line| line.trim_end().to_owned())).collect();
    all.sort();
    all
}

#[test]
fn addresses_and_routes_of_the_node_travel_with_the_nic_where_they_are_to_and_come_home_with_it() {
    let bench = bench_with_addresses();
    let portrait = bench.portrait();
    // With broadcast address or none, label, metric and all.
    let whole = || bench.on_node("-d -o address show dev eth1 scope global");
    bench.on_node("address add 192.0.3.2/24 brd + dev eth1 label eth1:old metric 9");
    let (before, addresses) = (belongings(&bench.node, "eth1"), whole());
    assert_eq!(addresses.matches(" brd ").count(), 1, "{addresses}");
    assert_eq!(before.len(), 6, "{before:#?}");
    // With IPAM's own, and alone.
    for (ipam, ips) in [(json!({"type": "answers"}), 4), (json!({}), 3)] {
        let config = bench.config(json!({"keepAddresses": true, "allowLifeline": true, "ipam": ipam}));
        let result = bench.run("ADD", &config).expect().json;
        assert_eq!(result["ips"].as_array().unwrap().len(), ips);
        let routes = result["routes"].as_array().unwrap();
        assert!(
            routes.contains(&json!({"dst": "198.51.100.0/24", "gw": "192.0.2.1", "priority": 50}))
                && routes.contains(&json!({"dst": "203.0.113.0/24", "table": 100})),
            "{result}"
        );
        let now = belongings(&bench.pod, "net1");
        assert!(before.iter().all(|line| now.contains(line)), "{now:#?}");
        bench.run("CHECK", &bench.config(json!({"ipam": ipam, "prevResult": result}))).expect();
        bench.run("DEL", &config).expect();
        assert_eq!(belongings(&bench.node, "eth1"), before);
        assert_eq!(whole(), addresses);
        bench.assert_untouched(&portrait);
    }
    // Without the key they wait at home, also for a NIC whose ADD fails after the move.
    let config = bench.config(json!({"allowLifeline": true}));
    bench.run("ADD", &config).expect();
    assert!(!bench.in_pod("address show dev net1").contains("192.0.2.2"));
    bench.run("DEL", &config).expect();
    assert_eq!(belongings(&bench.node, "eth1"), before);
    let failing = bench.config(json!({
        "keepAddresses": true, "allowLifeline": true, "routes": [{"dst": "fd01::/64", "gw": "10.0.0.9"}],
    }));
    assert_eq!(bench.run("ADD", &failing).code(), 5);
    assert_eq!(belongings(&bench.node, "eth1"), before);
    bench.assert_untouched(&portrait);
}

#[test]
fn a_route_that_leads_another_way_by_now_keeps_no_nic_from_coming_home() {
    let bench = bench_with_addresses();
    let before = belongings(&bench.node, "eth1");
    let config = bench.config(json!({"keepAddresses": true, "allowLifeline": true}));
    bench.run("ADD", &config).expect();
    bench.on_node("route add 203.0.113.0/24 dev wire table 100");
    let told = bench.run("DEL", &config).expect().stderr;
    assert!(told.contains("without its route to 203.0.113.0/24"), "{told}");
    let now = belongings(&bench.node, "eth1");
    assert_eq!(before.iter().filter(|line| !now.contains(line)).count(), 1, "{now:#?}");
    assert!(bench.on_node("route show table 100").contains("dev wire"));
    assert!(!bench.lease().exists());
}

#[test]
fn the_runtimes_addresses_and_mac_reach_ipam() {
    let bench = Bench::new();
    let seen = bench.folder.path().join("seen.json");
    let path = bench.folder.path().join("bin/repeats");
    std::fs::write(
        &path,
        format!(
            "#!/bin/sh\ncat >{}\n[ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.0.0.5/24\"}}]}}'\n",
            seen.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = json!({"ips": ["10.0.0.5/24"], "mac": "02:00:00:00:00:05"});
    let config = bench.config(json!({
        "capabilities": {"ips": true, "mac": true}, "runtimeConfig": runtime, "ipam": {"type": "repeats"},
    }));
    let result = bench.run("ADD", &config).expect().json;
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:05");
    let passed: serde_json::Value = serde_json::from_slice(&std::fs::read(seen).unwrap()).unwrap();
    assert_eq!(passed["runtimeConfig"], runtime);
    bench.run("DEL", &config).expect();
}

/// A socket that hears every packet of a protocol in a namespace, from now on.
fn listen(netns: &Netns, ethertype: u16) -> OwnedFd {
    let protocol = std::num::NonZeroU32::new(ethertype.to_be().into()).map(Protocol::from_raw);
    let open =
        || socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol).unwrap();
    let socket = netns.run(open).unwrap();
    set_socket_timeout(&socket, Timeout::Recv, Some(std::time::Duration::from_secs(60))).unwrap();
    socket
}

/// The first packet that is wanted, of those that come.
fn hear(socket: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut buffer = [0; 2048];
    loop {
        let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty()).expect("the packet comes");
        if wanted(&buffer[..length]) {
            return buffer[..length].to_vec();
        }
    }
}

#[test]
fn the_neighbours_hear_of_each_address_and_only_when_it_is_known_to_be_unique() {
    let bench = Bench::new();
    let neighbour = Netns::create().unwrap();
    bench.on_node(&format!("link set wire netns {}", path_of(&neighbour).display()));
    ip(&neighbour, "link set wire up");
    bench.ipam(
        "both",
        r#"[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"},{"address":"10.0.0.3/24"},{"address":"fd00::2/64"}]}'"#,
    );
    let (arp, six) = (listen(&neighbour, 0x0806), listen(&neighbour, 0x86dd));
    let config = bench.config(json!({"ipam": {"type": "both"}}));
    bench.run("ADD", &config).expect();

    let mac = [0x52, 0x54, 0, 0xc4, 0xe6, 0xcd];
    for host in [2, 3] {
        let ipv4 = Ipv4Addr::new(10, 0, 0, host).octets();
        // Sender and target are the address itself.
        let announced = hear(&arp, |packet| packet[14..18] == ipv4 && packet[24..28] == ipv4);
        assert_eq!((&announced[6..8], &announced[8..14]), (&[0, 1][..], &mac[..]));
    }

    let ipv6: Ipv6Addr = "fd00::2".parse().unwrap();
    let icmp =
        |packet: &[u8], kind: u8| packet[6] == 58 && packet[40] == kind && packet[48..64] == ipv6.octets();
    // Duplicate detection asks for the address from nowhere; then, and not before, it is told to all.
    let first = hear(&six, |packet| icmp(packet, 135) || icmp(packet, 136));
    assert_eq!((first[40], &first[8..24]), (135, &[0; 16][..]));
    let told = hear(&six, |packet| icmp(packet, 136));
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    assert_eq!((&told[8..24], &told[24..40]), (&ipv6.octets()[..], &all_nodes.octets()[..]));
    // Hop limit; override, not solicited; the target's link-layer address.
    assert_eq!(
        (told[7], told[44], &told[64..72]),
        (255, 0x20, &[2, 1, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]][..])
    );
    bench.run("DEL", &config).expect();
}
