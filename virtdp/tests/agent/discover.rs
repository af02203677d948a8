//! `virtdp discover`.

use linux::testing::ETHERNET;

use crate::stage::{Stage, position};

/// Device, interface, state and reason of each row.
fn rows(stage: &Stage, more: &[&str]) -> Vec<String> {
    let output = stage.discover(&[&["--json"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or("-").to_owned();
    let rows = json["interfaces"].as_array().unwrap().iter();
    rows.map(|row| ["device", "interface", "state", "reason"].map(|key| text(row, key)).join(" | "))
        .filter(|row| !row.contains("-p |"))
        .collect()
}

#[test]
fn every_nic_is_found_wherever_it_sits_and_every_interface_has_a_reason() {
    let stage = Stage::new();
    let tree = &stage.tree;
    for (place, name) in [
        ("pci0000:00/0000:00:02.0/0000:01:00.0", "port"),
        ("pci0000:00/0000:00:02.1/0000:02:00.0/0000:03:01.0", "bridge"),
        ("pci10000:e0/10000:e0:00.0", "domain"),
    ] {
        let virtio = tree.virtio_nic(place, &format!("virtio-{name}"));
        stage.link(Some(&virtio), name);
    }
    tree.virtio("vd0/virtio7", 1, Some("virtio_net"));
    stage.link(Some("vd0/virtio7"), "nopci");
    tree.pci(&position("0000:00:05.0"), ETHERNET, 0x8086, 0x100e);
    tree.driver("pci", &position("0000:00:05.0"), "e1000");
    stage.link(Some(&position("0000:00:05.0")), "ens5");
    tree.pci(&position("0000:00:07.0"), 0x00_0200, 0x1af4, 0x1009);
    tree.virtio("pci0000:00/0000:00:07.0/virtio8", 9, Some("9pnet_virtio"));
    tree.virtio_nic(&position("0000:00:0b.0"), "virtio9");
    tree.virtio_nic(&position("0000:00:0c.0"), "virtio10");
    stage.lease("0000:00:0c.0");
    let torn = tree.virtio_nic(&position("0000:00:0d.0"), "virtio11");
    std::fs::create_dir_all(tree.folder(&torn).join("net/eth9")).unwrap();
    tree.write(&format!("{torn}/net/eth9"), "ifindex", "many");
    assert_eq!(
        rows(&stage, &[]),
        [
            "virtio7 | nopci | offered | free",
            "0000:00:03.0 | eth0 | skipped | eth0 carries the IPv4 default route (table 254, metric 0)",
            "0000:00:05.0 | ens5 | skipped | driver e1000 is not in the pool's list (virtio_net)",
            "0000:00:0b.0 | - | in-use | its interface is in another network namespace",
            "0000:00:0c.0 | - | in-use | away for pod default/testpod1 (container c0ffee, interface net1)",
            "0000:01:00.0 | port | offered | free",
            "0000:03:01.0 | bridge | offered | free",
            "10000:e0:00.0 | domain | offered | free",
            "- | lo | skipped | is the loopback interface",
            "virtio11 | - | unreadable | its interface cannot be read: ifindex is \"many\"",
        ]
    );
    let of_intel = rows(&stage, &["--driver", "e1000"]);
    assert!(of_intel.contains(&"0000:00:05.0 | ens5 | offered | free".to_owned()), "{of_intel:?}");
}

#[test]
fn what_lies_below_the_default_routes_is_left_alone_whatever_the_table_and_the_family() {
    let stage = Stage::with_spares(&["0000:00:09.0", "0000:00:0a.0", "0000:00:0b.0", "0000:00:0c.0"]);
    stage.ip("link add link eth1 name vlan7 type macvlan");
    stage.tree.interface(
        None,
        "vlan7",
        stage.netns.route_socket().unwrap().link_by_name("vlan7").unwrap().unwrap().index,
    );
    for interface in ["eth1", "eth2", "eth3", "vlan7"] {
        stage.ip(&format!("link set {interface} up"));
    }
    stage.ip("-6 addr add fd00::2/64 dev eth2 nodad");
    stage.ip("-6 route add default via fd00::1 dev eth2 table 100 metric 7");
    stage.ip("route add default dev vlan7 metric 900");
    stage.ip("addr add 198.51.100.7/24 dev eth3");
    let rows = rows(&stage, &["--node-ip", "198.51.100.7"]);
    for (device, reason) in [
        ("0000:00:09.0", "eth1 is below vlan7"),
        ("0000:00:0a.0", "eth2 carries the IPv6 default route (table 100"),
        ("0000:00:0b.0", "198.51.100.7"),
    ] {
        let row = rows.iter().find(|row| row.starts_with(device)).unwrap();
        assert!(row.contains("| skipped |") && row.contains(reason), "{row}");
    }
    assert!(rows.contains(&"0000:00:0c.0 | eth4 | offered | free".to_owned()), "{rows:?}");
}

#[test]
fn the_table_is_for_people_and_has_no_colour_in_a_pipe() {
    let stage = Stage::with_spares(&["0000:00:0a.0"]);
    let output = stage.discover(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "DEVICE INTERFACE DRIVER MAC SPEED NUMA POOL STATE REASON");
    assert!(
        lines[2].starts_with("0000:00:0a.0 eth1 virtio_net ")
            && lines[2].ends_with(" - kernel.org/virt offered free"),
        "{text}"
    );
    assert_eq!(lines.last().unwrap(), "kernel.org/virt: 1 of 2 NICs");
}

#[test]
fn a_sysfs_of_another_namespace_and_none_at_all_are_errors() {
    let stage = Stage::new();
    stage.tree.remove_interface("eth0");
    let output = stage.discover(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("is sysfs of this network namespace?") && said.contains("eth0"), "{said}");
    std::fs::remove_dir_all(stage.tree.path().join("bus")).unwrap();
    let output = stage.discover(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("this is not a sysfs"), "{said}");
}
