//! Whatever root in a pod does to a real NIC, it comes home as it left: nothing of the pod's is on the node afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{Node, assert_same, mac, machine, spare};

const NIC: &str = "0000:00:0a.0";
const SOON: Duration = Duration::from_secs(30);
/// An object of one XDP program: `return XDP_PASS`.
const XDP_PASS: &[u8] = include_bytes!("../../cni-suite/src/checks/xdp-pass.o");

fn network() -> String {
    let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24"});
    json!({"cniVersion": "1.1.0", "name": "virt-network", "type": "ehost-device", "deviceID": NIC, "ipam": ipam})
        .to_string()
}

fn node() -> Node {
    let node = Node::boot(&machine().nic(spare(NIC)));
    // A NIC with a past: what it was must be what it is again.
    node.sh("ip link set eth1 mtu 1400 txqueuelen 500 alias 'storage uplink' up && ip link property add dev eth1 altname storage0");
    node.sh("ip addr add 192.0.2.1/24 brd + dev eth1 && ethtool -K eth1 gso off");
    // The kernel makes bond0 when it loads that module.
    node.sh("ip link add bond7 type bond && ip link del bond7; ip link del bond0 || true");
    node
}

/// What is the same before and after: the snapshot, and what only other tools tell.
fn picture(node: &Node) -> Value {
    let more: Vec<String> =
        ["ethtool -k eth1", "ethtool -g eth1", "ethtool -l eth1", "tc qdisc show dev eth1"]
            .map(|command| node.sh(command))
            .to_vec();
    json!({"node": node.settled(), "more": more.join("\n").lines().collect::<Vec<_>>()})
}

fn nothing_is_left(node: &Node) {
    let left =
        node.sh("find /var/lib/virtnet/leases -name '*.json'; find /var/lib/cni/networks -name '10.*'");
    assert_eq!(left, "");
}

#[test]
fn a_port_of_a_bond_comes_home_to_it_also_when_it_is_up_by_then() {
    let node = Node::boot(&machine().nic(spare(NIC)));
    node.sh("ip link add bond7 type bond mode active-backup miimon 100 && ip link del bond0 || true");
    node.sh("ip link set eth1 down && ip link set eth1 master bond7 && ip link set bond7 up && ip link set eth1 up");
    // How often the bond's carrier came and went, and what it makes of a port meanwhile, is the bond's.
    let port = || {
        let link = node.json("ip -d -j link show eth1");
        let of = |key: &str| link[0][key].clone();
        json!([of("master"), of("address"), of("mtu"), of("flags"), of("ifalias")])
    };
    let before = port();
    assert_eq!(before[0], "bond7");
    let (config, netns) = (network(), node.netns("pod"));
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    node.wait_for("ip link show eth1", "LOWER_UP", SOON);
    assert_same(&port(), &before, "after a DEL");
    nothing_is_left(&node);

    // It came home by itself and was set up; or out of the pod, which had it up, at last.
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    node.sh("ip -netns pod link set net1 netns 1 && ip link set net1 name eth1 && ip link set eth1 up");
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    node.wait_for("ip link show eth1", "LOWER_UP", SOON);
    assert_same(&port(), &before, "after it was up on the node");
    nothing_is_left(&node);

    // A bond sets a new port up, which this one was not.
    node.sh("ip link set eth1 down");
    let before = port();
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    assert_same(&port(), &before, "a port that was down");
    nothing_is_left(&node);
}

#[test]
fn whatever_the_pod_did_to_the_nic_it_comes_home_as_it_left() {
    let node = node();
    node.vm.write_file("/tmp/xdp-pass.o", 0o644, XDP_PASS).unwrap();
    let before = picture(&node);
    let config = network();
    let deeds = [
        "ip link set net1 down && ip link set net1 name mine alias theirs && ip link property add dev mine altname eth1",
        "ip link property del dev net1 altname storage0",
        "ip link set net1 address 02:00:00:00:00:99 mtu 1280 txqueuelen 5",
        "ip link set net1 promisc on && ip link set net1 allmulticast on && ip link set net1 arp off multicast off",
        "ip link add link net1 name net1.5 type vlan id 5 && ip link set net1.5 up && ip addr add 10.66.5.1/24 dev net1.5",
        "ip link add link net1 name upon type macvlan mode passthru && ip link set upon up",
        "ip link add link net1 name upon type ipvlan mode l2 && ip link set upon up",
        "ip link add link net1 name upon type macsec && ip link set upon up",
        "ip link add name upon type vxlan id 7 dev net1 dstport 4789 group 239.1.1.1 && ip link set upon up",
        "ip link add br0 type bridge vlan_filtering 1 && ip link set net1 master br0 && ip link set br0 up",
        "ip link set net1 down && ip link add bond0 type bond mode active-backup && ip link set net1 master bond0",
        "ip link add vrf0 type vrf table 10 && ip link set net1 master vrf0 && ip link set vrf0 up",
        "ip link set net1 xdpgeneric obj /tmp/xdp-pass.o sec xdp",
        "ip link set net1 xdpdrv obj /tmp/xdp-pass.o sec xdp",
        "tc qdisc replace dev net1 root netem delay 1s && tc qdisc add dev net1 clsact",
        "ethtool -K net1 gso on tso off gro off rx off",
        "ethtool -G net1 rx 128 tx 128",
        "ip addr flush dev net1 && ip addr add 10.66.0.1/24 dev net1 && ip route add 10.67.0.0/24 via 10.66.0.2 && \
         ip neigh add 10.66.0.2 lladdr 02:00:00:00:00:77 dev net1",
        "sysctl -qw net.ipv4.conf.net1.rp_filter=2 net.ipv6.conf.net1.disable_ipv6=1",
        "ip link set net1 down",
    ];
    for (number, deed) in deeds.iter().enumerate() {
        // Each in a pod of its own: what one leaves in the pod must not be in the way of the next.
        let name = format!("pod{number}");
        let netns = node.netns(&name);
        node.cni("ehost-device", "ADD", &name, &netns, &config).result();
        node.sh(&format!("ip netns exec {name} sh -ec '{deed}'"));
        node.cni("ehost-device", "DEL", &name, &netns, &config).result();
        assert_same(&picture(&node), &before, deed);
        nothing_is_left(&node);
        node.sh(&format!("ip netns del {name}"));
    }
}

#[test]
fn a_nic_that_a_stuck_process_keeps_is_reported_and_comes_home_when_that_ends() {
    let node = node();
    let before = picture(&node);
    let config = network();
    // A process of the pod that outlives it, and one that took the NIC away into a namespace that nobody else knows.
    for (name, hide) in [("stuck", ""), ("hidden", "unshare -n")] {
        let netns = node.netns(name);
        node.cni("ehost-device", "ADD", name, &netns, &config).result();
        node.sh(&format!("ip netns exec {name} {hide} sleep 10000 >/dev/null 2>&1 & echo $! >/tmp/stuck"));
        if !hide.is_empty() {
            node.wait_for("readlink /proc/$(cat /tmp/stuck)/exe", "sleep", SOON);
            node.sh(&format!("ip -netns {name} link set net1 netns $(cat /tmp/stuck)"));
        }
        node.wait_for("readlink /proc/$(cat /tmp/stuck)/exe", "sleep", SOON);
        node.sh(&format!("ip netns del {name}"));
        let answer = node.cni("ehost-device", "DEL", name, &netns, &config);
        assert!(
            answer.text.contains("WARNING") && answer.text.contains("has not come back"),
            "{}",
            answer.text
        );
        // An error would keep the pod in Terminating for as long as that process lives.
        answer.result();
        let lease = node.sh("cat /var/lib/virtnet/leases/0000:00:0a.0.json");
        assert!(lease.contains("no network namespace that can be looked into"), "{lease}");
        let second = node.netns("second");
        let (code, text) = node.cni("ehost-device", "ADD", "second", &second, &config).error();
        assert!(code == 11 && text.contains("has not come back"), "code {code}: {text}");
        node.sh("kill $(cat /tmp/stuck)");
        node.wait_for("ip -o link show net1", &mac(NIC), SOON);
        node.cni("ehost-device", "DEL", name, "", &config).result();
        assert_same(&picture(&node), &before, name);
        nothing_is_left(&node);
        node.sh("ip netns del second");
    }
}

#[test]
fn a_nic_that_falls_home_onto_taken_names_gets_its_own_back() {
    let node = node();
    let before = picture(&node);
    let config = network();
    let netns = node.netns("pod");
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    // The pod's name for it, its own and its alternative one are all taken on the node when the namespace ends.
    node.sh(
        "ip link add net1 type bridge && ip link add eth1 type bridge && ip link add storage0 type bridge",
    );
    node.sh("ip netns del pod");
    node.wait_for("ip -o link", &mac(NIC), SOON);
    let fallen = node.sh(&format!("ip -o link | grep {} | cut -d: -f2", mac(NIC)));
    assert!(fallen.trim().starts_with("dev"), "the kernel called it {fallen}");
    let answer = node.cni("ehost-device", "DEL", "c1", &netns, &config);
    assert!(answer.text.contains("home as eth1-2"), "{}", answer.text);
    answer.result();
    node.sh("ip link del net1 && ip link del eth1 && ip link del storage0");
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    assert_same(&picture(&node), &before, "once the names are free");
    nothing_is_left(&node);
}
