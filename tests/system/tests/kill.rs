//! SIGKILL after each system call of ADD and DEL that changes something, on real virtio NICs; then what comes next, with and without a
//! reboot between: the ledger and host-local's addresses outlive it, and the NICs are made anew. With `KILL_ALL=1` it is after each of
//! these calls, and takes long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use serde_json::json;
use system_tests::{Node, assert_same, machine, spare};

/// The NICs that a node can lose before one reboot: as many as PCI bus 0 has room for.
const NICS: std::ops::Range<usize> = 0x08..0x1b;
const SOON: Duration = Duration::from_secs(60);
const LEFT: &str = "find /persist/state/leases /persist/addresses -name '[0-9]*'";

fn address(nic: usize) -> String {
    format!("0000:00:{nic:02x}.0")
}

/// What comes after the kill.
#[derive(Clone, Copy, Debug)]
enum Remedy {
    Del,
    Gc,
    /// ADD and DEL of another pod. It may be refused while a completed lease stands: then it is the DEL of the owner.
    Next,
}

/// A place at which a call dies: in which verb, after which of its calls.
#[derive(Clone, Copy, Debug)]
struct Place {
    verb: &'static str,
    point: usize,
}

/// A container with one NIC, in a network of its own.
struct Pod<'a> {
    node: &'a Node,
    nic: usize,
}

impl Pod<'_> {
    fn config(&self, verb: &str) -> String {
        let Pod { nic, .. } = self;
        // host-local does not know 1.1.0 and is asked three times then.
        let version = if verb == "GC" { "1.1.0" } else { "1.0.0" };
        json!({
            "cniVersion": version, "name": format!("network{nic}"), "type": "ehost-device", "deviceID": address(*nic),
            "stateDir": "/persist/state", "mtu": 1400, "cni.dev/valid-attachments": [],
            "ipam": {"type": "host-local", "dataDir": "/persist/addresses", "subnet": format!("10.56.{nic}.0/24")},
        })
        .to_string()
    }

    fn call(&self, verb: &str, container: &str, netns: &str) -> system_tests::Answer {
        self.node.cni("ehost-device", verb, container, netns, &self.config(verb))
    }

    /// Calls a verb through the tracer; gives the calls that it made.
    fn trace(&self, verb: &str, point: Option<usize>) -> Vec<String> {
        let output = self
            .node
            .command(env!("CARGO_BIN_EXE_kill-at"))
            .args(point.map(|point| point.to_string()))
            .arg("/opt/cni/bin/ehost-device")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.container())
            .env("CNI_NETNS", self.netns())
            .env("CNI_IFNAME", "net1")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(self.config(verb))
            .output()
            .unwrap();
        assert_eq!(output.code(), Some(0), "{}{}", output.text(), output.error_text());
        output.text().lines().map(str::to_owned).collect()
    }

    fn container(&self) -> String {
        format!("killed{}", self.nic)
    }

    /// A call for the container that is killed.
    fn call_for_it(&self, verb: &str) {
        self.call(verb, &self.container(), &self.netns()).result();
    }

    fn netns(&self) -> String {
        format!("/var/run/netns/pod{}", self.nic)
    }

    fn kill(&self, place: Place) {
        self.node.sh(&format!("ip netns add pod{}", self.nic));
        if place.verb == "DEL" {
            self.call_for_it("ADD");
        }
        self.trace(place.verb, Some(place.point));
    }

    fn remedy(&self, remedy: Remedy) {
        match remedy {
            Remedy::Del => self.call_for_it("DEL"),
            Remedy::Gc => drop(self.call("GC", "", "").result()),
            Remedy::Next => {
                let netns = self.node.netns(&format!("next{}", self.nic));
                let added = self.call("ADD", "next", &netns);
                if added.status == Some(0) {
                    self.call("DEL", "next", &netns).result();
                } else {
                    let (code, text) = added.error();
                    assert!(code == 11 && text.contains("in use by"), "{code} {text}");
                    self.call_for_it("DEL");
                }
                self.node.sh(&format!("ip netns del next{}", self.nic));
            }
        }
    }
}

/// All places at which an ADD or DEL can die here, once the folders that the first of them makes are there.
fn places(node: &Node) -> Vec<Place> {
    let pod = Pod { node, nic: NICS.start };
    node.sh(&format!("ip netns add pod{}", pod.nic));
    let mut places = Vec::new();
    for _ in 0..2 {
        places.clear();
        for verb in ["ADD", "DEL"] {
            let calls = pod.trace(verb, None);
            assert!(
                calls.iter().any(|call| call.starts_with("plugin RTM_NEWLINK netns")),
                "{verb}: {calls:?}"
            );
            places.extend((0..calls.len()).map(|point| Place { verb, point }));
        }
    }
    node.sh(&format!("ip netns del pod{}", pod.nic));
    places
}

fn boot(folder: &std::path::Path) -> Node {
    Node::boot(&NICS.fold(machine(), |machine, nic| machine.nic(spare(&address(nic)))).persist(folder))
}

/// Kills on all NICs at once, each at another place; then, after `between`, lets one of `remedies` follow on each.
fn kill_everywhere(remedies: &[Remedy], between: impl Fn(&mut Node)) {
    let folder = tempfile::tempdir().unwrap();
    let mut node = boot(folder.path());
    let before = node.settled();
    let all = places(&node);
    // As many as there are NICs, spread over all.
    let step = if std::env::var_os("KILL_ALL").is_some() { 1 } else { all.len().div_ceil(NICS.len()) };
    let places: Vec<Place> = all.into_iter().step_by(step).collect();
    println!("{} places, then {remedies:?}", places.len());
    for batch in places.chunks(NICS.len()) {
        for (nic, place) in NICS.zip(batch) {
            Pod { node: &node, nic }.kill(*place);
        }
        between(&mut node);
        for (nic, remedy) in NICS.zip(remedies.iter().cycle()).take(batch.len()) {
            Pod { node: &node, nic }.remedy(*remedy);
        }
        assert_eq!(node.sh(LEFT), "", "{batch:?}");
        assert_same(&node.settled(), &before, &format!("{batch:?}"));
        node.sh("for pod in $(ls /var/run/netns); do ip netns del $pod; done");
    }
}

#[test]
fn after_a_kill_at_any_call_one_del_brings_a_real_nic_home() {
    kill_everywhere(&[Remedy::Del], |_| {});
}

#[test]
fn after_a_kill_at_any_call_and_a_reboot_every_nic_is_at_home_and_every_address_is_free() {
    kill_everywhere(&[Remedy::Del, Remedy::Gc, Remedy::Next], |node| {
        node.power_cycle();
        if node.sh("ls /persist/state/leases").contains(".json") {
            // A lease of another boot says nothing of this one, and is for a DEL, a GC or the next ADD to close.
            let before = node.settled();
            let options = ["--state-dir", "/persist/state", "--logtostderr", "-v", "10"];
            let mut agent = node.command("virtdp").args(options).spawn().unwrap();
            agent.wait_for("its lease is in order", SOON).unwrap();
            agent.kill().unwrap();
            assert_same(&node.settled(), &before, "after the agent's start");
        }
    });
}
