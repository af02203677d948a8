//! `virtdp explain`.

use std::process::{Command, Output};

use linux::Netns;

use crate::stage::Stage;

const NIC: &str = "0000:00:09.0";

fn explain(stage: &Stage, name: &str, more: &[&str]) -> Output {
    let command = stage.command();
    let run = || {
        let mut explain = Command::new(&command[0]);
        explain.args(["explain", name]).args(&command[1..]).args(more).output().unwrap()
    };
    stage.netns.run(run).unwrap()
}

fn page(stage: &Stage, name: &str) -> String {
    let output = explain(stage, name, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_nic_on_the_node_is_found_by_each_of_its_names() {
    let stage = Stage::with_spares(&[NIC]);
    stage.ip("link property add dev eth1 altname storage-network-0");
    stage.ip("link set eth1 mtu 1400 up");
    let link = stage.netns.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap();
    let mac = link.mac.unwrap().to_string();
    let attribute = |name: &str, text: &str| {
        stage.tree.write("pci0000:00/0000:00:09.0/virtio-eth1/net/eth1", name, text);
    };
    attribute("speed", "10000");
    let by_name = page(&stage, "eth1");
    for line in [
        "0000:00:09.0  eth1\n",
        "  State        offered: free\n",
        "  Pool         kernel.org/virt\n",
        "  Place        on the node, as eth1\n",
        "  Driver       virtio_net, bound to virtio-eth1\n",
        "  Hardware     1af4:1041\n",
        "  Also called  storage-network-0\n",
        "  Link         up, MTU 1400, 10000 Mb/s\n",
        &format!("  MAC          {mac}\n"),
    ] {
        assert!(by_name.contains(line), "no {line:?} in\n{by_name}");
    }
    assert!(!by_name.contains('\u{1b}') && !by_name.contains("Lease"), "{by_name}");
    for name in [NIC, "virtio-eth1", "storage-network-0", &mac, &mac.to_uppercase()] {
        assert_eq!(page(&stage, name), by_name, "{name}");
    }
    let output = explain(&stage, NIC, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json[0]["device"], &json[0]["state"]), (&NIC.into(), &"offered".into()));
    assert_eq!((&json[0]["details"]["mtu"], &json[0]["speed"]), (&1400.into(), &10_000.into()));
}

#[test]
fn a_nic_in_a_pod_tells_whose_it_is_by_the_ledger_and_by_the_kubelet() {
    let stage = Stage::with_spares(&[NIC]);
    stage.lease(NIC);
    let pod = Netns::create().unwrap();
    stage.move_away("eth1", &pod);
    let checkpoint = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"0a1b","ContainerName":"c","ResourceName":"kernel.org/virt",
        "DeviceIDs":{"-1":["0000:00:09.0"]},"AllocResp":""}],"RegisteredDevices":{}},"Checksum":1}"#;
    std::fs::write(stage.make_folder().join("kubelet_internal_checkpoint"), checkpoint).unwrap();
    let text = page(&stage, NIC);
    for line in [
        "  State        in use: away for pod default/testpod1 (container c0ffee, interface net1)\n",
        "  Place        in pod default/testpod1, as net1\n",
        "  Lease        plumbed, for pod default/testpod1 (container c0ffee, interface net1), network virt-net1; at home it is \
         eth1 with MTU 1500\n",
        "  Kubelet      gave it to the pod with UID 0a1b\n",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    std::fs::write(stage.path("state/leases/0000:00:09.0.json"), "{").unwrap();
    assert!(page(&stage, NIC).contains("  Lease        the lease in "), "{}", page(&stage, NIC));
}

#[test]
fn the_uplink_and_an_interface_that_is_no_nic_have_their_reasons() {
    let stage = Stage::new();
    let uplink = page(&stage, "eth0");
    assert!(
        uplink.contains("skipped: eth0 carries the IPv4 default route (table 254, metric 0)\n"),
        "{uplink}"
    );
    assert!(page(&stage, "lo").contains("skipped: is the loopback interface\n"));
}

#[test]
fn a_name_that_nothing_has_is_an_error_with_those_that_are_like_it() {
    let stage = Stage::with_spares(&[NIC]);
    let said = |name: &str| {
        let output = explain(&stage, name, &[]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said("eht1").contains("is called eht1: did you mean eth1, "), "{}", said("eht1"));
    assert!(said("0000:00:9.0").contains("did you mean 0000:00:09.0"), "{}", said("0000:00:9.0"));
    assert!(said("wlan\u{7}").contains("wlan\\u{7}: virtdp discover shows all"), "{}", said("wlan\u{7}"));
}
