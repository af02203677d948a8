//! Settings of an interface, beside what `ip` and `/proc/sys` say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Space;

/// The settings of an interface as `/proc/sys` has them: with their files, those that are numbers.
fn files(interface: &str) -> BTreeMap<String, (PathBuf, i64)> {
    let mut files = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        let folder = Path::new("/proc/sys/net").join(family).join("conf").join(interface);
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let Some(value) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok())
            else {
                continue;
            };
            let name = path.file_name().unwrap().to_str().unwrap();
            files.insert(format!("net.{family}.conf.IFNAME.{name}"), (path, value));
        }
    }
    files
}

/// Each of them is set to something else, so that one that is taken for another shows.
#[test]
fn each_sysctl_is_read_as_the_kernel_has_it() {
    let mut space = Space::new();
    space.spare("dm0", "");
    let index = space.link("dm0").index;
    let set = || {
        for (number, (path, was)) in files("dm0").into_values().enumerate() {
            // What takes few values takes one of these; what takes none of them stays.
            let values = [200 + i64::try_from(number).unwrap(), 3, 2, 1, 0];
            let mut others = values.into_iter().filter(|value| *value != was);
            let _ = others.find(|value| std::fs::write(&path, value.to_string()).is_ok());
        }
        files("dm0")
    };
    let files = space.netns.run(set).unwrap();
    let read = space.socket.settings(index).unwrap().unwrap();
    assert!(read.keys().filter(|name| name.starts_with("net.")).count() > 60, "{read:?}");
    let mut unread = BTreeSet::new();
    for (name, (_, value)) in &files {
        match read.get(name) {
            None => drop(unread.insert(name.rsplit('.').next().unwrap())),
            Some(found) => assert_eq!(found, value, "{name}"),
        }
    }
    for name in read.keys().filter(|name| name.starts_with("net.")) {
        assert!(files.contains_key(name), "there is no file of {name}");
    }
    // The kernel does not tell of some of them, of others in another unit; the MTU has its own place.
    for name in NOT_READ {
        unread.remove(name);
    }
    assert_eq!(unread, BTreeSet::new());
}

const NOT_READ: [&str; 11] = [
    "mc_forwarding",
    "mtu",
    "router_probe_interval",
    "router_solicitation_delay",
    "router_solicitation_interval",
    "router_solicitation_max_interval",
    "ra_honor_pio_life",
    "ra_honor_pio_pflag",
    "regen_min_advance",
    "ioam6_id_wide",
    "stable_secret",
];

#[test]
fn group_and_limits_are_read_and_set() {
    let mut space = Space::new();
    space.spare("dm0", "");
    let index = space.link("dm0").index;
    let before = space.socket.settings(index).unwrap().unwrap();
    assert_eq!(before["group"], 0, "{before:?}");
    let ip = space.lines_of_ip("-d link show dev dm0");
    space.ip("link set dm0 group 7 gso_max_size 30000 gso_max_segs 10 gro_max_size 40000");
    let changed = space.socket.settings(index).unwrap().unwrap();
    assert_eq!((changed["group"], changed["gso_max_size"], changed["gso_max_segs"]), (7, 30000, 10));
    assert_eq!(changed["gro_max_size"], 40000);
    space.socket.set_limits(index, &before).unwrap();
    assert_eq!(space.socket.settings(index).unwrap().unwrap(), before);
    assert_eq!(space.lines_of_ip("-d link show dev dm0"), ip);
    assert_eq!(space.socket.settings(9999).unwrap(), None);
}
