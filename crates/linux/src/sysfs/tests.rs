use super::*;
use crate::testing::{ETHERNET, Tree};
use proptest::prelude::*;
use rustix::io::Errno;

fn found(tree: &Tree) -> Found {
    Sysfs::at(tree.path()).find().unwrap()
}

/// ID, bus name, driver and interfaces of each NIC.
fn shown(tree: &Tree) -> Vec<String> {
    let mut nics = found(tree).nics;
    nics.sort_by(|a, b| a.id.cmp(&b.id));
    let one = |nic: &Nic| {
        let names: Vec<&str> = nic.interfaces.iter().map(|i| i.name.as_str()).collect();
        format!("{} {} {} [{}]", nic.id, nic.bus_name, nic.driver.as_deref().unwrap_or("-"), names.join(","))
    };
    nics.iter().map(one).collect()
}

#[test]
fn nics_are_found_wherever_they_sit() {
    let tree = Tree::new();
    // On bus 0, behind a root port, behind a port and a bridge, in another domain, and without PCI.
    for (position, name, interface) in [
        ("pci0000:00/0000:00:0a.0", "virtio0", "eth0"),
        ("pci0000:00/0000:00:02.0/0000:01:00.0", "virtio1", "eth1"),
        ("pci0000:00/0000:00:02.1/0000:02:00.0/0000:03:01.0", "virtio2", "eth2"),
        ("pci10000:e0/10000:e0:00.0", "virtio3", "eth3"),
    ] {
        let virtio = tree.virtio_nic(position, name);
        tree.interface(Some(&virtio), interface, 2);
    }
    for bridge in
        ["pci0000:00/0000:00:02.0", "pci0000:00/0000:00:02.1", "pci0000:00/0000:00:02.1/0000:02:00.0"]
    {
        tree.pci(bridge, 0x06_0400, 0x1b36, 0x000c);
    }
    tree.virtio("vd0/virtio4", 1, Some("virtio_net"));
    tree.interface(Some("vd0/virtio4"), "eth4", 2);
    assert_eq!(
        shown(&tree),
        [
            "0000:00:0a.0 virtio0 virtio_net [eth0]",
            "0000:01:00.0 virtio1 virtio_net [eth1]",
            "0000:03:01.0 virtio2 virtio_net [eth2]",
            "10000:e0:00.0 virtio3 virtio_net [eth3]",
            // vdX is on no bus that we know: it is called as the virtio bus calls it.
            "virtio4 virtio4 virtio_net [eth4]",
        ]
    );
}

#[test]
fn a_nic_without_pci_has_the_name_of_what_it_sits_on() {
    let tree = Tree::new();
    tree.virtio("vd0/virtio3", 1, Some("virtio_net"));
    std::fs::create_dir_all(tree.path().join("bus/vdpa")).unwrap();
    std::os::unix::fs::symlink("../../bus/vdpa", tree.folder("vd0").join("subsystem")).unwrap();
    let nic = found(&tree).nics.remove(0);
    assert_eq!((nic.id.as_str(), nic.bus_name.as_str(), nic.pci), ("vd0", "virtio3", None));
    assert_eq!(nic.hardware.unwrap().to_string(), "1af4:0001");
}

#[test]
fn what_a_nic_sits_behind_and_its_number_by_the_firmware_are_read() {
    let tree = Tree::new();
    for bridge in ["pci0000:00/0000:00:02.1", "pci0000:00/0000:00:02.1/0000:02:00.0"] {
        tree.pci(bridge, 0x06_0400, 0x1b36, 0x000c);
    }
    let deep = "pci0000:00/0000:00:02.1/0000:02:00.0/0000:03:01.0";
    tree.virtio_nic(deep, "virtio0");
    tree.write(deep, "acpi_index", "101");
    let (physical, virtual_one) = ("pci0000:00/0000:00:05.0", "pci0000:00/0000:00:05.1");
    for (function, device) in [(physical, 0x10ca), (virtual_one, 0x10ed)] {
        tree.pci(function, ETHERNET, 0x8086, device);
    }
    std::os::unix::fs::symlink("../0000:00:05.0", tree.folder(virtual_one).join("physfn")).unwrap();
    tree.write(virtual_one, "acpi_index", "many");
    let mut nics = found(&tree).nics;
    nics.sort_by(|a, b| a.id.cmp(&b.id));
    let shown: Vec<String> = nics
        .iter()
        .map(|nic| {
            let above: Vec<String> = nic.above.iter().map(ToString::to_string).collect();
            format!("{} [{}] {:?}", nic.id, above.join(" "), nic.acpi_index)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "0000:00:05.0 [] None",
            "0000:00:05.1 [0000:00:05.0] None",
            "0000:03:01.0 [0000:02:00.0 0000:00:02.1] Some(101)",
        ]
    );
}

#[test]
fn other_nics_are_found_with_their_driver_and_other_devices_are_not() {
    let tree = Tree::new();
    tree.pci("pci0000:00/0000:00:05.0", ETHERNET, 0x8086, 0x100e);
    tree.driver("pci", "pci0000:00/0000:00:05.0", "e1000");
    tree.interface(Some("pci0000:00/0000:00:05.0"), "ens5", 3);
    tree.pci("pci0000:00/0000:00:06.0", ETHERNET, 0x8086, 0x10ed);
    // Virtio, and no NIC: 9p.
    tree.pci("pci0000:00/0000:00:07.0", 0x00_0200, 0x1af4, 0x1009);
    tree.virtio("pci0000:00/0000:00:07.0/virtio1", 9, Some("9pnet_virtio"));
    tree.pci("pci0000:00/0000:00:08.0", 0x01_0000, 0x1af4, 0x1042);
    assert_eq!(shown(&tree), ["0000:00:05.0 0000:00:05.0 e1000 [ens5]", "0000:00:06.0 0000:00:06.0 - []"]);
    assert_eq!(found(&tree).unreadable, []);
}

#[test]
fn a_nic_that_vfio_holds_is_found_with_its_group_and_without_a_virtio_device() {
    let tree = Tree::new();
    let (position, address) = ("pci0000:00/0000:00:0a.0", "0000:00:0a.0".parse().unwrap());
    tree.pci(position, ETHERNET, 0x1af4, 0x1041);
    tree.driver("pci", position, "vfio-pci");
    assert_eq!(shown(&tree), ["0000:00:0a.0 0000:00:0a.0 vfio-pci []"]);
    let sysfs = Sysfs::at(tree.path());
    let group = |sysfs: &Sysfs| sysfs.vfio_group(address);
    assert!(group(&sysfs).unwrap_err().chain().contains("0000:00:0a.0/iommu_group"));
    tree.iommu_group(position, 12, None);
    assert_eq!(group(&sysfs).unwrap(), VfioGroup::Iommu(12));
    tree.write("../kernel/iommu_groups/12", "name", "another");
    assert_eq!(group(&sysfs).unwrap().device_node(), "/dev/vfio/12");
    tree.write("../kernel/iommu_groups/12", "name", "vfio-noiommu");
    assert_eq!(group(&sysfs).unwrap().device_node(), "/dev/vfio/noiommu-12");
    std::fs::remove_file(tree.folder(position).join("iommu_group")).unwrap();
    std::os::unix::fs::symlink("../x/vfio", tree.folder(position).join("iommu_group")).unwrap();
    assert!(group(&sysfs).unwrap_err().chain().contains("it has no number"));
}

#[test]
fn a_nic_whose_interface_is_elsewhere_is_found() {
    let tree = Tree::new();
    let virtio = tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
    assert_eq!(shown(&tree), ["0000:00:0a.0 virtio2 virtio_net []"]);
    assert!(found(&tree).nics[0].has_interface);
    // Without a driver that has made an interface there is no net/ at all.
    std::fs::remove_dir(tree.folder(&virtio).join("net")).unwrap();
    assert!(!found(&tree).nics[0].has_interface);
    std::fs::remove_file(tree.folder(&virtio).join("driver")).unwrap();
    assert_eq!(shown(&tree), ["0000:00:0a.0 virtio2 - []"]);
}

#[test]
fn hardware_and_numa_node_are_those_of_the_pci_function() {
    let tree = Tree::new();
    let position = "pci0000:80/0000:80:00.0/0000:81:00.0";
    tree.virtio_nic(position, "virtio4");
    let nic = |tree: &Tree| found(tree).nics.remove(0);
    assert_eq!(nic(&tree).hardware.unwrap().to_string(), "1af4:1041");
    assert_eq!(nic(&tree).numa_node, None, "-1 means that nobody knows");
    tree.write(position, "numa_node", "1");
    assert_eq!(nic(&tree).numa_node, Some(1));
}

#[test]
fn a_device_costs_no_other_and_says_why() {
    let tree = Tree::new();
    tree.virtio_nic("pci0000:00/0000:00:09.0", "virtio1");
    // What only describes a NIC may be missing, or be garbage.
    for attribute in ["modalias", "numa_node"] {
        tree.write("pci0000:00/0000:00:09.0", attribute, "garbage");
    }
    let bad = ["virtio", "pci"].map(|bus| tree.path().join("bus").join(bus).join("devices"));
    let tree_of = |name: &str| tree.folder(name);
    tree.virtio("vd0/virtio2", 1, Some("virtio_net"));
    std::fs::remove_file(bad[0].join("virtio2")).unwrap();
    std::os::unix::fs::symlink(tree_of("vd0/virtio2"), bad[0].join("virtio2")).unwrap();
    tree.pci("pci0000:00/0000:00:0b.0", ETHERNET, 0x8086, 0x100e);
    std::fs::remove_file(bad[1].join("0000:00:0b.0")).unwrap();
    std::os::unix::fs::symlink(tree_of("pci0000:00/0000:00:0b.0"), bad[1].join("0000:00:0b.0")).unwrap();
    let found = found(&tree);
    let unreadable: Vec<&str> = found.unreadable.iter().map(|device| device.device.as_str()).collect();
    assert_eq!(unreadable, ["virtio2", "0000:00:0b.0"], "{found:?}");
    assert!(found.unreadable.iter().all(|device| device.why.contains("does not lead into devices/")));
    assert_eq!(found.nics.len(), 1);
    assert_eq!((found.nics[0].hardware, found.nics[0].numa_node), (None, None));
}

#[test]
fn an_interface_that_only_its_device_shows_is_none_in_a_pod() {
    let tree = Tree::new();
    let virtio = tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
    std::fs::create_dir_all(tree.folder(&virtio).join("net/eth1")).unwrap();
    assert_eq!(shown(&tree), ["0000:00:0a.0 virtio2 virtio_net []"], "it is just going");
    tree.write(&format!("{virtio}/net/eth1"), "ifindex", "3");
    assert_eq!(shown(&tree), ["0000:00:0a.0 virtio2 virtio_net [eth1]"]);
    tree.write(&format!("{virtio}/net/eth1"), "ifindex", "three");
    let found = found(&tree);
    assert_eq!((found.nics.len(), found.unreadable.len()), (0, 1));
    assert!(found.unreadable[0].why.contains("ifindex"), "{}", found.unreadable[0].why);
}

#[test]
fn two_virtio_devices_in_one_function_are_not_one_nic() {
    let tree = Tree::new();
    tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio1");
    tree.virtio("pci0000:00/0000:00:0a.0/virtio2", 1, Some("virtio_net"));
    let found = found(&tree);
    assert_eq!((found.nics.len(), found.unreadable.len()), (1, 1));
    assert!(found.unreadable[0].why.contains("already taken by virtio1"), "{}", found.unreadable[0].why);
}

#[test]
fn more_nics_than_one_thread_reads_are_all_found_and_their_interfaces_known() {
    let tree = Tree::new();
    let count = u32::try_from(super::find::SHARE).unwrap() * 2 + 1;
    for number in 0..count {
        let address = format!("0001:{:02x}:{:02x}.{}", number >> 8, (number >> 3) & 0x1f, number & 7);
        let virtio = tree.virtio_nic(&format!("pci0001:00/{address}"), &format!("virtio{number}"));
        tree.interface(Some(&virtio), &format!("eth{number}"), number + 2);
    }
    tree.interface(None, "lo", 1);
    let found = found(&tree);
    let mut indexes: Vec<u32> = found.nics.iter().map(|nic| nic.interfaces[0].index).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, (2..count + 2).collect::<Vec<_>>());
    assert_eq!(found.interfaces.len(), found.nics.len() + 1);
}

#[test]
fn interfaces_are_those_of_the_namespace_and_plain_files_are_passed_over() {
    let tree = Tree::new();
    let virtio = tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
    tree.interface(Some(&virtio), "eth0", 2);
    tree.interface(None, "lo", 1);
    std::fs::write(tree.path().join("class/net/bonding_masters"), "").unwrap();
    let shown = |tree: &Tree| -> Vec<(u32, String, bool)> {
        found(tree).interfaces.into_iter().map(|i| (i.index, i.name.to_string(), i.hardware)).collect()
    };
    assert_eq!(shown(&tree), [(2, "eth0".to_owned(), true), (1, "lo".to_owned(), false)]);
    tree.remove_interface("eth0");
    assert_eq!(shown(&tree), [(1, "lo".to_owned(), false)]);
    tree.unplug("pci0000:00/0000:00:0a.0");
    assert!(found(&tree).nics.is_empty());
}

#[test]
fn an_interface_that_cannot_be_understood_is_an_error() {
    let tree = Tree::new();
    let virtio = tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
    tree.interface(Some(&virtio), "eth1", 3);
    let ifindex = tree.folder(&virtio).join("net/eth1/ifindex");
    let write = |content: &[u8]| std::fs::write(&ifindex, content).unwrap();
    let put: [(&str, &dyn Fn()); 12] = [
        ("empty", &|| write(b"")),
        ("a word", &|| write(b"three")),
        ("negative", &|| write(b"-1")),
        ("large", &|| write(b"99999999999")),
        ("a control character", &|| write(b"\x01")),
        ("binary", &|| write(&[0xff, 0xfe, 0, 0x80])),
        ("long", &|| write("7".repeat(1 << 20).as_bytes())),
        ("long and cut within a character", &|| write("\u{20ac}".repeat(5000).as_bytes())),
        ("endless", &|| std::os::unix::fs::symlink("/dev/zero", &ifindex).unwrap()),
        ("a loop", &|| std::os::unix::fs::symlink("ifindex", &ifindex).unwrap()),
        // Nobody writes to it, so who waits for a writer waits for ever.
        ("a FIFO", &|| rustix::fs::mkfifoat(rustix::fs::CWD, &ifindex, 0o600.into()).unwrap()),
        ("a folder", &|| std::fs::create_dir(&ifindex).unwrap()),
    ];
    for (what, put) in put {
        std::fs::remove_file(&ifindex).unwrap();
        put();
        let error = Sysfs::at(tree.path()).find().unwrap_err().chain();
        assert!(error.contains("class/net/eth1"), "{what}: {error}");
        assert!(error.len() < 300 && !error.contains('\0'), "{what}: {error:?}");
    }
}

#[test]
fn what_is_no_sysfs_is_an_error_and_a_bus_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Sysfs::at(folder.path()).find().is_err());
    std::fs::create_dir(folder.path().join("bus")).unwrap();
    assert!(Sysfs::at(folder.path()).find().unwrap_err().chain().contains("class/net"));
    std::fs::create_dir_all(folder.path().join("class/net")).unwrap();
    assert_eq!(Sysfs::at(folder.path()).find().unwrap(), Found::default());
}

#[test]
fn what_describes_a_nic_and_cannot_be_read_is_left_out() {
    let tree = Tree::new();
    let position = "pci0000:00/0000:00:0a.0";
    let virtio = tree.virtio_nic(position, "virtio2");
    for attribute in ["modalias", "numa_node"] {
        std::fs::write(tree.folder(position).join(attribute), [0xff; 9000]).unwrap();
    }
    // The driver tells that it is a NIC, where the device's own kind cannot be read.
    std::fs::write(tree.folder(&virtio).join("modalias"), [0; 5000]).unwrap();
    let found = found(&tree);
    assert_eq!(found.unreadable, []);
    assert_eq!((found.nics[0].hardware, found.nics[0].numa_node), (None, None));
}

#[test]
fn names_that_are_no_text_and_links_that_lead_nowhere_are_in_nobodys_way() {
    use std::os::unix::ffi::OsStrExt;
    let tree = Tree::new();
    tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
    let bus = tree.path().join("bus/virtio/devices");
    for (name, target) in [
        (&b"virtio\xff\xfe"[..], "../../../devices/pci0000:00/0000:00:0a.0/virtio2"),
        (b"gone", "../../../devices/pci0000:00/0000:00:0b.0/virtio3"),
        (b"loop", "loop"),
        (b"out", "/etc"),
        (b"up", "../../../../../../.."),
    ] {
        std::os::unix::fs::symlink(target, bus.join(std::ffi::OsStr::from_bytes(name))).unwrap();
    }
    std::fs::write(bus.join("file"), "").unwrap();
    assert_eq!(shown(&tree), ["0000:00:0a.0 virtio2 virtio_net []"]);
    assert_eq!(found(&tree).unreadable, []);
}

#[test]
fn a_device_that_is_taken_away_while_it_is_read_is_gone_and_no_fault() {
    for (errno, gone) in
        [(Errno::NODEV, true), (Errno::NOENT, true), (Errno::IO, false), (Errno::ACCESS, false)]
    {
        assert_eq!(super::find::vanished(&errno.into()), gone, "{errno}");
    }
}

#[test]
fn nics_that_come_and_go_while_we_read_cost_no_other() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let tree = Tree::new();
    tree.virtio_nic("pci0000:00/0000:00:09.0", "virtio1");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200 {
                let virtio = tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
                tree.interface(Some(&virtio), "eth1", 3 + round);
                tree.unplug("pci0000:00/0000:00:0a.0");
            }
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) {
            let found = found(&tree);
            assert!(found.nics.iter().any(|nic| nic.id.as_str() == "0000:00:09.0"), "{found:?}");
        }
    });
}

proptest! {
    // Each case makes two dozen files.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_content_and_no_link_makes_it_fail(content in "\\PC{0,64}", target in "[./a-z0-9:]{1,40}") {
        let tree = Tree::new();
        let virtio = tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
        tree.interface(Some(&virtio), "eth1", 3);
        tree.virtio_nic("pci0000:00/0000:00:0b.0", "virtio3");
        for (position, attribute) in [
            ("pci0000:00/0000:00:0a.0", "modalias"),
            ("pci0000:00/0000:00:0a.0", "numa_node"),
            (virtio.as_str(), "modalias"),
        ] {
            tree.write(position, attribute, &content);
        }
        let link = tree.path().join("bus/virtio/devices/virtio9");
        std::os::unix::fs::symlink(target, link).unwrap();
        let found = found(&tree);
        prop_assert!(found.nics.iter().any(|nic| nic.id.as_str() == "0000:00:0b.0"));
    }
}
