//! What a configuration asks of the interface, as far as it takes the node's own kernel and NICs: a VLAN, and rings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::{Value, json};
use system_tests::{Node, assert_same, mac, machine, spare};

const NIC: &str = "0000:00:0a.0";
const OTHER: &str = "0000:00:09.0";
const LEASE: &str = "/var/lib/virtnet/leases/0000:00:0a.0.json";

/// A network with host-local, and these keys.
fn network(device: &str, keys: Value) -> Value {
    let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24", "rangeStart": "10.56.217.10"});
    let mut config = json!({"cniVersion": "1.0.0", "name": "virt-network", "type": "ehost-device", "deviceID": device, "ipam": ipam});
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

fn node() -> Node {
    // Only a NIC without the interface of old times lets its rings be changed.
    let node = Node::boot(&machine().nic(spare(OTHER).modern()).nic(spare(NIC).modern()));
    node.sh("ip link set eth2 mtu 1400 alias 'storage uplink' up && ip link property add dev eth2 altname storage0");
    node
}

fn nothing_is_left(node: &Node, before: &Value, when: &str) {
    assert_same(&node.settled(), before, when);
    let left = "find /var/lib/virtnet/leases -name '*.json'; find /var/lib/cni/networks -name '10.*'";
    assert_eq!(node.try_sh(left).text(), "", "{when}");
}

#[test]
fn a_vlan_is_what_the_pods_use_and_the_nics_below_come_home() {
    let node = node();
    let before = node.settled();
    let keys = json!({"vlan": 100, "mtu": 1380, "mac": "02:00:00:00:00:05"});
    let config = network(NIC, keys).to_string();
    let netns = node.netns("pod");
    let result = node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    let told = &result["interfaces"];
    assert_eq!(told.as_array().unwrap().len(), 1);
    assert_eq!((&told[0]["name"], &told[0]["mac"]), (&json!("net1"), &json!("02:00:00:00:00:05")));
    let shown = node.json("ip -netns pod -d -j addr show net1");
    let vlan = &shown[0];
    assert_eq!((&vlan["link"], &vlan["linkinfo"]["info_data"]["id"]), (&json!("eth2"), &json!(100)));
    assert_eq!((&vlan["address"], &vlan["mtu"]), (&json!("02:00:00:00:00:05"), &json!(1380)));
    assert_eq!(vlan["addr_info"][0]["local"], "10.56.217.10");

    // Another pod on the same VLAN is reached, and not once it is on another.
    let peer = node.netns("peer");
    for (tag, reached) in [(100, true), (101, false)] {
        let other = network(OTHER, json!({"vlan": tag})).to_string();
        let given = node.cni("ehost-device", "ADD", "c2", &peer, &other).result();
        let address = given["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        let ping = node.try_sh(&format!("ip netns exec pod ping -c 1 -W 2 {address}"));
        assert_eq!(ping.code() == Some(0), reached, "{}", ping.text());
        node.cni("ehost-device", "DEL", "c2", &peer, &other).result();
    }

    let check = network(NIC, json!({"vlan": 100, "prevResult": result})).to_string();
    node.cni("ehost-device", "CHECK", "c1", &netns, &check).result();
    assert_eq!(node.cni("ehost-device", "ADD", "c1", &netns, &config).error().0, 103);
    node.sh("ip -netns pod link del net1");
    assert_eq!(node.cni("ehost-device", "CHECK", "c1", &netns, &check).error().0, 106);
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    nothing_is_left(&node, &before, "after a DEL");

    // The ADD was killed after it had made the VLAN; or its last step failed; or the ledger was lost, and the NIC comes
    // home as best it can.
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    node.sh(&format!("tail -n 1 {LEASE} | grep plumbed && sed -i '$d' {LEASE}"));
    assert_eq!(node.json(&format!("cat {LEASE}"))["stage"]["is"], "prepared");
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    nothing_is_left(&node, &before, "after an ADD that was killed");

    let unreachable = network(NIC, json!({"vlan": 100, "routes": [{"dst": "fd01::/64", "gw": "10.0.0.9"}]}));
    assert_eq!(node.cni("ehost-device", "ADD", "c1", &netns, &unreachable.to_string()).error().0, 5);
    nothing_is_left(&node, &before, "after an ADD that failed");

    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    node.sh(&format!("rm {LEASE}"));
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    let home = node.sh("ls /sys/bus/pci/devices/0000:00:0a.0/virtio*/net");
    assert!(home.starts_with("dev"), "{home}");
    assert_eq!(node.json(&format!("ip -j link show {home}"))[0]["address"], mac(NIC).as_str());
}

#[test]
fn rings_are_set_for_the_pod_and_taken_back() {
    let node = node();
    let before = node.settled();
    let rings = |netns: &str, name: &str| -> Vec<String> {
        let all = node.sh(&format!("ip netns exec {netns} ethtool -g {name} || ethtool -g {name}"));
        let (_, now) = all.split_once("Current hardware settings:").unwrap();
        now.lines()
            .filter(|line| line.starts_with("RX:") || line.starts_with("TX:"))
            .map(str::to_owned)
            .collect()
    };
    let netns = node.netns("pod");
    let at_home = rings("none", "eth2");
    let config = network(NIC, json!({"ring": {"rx": 128}, "queues": 1})).to_string();
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    let in_pod = rings("pod", "net1");
    assert_ne!(in_pod, at_home);
    assert!(in_pod[0].ends_with("\t128"), "{in_pod:?}");
    // The pod may set them, too.
    node.sh("ip netns exec pod ethtool -G net1 tx 64");
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    assert_eq!(rings("none", "eth2"), at_home);
    nothing_is_left(&node, &before, "after a DEL");

    for (keys, words) in [
        (json!({"ring": {"tx": 65536}}), "ring.tx 65536 is not from 1 to"),
        (json!({"queues": 2}), "queues 2 is not from 1 to 1"),
    ] {
        let (code, text) =
            node.cni("ehost-device", "ADD", "c1", &netns, &network(NIC, keys).to_string()).error();
        assert!(code == 7 && text.contains(words), "{code}: {text}");
        nothing_is_left(&node, &before, "after a refusal");
    }
    // What the driver refuses in spite of its limits is undone: a ring's length is a power of two.
    let refused = network(NIC, json!({"ring": {"rx": 100}})).to_string();
    let (code, text) = node.cni("ehost-device", "ADD", "c1", &netns, &refused).error();
    assert!(code == 5 && text.contains("rings"), "{code}: {text}");
    assert_eq!(rings("none", "eth2"), at_home);
    nothing_is_left(&node, &before, "after the kernel's refusal");
}

#[test]
fn addresses_and_routes_of_the_node_travel_with_the_nic_and_come_home_with_it() {
    let node = node();
    node.sh(
        "ip addr add 192.0.2.2/24 brd + dev eth2 && ip -6 addr add fd07::2/64 dev eth2 && \
         ip route add 198.51.100.0/24 via 192.0.2.1 dev eth2 proto static metric 50 mtu 1300 src 192.0.2.2 && \
         ip route add 203.0.113.0/24 dev eth2 table 100 && ip -6 route add fd08::/64 via fd07::1 dev eth2 metric 7",
    );
    node.wait_for("ip -6 addr show dev eth2 tentative | wc -l", "0", std::time::Duration::from_secs(30));
    let before = node.settled();
    let netns = node.netns("pod");
    for keys in [json!({"keepAddresses": true}), json!({"keepAddresses": true, "ipam": {}}), json!({})] {
        let config = network(NIC, keys.clone()).to_string();
        let result = node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
        let shown = node
            .sh("ip -netns pod addr show net1; ip -netns pod route show table all; ip -netns pod -6 route");
        let kept = [
            "192.0.2.2/24",
            "fd07::2/64",
            "198.51.100.0/24 via 192.0.2.1",
            "203.0.113.0/24",
            "fd08::/64 via fd07::1",
        ];
        for what in kept {
            assert_eq!(shown.contains(what), keys["keepAddresses"] == true, "{keys}: {what}: {shown}");
        }
        let mut check = network(NIC, keys.clone());
        check["prevResult"] = result;
        node.cni("ehost-device", "CHECK", "c1", &netns, &check.to_string()).result();
        node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
        nothing_is_left(&node, &before, &keys.to_string());
    }
    // The namespace ends without a DEL: the kernel sends the NIC home bare.
    let config = network(NIC, json!({"keepAddresses": true})).to_string();
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    node.sh("ip netns del pod");
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    nothing_is_left(&node, &before, "after the namespace's end");
}
