//! IPAM programs as Debian has them, beside host-local, which the other tests use: static and dhcp.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{Node, assert_same, machine, spare};
use vm::Cable;

const NIC: &str = "0000:00:0a.0";
const SOON: Duration = Duration::from_secs(30);

fn network(version: &str, ipam: Value) -> Value {
    json!({"cniVersion": version, "name": "virt-network", "type": "ehost-device", "deviceID": NIC, "ipam": ipam})
}

fn addresses(node: &Node) -> Vec<String> {
    let shown = node.json("ip -netns pod -j addr show net1");
    let addresses = shown[0]["addr_info"].as_array().unwrap().iter();
    let global = addresses.filter(|address| address["scope"] == "global");
    global.map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"])).collect()
}

#[test]
fn static_gives_the_addresses_of_the_configuration_and_those_that_the_runtime_asks_for() {
    let node = Node::boot(&machine().nic(spare(NIC)));
    let before = node.settled();
    let netns = node.netns("pod");
    let ipam = json!({
        "type": "static",
        "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "fd00::1/64", "gateway": "fd00::fe"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.0.5"}, {"dst": "fd01::/64"}],
        "dns": {"nameservers": ["10.10.0.53"], "domain": "example.com"},
    });
    let config = network("1.0.0", ipam);
    let result = node.cni("ehost-device", "ADD", "c1", &netns, &config.to_string()).result();
    assert_eq!(result["dns"], json!({"nameservers": ["10.10.0.53"], "domain": "example.com"}));
    assert_eq!(addresses(&node), ["10.10.0.1/24", "fd00::1/64"]);
    let routes = node.sh("ip -netns pod route; ip -netns pod -6 route");
    for route in ["default via 10.10.0.254", "192.168.0.0/16 via 10.10.0.5", "fd01::/64 via fd00::fe"] {
        assert!(routes.contains(&format!("{route} dev net1")), "{route}: {routes}");
    }
    let mut check = config.clone();
    check["prevResult"] = result;
    node.cni("ehost-device", "CHECK", "c1", &netns, &check.to_string()).result();
    node.cni("ehost-device", "DEL", "c1", &netns, &config.to_string()).result();
    assert_same(&node.settled(), &before, "after a DEL");

    // In place of the configuration's addresses, and of its name servers.
    let mut asked = network("1.0.0", json!({"type": "static"}));
    asked["capabilities"] = json!({"ips": true});
    asked["runtimeConfig"] = json!({"ips": ["10.20.0.7/24", "fd00:20::7/64"]});
    asked["dns"] = json!({"nameservers": ["10.20.0.53"]});
    let result = node.cni("ehost-device", "ADD", "c1", &netns, &asked.to_string()).result();
    assert_eq!(addresses(&node), ["10.20.0.7/24", "fd00:20::7/64"]);
    assert_eq!(result["dns"], json!({"nameservers": ["10.20.0.53"]}));
    node.cni("ehost-device", "DEL", "c1", &netns, &asked.to_string()).result();

    // It refuses in its own words, and nothing has happened.
    let wrong =
        network("1.0.0", json!({"type": "static", "addresses": [{"address": "10.10.0.1"}]})).to_string();
    let (_, text) = node.cni("ehost-device", "ADD", "c1", &netns, &wrong).error();
    assert!(text.contains("10.10.0.1"), "{text}");
    assert_same(&node.settled(), &before, "after a refusal");
    node.cni("ehost-device", "DEL", "c1", &netns, &wrong).result();
    assert_eq!(node.try_sh("find /var/lib/virtnet -name '*.json'").text(), "");
}

#[test]
fn dhcp_leases_an_address_through_the_nic_and_gives_it_back_before_the_nic_goes_home() {
    // The router in QEMU is a DHCP server. It leads nowhere, and so offers no gateway.
    let node = Node::boot(&machine().nic(spare(NIC).cable(Cable::Router)));
    let before = node.settled();
    let netns = node.netns("pod");
    let config = network("1.0.0", json!({"type": "dhcp"}));

    // Without its daemon it can do nothing, and nothing has happened.
    let (_, text) = node.cni("ehost-device", "ADD", "c1", &netns, &config.to_string()).error();
    assert!(text.contains("dhcp.sock"), "{text}");
    assert_same(&node.settled(), &before, "without a daemon");

    let mut daemon = node.command("/opt/cni/bin/dhcp").args(["daemon"]).spawn().unwrap();
    node.wait_for("ls /run/cni/dhcp.sock", "/run/cni/dhcp.sock", SOON);
    let result = node.cni("ehost-device", "ADD", "c1", &netns, &config.to_string()).result();
    let address = result["ips"][0]["address"].as_str().unwrap();
    assert!(address.starts_with("10.0.2.") && address.ends_with("/24"), "{result}");
    assert_eq!(addresses(&node), [address]);
    node.sh("ip netns exec pod ping -c 1 -W 30 10.0.2.2");
    let mut check = config.clone();
    check["prevResult"] = result;
    node.cni("ehost-device", "CHECK", "c1", &netns, &check.to_string()).result();
    node.cni("ehost-device", "DEL", "c1", &netns, &config.to_string()).result();
    assert_same(&node.settled(), &before, "after a DEL");
    assert_eq!(node.try_sh("find /var/lib/virtnet -name '*.json'").text(), "");
    daemon.wait_for("releasing lease", SOON).unwrap();
    node.cni("ehost-device", "DEL", "c1", &netns, &config.to_string()).result();
    daemon.kill().unwrap();
}

#[test]
fn dhcp_leases_an_address_on_a_vlan() {
    const OTHER: &str = "0000:00:0b.0";
    const ROUTER: &str = "0000:00:0c.0";
    let node =
        Node::boot(&machine().nic(spare(NIC)).nic(spare(OTHER)).nic(spare(ROUTER).cable(Cable::Router)));
    let before = node.settled();
    let netns = node.netns("pod");
    // The router knows no tags: at the other end of the NIC's cable a bridge hands it VLAN 100.
    node.sh("ip netns add far");
    let name = |device: &str| node.sh(&format!("ls /sys/bus/pci/devices/{device}/virtio*/net"));
    let (other, router) = (name(OTHER), name(ROUTER));
    let far = |command: &str| node.sh(&format!("ip -netns far link {command}"));
    for moved in [&other, &router] {
        node.sh(&format!("ip link set {moved} netns far"));
    }
    far("add br0 up type bridge");
    far(&format!("set {other} up"));
    far(&format!("set {router} up master br0"));
    far(&format!("add link {other} name tagged up master br0 type vlan id 100"));

    let mut daemon = node.command("/opt/cni/bin/dhcp").args(["daemon"]).spawn().unwrap();
    node.wait_for("ls /run/cni/dhcp.sock", "/run/cni/dhcp.sock", SOON);
    let mut config = network("1.0.0", json!({"type": "dhcp"}));
    config["vlan"] = json!(100);
    let result = node.cni("ehost-device", "ADD", "c1", &netns, &config.to_string()).result();
    assert_eq!(addresses(&node), [result["ips"][0]["address"].as_str().unwrap()]);
    node.sh("ip netns exec pod ping -c 1 -W 30 10.0.2.2");
    node.cni("ehost-device", "DEL", "c1", &netns, &config.to_string()).result();
    daemon.wait_for("releasing lease", SOON).unwrap();
    daemon.kill().unwrap();

    far("del tagged");
    far("del br0");
    for moved in [&other, &router] {
        far(&format!("set {moved} down netns 1"));
    }
    assert_eq!([name(OTHER), name(ROUTER)], [other, router]);
    assert_same(&node.settled(), &before, "after a DEL");
}
