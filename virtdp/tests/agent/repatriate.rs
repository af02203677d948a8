//! NICs that are back on the node though nobody brought them home. How the kernel puts real ones there, and what a DEL does afterwards, is
//! tested in the VM.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use ledger::{Home, Lease, Ledger, Owner};
use linux::Netns;
use nic::{DeviceId, Link};

use crate::observe::{scrape, value};
use crate::stage::{Agent, PATIENCE, Stage, until};

const NIC: &str = "0000:00:0a.0";
/// Under which ID a link without a device is leased, as veth links are.
const LEASED: &str = "link:eth1";

/// A node with a spare NIC `eth1` that has a past, and its lease for a pod that is elsewhere.
struct Case {
    stage: Stage,
    virtio: String,
    pod: Netns,
    lease: Lease,
    before: Link,
}

impl Case {
    fn new() -> Case {
        let stage = Stage::new();
        let virtio = stage.nic(NIC, "eth1");
        stage.ip("link set eth1 mtu 1400 alias spare");
        stage.ip("link property add dev eth1 altname storage0");
        stage.ip("link set eth1 up");
        let pod = Netns::create().unwrap();
        let mut case =
            Case { before: link(&stage, "eth1").unwrap(), lease: lease(&stage, &pod), stage, virtio, pod };
        // Carrier follows a moment later.
        until("eth1 has carrier", || {
            case.before = link(&case.stage, "eth1").unwrap();
            case.before.carrier
        });
        case.write();
        case
    }

    fn ledger(&self) -> Ledger {
        Ledger::at(self.stage.path("state"))
    }

    fn write(&self) {
        self.ledger().lock(&self.lease.device, PATIENCE).unwrap().write(&self.lease).unwrap();
    }

    fn read(&self) -> Lease {
        self.ledger().read(&self.lease.device).unwrap().unwrap()
    }

    /// What a pod made of it, and what the kernel makes of it when the pod's namespace ends.
    fn come_back_as_net1(&self) {
        self.stage.ip("link set eth1 down");
        self.stage.ip("link set eth1 name net1 mtu 1300 alias theirs");
        self.show("eth1", "net1");
    }

    /// Makes sysfs show the interface of the NIC under another name.
    fn show(&self, old: &str, new: &str) {
        self.stage.tree.remove_interface(old);
        self.stage.tree.interface(Some(&self.virtio), new, link(&self.stage, new).unwrap().index);
    }

    /// Starts the agent with these capabilities, as `setpriv` takes them.
    fn start_with(&self, capabilities: &str) -> Agent {
        let bounding = format!("--bounding-set={capabilities}");
        let mut command: Vec<String> = ["setpriv", &bounding, "--inh-caps=-all"].map(String::from).into();
        command.extend(self.stage.command());
        command.push(format!("--listen=unix:{}", self.stage.path("observe.sock").display()));
        self.stage.start_as(&command)
    }

    /// NICs that were brought home, or could not be, and those that are astray.
    fn counts(&self, outcome: &str) -> (f64, f64) {
        let samples = scrape(&self.stage);
        let homecomings = value(&samples, "virtdp_homecomings_total", &[("outcome", outcome)]);
        (homecomings, value(&samples, "virtdp_stray_nics", &[]))
    }

    fn is_home_as_it_was(&self) {
        until("eth1 is as it was", || link(&self.stage, "eth1").as_ref() == Some(&self.before));
    }
}

fn link(stage: &Stage, name: &str) -> Option<Link> {
    stage.netns.route_socket().unwrap().link_by_name(name).unwrap()
}

fn lease(stage: &Stage, pod: &Netns) -> Lease {
    let mut routes = stage.netns.route_socket().unwrap();
    let link = routes.link_by_name("eth1").unwrap().unwrap();
    let netns: PathBuf = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd()).into();
    Lease {
        device: LEASED.parse().unwrap(),
        permanent_mac: None,
        boot_id: linux::boot_id().unwrap(),
        home: Home::of(&link, routes.kept_addresses(link.index).unwrap(), None),
        owner: Owner {
            container_id: "c0ffee".into(),
            if_name: "net1".parse().unwrap(),
            netns,
            netns_inode: Some(pod.identity().1),
            network: "virt-net1".into(),
            pod: Some(ledger::Pod { namespace: "default".into(), name: "testpod1".into(), uid: None }),
        },
        stage: ledger::Stage::Plumbed { index: link.index },
    }
}

#[test]
fn a_nic_that_nobody_has_is_brought_home_with_one_capability_and_its_lease_waits_for_the_del() {
    let case = Case::new();
    case.come_back_as_net1();
    let agent = case.start_with("-all,+net_admin");
    let said = agent.says(&["Brought link:eth1 home", "net1"]);
    assert!(said.contains("pod default/testpod1"), "{said}");
    case.is_home_as_it_was();
    until("it is counted", || case.counts("home") == (1.0, 0.0));
    let home = ledger::Stage::Displaced { name: "eth1".parse().unwrap(), whole: true };
    assert_eq!(case.read(), Lease { stage: home, ..case.lease.clone() });
    // What an administrator makes of it from now on is not undone.
    case.show("net1", "eth1");
    agent.says(&["Offering 0000:00:0a.0", "eth1", "healthy"]);
    case.stage.ip("link set eth1 mtu 1350");
    case.stage.ip("link set eth1-p down");
    agent.says(&["Offering 0000:00:0a.0", "eth1 is up and has no carrier"]);
    assert_eq!(agent.count(&["Brought"]), 1);
    assert_eq!(link(&case.stage, "eth1").unwrap().mtu, 1350);
}

#[test]
fn what_an_agent_cannot_restore_is_told() {
    let mut case = Case::new();
    case.stage.ip("addr add fd00:7::2/64 dev eth1 nodad");
    case.lease = lease(&case.stage, &case.pod);
    case.write();
    // As it comes back where the node has IPv6 switched off by now.
    let switch = || std::fs::write("/proc/sys/net/ipv6/conf/eth1/disable_ipv6", "1");
    case.stage.netns.run(switch).unwrap().unwrap();
    case.come_back_as_net1();
    let agent = case.start_with("-all,+net_admin");
    agent.says(&["W", "link:eth1 is home as eth1, without its address fd00:7::2/64: the kernel refuses it"]);
    case.is_home_as_it_was();
}

#[test]
fn without_the_capability_it_is_told_and_left_as_it_is() {
    let case = Case::new();
    case.come_back_as_net1();
    let left = link(&case.stage, "net1");
    let agent = case.start_with("-all");
    agent.says(&["only told of", "CAP_NET_ADMIN"]);
    let said = agent.says(&["W", "link:eth1 is back on the node", "CAP_NET_ADMIN"]);
    assert!(said.contains("net1") && said.contains("pod default/testpod1"), "{said}");
    assert_eq!(link(&case.stage, "net1"), left);
    assert_eq!(case.read(), case.lease);
    until("it is counted", || case.counts("home") == (0.0, 1.0));
    // A DEL brings it home.
    case.ledger().lock(&case.lease.device, PATIENCE).unwrap().close().unwrap();
    case.stage.poke();
    until("it is astray no more", || case.counts("home") == (0.0, 0.0));
}

#[test]
fn a_nic_that_comes_back_while_the_agent_runs_is_brought_home_and_one_in_a_pod_is_not() {
    let case = Case::new();
    case.stage.move_away("eth1", &case.pod);
    let agent = case.stage.start();
    agent.says(&["link:eth1", "its lease is in order"]);
    assert_eq!(case.read(), case.lease);
    let mut pod = case.pod.route_socket().unwrap();
    let there = pod.link_by_name("eth1").unwrap().expect("it was taken from its pod");
    let net1 = "net1".parse().unwrap();
    let home = linux::route::LinkChange {
        netns: Some(case.stage.netns.as_fd()),
        name: Some(&net1),
        ..linux::route::LinkChange::default()
    };
    pod.change_link(there.index, &home).unwrap();
    case.stage.tree.interface(Some(&case.virtio), "net1", link(&case.stage, "net1").unwrap().index);
    agent.says(&["Brought link:eth1 home", "net1"]);
    until("eth1 is up", || link(&case.stage, "eth1").is_some_and(|link| link.up && link.carrier));
    let after = link(&case.stage, "eth1").unwrap();
    assert_eq!(Link { index: case.before.index, ..after }, case.before);
}

#[test]
fn a_nic_that_a_cni_program_is_at_work_on_is_not_touched() {
    let case = Case::new();
    let ledger = case.ledger();
    let entry = ledger.lock(&case.lease.device, PATIENCE).unwrap();
    case.come_back_as_net1();
    let left = link(&case.stage, "net1");
    let agent = case.stage.start();
    agent.says(&["link:eth1", "is at work on it"]);
    assert_eq!(link(&case.stage, "net1"), left);
    // It died.
    drop(entry);
    case.stage.poke();
    case.is_home_as_it_was();
}

#[test]
fn what_cannot_be_brought_home_is_told_once_and_is_in_nobodys_way() {
    let mut case = Case::new();
    case.lease.home.mtu = 70_000;
    case.write();
    let mut agent = case.start_with("-all,+net_admin");
    agent.says(&["W", "link:eth1 could not be brought home", "MTU is 1400, was 70000"]);
    until("it is counted", || matches!(case.counts("failed"), (failed, 1.0) if failed >= 1.0));
    let device: DeviceId = LEASED.parse().unwrap();
    let noted = case.ledger().read(&device).unwrap().unwrap();
    assert!(matches!(noted.stage, ledger::Stage::Returning { fault: Some(_) }), "{noted:?}");
    case.stage.poke();
    agent.says(&["Offering 0000:00:0a.0"]);
    assert_eq!(agent.count(&["could not be brought home"]), 1);
    assert!(agent.is_running());
}
