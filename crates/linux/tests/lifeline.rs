//! The lifeline rule on real kernel objects: each test builds a node's network in a namespace of its own and looks which NICs carry it.
//!
//! The NICs are ends of veth pairs whose other ends are in another namespace, as the wire of a real one leads out of the node: `nic0`,
//! `nic1`, `nic2`, all up, with 10.N.0.2/24 and fdN::2/64. What this kernel may lack (bond, team, VLAN, Open vSwitch, ...) is tried in the
//! VM, `tests/system/tests/lifeline.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use linux::Netns;
use linux::route::{LinkChange, Socket, Vital};

struct Node {
    netns: Netns,
    socket: Socket,
    // The other ends of the wires live as long as this does.
    _outside: Netns,
}

impl Node {
    fn new() -> Node {
        let (netns, outside) = (Netns::create().unwrap(), Netns::create().unwrap());
        let mut node = Node { socket: netns.route_socket().unwrap(), netns, _outside: outside };
        node.ip("link set lo up");
        for n in 0..3 {
            node.ip(&format!("link add nic{n} type veth peer name wire{n}"));
            let wire = node.socket.link_by_name(&format!("wire{n}")).unwrap().unwrap().index;
            let out = LinkChange { netns: Some(node._outside.as_fd()), up: Some(true), ..Default::default() };
            node.socket.change_link(wire, &out).unwrap();
            node.ip(&format!(
                "link set nic{n} up\naddr add 10.{n}.0.2/24 dev nic{n}\naddr add fd0{n}::2/64 dev nic{n} nodad"
            ));
        }
        node
    }

    /// Feeds lines to `ip -batch -`, in the namespace.
    fn ip(&self, lines: &str) {
        let run = || {
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("iproute2 is installed");
            ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
            ip.wait_with_output().unwrap()
        };
        let output = self.netns.run(run).unwrap();
        assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    fn with(lines: &str) -> Node {
        let node = Node::new();
        node.ip(lines);
        node
    }

    /// The NICs that carry the node.
    fn carriers(&mut self, vital: &Vital) -> Vec<String> {
        let look = self.socket.look(vital).unwrap().unwrap();
        let carries = |link: &&nic::Link| look.lifeline.reason(link.index).is_some();
        let names = look.links.iter().filter(carries).map(|link| link.name.to_string());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("nic")).collect();
        names.sort();
        names
    }

    /// Asserts that these NICs carry the node, and no other.
    fn lives_by(mut self, nics: &[&str]) {
        assert_eq!(self.carriers(&Vital::default()), nics);
    }

    fn why(&mut self, name: &str, vital: &Vital) -> String {
        let look = self.socket.look(vital).unwrap().unwrap();
        let link = look.links.iter().find(|link| link.name.as_str() == name).unwrap();
        look.lifeline.reason(link.index).map(ToString::to_string).unwrap_or_default()
    }
}

fn peers(ips: &[&str]) -> Vital {
    Vital { peers: ips.iter().map(|ip| ip.parse().unwrap()).collect(), ..Vital::default() }
}

// Routes.

#[test]
fn a_default_route() {
    Node::with("route add default via 10.1.0.1").lives_by(&["nic1"]);
}

#[test]
fn an_ipv6_default_route_of_the_largest_metric() {
    Node::with("route add ::/0 via fd02::1 metric 4294967295").lives_by(&["nic2"]);
}

#[test]
fn default_routes_of_both_families_through_different_nics() {
    Node::with("route add default via 10.1.0.1\nroute add ::/0 via fd02::1").lives_by(&["nic1", "nic2"]);
}

#[test]
fn a_second_default_route_that_is_never_used_because_of_its_metric() {
    Node::with("route add default via 10.1.0.1\nroute add default via 10.2.0.1 metric 900000")
        .lives_by(&["nic1", "nic2"]);
}

#[test]
fn a_table_that_only_a_rule_leads_to() {
    Node::with("route add default via 10.1.0.1\nroute add default via 10.2.0.1 table 12345\nrule add fwmark 7 lookup 12345")
        .lives_by(&["nic1", "nic2"]);
}

#[test]
fn a_table_that_no_rule_leads_to_yet() {
    Node::with("route add default via 10.1.0.1 table 300").lives_by(&["nic1"]);
}

#[test]
fn the_hops_of_a_multipath_route() {
    Node::with("route add default nexthop via 10.0.0.1 weight 10 nexthop via 10.2.0.1")
        .lives_by(&["nic0", "nic2"]);
}

#[test]
fn the_hops_of_an_ipv6_multipath_route() {
    Node::with("route add ::/0 nexthop via fd00::1 nexthop via fd02::1").lives_by(&["nic0", "nic2"]);
}

#[test]
fn a_nexthop_object() {
    Node::with("nexthop add id 5 via 10.1.0.1 dev nic1\nroute add default nhid 5").lives_by(&["nic1"]);
}

#[test]
fn a_group_of_nexthop_objects_that_the_kernel_spells_out_and_one_that_it_does_not() {
    let mut node = Node::with(
        "nexthop add id 5 via 10.1.0.1 dev nic1\nnexthop add id 6 via 10.2.0.1 dev nic2\nnexthop add id 7 group 5,1/6,9\n\
         nexthop add id 15 via fd00::1 dev nic0\nnexthop add id 17 group 15\n\
         route add default nhid 7\nroute add ::/0 nhid 17 table 99",
    );
    assert_eq!(node.carriers(&Vital::default()), ["nic0", "nic1", "nic2"]);
    let compat = || std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0");
    node.netns.run(compat).unwrap().expect("net.ipv4.nexthop_compat_mode is writable");
    assert_eq!(node.carriers(&Vital::default()), ["nic0", "nic1", "nic2"]);
}

#[test]
fn an_ipv4_default_route_through_an_ipv6_gateway() {
    Node::with("route add default via inet6 fe80::1 dev nic2").lives_by(&["nic2"]);
}

#[test]
fn a_default_route_whose_wire_is_cut() {
    let node = Node::with("route add default via 10.1.0.1\nroute add default via 10.2.0.1 metric 7");
    node._outside
        .run(|| Command::new("ip").args(["link", "set", "wire2", "down"]).status().unwrap())
        .unwrap();
    node.lives_by(&["nic1", "nic2"]);
}

#[test]
fn halves_of_the_world_as_vpn_programs_set_them() {
    Node::with("route add default via 10.0.0.1\nroute add 0.0.0.0/1 via 10.1.0.1\nroute add 128.0.0.0/1 via 10.2.0.1")
        .lives_by(&["nic0", "nic1", "nic2"]);
}

#[test]
fn all_global_ipv6_addresses() {
    Node::with("route add default via 10.0.0.1\nroute add 2000::/3 via fd01::1").lives_by(&["nic0", "nic1"]);
}

#[test]
fn the_world_in_two_hundred_pieces() {
    let pieces: String = (11..211).map(|n| format!("route add {n}.0.0.0/8 via 10.1.0.1\n")).collect();
    Node::with(&format!("route add default via 10.0.0.1\n{pieces}")).lives_by(&["nic0", "nic1"]);
}

#[test]
fn private_networks_multicast_and_routes_to_nowhere_make_no_uplink() {
    Node::with(
        "route add default via 10.0.0.1\nroute add 10.0.0.0/8 via 10.1.0.1\nroute add 172.16.0.0/12 via 10.1.0.1\n\
         route add 192.168.0.0/16 via 10.1.0.1\nroute add 224.0.0.0/4 dev nic1\nroute add fc00::/7 via fd01::1\n\
         route add blackhole default metric 1000\nroute add unreachable 128.0.0.0/1\nroute add prohibit ::/0 metric 1000",
    )
    .lives_by(&["nic0"]);
}

// Addresses and peers.

#[test]
fn without_any_default_route_every_address_counts() {
    let node = Node::new();
    node.ip("addr flush dev nic2");
    node.lives_by(&["nic0", "nic1"]);
}

#[test]
fn addresses_that_were_named() {
    let mut node = Node::with("route add default via 10.0.0.1");
    let addresses = ["10.1.0.2", "fd02::2", "192.0.2.99"].map(|ip| ip.parse().unwrap()).to_vec();
    assert_eq!(node.carriers(&Vital { addresses, ..Vital::default() }), ["nic0", "nic1", "nic2"]);
}

#[test]
fn a_lease_by_dhcp() {
    Node::with(
        "route add default via 10.0.0.1\naddr add 10.1.0.77/24 dev nic1 valid_lft 600 preferred_lft 600",
    )
    .lives_by(&["nic0", "nic1"]);
}

#[test]
fn the_way_to_the_api_server_by_a_rule_and_its_table() {
    let mut node = Node::with(
        "route add default via 10.0.0.1\nroute add 198.51.100.0/24 via 10.1.0.1 table 300\n\
         rule add to 198.51.100.0/24 lookup 300",
    );
    assert_eq!(node.carriers(&Vital::default()), ["nic0"]);
    assert_eq!(node.carriers(&peers(&["198.51.100.5"])), ["nic0", "nic1"]);
    assert_eq!(node.why("nic1", &peers(&["198.51.100.5"])), "is the way to the API server 198.51.100.5");
    // One in the same network, one that is this node itself, and one that there is no way to.
    node.ip("route add prohibit 192.0.2.0/24\nroute add blackhole 203.0.113.0/24\nroute del default");
    let vital = peers(&["10.2.0.9", "fd02::9", "10.1.0.2", "192.0.2.9", "203.0.113.9", "8.8.8.8"]);
    assert_eq!(node.carriers(&vital), ["nic1", "nic2"]);
}

#[test]
fn each_hop_of_the_way_to_the_api_server() {
    let mut node = Node::with(
        "route add default via 10.0.0.1\nroute add 2001:db8::/64 nexthop via fd01::1 nexthop via fd02::1\n\
         nexthop add id 5 via 10.1.0.1 dev nic1\nnexthop add id 6 via 10.2.0.1 dev nic2\nnexthop add id 7 group 5/6\n\
         route add 198.51.100.0/24 nhid 7",
    );
    for ip in ["198.51.100.5", "2001:db8::5"] {
        assert_eq!(node.carriers(&peers(&[ip])), ["nic0", "nic1", "nic2"], "{ip}");
    }
}

// Layers.

#[test]
fn a_bridge() {
    Node::with(
        "link add br0 type bridge\nlink set nic1 master br0\nlink set br0 up\nroute add default dev br0",
    )
    .lives_by(&["nic1"]);
}

#[test]
fn a_bridge_whose_port_joins_later_and_leaves() {
    let mut node = Node::with(
        "link add br0 type bridge\nlink set br0 up\nroute add default via 10.0.0.1\nroute add default dev br0 metric 9",
    );
    assert_eq!(node.carriers(&Vital::default()), ["nic0"]);
    node.ip("link set nic2 master br0");
    assert_eq!(node.carriers(&Vital::default()), ["nic0", "nic2"]);
    node.ip("link set nic2 nomaster");
    assert_eq!(node.carriers(&Vital::default()), ["nic0"]);
}

#[test]
fn a_macvlan() {
    Node::with(
        "link add link nic1 name mv0 type macvlan mode bridge\nlink set mv0 up\nroute add default dev mv0",
    )
    .lives_by(&["nic1"]);
}

#[test]
fn a_macvtap() {
    Node::with("link add link nic1 name mt0 type macvtap\nlink set mt0 up\nroute add ::/0 dev mt0")
        .lives_by(&["nic1"]);
}

#[test]
fn a_macvlan_on_a_bridge() {
    Node::with(
        "link add br0 type bridge\nlink set nic2 master br0\nlink set br0 up\n\
         link add link br0 name mv0 type macvlan\nlink set mv0 up\nroute add default dev mv0 table 7",
    )
    .lives_by(&["nic2"]);
}

#[test]
fn a_bridge_over_a_macvlan_that_passes_everything_on() {
    // A macvlan cannot be a bridge's port unless it passes everything on.
    Node::with(
        "link add link nic2 name mv0 type macvlan mode passthru\nlink add br0 type bridge\nlink set mv0 master br0\n\
         link set br0 up\nlink set mv0 up\nroute add default dev br0",
    )
    .lives_by(&["nic2"]);
}

#[test]
fn a_veth_pair_into_a_bridge() {
    Node::with(
        "link add br0 type bridge\nlink set nic1 master br0\nlink add up0 type veth peer name up1\n\
         link set up1 master br0\nlink set up0 up\nroute add default dev up0",
    )
    .lives_by(&["nic1"]);
}

#[test]
fn bridges_joined_by_a_veth_pair_and_a_macvlan_on_top() {
    Node::with(
        "link add br0 type bridge\nlink add br1 type bridge\nlink add p0 type veth peer name p1\n\
         link set p0 master br0\nlink set p1 master br1\nlink set nic2 master br1\nlink set br0 up\n\
         link add link br0 name mv0 type macvlan\nlink set mv0 up\nroute add default dev mv0",
    )
    .lives_by(&["nic2"]);
}

#[test]
fn a_vxlan_on_a_nic() {
    Node::with(
        "link add vx0 type vxlan id 5 dev nic1 remote 203.0.113.1 dstport 4789\nlink set vx0 up\nroute add default dev vx0",
    )
    .lives_by(&["nic1"]);
}

#[test]
fn a_vxlan_that_takes_a_route() {
    Node::with(
        "route add 203.0.113.0/24 via 10.1.0.1\nlink add vx0 type vxlan id 5 remote 203.0.113.1 dstport 4789\n\
         link set vx0 up\nroute add default dev vx0",
    )
    .lives_by(&["nic1"]);
}

#[test]
fn a_bridge_over_a_vxlan_over_a_bridge() {
    Node::with(
        "link add br1 type bridge\nlink set nic2 master br1\nlink set br1 up\n\
         link add vx0 type vxlan id 5 dev br1 remote 203.0.113.1 dstport 4789\n\
         link add br0 type bridge\nlink set vx0 master br0\nlink set br0 up\nroute add default dev br0",
    )
    .lives_by(&["nic2"]);
}

#[test]
fn a_vpn_in_user_space_hides_its_wire_so_every_address_counts() {
    Node::with("tuntap add tun0 mode tun\nlink set tun0 up\naddr flush dev nic2\nroute add default dev tun0")
        .lives_by(&["nic0", "nic1"]);
}

#[test]
fn what_is_in_a_pod_carries_the_pod() {
    // A macvlan of a pod, and a default route in the pod, are no concern of the node.
    let node = Node::with("route add default via 10.0.0.1\nlink add link nic1 name mv0 type macvlan");
    let mut node = node;
    let pod = Netns::create().unwrap();
    let index = node.socket.link_by_name("mv0").unwrap().unwrap().index;
    let away = LinkChange { netns: Some(pod.as_fd()), up: Some(true), ..Default::default() };
    node.socket.change_link(index, &away).unwrap();
    pod.run(|| Command::new("ip").args(["route", "add", "default", "dev", "mv0"]).status().unwrap()).unwrap();
    assert_eq!(node.carriers(&Vital::default()), ["nic0"]);
}
