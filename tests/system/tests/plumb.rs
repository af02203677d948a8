//! ehost-device on real virtio NICs, with the real host-local.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{MANAGEMENT, Node, assert_same, mac, machine, spare};
use vm::Spec;

const NIC: &str = "0000:00:0a.0";
const OTHER: &str = "0000:00:09.0";
const LEASES: &str = "find /var/lib/virtnet -name '*.json'";
const ADDRESSES: &str = "find /var/lib/cni/networks -name '10.*'";

/// A network configuration that selects a NIC by `key`, with host-local.
fn network(key: &str, value: &str) -> String {
    let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24", "rangeStart": "10.56.217.10", "gateway": "10.56.217.1"});
    json!({"cniVersion": "1.0.0", "name": "virt-network", "type": "ehost-device", key: value, "ipam": ipam})
        .to_string()
}

fn node() -> Node {
    let node = Node::boot(&machine().nic(spare(OTHER)).nic(spare(NIC)));
    // A NIC with a past: what it was must be what it is again.
    node.sh("ip link set eth2 mtu 1400 txqueuelen 500 alias 'storage uplink' up && ip link property add dev eth2 altname storage0");
    node
}

fn settled(node: &Node) -> Value {
    node.settled()
}

fn nothing_is_left(node: &Node) {
    assert_eq!(node.try_sh(LEASES).text(), "", "a lease is open");
    assert_eq!(node.try_sh(ADDRESSES).text(), "", "an address is leased");
}

#[test]
fn a_nic_goes_to_the_pod_with_an_address_and_comes_home_as_it_was() {
    let node = node();
    let before = settled(&node);
    let netns = node.netns("pod");
    let config = network("deviceID", NIC);

    let result = node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["interfaces"][0]["name"], "net1");
    assert_eq!(result["interfaces"][0]["mac"], mac(NIC).as_str());
    assert_eq!(result["interfaces"][0]["sandbox"], netns.as_str());
    assert_eq!(result["ips"][0]["address"], "10.56.217.10/24");
    assert_eq!(result["ips"][0]["interface"], 0);

    let links = node.json("ip netns exec pod ip -d -j addr show net1");
    assert_eq!(links[0]["address"], mac(NIC).as_str());
    assert_eq!(links[0]["addr_info"][0]["local"], "10.56.217.10");
    assert!(links[0]["flags"].as_array().unwrap().contains(&json!("UP")));
    let driver = node.sh("ip netns exec pod ethtool -i net1");
    assert!(
        driver.contains("driver: virtio_net") && driver.contains(&format!("bus-info: {NIC}")),
        "{driver}"
    );

    let mut checked: Value = serde_json::from_str(&config).unwrap();
    checked["prevResult"] = result;
    node.cni("ehost-device", "CHECK", "c1", &netns, &checked.to_string()).result();
    node.sh("ip netns exec pod ip addr flush dev net1");
    node.cni("ehost-device", "CHECK", "c1", &netns, &checked.to_string()).error();

    assert_eq!(node.cni("ehost-device", "DEL", "c1", &netns, &config).result(), Value::Null);
    assert_same(&settled(&node), &before, "afterwards");
    nothing_is_left(&node);
    // Twice, and for a container that never was.
    assert_eq!(node.cni("ehost-device", "DEL", "c1", &netns, &config).result(), Value::Null);
    assert_eq!(node.cni("ehost-device", "DEL", "never", "", &config).result(), Value::Null);
    assert_same(&settled(&node), &before, "afterwards");
}

#[test]
fn a_nic_is_found_by_each_of_the_keys() {
    let behind = "0000:01:00.0";
    let node = Node::boot(&machine().nic(spare(NIC)).nic(spare(behind)));
    let netns = node.netns("pod");
    let before = settled(&node);
    let names = |address: &str| node.sh(&format!("ls /sys/bus/pci/devices/{address}/virtio*/net"));
    let path = |address: &str| node.sh(&format!("realpath /sys/bus/pci/devices/{address}"));
    let mut runtime: Value = serde_json::from_str(&network("type", "ehost-device")).unwrap();
    runtime["runtimeConfig"] = json!({"deviceID": behind});
    let wanted = [
        (network("deviceID", NIC), NIC),
        (network("pciBusID", behind), behind),
        (network("device", &names(behind)), behind),
        (network("hwaddr", &mac(NIC).to_uppercase()), NIC),
        (network("kernelpath", &path(behind)), behind),
        (runtime.to_string(), behind),
    ];
    for (config, address) in wanted {
        let result = node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
        assert_eq!(result["interfaces"][0]["mac"], mac(address).as_str(), "{config}");
        node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
        assert_same(&settled(&node), &before, &config);
    }
    nothing_is_left(&node);
}

#[test]
fn the_nic_that_the_node_lives_by_is_never_moved() {
    let node = node();
    let netns = node.netns("pod");
    // The second NIC joins in through a bond and a VLAN, with an IPv6 default route in another table.
    node.sh(
        "ip link set eth2 down && ip link add bond7 type bond mode active-backup && ip link set eth2 master bond7 && \
         ip link add link bond7 name bond7.5 type vlan id 5 && ip link set eth2 up && ip link set bond7 up && ip link set bond7.5 up && \
         ip -6 addr add fd00::2/64 dev bond7.5 nodad && ip -6 route add default via fd00::1 dev bond7.5 table 77",
    );
    let before = settled(&node);
    for address in [MANAGEMENT, NIC] {
        let (code, text) =
            node.cni("ehost-device", "ADD", "c1", &netns, &network("deviceID", address)).error();
        assert!(text.contains("default route"), "code {code}: {text}");
        assert_same(&settled(&node), &before, "afterwards");
    }
    nothing_is_left(&node);
}

#[test]
fn what_cannot_be_plumbed_is_refused_and_nothing_changes() {
    let node = node();
    let netns = node.netns("pod");
    node.sh("ip netns exec pod ip link add net1 type dummy");
    let before = settled(&node);
    let pod = node.json("ip -netns pod -d -j link");
    let good = network("deviceID", NIC);
    let cases = [
        (good.as_str(), netns.as_str(), 0, "net1"),
        ("this is not JSON", &netns, 6, ""),
        (r#"{"cniVersion": "1.0.0", "type": "ehost-device", "deviceID": "0000:00:0a.0"}"#, &netns, 7, "name"),
        (r#"{"cniVersion": "1.0.0", "name": "n", "type": "ehost-device"}"#, &netns, 7, "deviceID"),
        (
            r#"{"cniVersion": "1.0.0", "name": "n", "type": "ehost-device", "deviceID": "0000:00:1e.0"}"#,
            &netns,
            0,
            "0000:00:1e.0",
        ),
        (
            r#"{"cniVersion": "1.0.0", "name": "n", "type": "ehost-device", "device": "eth77"}"#,
            &netns,
            0,
            "eth77",
        ),
        (
            r#"{"cniVersion": "9.0.0", "name": "n", "type": "ehost-device", "device": "eth2"}"#,
            &netns,
            1,
            "9.0.0",
        ),
        (&good, "/var/run/netns/gone", 0, "/var/run/netns/gone"),
        (&good, "/etc/hostname", 8, "/etc/hostname"),
    ];
    for (config, netns, wanted, words) in cases {
        let (code, text) = node.cni("ehost-device", "ADD", "c1", netns, config).error();
        assert!(wanted == 0 || code == wanted, "{config}: code {code}, not {wanted}: {text}");
        assert!(text.contains(words), "{config}: {text}");
        assert_same(&settled(&node), &before, config);
        assert_eq!(node.json("ip -netns pod -d -j link"), pod, "{config}");
        nothing_is_left(&node);
    }
}

#[test]
fn a_nic_that_is_out_is_refused_to_others_and_a_late_del_does_not_touch_it() {
    let node = node();
    let (first, second) = (node.netns("first"), node.netns("second"));
    let before = settled(&node);
    let config = network("deviceID", NIC);
    node.cni("ehost-device", "ADD", "c1", &first, &config).result();
    let (code, text) = node.cni("ehost-device", "ADD", "c2", &second, &config).error();
    assert!(text.contains("c1") && text.contains(NIC), "code {code}: {text}");
    // The runtime cleans up after the failed ADD: that must not take the first pod's NIC.
    node.cni("ehost-device", "DEL", "c2", &second, &config).result();
    assert!(node.sh("ip -netns first -4 -o addr show net1").contains("10.56.217.10/24"));
    node.cni("ehost-device", "DEL", "c1", &first, &config).result();
    node.cni("ehost-device", "ADD", "c2", &second, &config).result();
    node.cni("ehost-device", "DEL", "c1", &first, &config).result();
    assert!(node.sh("ip -netns second -4 -o addr show net1").contains("10.56.217."));
    node.cni("ehost-device", "DEL", "c2", &second, &config).result();
    assert_same(&settled(&node), &before, "afterwards");
    nothing_is_left(&node);
}

#[test]
fn an_ipam_that_fails_or_hangs_leaves_the_nic_at_home() {
    let node = node();
    let netns = node.netns("pod");
    let before = settled(&node);
    let log = "echo $CNI_COMMAND >> /tmp/ipam.log";
    let fails = format!(
        "#!/bin/sh\n{log}\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{{\"cniVersion\":\"1.0.0\",\"code\":111,\"msg\":\"no address left\"}}'\nexit 1\n"
    );
    let hangs = format!("#!/bin/sh\n{log}\n[ $CNI_COMMAND = ADD ] || exit 0\nsleep 1000 &\nwait\n");
    node.vm.write_file("/opt/cni/bin/fails", 0o755, fails.as_bytes()).unwrap();
    node.vm.write_file("/opt/cni/bin/hangs", 0o755, hangs.as_bytes()).unwrap();
    let config = |ipam: &str| {
        json!({"cniVersion": "1.0.0", "name": "n", "type": "ehost-device", "deviceID": NIC, "ipam": {"type": ipam}, "ipamTimeout": 3}).to_string()
    };

    let (code, text) = node.cni("ehost-device", "ADD", "c1", &netns, &config("fails")).error();
    assert_eq!(code, 111, "the plugin's own code is kept: {text}");
    assert!(text.contains("no address left"), "{text}");
    assert_same(&settled(&node), &before, "afterwards");
    assert_eq!(node.sh("cat /tmp/ipam.log"), "ADD\nDEL", "a failed delegated ADD is followed by a DEL");

    let (_, text) = node.cni("ehost-device", "ADD", "c1", &netns, &config("hangs")).error();
    assert!(text.contains("hangs"), "{text}");
    assert_same(&settled(&node), &before, "afterwards");
    let running =
        node.sh(r"for each in /proc/[0-9]*/cmdline; do tr '\0' ' ' < $each 2>/dev/null; echo; done");
    assert!(running.contains("vm-guest agent"), "this does not show what runs: {running}");
    assert!(!running.contains("sleep 1000"), "what the IPAM plugin started still runs: {running}");

    let (_, text) = node.cni("ehost-device", "ADD", "c1", &netns, &config("absent")).error();
    assert!(text.contains("absent") && text.contains("/opt/cni/bin"), "{text}");
    assert_same(&settled(&node), &before, "afterwards");
    nothing_is_left(&node);
}

#[test]
fn a_namespace_that_is_gone_before_del_costs_neither_nic_nor_address() {
    let node = node();
    let before = settled(&node);
    let config = network("deviceID", NIC);
    for netns_at_del in ["/var/run/netns/pod", ""] {
        let netns = node.netns("pod");
        node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
        node.sh("ip netns del pod");
        // The kernel sends the NIC to the node, down and under the pod's name, when it gets round to it.
        node.wait_for("ip -o link show net1", &mac(NIC), Duration::from_secs(10));
        node.cni("ehost-device", "DEL", "c1", netns_at_del, &config).result();
        assert_same(&settled(&node), &before, "afterwards");
        nothing_is_left(&node);
    }
}

#[test]
fn the_next_add_repairs_what_a_lost_pod_left_behind() {
    let node = node();
    let before = settled(&node);
    let config = network("deviceID", NIC);
    let lost = node.netns("lost");
    node.cni("ehost-device", "ADD", "c1", &lost, &config).result();
    node.sh("ip netns del lost");
    node.wait_for("ip -o link show net1", &mac(NIC), Duration::from_secs(10));
    let netns = node.netns("pod");
    node.cni("ehost-device", "ADD", "c2", &netns, &config).result();
    node.cni("ehost-device", "DEL", "c2", &netns, &config).result();
    // The lost pod's DEL comes late, and still gives its address back.
    node.cni("ehost-device", "DEL", "c1", &lost, &config).result();
    assert_same(&settled(&node), &before, "afterwards");
    nothing_is_left(&node);
}

#[test]
fn a_reboot_with_the_nic_out_costs_no_address() {
    let folder = tempfile::tempdir().unwrap();
    let spec: Spec = machine().nic(spare(NIC)).persist(folder.path());
    let mut node = Node::boot(&spec);
    let mut config: Value = serde_json::from_str(&network("deviceID", NIC)).unwrap();
    config["stateDir"] = json!("/persist/state");
    config["ipam"]["dataDir"] = json!("/persist/addresses");
    let config = config.to_string();
    let netns = node.netns("pod");
    node.cni("ehost-device", "ADD", "c1", &netns, &config).result();
    assert_ne!(node.sh("find /persist/addresses /persist/state/leases -name '10.*' -o -name '*.json'"), "");
    node.power_cycle();
    let before = settled(&node);
    node.cni("ehost-device", "DEL", "c1", &netns, &config).result();
    let left = node.sh("find /persist/addresses /persist/state/leases -name '10.*' -o -name '*.json'");
    assert_eq!(left, "");
    assert_same(&settled(&node), &before, "afterwards");
}
