//! A spare NIC with everything that can be set on one, a network with the real host-local, and all that `ip` shows of node and pod.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linux::Netns;
use serde_json::{Value, json};

use crate::bench::{Bench, ip, path_of};

/// What comes by itself may take this long: carrier, link-local addresses, a bridge's port that begins to forward.
const SETTLE: Duration = Duration::from_secs(20);

/// A node that lives by `eth0`, its spare NIC `eth1`, and a pod.
pub(crate) struct Rich {
    pub(crate) bench: Bench,
    _outside: Netns,
    before: Value,
}

impl Rich {
    pub(crate) fn new() -> Self {
        let bench = Bench::new();
        std::os::unix::fs::symlink(host_local(), bench.folder.path().join("bin/host-local")).unwrap();
        for netns in [&bench.node, &bench.pod] {
            for setting in ["default", "all"].map(|link| format!("ipv6/conf/{link}/accept_dad")) {
                netns.run(|| std::fs::write(format!("/proc/sys/net/{setting}"), "0")).unwrap().unwrap();
            }
        }
        let outside = Netns::create().unwrap();
        for line in [
            "link set lo up",
            &format!("link add eth0 type veth peer name uplink netns {}", path_of(&outside).display()),
            "link set eth0 up",
            "addr add 203.0.113.2/24 dev eth0",
            "route add default via 203.0.113.1",
            "link add br0 type bridge",
            "link set br0 address 52:54:00:00:00:01 mtu 1450 up",
            "link set eth1 master br0 mtu 1443 promisc on group 7 gso_max_size 30000",
            // The pod's name for it is one of its own, as udev and administrators give them.
            "link property add dev eth1 altname net1 altname last-of-four",
            "addr add 192.0.2.2/24 broadcast 192.0.2.255 dev eth1",
            "addr add 192.0.2.7/32 dev eth1 label eth1:7 noprefixroute",
            "addr add 192.0.2.11 peer 192.0.2.12/32 dev eth1 metric 77",
            "addr add fd00:9::2/64 dev eth1 nodad",
            "addr add fd00:9::3/64 dev eth1 nodad metric 77",
            "route add 198.51.100.0/24 via 192.0.2.1 dev eth1 metric 7 mtu 1300",
            "route add 198.51.101.0/24 dev eth1 table 77 proto static src 192.0.2.2",
            "route add 2001:db8:1::/48 via fd00:9::1 dev eth1",
            "route add 2001:db8:2::/48 dev eth1 table 78 metric 9 mtu 1290",
        ] {
            bench.on_node(line);
        }
        ip(&outside, "link set uplink up");
        for (setting, value) in [
            ("ipv6/conf/eth1/accept_dad", "0"),
            ("ipv6/conf/eth1/addr_gen_mode", "1"),
            ("ipv4/conf/eth1/arp_ignore", "2"),
        ] {
            bench.node.run(|| std::fs::write(format!("/proc/sys/net/{setting}"), value)).unwrap().unwrap();
        }
        let mut rich = Rich { bench, _outside: outside, before: Value::Null };
        rich.before = rich.settled();
        rich
    }

    /// The network under which `eth1` is given out, with all that it can ask of the pod's interface; changed by `keys`.
    pub(crate) fn network(&self, keys: Value) -> Value {
        let ipam = json!({
            "type": "host-local", "dataDir": self.addresses(),
            "ranges": [[{"subnet": "10.56.217.0/24", "gateway": "10.56.217.1"}], [{"subnet": "fd00:56::/64"}]],
            "routes": [{"dst": "172.30.0.0/16"}, {"dst": "fd00:57::/64", "gw": "fd00:56::1"}],
        });
        let mut config = self.bench.config(json!({
            "cniVersion": "1.0.0", "ipam": ipam, "mtu": 1400, "mac": "02:00:00:00:00:01",
            "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1", "net.ipv6.conf.IFNAME.accept_ra": "0"},
            "routes": [{"dst": "192.0.3.0/24", "mtu": 1280, "advmss": 1200, "priority": 7, "table": 100}],
        }));
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    /// Where host-local keeps what it has leased.
    fn addresses(&self) -> PathBuf {
        self.bench.folder.path().join("addresses")
    }

    /// What is not as it was before any ADD: in words, none if all is. Waits for what comes by itself.
    pub(crate) fn amiss(&self) -> Option<String> {
        let left = self.left();
        if left.is_empty() { self.changed() } else { Some(format!("left: {left:?}")) }
    }

    /// As [`Rich::amiss`], of what `ip` shows alone.
    pub(crate) fn changed(&self) -> Option<String> {
        let deadline = Instant::now() + SETTLE;
        let mut pause = Duration::from_millis(10);
        loop {
            let now = self.everything();
            if now == self.before {
                return None;
            }
            if Instant::now() > deadline {
                return Some(differences(&self.before, &now));
            }
            std::thread::sleep(pause);
            // To look costs more than to wait.
            pause = (pause * 2).min(Duration::from_millis(320));
        }
    }

    /// The state of a node on which no ADD has ever been.
    pub(crate) fn forget(&self) {
        for folder in [self.bench.state(), self.addresses()] {
            if folder.exists() {
                std::fs::remove_dir_all(folder).unwrap();
            }
        }
    }

    /// The leases of NICs and of addresses.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = files(&self.bench.state().join("leases"));
        left.extend(
            files(&self.addresses()).into_iter().filter(|name| !HOST_LOCALS.contains(&name.as_str())),
        );
        // What a writer that was killed left is no lease: it goes with the next one of that NIC.
        left.retain(|name| !name.starts_with(linux::files::TEMPORARY));
        left
    }

    /// All that is to be seen, once it is twice the same and all addresses are known to be unique.
    fn settled(&self) -> Value {
        let deadline = Instant::now() + SETTLE;
        let mut last = self.everything();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = self.everything();
            if now == last && !now.to_string().contains("tentative") {
                return now;
            }
            assert!(Instant::now() < deadline, "{}", differences(&last, &now));
            last = now;
        }
    }

    fn everything(&self) -> Value {
        json!({"node": seen(&self.bench.node), "pod": seen(&self.bench.pod)})
    }
}

/// What host-local keeps for itself.
const HOST_LOCALS: [&str; 3] = ["last_reserved_ip.0", "last_reserved_ip.1", "lock"];

/// The names of all files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            names.extend(files(&entry.path()));
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}

/// `ip -d -j link, addr, route`, and the sysctls of each link; byte for byte but for a bridge's timers, which count hundredths of a second, and the order of routes: those
/// to one destination are listed in the order in which they came, and each link that is up has one to fe80::/64.
fn seen(netns: &Netns) -> Value {
    let mut seen = json!({});
    for what in ["link", "addr", "-4 route show table all", "-6 route show table all"] {
        let mut value: Value =
            serde_json::from_str(&ip(netns, &format!("-d -j {what}"))).unwrap_or(json!([]));
        without_timers(&mut value);
        if what.contains("route") {
            value.as_array_mut().unwrap().sort_by_cached_key(Value::to_string);
        }
        seen[what] = value;
    }
    let mut socket = netns.route_socket().unwrap();
    for link in socket.links().unwrap() {
        // One that has gone since has none.
        seen["settings"][link.name.as_str()] = json!(socket.settings(link.index).unwrap());
    }
    seen
}

fn without_timers(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !key.ends_with("_timer"));
            object.values_mut().for_each(without_timers);
        }
        Value::Array(values) => values.iter_mut().for_each(without_timers),
        _ => {}
    }
}

/// The lines that only one of them has.
fn differences(before: &Value, now: &Value) -> String {
    let lines = |value: &Value| -> Vec<String> {
        format!("{value:#}").lines().map(|line| line.trim().to_owned()).collect()
    };
    let (before, now) = (lines(before), lines(now));
    let only = |these: &[String], those: &[String], sign: &str| -> String {
        these.iter().filter(|line| !those.contains(line)).map(|line| format!("{sign}{line} ")).collect()
    };
    let text = format!("{}{}", only(&before, &now, "-"), only(&now, &before, "+"));
    if text.is_empty() { "the same lines, in another order".to_owned() } else { text }
}

/// Debian's host-local: installed, or unpacked by `cargo xtask`.
fn host_local() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_ehost-device")).ancestors().nth(2).unwrap();
    let unpacked = target.join("debian/root/usr/lib/cni");
    let folders = [PathBuf::from("/usr/lib/cni"), PathBuf::from("/usr/libexec/cni"), unpacked];
    let program = folders
        .iter()
        .map(|folder| folder.join("host-local"))
        .find_map(|program| program.canonicalize().ok());
    program
        .expect("host-local is missing: cargo xtask test fetches it; or install containernetworking-plugins")
}

#[test]
fn after_an_add_and_a_del_all_is_as_it_was_byte_for_byte() {
    let rich = Rich::new();
    for keys in [json!({}), json!({"keepAddresses": true})] {
        let config = rich.network(keys);
        rich.bench.run("ADD", &config).expect();
        assert_eq!(rich.left().len(), 3, "a NIC and two addresses: {:?}", rich.left());
        rich.bench.run("DEL", &config).expect();
        assert_eq!(rich.amiss(), None, "{config}");
    }
}
