//! What the kernel says about devices: uevents, and the files of sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use linux::Sysfs;
use linux::testing::Tree;
use linux::uevent::Uevent;

use crate::Target;

pub(crate) const UEVENT: Target = Target {
    name: "uevent",
    run: uevent,
    seeds: &[
        "add@/devices/pci0000:00/0000:00:0a.0/virtio3/net/eth2\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=net\0INTERFACE=eth2\0IFINDEX=4\0SEQNUM=99\0",
        "remove@/devices/pci0000:00/0000:00:0a.0\0SUBSYSTEM=pci\0",
        "libudev\0\u{fe}",
    ],
};

fn uevent(bytes: &[u8]) {
    if let Some(event) = Uevent::parse(bytes) {
        assert!(event.devpath.starts_with('/'), "{event:?}");
        for field in [&event.action, &event.devpath, &event.subsystem] {
            assert!(!field.contains('\0'), "{event:?}");
        }
    }
}

/// Lines say what the tree is: a position among a few, an attribute or link, and its content.
pub(crate) const SYSFS: Target = Target {
    name: "sysfs",
    run: sysfs,
    seeds: &[
        "0modalias=pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\n1numa_node=0\n2modalias=virtio:d00000001v00001AF4\n2>driver=../../../bus/virtio/drivers/virtio_net\n",
        "1modalias=pci:bc02\n1>driver=../../bus/pci/drivers/e1000\n1/net/eth9=\n1net/eth9/ifindex=7\n",
        "2net/eth0/ifindex=-1\n2>subsystem=/\n0>subsystem=.\n1>driver=\n",
        "b0000:00:1f.6\nb..x\nv virtio9\n",
    ],
};

const POSITIONS: [&str; 3] =
    ["pci0000:00/0000:00:0a.0", "pci0000:00/0000:00:03.0/0000:01:00.0", "pci0000:00/0000:00:0a.0/virtio0"];
/// So many devices and interfaces are in the tree before anything is changed.
const DEVICES: usize = 3;

fn sysfs(bytes: &[u8]) {
    let tree = Tree::new();
    let virtio = tree.virtio_nic(POSITIONS[0], "virtio0");
    assert_eq!(virtio, POSITIONS[2]);
    tree.pci("pci0000:00/0000:00:03.0", 0x06_0400, 0x1b36, 0x000c);
    tree.pci(POSITIONS[1], linux::testing::ETHERNET, 0x8086, 0x100e);
    tree.interface(Some(&virtio), "eth0", 2);
    let mut added = 0;
    for line in bytes.split(|byte| *byte == b'\n').take(32) {
        added += usize::from(change(&tree, line).is_some());
    }
    // An error is an answer, too; what must not be is a panic, or a device that is not there.
    let sysfs = Sysfs::at(tree.path());
    if let Ok(found) = sysfs.find() {
        let ids: BTreeSet<_> = found.nics.iter().map(|nic| nic.id.clone()).collect();
        assert_eq!(ids.len(), found.nics.len(), "{found:?}");
        assert!(found.nics.len() + found.unreadable.len() <= DEVICES + added, "{found:?}");
        for nic in &found.nics {
            assert_eq!(nic.id.as_str().parse().as_ref(), Ok(&nic.id));
            assert!(nic.id.as_str().len() <= 63, "{nic:?}");
        }
        for device in &found.unreadable {
            assert!(!device.device.chars().any(char::is_control), "{device:?}");
        }
        assert!(found.interfaces.len() <= 1 + added, "{found:?}");
    }
}

/// Changes the tree as a line says. `None` if the line says nothing, or nothing that a file system takes; only what is inside the tree
/// is ever written.
fn change(tree: &Tree, line: &[u8]) -> Option<()> {
    let (first, rest) = line.split_first()?;
    match first {
        // A further device, with whatever name, that leads anywhere.
        b'b' | b'v' => {
            let bus = if *first == b'b' { "pci" } else { "virtio" };
            let name = component(rest)?;
            symlink("../../../devices/nowhere", tree.path().join("bus").join(bus).join("devices").join(name))
                .ok()
        }
        b'0'..=b'2' => {
            let folder = tree.folder(POSITIONS[usize::from(first - b'0')]);
            let mut parts = rest.splitn(2, |byte| *byte == b'=');
            let (key, value) = (parts.next()?, parts.next()?);
            match key.split_first()? {
                (b'>', name) => {
                    let link = folder.join(component(name)?);
                    let _ = fs::remove_file(&link);
                    symlink(Path::new(std::ffi::OsStr::from_bytes(value)), link).ok()
                }
                (b'/', name) => {
                    let relative = inside(name)?;
                    fs::create_dir_all(folder.join(&relative)).ok()?;
                    let name = component(name.rsplit(|b| *b == b'/').next()?)?;
                    let target = folder.strip_prefix(tree.path()).ok()?.join(&relative);
                    symlink(Path::new("../..").join(target), tree.path().join("class/net").join(name)).ok()
                }
                _ => {
                    let file = folder.join(inside(key)?);
                    fs::create_dir_all(file.parent()?).ok()?;
                    // Never through a link that an earlier line made.
                    file.parent()?
                        .canonicalize()
                        .ok()?
                        .starts_with(tree.path().canonicalize().ok()?)
                        .then_some(())?;
                    let _ = fs::remove_file(&file);
                    fs::write(file, value).ok()
                }
            }
        }
        _ => None,
    }
}

fn component(name: &[u8]) -> Option<&Path> {
    let good = !name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0);
    (good && name != b"." && name != b"..").then(|| Path::new(std::ffi::OsStr::from_bytes(name)))
}

fn inside(path: &[u8]) -> Option<std::path::PathBuf> {
    path.split(|byte| *byte == b'/').take(4).map(component).collect()
}
