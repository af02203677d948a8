//! A NIC that vfio-pci holds, on a real kernel: found without an interface, given with the group through which a process drives it, and with addresses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{Node, assert_same, machine, spare};

const PLAIN: &str = "0000:00:09.0";
const HELD: &str = "0000:00:0a.0";
const SOON: Duration = Duration::from_secs(30);
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: dpdk
spec:
  containers:
  - name: main
    image: docker.io/library/busybox:stable
    command: ["sleep", "infinity"]
    resources:
      limits:
        kernel.org/virt: "1"
"#;

/// Takes the NIC from its driver and gives it to another.
fn bind(node: &Node, driver: &str) {
    let device = format!("/sys/bus/pci/devices/{HELD}");
    node.sh(&format!(
        "echo {driver} > {device}/driver_override && echo {HELD} > {device}/driver/unbind && echo {HELD} > /sys/bus/pci/drivers_probe"
    ));
    assert!(node.sh(&format!("readlink {device}/driver")).ends_with(driver));
}

#[test]
fn a_nic_that_vfio_holds_comes_with_the_file_of_its_iommu_group() {
    let spec = machine().nic(spare(PLAIN)).nic(spare(HELD).modern());
    let node = Node::boot(&spec.qemu_arguments(&["-device", "intel-iommu"]).kernel_word("intel_iommu=on"));
    node.vm.modprobe("vfio-pci").unwrap();
    bind(&node, "vfio-pci");
    let group = node.sh(&format!("basename $(readlink /sys/bus/pci/devices/{HELD}/iommu_group)"));
    let file = format!("/dev/vfio/{group}");
    node.sh(&format!("test -c /dev/vfio/vfio && test -c {file} && exec 3<>{file}"));
    assert_eq!(node.sh(&format!("ls /sys/kernel/iommu_groups/{group}/devices")), HELD);

    // Nobody gets it who does not ask for it.
    let discovered = node.sh("virtdp discover");
    let line = discovered.lines().find(|line| line.starts_with(HELD)).expect(&discovered);
    assert!(line.contains("skipped") && line.contains("driver vfio-pci is not in the pool's list"), "{line}");

    node.start_cluster();
    let agent = node.command("virtdp").args(["--logtostderr", "-v", "10", "--driver", "vfio-pci"]);
    let mut agent = agent.spawn().unwrap();
    node.wait_for_devices(1);
    node.sh(&format!("virtsim apply -f - <<'END'\n{POD}END"));
    node.sh("virtsim wait --for=condition=Ready pod/dpdk --timeout=30s");
    assert_eq!(node.sh("virtsim exec dpdk -- printenv PCIDEVICE_KERNEL_ORG_VIRT"), HELD);
    let info = node.json("virtsim exec dpdk -- printenv PCIDEVICE_KERNEL_ORG_VIRT_INFO");
    let told = json!({
        "generic": { "deviceID": HELD },
        "netdevice": { "driver": "vfio-pci" },
        "vfio": { "mount": "/dev/vfio/vfio", "dev-mount": file },
    });
    assert_eq!(info, json!({ HELD: told }));

    // Given back to virtio while the pod has it, it is none of this pool's any more, and goes with the pod.
    bind(&node, "virtio-pci");
    agent.wait_for("0000:00:0a.0 Unhealthy", SOON).unwrap();
    node.sh("virtsim delete pod dpdk");
    node.wait_for_devices(0);
}

#[test]
fn a_nic_that_vfio_holds_gets_addresses_and_no_interface() {
    let spec = machine().nic(spare(PLAIN)).nic(spare(HELD).modern());
    let node = Node::boot(&spec.qemu_arguments(&["-device", "intel-iommu"]).kernel_word("intel_iommu=on"));
    node.vm.modprobe("vfio-pci").unwrap();
    bind(&node, "vfio-pci");
    let before = node.settled();
    let netns = node.netns("pod");
    let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24", "rangeStart": "10.56.217.10", "gateway": "10.56.217.1"});
    let mut config = json!({"cniVersion": "1.1.0", "name": "dpdk", "type": "ehost-device", "deviceID": HELD, "ipam": ipam});
    let call = |verb: &str, config: &Value| node.cni("ehost-device", verb, "c1", &netns, &config.to_string());
    let leased = || {
        node.try_sh("find /var/lib/cni/networks -name '10.*'; find /var/lib/virtnet/leases -name '*.json'")
            .text()
    };

    let result = call("ADD", &config).result();
    let interface = json!({"name": "net1", "sandbox": netns, "pciID": HELD});
    assert_eq!(result["interfaces"], json!([interface]));
    assert_eq!(
        result["ips"],
        json!([{"interface": 0, "address": "10.56.217.10/24", "gateway": "10.56.217.1"}])
    );
    assert_eq!(node.sh("ip -netns pod -o link show | wc -l"), "1");
    assert_eq!(leased(), "/var/lib/cni/networks/dpdk/10.56.217.10");
    assert!(node.sh(&format!("readlink /sys/bus/pci/devices/{HELD}/driver")).ends_with("vfio-pci"));
    config["prevResult"] = result;
    call("CHECK", &config).result();
    // Its address is gone from IPAM: IPAM says so.
    node.sh("mv /var/lib/cni/networks/dpdk/10.56.217.10 /tmp/address");
    call("CHECK", &config).error();
    node.sh("mv /tmp/address /var/lib/cni/networks/dpdk/10.56.217.10");
    call("DEL", &config).result();
    assert_eq!(leased(), "");

    // There is no interface for what is asked of it.
    config.as_object_mut().unwrap().remove("prevResult");
    config["mtu"] = json!(1400);
    config["vlan"] = json!(5);
    let (code, text) = call("ADD", &config).error();
    assert!(code == 2 && text.contains("mtu, vlan") && text.contains("vfio-pci"), "{code}: {text}");
    call("DEL", &config).result();
    assert_eq!(leased(), "");

    // Taken from its driver while another pod has its interface, it has none that could come home.
    for key in ["mtu", "vlan"] {
        config.as_object_mut().unwrap().remove(key);
    }
    bind(&node, "virtio-pci");
    let other = node.netns("other");
    node.cni("ehost-device", "ADD", "c0", &other, &config.to_string()).result();
    bind(&node, "vfio-pci");
    call("ADD", &config).result();
    assert_eq!(leased(), "/var/lib/cni/networks/dpdk/10.56.217.12");
    call("DEL", &config).result();
    node.cni("ehost-device", "DEL", "c0", &other, &config.to_string()).result();
    assert_eq!(leased(), "");
    assert_same(&node.settled(), &before, "afterwards");
}
