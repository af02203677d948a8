//! NICs whose network namespace ended behind our back, on real virtio NICs: virtdp brings them home, and a late DEL or GC does the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::json;
use system_tests::{Node, assert_same, mac, machine, spare};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";
const SOON: Duration = Duration::from_secs(30);
const LEFT: &str = "find /var/lib/virtnet/leases -name '*.json'; find /var/lib/cni/networks -name '10.*' 2>/dev/null || true";

fn network(device: &str) -> String {
    let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24", "rangeStart": "10.56.217.10"});
    json!({"cniVersion": "1.1.0", "name": "virt-network", "type": "ehost-device", "deviceID": device, "ipam": ipam})
        .to_string()
}

fn node() -> Node {
    let node = Node::boot(&machine().nic(spare(FIRST)).nic(spare(SECOND)));
    // NICs with a past: what they were must be what they are again.
    node.sh("ip link set eth1 mtu 1300 && ip link set eth2 mtu 1400 txqueuelen 500 alias 'storage uplink' up && ip link property add dev eth2 altname storage0");
    node
}

/// virtdp with these capabilities, as `setpriv` takes them. No kubelet is there, and none is needed.
fn agent(node: &Node, capabilities: &str) -> vm::Child {
    let bounding = format!("--bounding-set={capabilities}");
    let arguments = [&bounding, "--inh-caps=-all", "virtdp", "--logtostderr", "-v", "10"];
    node.command("setpriv").args(arguments).spawn().unwrap()
}

/// Gives a NIC to a pod that makes a mess of it, and ends the pod's namespace without a DEL.
fn lose(node: &Node, container: &str, device: &str) -> String {
    let netns = node.netns(container);
    node.cni("ehost-device", "ADD", container, &netns, &network(device)).result();
    node.sh(&format!(
        "ip -netns {container} link set net1 down && ip -netns {container} link set net1 mtu 1280 address 02:00:00:00:00:01 promisc on && \
         ip netns del {container}"
    ));
    netns
}

#[test]
fn a_nic_whose_namespace_ended_while_no_agent_ran_comes_home_at_its_start_and_a_late_del_frees_the_address() {
    let node = node();
    let before = node.settled();
    let netns = lose(&node, "c1", SECOND);
    // The kernel sends the NIC to the node, down and under the pod's name, when it gets round to it.
    node.wait_for("ip -o link show net1", &mac(SECOND), SOON);
    let lease = node.sh("cat /var/lib/virtnet/leases/0000:00:0a.0.json");

    let left = node.snapshot();
    let mut looks = agent(&node, "-all");
    let said = looks.wait_for("0000:00:0a.0 is back on the node", SOON).unwrap();
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    assert_same(&node.snapshot(), &left, "with an agent that may change nothing");
    let shown = node.sh("virtdp discover");
    let row = shown.lines().find(|line| line.contains(SECOND)).unwrap();
    assert!(
        row.contains("  stray  ")
            && row.contains("as net1")
            && row.contains("c1")
            && row.contains("NET_ADMIN"),
        "{shown}"
    );
    assert_eq!(node.sh("cat /var/lib/virtnet/leases/0000:00:0a.0.json"), lease);
    looks.kill().unwrap();

    let mut agent = agent(&node, "-all,+net_admin");
    agent.wait_for("Brought 0000:00:0a.0 home", SOON).unwrap();
    assert_same(&node.settled(), &before, "after the agent's start");
    assert!(node.sh(LEFT).contains("10.56.217.10"), "the address is the owner's until its DEL");
    let shown = node.sh("virtdp discover");
    assert!(shown.lines().any(|line| line.contains(SECOND) && line.contains("offered")), "{shown}");

    node.cni("ehost-device", "DEL", "c1", &netns, &network(SECOND)).result();
    assert_same(&node.settled(), &before, "after the late DEL");
    assert_eq!(node.sh(LEFT), "");
}

#[test]
fn a_namespace_that_ends_while_the_agent_runs_costs_no_nic_and_the_pods_that_live_keep_theirs() {
    let node = node();
    let before = node.settled();
    let mut agent = agent(&node, "-all,+net_admin");
    let living = node.netns("living");
    node.cni("ehost-device", "ADD", "living", &living, &network(FIRST)).result();
    lose(&node, "lost", SECOND);
    agent.wait_for("Brought 0000:00:0a.0 home", SOON).unwrap();
    assert!(node.sh("ip -netns living -4 -o addr show net1").contains("10.56.217.10"));

    // The next pod gets it, whoever's lease is still open.
    let next = node.netns("next");
    node.cni("ehost-device", "ADD", "next", &next, &network(SECOND)).result();
    node.cni("ehost-device", "DEL", "next", &next, &network(SECOND)).result();
    lose(&node, "lost-too", SECOND);
    agent.wait_for("Brought 0000:00:0a.0 home", SOON).unwrap();

    // A runtime that has forgotten its containers sends no DEL. GC gives the address back, by the lease.
    let mut gc: serde_json::Value = serde_json::from_str(&network(SECOND)).unwrap();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "living", "ifname": "net1"}]);
    node.cni("ehost-device", "GC", "", "", &gc.to_string()).result();
    node.cni("ehost-device", "DEL", "lost", "", &network(SECOND)).result();
    node.cni("ehost-device", "DEL", "living", &living, &network(FIRST)).result();
    assert_same(&node.settled(), &before, "afterwards");
    assert_eq!(node.sh(LEFT), "");
}
