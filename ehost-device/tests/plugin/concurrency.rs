//! Many calls at once, in orders that only a confused runtime sends: two pods for one NIC, the same call twice, a DEL before its ADD has
//! ended, a late DEL of the last pod while the next one gets the NIC.
//!
//! What is drawn by lot is drawn from a seed, which a failure names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::thread;

use fastrand::Rng;
use linux::Netns;
use serde_json::{Value, json};

use crate::bench::{Answer, Bench, path_of, routes};

const NICS: usize = 16;
/// Two for each NIC.
const PODS: usize = 2 * NICS;
const CALLS: usize = 64;
/// What tells a runtime that another attempt may succeed.
const TRY_AGAIN: u64 = 11;
/// A second ADD of what this very container has.
const ALREADY_ATTACHED: u64 = 103;

/// An address for each container, and a file for each that is leased.
const LEASES: &str = r#"
case $CNI_COMMAND in
ADD) : >FOLDER/$CNI_CONTAINERID; echo "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.56.217.${CNI_CONTAINERID#c}/24\"}]}" ;;
DEL) rm -f FOLDER/$CNI_CONTAINERID ;;
esac"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    verb: &'static str,
    pod: usize,
}

struct Crowd {
    bench: Bench,
    pods: Vec<Netns>,
    /// What each NIC is at home.
    portraits: Vec<Value>,
    seed: u64,
}

fn nic(pod: usize) -> usize {
    pod % NICS
}

fn name(nic: usize) -> String {
    format!("eth{}", nic + 1)
}

fn container(pod: usize) -> String {
    format!("c{}", pod + 1)
}

impl Crowd {
    fn new(seed: u64) -> Self {
        let bench = Bench::new();
        let folder = bench.folder.path().join("addresses");
        std::fs::create_dir(&folder).unwrap();
        bench.ipam("leases", &LEASES.replace("FOLDER", &folder.display().to_string()));
        for nic in 1..NICS {
            let (name, mac) = (name(nic), format!("52:54:00:c4:e7:{nic:02x}"));
            bench.on_node(&format!("link add {name} mtu 1450 address {mac} type veth peer name wire{nic}"));
            // Some are up at home, some down.
            if nic % 2 == 0 {
                bench.on_node(&format!("link set {name} up"));
            }
        }
        let pods = (0..PODS).map(|_| Netns::create().unwrap()).collect();
        let portraits = (0..NICS).map(|nic| bench.portrait_of(&name(nic))).collect();
        Crowd { bench, pods, portraits, seed }
    }

    fn call(&self, call: Call) -> Answer {
        let config = self.bench.config(json!({"device": name(nic(call.pod)), "ipam": {"type": "leases"}}));
        let netns = path_of(&self.pods[call.pod]).display().to_string();
        self.bench.run_for(call.verb, &container(call.pod), &netns, &config)
    }

    /// All of them at the same moment.
    fn at_once(&self, calls: &[Call]) -> Vec<Answer> {
        let gate = Barrier::new(calls.len());
        thread::scope(|scope| {
            let run = |call: Call| {
                gate.wait();
                self.call(call)
            };
            let threads: Vec<_> = calls.iter().map(|call| scope.spawn(move || run(*call))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Which pods have a NIC.
    fn holders(&self) -> BTreeSet<usize> {
        (0..PODS)
            .filter(|pod| {
                let links = routes(&self.pods[*pod]).links().unwrap();
                let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
                assert!(
                    names == ["lo"] || names == ["lo", "net1"],
                    "{}: {names:?} in pod {pod}",
                    self.story()
                );
                names.len() == 2
            })
            .collect()
    }

    /// The containers for which leases are open, by NIC.
    fn leases(&self) -> BTreeMap<String, String> {
        let listing = ledger::Ledger::at(self.bench.state()).list().unwrap();
        assert!(listing.unusable.is_empty(), "{:?}", listing.unusable);
        listing
            .leases
            .into_iter()
            .map(|lease| (lease.home.name.to_string(), lease.owner.container_id))
            .collect()
    }

    fn addresses(&self) -> BTreeSet<String> {
        let files = std::fs::read_dir(self.bench.folder.path().join("addresses")).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn story(&self) -> String {
        format!("to be repeated with EHOST_SEED={}", self.seed)
    }

    /// Every NIC is at one place, and everybody knows at which.
    fn is_consistent(&self) -> BTreeSet<usize> {
        let holders = self.holders();
        let leases = self.leases();
        for nic in 0..NICS {
            let has: Vec<usize> = holders.iter().copied().filter(|pod| self::nic(*pod) == nic).collect();
            let lease = leases.get(&name(nic));
            match has.as_slice() {
                [] => {
                    assert_eq!(self.bench.portrait_of(&name(nic)), self.portraits[nic], "{}", self.story());
                    assert_eq!(lease, None, "{}: {} is at home", self.story(), name(nic));
                }
                [pod] => {
                    assert!(
                        self.bench.node_link(&name(nic)).is_none(),
                        "{}: {} twice",
                        self.story(),
                        name(nic)
                    );
                    assert_eq!(lease, Some(&container(*pod)), "{}: whose is {}?", self.story(), name(nic));
                }
                several => panic!("{}: {} is in the pods {several:?}", self.story(), name(nic)),
            }
        }
        holders
    }

    /// One lot: pods that have NICs already, then calls at once, then what holds whatever their order was.
    fn round(&self, dice: &mut Rng) {
        let mut before = BTreeSet::new();
        for nic in 0..NICS {
            if dice.bool() {
                before.insert(nic + NICS * dice.usize(..2));
            }
        }
        for pod in &before {
            self.call(Call { verb: "ADD", pod: *pod }).expect();
        }
        let verbs = ["ADD", "ADD", "DEL"];
        let calls: Vec<Call> =
            (0..CALLS).map(|_| Call { verb: verbs[dice.usize(..3)], pod: dice.usize(..PODS) }).collect();
        let answers = self.at_once(&calls);
        let holders = self.is_consistent();

        let of = |pod: usize, verb: &str| -> Vec<&Answer> {
            let same = |call: &Call| call.verb == verb && call.pod == pod;
            calls.iter().zip(&answers).filter(|(call, _)| same(call)).map(|(_, answer)| answer).collect()
        };
        let had = |pod: &usize| before.contains(pod) || of(*pod, "ADD").iter().any(|answer| answer.ok);
        for (call, answer) in calls.iter().zip(&answers).filter(|(_, answer)| !answer.ok) {
            let (code, text) = (answer.code(), answer.text());
            let why = format!("{}: {call:?} fails with code {code}: {text}", self.story());
            // A DEL can only have waited too long; an ADD is told whose the NIC is, or that somebody is at work on it.
            assert!(code == TRY_AGAIN || (call.verb == "ADD" && code == ALREADY_ATTACHED), "{why}");
            let owner = (0..PODS).find(|pod| text.contains(&format!("container {},", container(*pod))));
            assert!(owner.is_none_or(|owner| nic(owner) == nic(call.pod) && had(&owner)), "{why}");
            assert!(code == TRY_AGAIN || owner == Some(call.pod), "{why}");
        }
        for pod in 0..PODS {
            let (adds, dels) = (of(pod, "ADD"), of(pod, "DEL"));
            assert!(
                !holders.contains(&pod) || had(&pod),
                "{}: pod {pod} has a NIC that it was refused",
                self.story()
            );
            if dels.is_empty() {
                assert_eq!(
                    holders.contains(&pod),
                    had(&pod),
                    "{}: pod {pod} was told otherwise",
                    self.story()
                );
                let address = self.addresses().contains(&container(pod));
                assert_eq!(address, had(&pod), "{}: the address of pod {pod}", self.story());
                let given =
                    adds.iter().filter(|answer| answer.ok).count() + usize::from(before.contains(&pod));
                assert!(given <= 1, "{}: pod {pod} got its NIC {given} times", self.story());
            }
        }
        let all: Vec<Call> = (0..PODS).map(|pod| Call { verb: "DEL", pod }).collect();
        for answer in self.at_once(&all) {
            answer.expect();
        }
        assert_eq!(self.is_consistent(), BTreeSet::new(), "{}", self.story());
        assert_eq!(self.addresses(), BTreeSet::new(), "{}", self.story());
    }
}

#[test]
fn many_calls_at_once_in_any_order_lose_no_nic_and_give_none_away_twice() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("EHOST_SEED").unwrap_or_else(|| fastrand::u64(1..1_000_000));
    let crowd = Crowd::new(seed);
    let mut dice = Rng::with_seed(seed);
    // Fresh lots over the same NICs: each finds what the last one left.
    for _ in 0..number("EHOST_ROUNDS").unwrap_or(1) {
        crowd.round(&mut dice);
    }
}
