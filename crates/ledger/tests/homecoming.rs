//! The way home, with veth links in namespaces of their own. How real NICs fall back to the initial namespace when their
//! own ends needs real NICs, and is tested in the VM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ledger::{
    Addresses, Home, Homecoming, Lease, Ledger, Node, Owner, ReturnError, Stage, Whereabouts, bring_home,
    put_right, whereabouts,
};
use linux::Netns;
use linux::testing::bpf;
use nic::IfName;

struct Bench {
    node: Netns,
    pod: Netns,
    ledger: Ledger,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// A node with `eth1` and the pod that is to have it.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench {
            node: Netns::create().unwrap(),
            pod: Netns::create().unwrap(),
            ledger: Ledger::at(folder.path()),
            _folder: folder,
        };
        ip(&bench.node, "link add eth1 mtu 1450 type veth peer name wire");
        ip(&bench.node, "link set eth1 up");
        bench
    }

    /// The lease of an ADD that got to `stage`.
    fn lease(&self, stage: Stage) -> Lease {
        let mut routes = self.node.route_socket().unwrap();
        let link = routes.link_by_name("eth1").unwrap().unwrap();
        Lease {
            device: "link:eth1".parse().unwrap(),
            permanent_mac: None,
            boot_id: linux::boot_id().unwrap(),
            home: Home::of(&link, routes.kept_addresses(link.index).unwrap(), None),
            owner: Owner {
                container_id: "one".to_owned(),
                if_name: "net1".parse().unwrap(),
                netns: path_of(&self.pod),
                netns_inode: Some(self.pod.identity().1),
                network: "n".to_owned(),
                pod: None,
            },
            stage,
        }
    }

    fn bring_home(&self, lease: &Lease) -> Result<Homecoming, ReturnError> {
        self.bring_home_while(lease, Addresses::GivenBack)
    }

    fn bring_home_while(&self, lease: &Lease, addresses: Addresses) -> Result<Homecoming, ReturnError> {
        self.node
            .run(|| {
                let entry = self.ledger.lock(&lease.device, Duration::from_secs(10)).unwrap();
                entry.write(lease).unwrap();
                // A DEL names the same path again.
                let also = Some(lease.owner.netns.as_path());
                bring_home(
                    &mut Node::here().unwrap(),
                    &entry,
                    lease,
                    also,
                    Duration::from_millis(100),
                    addresses,
                )
            })
            .unwrap()
    }

    fn put_right(&self, lease: &Lease) -> Result<Homecoming, ReturnError> {
        self.node
            .run(|| {
                let entry = self.ledger.lock(&lease.device, Duration::from_secs(10)).unwrap();
                entry.write(lease).unwrap();
                put_right(&mut Node::here().unwrap(), &entry, lease)
            })
            .unwrap()
    }

    fn whereabouts(&self, lease: &Lease) -> Whereabouts {
        self.node.run(|| whereabouts(&mut Node::here().unwrap(), lease).unwrap()).unwrap()
    }

    fn is_closed(&self, lease: &Lease) -> bool {
        self.ledger.read(&lease.device).unwrap().is_none()
    }
}

fn ip(netns: &Netns, arguments: &str) {
    let run =
        || Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    let output = netns.run(run).unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn path_of(netns: &Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into()
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

#[test]
fn a_nic_that_never_left_is_left_alone() {
    let bench = Bench::new();
    let lease = bench.lease(Stage::Prepared);
    let mut routes = bench.node.route_socket().unwrap();
    let before = routes.link_by_name("eth1").unwrap();
    assert!(matches!(bench.whereabouts(&lease), Whereabouts::OnNode(_)));
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
    assert_eq!(routes.link_by_name("eth1").unwrap(), before);
    assert!(bench.is_closed(&lease));
}

#[test]
fn a_move_that_got_half_way_is_undone_whichever_name_it_left() {
    for name in ["eth1", "net1"] {
        let bench = Bench::new();
        let lease = bench.lease(Stage::Prepared);
        ip(&bench.node, &format!("link set eth1 netns {} name {name}", path_of(&bench.pod).display()));
        assert_eq!(bench.whereabouts(&lease), Whereabouts::WithOwner);
        assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
        assert!(bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap().up);
        assert!(bench.is_closed(&lease));
    }
}

#[test]
fn a_namespace_that_only_has_the_path_of_the_owners_is_not_searched() {
    let bench = Bench::new();
    let mut lease = bench.lease(Stage::Plumbed { index: 0 });
    let strangers = Netns::create().unwrap();
    ip(&strangers, "link add eth0 type veth peer name x");
    let theirs = strangers.route_socket().unwrap().link_by_name("eth0").unwrap().unwrap();
    // The same index, and nothing else to go by: the pod may have changed name and MAC.
    lease.stage = Stage::Plumbed { index: theirs.index };
    lease.owner.netns = path_of(&strangers);
    assert!(matches!(bench.whereabouts(&lease), Whereabouts::OnNode(_)));
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
    assert_eq!(strangers.route_socket().unwrap().link_by_name("eth0").unwrap(), Some(theirs));
}

#[test]
fn what_cannot_be_restored_is_told_noted_in_the_lease_and_tried_again() {
    let bench = Bench::new();
    let mut lease = bench.lease(Stage::Plumbed { index: 0 });
    let mtu = std::mem::replace(&mut lease.home.mtu, 70_000);
    let error = bench.bring_home(&lease).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("MTU is 1450, was 70000") && text.contains("mtu greater than device maximum"),
        "{text}"
    );
    let noted = bench.ledger.read(&lease.device).unwrap().unwrap();
    assert!(
        matches!(&noted.stage, Stage::Returning { fault: Some(fault) } if fault.contains("MTU")),
        "{noted:?}"
    );
    let again = Lease { home: Home { mtu, ..noted.home.clone() }, ..noted };
    assert_eq!(bench.bring_home(&again).unwrap(), Homecoming::Home);
    assert!(bench.is_closed(&again));
}

#[test]
fn a_nic_that_is_displaced_keeps_its_lease_until_it_has_its_name() {
    let bench = Bench::new();
    let lease = bench.lease(Stage::Prepared);
    ip(&bench.node, &format!("link set eth1 netns {} name net1", path_of(&bench.pod).display()));
    ip(&bench.node, "link add eth1 type veth peer name thief");
    ip(&bench.node, "link add eth1-2 type veth peer name thief2");
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Displaced { name: name("eth1-3") });
    let displaced = bench.ledger.read(&lease.device).unwrap().unwrap();
    assert_eq!(displaced.stage, Stage::Displaced { name: name("eth1-3"), whole: false });
    assert_eq!(bench.bring_home(&displaced).unwrap(), Homecoming::Displaced { name: name("eth1-3") });
    ip(&bench.node, "link del eth1");
    assert_eq!(bench.bring_home(&displaced).unwrap(), Homecoming::Home);
    assert!(bench.is_closed(&lease));
}

#[test]
fn a_lease_of_another_boot_is_closed_and_what_this_boot_made_of_the_nic_stays() {
    let bench = Bench::new();
    let mut lease = bench.lease(Stage::Plumbed { index: 0 });
    lease.boot_id = "of-another-boot".to_owned();
    lease.home.up = false;
    lease.home.mtu = 1300;
    let before = bench.node.route_socket().unwrap().link_by_name("eth1").unwrap();
    // A namespace of this boot is not the owner's, though path and inode agree.
    ip(&bench.pod, "link add net1 type veth peer name x");
    let theirs = bench.pod.route_socket().unwrap().link_by_name("net1").unwrap().unwrap();
    lease.stage = Stage::Plumbed { index: theirs.index };
    assert!(matches!(bench.whereabouts(&lease), Whereabouts::OnNode(_)));
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
    assert_eq!(bench.node.route_socket().unwrap().link_by_name("eth1").unwrap(), before);
    assert_eq!(bench.pod.route_socket().unwrap().link_by_name("net1").unwrap(), Some(theirs));
    assert!(bench.is_closed(&lease));
}

#[test]
fn a_nic_that_carries_the_node_by_now_is_left_as_it_is() {
    let bench = Bench::new();
    let mut lease = bench.lease(Stage::Plumbed { index: 0 });
    lease.home.up = false;
    ip(&bench.node, "addr add 192.0.2.2/24 dev eth1");
    ip(&bench.node, "route add default via 192.0.2.1 dev eth1");
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
    assert!(bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap().up);
    assert!(bench.is_closed(&lease));
    // Under a name that is not its own (its pod's, say) it is displaced, until it is nobody's uplink any more.
    lease.home.name = name("eth7");
    lease.owner.if_name = name("eth1");
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Displaced { name: name("eth1") });
    let displaced = bench.ledger.read(&lease.device).unwrap().unwrap();
    ip(&bench.node, "route del default");
    ip(&bench.node, "addr flush dev eth1");
    assert_eq!(bench.bring_home(&displaced).unwrap(), Homecoming::Home);
    assert!(bench.node.route_socket().unwrap().link_by_name("eth7").unwrap().is_some_and(|link| !link.up));
}

#[test]
fn addresses_and_the_bridge_come_back_with_the_nic_but_not_addresses_that_expire() {
    let bench = Bench::new();
    ip(&bench.node, "link add br0 type bridge");
    ip(&bench.node, "link set eth1 master br0");
    ip(&bench.node, "addr add 192.0.2.2/24 dev eth1");
    ip(&bench.node, "addr add 192.0.2.3/24 dev eth1 valid_lft 1000 preferred_lft 1000");
    ip(&bench.node, "addr add fd00::2/64 dev eth1 nodad");
    let mut routes = bench.node.route_socket().unwrap();
    let mut lease = bench.lease(Stage::Prepared);
    lease.home.master = Some(name("br0"));
    ip(&bench.node, &format!("link set eth1 netns {} name net1", path_of(&bench.pod).display()));
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
    let link = routes.link_by_name("eth1").unwrap().unwrap();
    assert_eq!(link.master, routes.link_by_name("br0").unwrap().map(|bridge| bridge.index));
    let now = routes.addresses().unwrap();
    let mut now: Vec<String> = now
        .iter()
        .filter(|address| address.index == link.index && address.permanent)
        .map(|address| address.ip.to_string())
        .filter(|ip| !ip.starts_with("fe80"))
        .collect();
    now.sort();
    assert_eq!(now, ["192.0.2.2", "fd00::2"]);
}

#[test]
fn an_address_and_a_place_in_a_bridge_that_do_not_come_back_are_told_and_the_nic_is_home() {
    let bench = Bench::new();
    ip(&bench.node, "addr add fd00::2/64 dev eth1 nodad");
    ip(&bench.node, "addr add 192.0.2.2/24 dev eth1");
    let mut lease = bench.lease(Stage::Prepared);
    // A bridge of then; what has its name now takes no ports.
    lease.home.master = Some(name("br0"));
    ip(&bench.node, "link add br0 type veth peer name br0-peer");
    ip(&bench.node, &format!("link set eth1 netns {} name net1", path_of(&bench.pod).display()));
    let off = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    bench.node.run(off).unwrap().unwrap();
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
    assert!(bench.is_closed(&lease));
    let lost = bench.node.run(|| ledger::lost(&mut Node::here().unwrap(), &lease.home).unwrap()).unwrap();
    let refused = ["address fd00::2/64", "place in br0"]
        .map(|part| format!("its {part}: the kernel refuses it, or somebody took it off"));
    assert!(lost.ends_with(&refused), "{lost:?}");
    let mut routes = bench.node.route_socket().unwrap();
    assert!(routes.addresses().unwrap().iter().any(|address| address.ip.to_string() == "192.0.2.2"));
    assert!(routes.link_by_name("eth1").unwrap().unwrap().up);
}

#[test]
fn a_device_that_is_not_on_the_machine_is_gone_at_once() {
    let bench = Bench::new();
    let lease = Lease { device: "0000:ff:1f.7".parse().unwrap(), ..bench.lease(Stage::Prepared) };
    let began = Instant::now();
    assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Gone);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(bench.is_closed(&lease));
}

#[test]
fn while_addresses_are_owed_the_lease_stays_whether_the_nic_is_home_or_gone() {
    for (device, outcome) in [("link:eth1", Homecoming::Home), ("0000:ff:1f.7", Homecoming::Gone)] {
        let bench = Bench::new();
        let lease = Lease { device: device.parse().unwrap(), ..bench.lease(Stage::Prepared) };
        if outcome == Homecoming::Home {
            ip(&bench.node, &format!("link set eth1 netns {} name net1", path_of(&bench.pod).display()));
        }
        assert_eq!(bench.bring_home_while(&lease, Addresses::Owed).unwrap(), outcome);
        let left = bench.ledger.read(&lease.device).unwrap().unwrap();
        let whole = outcome == Homecoming::Home;
        assert_eq!(left, Lease { stage: Stage::Displaced { name: name("eth1"), whole }, ..lease });
        assert_eq!(bench.bring_home(&left).unwrap(), outcome);
        assert!(bench.is_closed(&left));
    }
}

#[test]
fn what_the_kernel_left_on_the_node_is_put_right_and_the_lease_waits_for_its_del() {
    let bench = Bench::new();
    let before = bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap();
    let lease = bench.lease(Stage::Plumbed { index: before.index });
    ip(&bench.node, "link set eth1 down");
    ip(&bench.node, "link set eth1 name net1 mtu 1300 alias theirs promisc on");
    assert_eq!(bench.put_right(&lease).unwrap(), Homecoming::Home);
    let after = bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap();
    assert_eq!((after.mtu, after.alias, after.up), (before.mtu, before.alias, true));
    let shown =
        bench.node.run(|| Command::new("ip").args(["link", "show", "eth1"]).output().unwrap()).unwrap();
    assert!(!String::from_utf8(shown.stdout).unwrap().contains("PROMISC"));
    let noted = bench.ledger.read(&lease.device).unwrap().unwrap();
    assert_eq!(noted.stage, Stage::Displaced { name: name("eth1"), whole: true });
    // What somebody makes of it from now on is not undone.
    ip(&bench.node, "link set eth1 mtu 1350 alias mine");
    assert_eq!(bench.put_right(&noted).unwrap(), Homecoming::Home);
    assert_eq!(bench.bring_home(&noted).unwrap(), Homecoming::Home);
    let link = bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap();
    assert_eq!((link.mtu, link.alias.as_deref()), (1350, Some("mine")));
    assert!(bench.is_closed(&lease));
}

/// As the agent's container restores it, for which bpf(2) is not.
#[test]
fn tcx_programs_that_a_restorer_could_not_see_are_taken_off_by_the_del() {
    if !bpf::can_attach() {
        return;
    }
    let bench = Bench::new();
    let index = bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap().index;
    let programs = || bench.node.run(|| linux::bpf::tcx(index)).unwrap().unwrap().unwrap();
    let whole = Stage::Displaced { name: name("eth1"), whole: true };
    // As an agent of the node's puts it there.
    let nodes = bench.node.run(|| bpf::link_tcx(index)).unwrap().unwrap();
    for (tcx, left) in [(Some(Vec::new()), 1), (None, 2)] {
        let mut lease = bench.lease(whole.clone());
        lease.home.tcx = tcx;
        bench.node.run(|| bpf::attach_tcx(index)).unwrap().unwrap();
        ip(&bench.node, "link set eth1 mtu 1350");
        assert_eq!(bench.bring_home(&lease).unwrap(), Homecoming::Home);
        assert_eq!(programs().len(), left);
        assert_eq!(bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap().mtu, 1350);
    }
    // Who sees that there are no others says so.
    let lease = bench.lease(Stage::Plumbed { index });
    let lease = Lease { home: Home { tcx: Some(Vec::new()), ..lease.home }, ..lease };
    assert_eq!(bench.put_right(&lease).unwrap(), Homecoming::Home);
    assert_eq!(programs().len(), 1, "the node's own stays");
    let noted = bench.ledger.read(&lease.device).unwrap().unwrap();
    assert_eq!((noted.stage, noted.home.tcx), (whole, None));
    drop(nodes);
}

#[test]
fn what_is_not_on_the_node_is_not_put_right() {
    let bench = Bench::new();
    let lease = bench.lease(Stage::Prepared);
    let elsewhen = Lease { boot_id: "of-another-boot".to_owned(), ..lease.clone() };
    ip(&bench.node, "link set eth1 mtu 1300");
    assert_eq!(bench.put_right(&elsewhen).unwrap(), Homecoming::OutOfSight);
    assert_eq!(bench.node.route_socket().unwrap().link_by_name("eth1").unwrap().unwrap().mtu, 1300);
    ip(&bench.node, &format!("link set eth1 netns {} name net1", path_of(&bench.pod).display()));
    assert_eq!(bench.put_right(&lease).unwrap(), Homecoming::OutOfSight);
    assert!(bench.pod.route_socket().unwrap().link_by_name("net1").unwrap().is_some());
    assert_eq!(bench.ledger.read(&lease.device).unwrap(), Some(lease));
}

#[test]
fn what_carries_the_node_is_not_put_right_and_what_cannot_be_is_told() {
    let bench = Bench::new();
    let mut lease = bench.lease(Stage::Plumbed { index: 0 });
    lease.home.name = name("eth7");
    lease.owner.if_name = name("eth1");
    ip(&bench.node, "addr add 192.0.2.2/24 dev eth1");
    ip(&bench.node, "route add default via 192.0.2.1 dev eth1");
    assert_eq!(bench.put_right(&lease).unwrap(), Homecoming::Displaced { name: name("eth1") });
    ip(&bench.node, "route del default");
    ip(&bench.node, "addr flush dev eth1");
    lease.home.mtu = 70_000;
    let error = bench.put_right(&lease).unwrap_err().to_string();
    assert!(error.contains("MTU is 1450, was 70000"), "{error}");
    let noted = bench.ledger.read(&lease.device).unwrap().unwrap();
    assert!(matches!(&noted.stage, Stage::Returning { fault: Some(fault) } if fault.contains("MTU")));
}
