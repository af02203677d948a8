//! The whole flow on a simulated node with real virtio NICs: what happens when things go wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::Value;
use system_tests::{Node, assert_same, mac, machine, spare};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";
const SOON: Duration = Duration::from_secs(30);
const LEFT: &str = "find /var/lib/virtnet/leases /var/lib/virtnet/attachments -name '*.json'; find /var/lib/cni/networks/virt-network -name '10.*'";

fn two_nics() -> Node {
    let node = Node::boot(&machine().nic(spare(FIRST)).nic(spare(SECOND)));
    node.start_cluster();
    node
}

fn start_pod(node: &Node, number: u32) {
    node.sh(&format!("virtsim apply -f deployments/pod-tc{number}.yaml && virtsim wait --for=condition=Ready pod/testpod{number} --timeout=30s"));
}

fn assert_home(node: &Node) {
    let links = node.json("ip -d -j link");
    for (name, address) in [("eth1", FIRST), ("eth2", SECOND)] {
        let link = links.as_array().unwrap().iter().find(|link| link["ifname"] == name);
        let link = link.unwrap_or_else(|| panic!("{name} is not home: {links}"));
        assert_eq!(link["address"], mac(address).as_str());
    }
    assert_eq!(node.try_sh(LEFT).text(), "", "something is still leased");
}

#[test]
fn a_restart_of_the_kubelet_disturbs_no_pod_and_costs_no_capacity() {
    let node = two_nics();
    let mut agent = node.start_agent(2);
    start_pod(&node, 1);
    node.sh("virtsim restart kubelet");
    agent.wait_for("registered with the Kubelet", SOON).unwrap();
    node.wait_for_devices(2);
    assert!(node.sh("virtsim exec testpod1 -- ip -4 -o addr show net1").contains("10.56.217."));
    // What the first pod has is still its own: the second gets the other, the third waits.
    start_pod(&node, 2);
    node.sh("virtsim apply -f deployments/pod-tc3.yaml");
    node.wait_for("virtsim describe pod testpod3", "Insufficient kernel.org/virt", SOON);
    node.sh("virtsim delete pod testpod1");
    node.sh("virtsim wait --for=condition=Ready pod/testpod3 --timeout=30s");
    node.sh("virtsim delete pod testpod2 testpod3");
    assert_home(&node);
}

#[test]
fn an_agent_that_is_killed_offers_the_nics_in_pods_again() {
    let node = two_nics();
    let mut agent = node.start_agent(2);
    start_pod(&node, 1);
    agent.kill().unwrap();
    node.wait_for_devices(0);
    let mut agent = node.start_agent(2);
    start_pod(&node, 2);
    node.sh("virtsim delete pod testpod1 testpod2");
    assert_home(&node);
    agent.signal(15).unwrap();
    assert_eq!(agent.wait(Duration::from_secs(5)).unwrap(), vm::Ended::Code(0));
}

#[test]
fn a_node_without_spare_nics_keeps_its_agent_which_says_so() {
    let node = Node::boot(&machine().nic(spare(FIRST).e1000()));
    node.start_cluster();
    let mut agent = node.start_agent(0);
    agent.wait_for("no NIC", SOON).unwrap();
    node.sh("virtsim apply -f deployments/pod-tc1.yaml");
    node.wait_for("virtsim describe pod testpod1", "Insufficient kernel.org/virt", SOON);
    agent.signal(15).unwrap();
    assert_eq!(agent.wait(Duration::from_secs(5)).unwrap(), vm::Ended::Code(0));
}

#[test]
fn a_node_without_ipv6_hands_out_its_nics_and_has_them_back() {
    let node = Node::boot(&machine().nic(spare(FIRST)).nic(spare(SECOND)).kernel_word("ipv6.disable=1"));
    assert_ne!(node.try_sh("ls /proc/sys/net/ipv6 /proc/net/if_inet6").code(), Some(0));
    let links = || node.json("ip -d -j link");
    let before = links();
    node.start_cluster();
    let mut agent = node.start_agent(2);
    start_pod(&node, 1);
    assert!(node.sh("virtsim exec testpod1 -- ip -o addr show net1").contains("10.56.217."));
    node.sh("virtsim delete pod testpod1");
    assert_home(&node);
    let named = |links: Value| -> Vec<Value> {
        let is_spare = |link: &&Value| ["eth1", "eth2"].map(Value::from).contains(&link["ifname"]);
        links.as_array().unwrap().iter().filter(is_spare).cloned().collect()
    };
    assert_same(&named(links()).into(), &named(before).into(), "after the pod");
    agent.signal(15).unwrap();
    assert_eq!(agent.wait(Duration::from_secs(5)).unwrap(), vm::Ended::Code(0));
}

#[test]
fn a_nic_that_is_plugged_in_is_offered_and_one_that_is_unplugged_is_not() {
    let late = "0000:01:00.0";
    let node = Node::boot(&machine().root_port(1));
    node.start_cluster();
    let _agent = node.start_agent(0);
    node.vm.plug(&spare(late)).unwrap();
    node.wait_for_devices(1);
    node.vm.unplug(&spare(late)).unwrap();
    node.wait_for_devices(0);
}

#[test]
fn a_nic_that_becomes_the_lifeline_is_withdrawn() {
    let node = two_nics();
    let _agent = node.start_agent(2);
    node.sh("ip link set eth1 up && ip addr add 192.0.2.2/24 dev eth1 && ip route add default via 192.0.2.1 dev eth1 metric 500");
    node.wait_for_devices(1);
    node.sh("ip route del default via 192.0.2.1 dev eth1 metric 500");
    node.wait_for_devices(2);
}

#[test]
fn an_agent_that_starts_before_the_kubelet_waits_for_it() {
    let node = Node::boot(&machine().nic(spare(FIRST)));
    let mut agent = node.command("virtdp").args(["--logtostderr", "-v", "10"]).spawn().unwrap();
    let said = agent.wait_for("/var/lib/kubelet/device-plugins", SOON).unwrap();
    assert!(said.contains("waiting") || said.contains("Waiting"), "{said}");
    node.start_cluster();
    agent.wait_for("registered with the Kubelet", SOON).unwrap();
    node.wait_for_devices(1);
}

#[test]
fn a_pod_that_wants_more_networks_than_it_has_devices_never_starts() {
    let node = two_nics();
    let _agent = node.start_agent(2);
    node.sh("sed 's,networks: virt-net1,networks: virt-net1@first\\, virt-net1@second,' deployments/pod-tc1.yaml | virtsim apply -f -");
    let said = node.wait_for("virtsim describe pod testpod1", "FailedCreatePodSandBox", SOON);
    assert!(said.contains("virt-net1") && said.contains("kernel.org/virt"), "{said}");
    node.sh("virtsim delete pod testpod1");
    assert_home(&node);
}

#[test]
fn the_networks_of_2018_work_with_their_default_route() {
    let node = two_nics();
    let _agent = node.start_agent(2);
    let network = r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: virt-net1
  annotations:
    k8s.v1.cni.cncf.io/resourceName: kernel.org/virt
spec:
  config: '{"type": "ehost-device", "name": "virt-network", "cniVersion": "0.3.0",
    "ipam": {"type": "host-local", "subnet": "10.56.217.0/24", "routes": [{"dst": "0.0.0.0/0"}], "gateway": "10.56.217.1"}}'
"#;
    node.vm.write_file("/tmp/network.yaml", 0o644, network.as_bytes()).unwrap();
    node.sh("virtsim apply -f /tmp/network.yaml");
    start_pod(&node, 1);
    // The cluster network's default route stays the first; the pod is reachable both ways.
    let routes = node.json("virtsim exec testpod1 -- ip -j route show default");
    assert_eq!(routes[0]["dev"], "eth0", "{routes}");
    assert!(node.sh("virtsim exec testpod1 -- ip -4 -o addr show net1").contains("10.56.217."));
    node.sh("virtsim delete pod testpod1");
    assert_home(&node);
}

#[test]
fn bad_manifests_change_nothing() {
    let node = two_nics();
    let _agent = node.start_agent(2);
    let pod = node.sh("cat deployments/pod-tc1.yaml");
    let cases = [
        (pod.replace("  name: testpod1", "  name: testpod1\n name: [oops"), "bad.yaml:"),
        (pod.replace("networks: virt-net1", "networks: virt-net9"), "virt-net9"),
        (pod.replace("kernel.org/virt", "kernel.org/other"), "kernel.org/other"),
        (pod.replace("kind: Pod", "kind: Pot"), "Pot"),
    ];
    for (manifest, words) in cases {
        let both = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: first\n---\n{manifest}");
        node.vm.write_file("/tmp/bad.yaml", 0o644, both.as_bytes()).unwrap();
        let output = node.try_sh("virtsim apply -f /tmp/bad.yaml");
        assert_ne!(output.code(), Some(0), "{manifest}");
        let said = output.error_text();
        assert!(said.contains(words) && said.contains("bad.yaml:"), "{said}");
        assert_ne!(
            node.try_sh("virtsim get configmap first").code(),
            Some(0),
            "something was created: {said}"
        );
    }
    assert!(!node.sh("virtsim get pods").contains("testpod1"));
}
