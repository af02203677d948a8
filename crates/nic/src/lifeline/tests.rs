//! What the rule says of given facts.

use super::*;
use crate::MacAddr;
use crate::facts::sample::link;

fn default_route(outputs: &[u32]) -> Route {
    Route {
        destination: "0.0.0.0".parse().unwrap(),
        prefix_len: 0,
        table: 254,
        priority: 100,
        outputs: outputs.to_vec(),
        gateway: None,
        unicast: true,
    }
}

fn address(index: u32, ip: &str) -> Address {
    Address {
        index,
        ip: ip.parse().unwrap(),
        prefix_len: 24,
        tentative: false,
        duplicate: false,
        permanent: true,
    }
}

fn kind(link: Link, kind: &str) -> Link {
    Link { kind: Some(kind.into()), ..link }
}

fn find(links: &[Link], routes: &[Route]) -> Lifeline {
    Lifeline::find(links, routes, &[], &[]).unwrap()
}

#[test]
fn default_routes_of_every_family_table_and_hop_count() {
    let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "eth3")];
    let v6 =
        Route { destination: "::".parse().unwrap(), table: 1001, priority: u32::MAX, ..default_route(&[4]) };
    let found = find(&links, &[default_route(&[2, 3]), v6]);
    assert_eq!(
        found.reason(2).unwrap().to_string(),
        "carries the IPv4 default route (table 254, metric 100)"
    );
    assert!(found.reason(3).is_some());
    assert_eq!(
        found.reason(4).unwrap().to_string(),
        "carries the IPv6 default route (table 1001, metric 4294967295)"
    );
    assert!(found.reason(5).is_none());
}

#[test]
fn other_routes_do_not_make_an_uplink() {
    let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2")];
    let blackhole = Route { unicast: false, ..default_route(&[2]) };
    let subnet = Route { destination: "10.0.0.0".parse().unwrap(), prefix_len: 8, ..default_route(&[3]) };
    let found = find(&links, &[blackhole, subnet, default_route(&[4])]);
    assert_eq!(found.iter().map(|(index, _)| index).collect::<Vec<_>>(), [4]);
}

#[test]
fn the_reason_names_every_layer_down_to_the_nic() {
    let links = [
        Link { master: Some(10), ..link(2, "eth0") },
        Link { master: Some(10), ..link(3, "eth1") },
        Link { master: Some(12), lower: Some(10), ..kind(link(11, "bond0.7"), "vlan") },
        kind(link(10, "bond0"), "bond"),
        kind(link(12, "br0"), "bridge"),
    ];
    let found = find(&links, &[default_route(&[12])]);
    assert_eq!(
        found.reason(3).unwrap().to_string(),
        "is a port of bond0, which is below bond0.7, which is a port of br0, which carries the IPv4 default \
         route (table 254, metric 100)"
    );
}

#[test]
fn ports_of_open_vswitch_carry_what_its_bridges_carry() {
    let links = [
        Link { master: Some(5), ..link(2, "eth0") },
        kind(link(5, "ovs-system"), "openvswitch"),
        kind(link(6, "br-ex"), "openvswitch"),
        link(3, "eth1"),
    ];
    let found = find(&links, &[default_route(&[6])]);
    assert_eq!(
        found.reason(2).unwrap().to_string(),
        "is a port of br-ex, which carries the IPv4 default route (table 254, metric 100)"
    );
    assert!(found.reason(3).is_none());
}

#[test]
fn a_veth_pair_leads_into_the_bridge_behind_it() {
    let links = [
        Link { lower: Some(11), ..kind(link(10, "uplink"), "veth") },
        Link { lower: Some(10), master: Some(12), ..kind(link(11, "uplink-br"), "veth") },
        kind(link(12, "br0"), "bridge"),
        Link { master: Some(12), ..link(2, "eth0") },
    ];
    let found = find(&links, &[default_route(&[10])]);
    assert_eq!(
        found.reason(2).unwrap().to_string(),
        "is a port of br0, which is behind uplink, which carries the IPv4 default route (table 254, metric 100)"
    );
}

#[test]
fn an_index_of_another_namespace_is_not_followed() {
    let links =
        [Link { lower: Some(2), lower_elsewhere: true, ..kind(link(10, "eth0"), "veth") }, link(2, "eth9")];
    assert!(find(&links, &[default_route(&[10])]).reason(2).is_none());
}

#[test]
fn named_addresses_protect_their_link() {
    let links = [link(2, "eth0"), link(3, "eth1")];
    let addresses = [address(2, "192.0.2.7"), address(3, "198.51.100.7")];
    let named = [Named::Address("198.51.100.7".parse().unwrap())];
    let found = Lifeline::find(&links, &[default_route(&[2])], &addresses, &named).unwrap();
    assert_eq!(found.reason(3).unwrap().to_string(), "has the node's address 198.51.100.7");
}

#[test]
fn without_a_default_route_every_address_counts() {
    let links = [
        Link { loopback: true, ..link(1, "lo") },
        Link { master: Some(9), ..link(2, "eth0") },
        link(3, "eth1"),
        kind(link(9, "br0"), "bridge"),
    ];
    let addresses = [address(1, "10.9.9.9"), address(9, "192.0.2.7"), address(3, "fe80::1")];
    let found = Lifeline::find(&links, &[], &addresses, &[]).unwrap();
    assert_eq!(
        found.reason(2).unwrap().to_string(),
        "is a port of br0, which has the address 192.0.2.7, and no route tells which NIC carries the node"
    );
    assert!(found.reason(3).is_none());
    assert!(found.reason(1).is_none());
}

#[test]
fn facts_that_were_torn_give_no_lifeline() {
    let torn = Lifeline::find(&[link(2, "eth0")], &[default_route(&[7])], &[], &[]).unwrap_err();
    assert_eq!(
        torn.to_string(),
        "a default route names the interface with index 7, which is not among the interfaces read before it"
    );
}

fn route(destination: &str, prefix_len: u8, outputs: &[u32]) -> Route {
    Route { destination: destination.parse().unwrap(), prefix_len, ..default_route(outputs) }
}

fn why(lifeline: &Lifeline, index: u32) -> Option<String> {
    lifeline.reason(index).map(ToString::to_string)
}

#[test]
fn routes_that_are_default_routes_in_effect_count_as_such() {
    let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "eth3"), link(6, "eth4")];
    let by_eighths = (0..16).map(|n| route(&format!("{}.0.0.0", n + 16), 8, &[4]));
    let mut routes = vec![
        default_route(&[2]),
        route("0.0.0.0", 1, &[3]),
        route("128.0.0.0", 1, &[3]),
        route("2000::", 3, &[5]),
        route("10.0.0.0", 8, &[6]),
    ];
    routes.extend(by_eighths);
    let found = find(&links, &routes);
    assert_eq!(
        why(&found, 3).unwrap(),
        "carries the route 0.0.0.0/1 and 1 more (table 254), to much of all IPv4 addresses"
    );
    assert_eq!(
        why(&found, 4).unwrap(),
        "carries the route 16.0.0.0/8 and 15 more (table 254), to much of all IPv4 addresses"
    );
    assert_eq!(
        why(&found, 5).unwrap(),
        "carries the route 2000::/3 (table 254), to much of all IPv6 addresses"
    );
    assert_eq!(why(&found, 6), None);
}

#[test]
fn all_that_is_private_together_is_no_default_route() {
    let links = [link(2, "eth0"), link(3, "eth1")];
    let private = [
        ("10.0.0.0", 8),
        // Once more, in pieces: it is not counted twice.
        ("10.0.0.0", 9),
        ("10.128.0.0", 9),
        ("172.16.0.0", 12),
        ("192.168.0.0", 16),
        ("100.64.0.0", 10),
        ("169.254.0.0", 16),
        ("224.0.0.0", 4),
        ("fc00::", 7),
        ("fe80::", 10),
        ("ff00::", 8),
    ];
    let mut routes = vec![default_route(&[2])];
    routes.extend(private.map(|(destination, length)| route(destination, length, &[3])));
    assert_eq!(why(&find(&links, &routes), 3), None);
    // The same through different tables is not one way.
    routes.push(Route { table: 7, ..route("11.0.0.0", 8, &[3]) });
    assert_eq!(why(&find(&links, &routes), 3), None);
    routes.push(route("11.0.0.0", 8, &[3]));
    assert!(why(&find(&links, &routes), 3).is_some());
}

#[test]
fn the_way_to_the_api_server_and_the_holder_of_its_address_are_protected() {
    let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "eth3")];
    let addresses = [address(4, "192.0.2.9")];
    let peer = |ip: &str, outputs: &[u32]| Named::Peer { ip: ip.parse().unwrap(), outputs: outputs.to_vec() };
    let named = [peer("10.100.0.5", &[3]), peer("::ffff:192.0.2.9", &[])];
    let found = Lifeline::find(&links, &[default_route(&[2])], &addresses, &named).unwrap();
    assert_eq!(why(&found, 3).unwrap(), "is the way to the API server 10.100.0.5");
    assert!(why(&found, 4).unwrap().contains("API server"));
    assert_eq!(why(&found, 5), None);
    let torn = Lifeline::find(&links, &[], &[], &[peer("10.100.0.5", &[9])]).unwrap_err();
    assert!(torn.to_string().starts_with("the way to the API server names"), "{torn}");
}

#[test]
fn an_address_that_expires_protects_its_link_and_a_lasting_one_does_not() {
    let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "eth3")];
    let leased = |index, ip| Address { permanent: false, ..address(index, ip) };
    let addresses = [leased(3, "10.0.0.7"), address(4, "10.0.1.7"), leased(5, "fe80::7")];
    let found = Lifeline::find(&links, &[default_route(&[2])], &addresses, &[]).unwrap();
    assert_eq!(
        why(&found, 3).unwrap(),
        "has the address 10.0.0.7, which expires: the node got it by DHCP or from a router"
    );
    assert_eq!((why(&found, 4), why(&found, 5)), (None, None));
}

/// As RTM_NEWLINK shows them on Azure (kernel 4.14+): the VF is a port of the netvsc interface, and has its MAC. No machine of ours can
/// make them; virtio's standby feature, which a VM can, has the same shape.
#[test]
fn a_vf_under_netvsc_is_one_nic_with_it_in_both_directions() {
    let mac = |last| Some(MacAddr([0, 0x0d, 0x3a, 0, 0, last]));
    let on = |bus: &str, link: Link| Link { parent_bus: Some(bus.into()), ..link };
    let mut links = [
        on("vmbus", Link { mac: mac(1), ..link(2, "eth0") }),
        on("pci", Link { mac: mac(1), master: Some(2), ..link(3, "enP1s1") }),
        on("vmbus", Link { mac: mac(2), ..link(4, "eth1") }),
        on("pci", Link { mac: mac(2), master: Some(4), ..link(5, "enP2s1") }),
    ];
    let found = find(&links, &[default_route(&[2])]);
    assert_eq!(
        why(&found, 3).unwrap(),
        "is a port of eth0, which carries the IPv4 default route (table 254, metric 100)"
    );
    assert_eq!((why(&found, 4), why(&found, 5)), (None, None));
    let found = find(&links, &[default_route(&[5])]);
    assert!(why(&found, 4).unwrap().starts_with("is one NIC with enP2s1"));
    assert_eq!((why(&found, 2), why(&found, 3)), (None, None));
    // A VF that was just plugged in, before netvsc takes it.
    links[1].master = None;
    assert!(why(&find(&links, &[default_route(&[2])]), 3).unwrap().starts_with("is one NIC with eth0"));
}

#[test]
fn a_tunnel_bound_to_no_link_leads_to_every_link_with_a_route_to_its_other_end() {
    let remote = |ip: &str| Some(ip.parse().unwrap());
    let links = [
        link(2, "eth0"),
        link(3, "eth1"),
        link(4, "eth2"),
        Link { remote: remote("198.51.100.7"), ..kind(link(5, "sit1"), "sit") },
    ];
    let routes = [default_route(&[5]), route("198.51.100.0", 24, &[3]), route("203.0.113.0", 24, &[4])];
    let found = find(&links, &routes);
    assert!(why(&found, 3).unwrap().starts_with("is the way to the other end of sit1, which carries"));
    assert_eq!((why(&found, 2), why(&found, 4)), (None, None));
}

#[test]
fn a_default_route_that_ends_in_software_makes_every_address_and_every_nic_that_is_up_count() {
    let links = [
        link(2, "eth0"),
        Link { up: false, ..link(3, "eth1") },
        Link { up: false, ..link(4, "eth2") },
        kind(link(5, "ppp0"), "ppp"),
        kind(link(6, "docker0"), "bridge"),
    ];
    let addresses = [address(3, "10.0.0.7")];
    let found = Lifeline::find(&links, &[default_route(&[5])], &addresses, &[]).unwrap();
    assert_eq!(why(&found, 2).unwrap(), "is up, and no route tells which NIC carries the node");
    assert_eq!(
        why(&found, 3).unwrap(),
        "has the address 10.0.0.7, and no route tells which NIC carries the node"
    );
    assert_eq!((why(&found, 4), why(&found, 6)), (None, None));
    // And where nothing points anywhere, as before DHCP has answered.
    assert!(why(&find(&links, &[]), 2).is_some());
}

#[test]
fn a_tunnel_whose_lower_link_is_gone_does_not_make_the_facts_torn() {
    let links = [link(2, "eth0"), Link { lower: Some(77), ..kind(link(5, "gre1"), "gre") }];
    assert!(why(&find(&links, &[default_route(&[5])]), 2).unwrap().contains("no route tells"));
}
