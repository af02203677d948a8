//! SIGKILL before and after each system call of ADD and DEL that changes something, then each of what may come next: all must be as it
//! was before.
//!
//! `docs/kill-points.md` is made by this test, see there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ledger::{Ledger, Node, Stage, Whereabouts};
use linux::Netns;
use linux::testing::trace::{self, Point, Side, Traced};
use serde_json::{Value, json};

use crate::bench::{Bench, path_of};
use crate::rich::Rich;

/// How many nodes are killed on at once: what is waited for is mostly the kernel, which tells of a carrier once a second.
const NODES: usize = 8;
/// An IPAM plugin that goes on may take this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What comes after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remedy {
    /// DEL of the container.
    Del,
    /// GC by a runtime that knows no container.
    Gc,
    /// ADD and DEL of another container.
    Next,
    /// What the agent does when it starts.
    Agent,
}

const SIDES: [Side; 2] = [Side::Before, Side::After];
const REMEDIES: [Remedy; 4] = [Remedy::Del, Remedy::Gc, Remedy::Next, Remedy::Agent];

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Remedy::Del => "DEL",
            Remedy::Gc => "GC",
            Remedy::Next => "next ADD",
            Remedy::Agent => "agent",
        })
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The NIC is home as it was; no lease is left, of it or of addresses.
    Whole,
    /// So it is after the DEL of the container that was killed; before, the ADD of another was refused since the NIC was in use.
    Refused,
    /// So it is after that DEL; before, the NIC was home as it was, and the lease was open.
    Home,
    /// So it is after that DEL; before, the NIC was in the pod, which lives.
    InPod,
    /// It is not.
    Amiss(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Whole => "whole",
            Outcome::Refused => "refused",
            Outcome::Home => "home",
            Outcome::InPod => "in the pod",
            Outcome::Amiss(_) => "AMISS",
        })
    }
}

/// A network, and the verb that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    verb: &'static str,
    ipam: bool,
}

const RUNS: [Run; 4] = [
    Run { verb: "ADD", ipam: true },
    Run { verb: "DEL", ipam: true },
    Run { verb: "ADD", ipam: false },
    Run { verb: "DEL", ipam: false },
];

struct Place {
    rich: Rich,
    other: Netns,
}

impl Place {
    fn new() -> Self {
        Place { rich: Rich::new(), other: Netns::create().unwrap() }
    }

    /// The network of a run, as a GC by a runtime that knows no container gets it, or another verb.
    fn config(&self, run: Run, verb: &str) -> Value {
        // host-local does not know 1.1.0 and is asked three times then.
        let version = if verb == "GC" { "1.1.0" } else { "1.0.0" };
        let mut config = self.rich.network(json!({"cniVersion": version, "cni.dev/valid-attachments": []}));
        if !run.ipam {
            config.as_object_mut().unwrap().remove("ipam");
        }
        config
    }

    fn bench(&self) -> &Bench {
        &self.rich.bench
    }

    /// A verb under the tracer, on a node that has never seen another, but for the ADD that a DEL needs.
    fn trace(&self, run: Run, kill: Option<(usize, Side)>) -> Traced {
        let config = self.config(run, run.verb);
        self.rich.forget();
        if run.verb == "DEL" {
            self.bench().run("ADD", &config).expect();
        }
        let mut command = self.bench().command(run.verb);
        self.bench().node.run(|| trace::run(&mut command, config.to_string().as_bytes(), kill)).unwrap()
    }

    /// Kills a run and lets the remedy follow.
    fn attempt(&self, run: Run, number: usize, side: Side, remedy: Remedy, points: &[Point]) -> Outcome {
        let killed = self.trace(run, Some((number, side)));
        assert_eq!(killed.code, None, "{run:?} {number}: {} {}", killed.stdout, killed.stderr);
        // Which of two addresses goes first is host-local's choice.
        let kind = |point: &Point| (point.child.clone(), point.what.split(' ').next().map(str::to_owned));
        let (here, then) = (kind(&killed.points[number]), kind(&points[number]));
        assert_eq!(here, then, "{run:?} {number}: the calls are not always the same: {:#?}", killed.points);
        let config = self.config(run, run.verb);
        let outcome = match remedy {
            Remedy::Del => self.del(&config).map(|()| Outcome::Whole),
            Remedy::Gc => self.answer("GC", "one", "", &self.config(run, "GC")).map(|()| Outcome::Whole),
            Remedy::Next => self.next(&config),
            Remedy::Agent => {
                self.agent();
                let away = self.bench().pod_link("net1").or(self.bench().pod_link("eth1")).is_some();
                let before = if away {
                    Outcome::InPod
                } else if self.rich.left().is_empty() {
                    Outcome::Whole
                } else {
                    Outcome::Home
                };
                match self.rich.changed() {
                    Some(amiss) if !away => Err(format!("after the agent: {amiss}")),
                    _ => self.del(&config).map(|()| before),
                }
            }
        };
        match outcome.and_then(|outcome| self.rich.amiss().map_or(Ok(outcome), Err)) {
            Ok(outcome) => outcome,
            Err(amiss) => {
                Outcome::Amiss(format!("{run:?} {number} {:?} {side:?}, {remedy:?}: {amiss}", points[number]))
            }
        }
    }

    fn answer(&self, verb: &str, container: &str, netns: &str, config: &Value) -> Result<(), String> {
        let answer = self.bench().run_for(verb, container, netns, config);
        if answer.ok { Ok(()) } else { Err(format!("{verb}: {} {}", answer.json, answer.stderr)) }
    }

    fn del(&self, config: &Value) -> Result<(), String> {
        self.answer("DEL", "one", &self.bench().pod_path().display().to_string(), config)
    }

    /// ADD and DEL of another container; where it is refused, the DEL of the one that was killed.
    fn next(&self, config: &Value) -> Result<Outcome, String> {
        let netns = path_of(&self.other).display().to_string();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let added = self.bench().run_for("ADD", "two", &netns, config);
            if added.ok {
                return self.answer("DEL", "two", &netns, config).map(|()| Outcome::Whole);
            }
            let text = added.text();
            if text.contains("in use by") {
                return self.del(config).map(|()| Outcome::Refused);
            }
            // The IPAM plugin of the one that was killed is at work still: a runtime tries again.
            if !text.starts_with("lock device") || Instant::now() > deadline {
                return Err(format!("ADD: {} {}", added.json, added.stderr));
            }
        }
    }

    /// What virtdp does with each lease when it starts, where it may.
    fn agent(&self) {
        let ledger = Ledger::at(self.bench().state());
        let work = || {
            let mut node = Node::here().unwrap();
            for lease in ledger.list().unwrap().leases {
                let entry = ledger.lock(&lease.device, PATIENCE).unwrap();
                let Some(lease) = entry.read().unwrap() else { continue };
                let on_node =
                    matches!(ledger::whereabouts(&mut node, &lease).unwrap(), Whereabouts::OnNode(_));
                if on_node && !matches!(lease.stage, Stage::Displaced { .. }) {
                    ledger::put_right(&mut node, &entry, &lease).unwrap();
                }
            }
        };
        self.bench().node.run(work).unwrap();
    }
}

/// A kill and what came next.
type Case = (Run, usize, Side, Remedy);

#[test]
fn whatever_call_an_add_or_del_is_killed_at_what_comes_next_makes_all_good() {
    let document = std::env::var_os("KILL_POINTS");
    let place = Place::new();
    let points = RUNS.map(|run| {
        let points = place.trace(run, None).points;
        if run.verb == "ADD" {
            place.del(&place.config(run, "DEL")).unwrap();
        }
        assert_eq!(place.rich.amiss(), None, "{run:?}");
        (run, points)
    });
    let mut cases = Vec::new();
    for (run, points) in &points {
        for (number, side) in (0..points.len()).flat_map(|number| SIDES.map(|side| (number, side))) {
            // All of them make the table; at other times they take turns.
            let turn = REMEDIES[(number + usize::from(side == Side::After)) % REMEDIES.len()];
            let remedies = REMEDIES.into_iter().filter(|remedy| document.is_some() || *remedy == turn);
            cases.extend(remedies.map(|remedy| (*run, number, side, remedy)));
        }
    }
    let outcomes = attempt_all(cases, &points.clone().into());
    if let Some(document) = document {
        std::fs::write(document, table(&points, &outcomes)).unwrap();
    }
    let amiss: Vec<_> = outcomes.values().filter(|outcome| matches!(outcome, Outcome::Amiss(_))).collect();
    assert!(amiss.is_empty(), "{} of {}: {amiss:#?}", amiss.len(), outcomes.len());
}

/// Several at once, each on a node of its own.
fn attempt_all(cases: Vec<Case>, points: &BTreeMap<Run, Vec<Point>>) -> BTreeMap<Case, Outcome> {
    let (cases, outcomes) = (Mutex::new(cases.into_iter()), Mutex::new(BTreeMap::new()));
    let next = || cases.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..NODES {
            scope.spawn(|| {
                let mut place = Place::new();
                while let Some(case @ (run, number, side, remedy)) = next() {
                    let outcome = place.attempt(run, number, side, remedy, &points[&run]);
                    if matches!(outcome, Outcome::Amiss(_)) {
                        place = Place::new();
                    }
                    outcomes.lock().unwrap().insert(case, outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

/// The document.
fn table(all: &[(Run, Vec<Point>)], outcomes: &BTreeMap<Case, Outcome>) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    // Without what a distribution adds.
    let mut text = HEAD.replace("KERNEL", release.trim().split('-').next().unwrap());
    let row = |text: &mut String, cells: &[String]| text.push_str(&format!("| {} |\n", cells.join(" | ")));
    let title = |run: &Run| format!("{}, {}", run.verb, if run.ipam { "host-local" } else { "no IPAM" });
    let kinds =
        [Outcome::Whole, Outcome::Refused, Outcome::Home, Outcome::InPod, Outcome::Amiss(String::new())];
    row(
        &mut text,
        &["killed", "calls", "then"]
            .map(str::to_owned)
            .into_iter()
            .chain(kinds.iter().map(Outcome::to_string))
            .collect::<Vec<_>>(),
    );
    text.push_str(&format!("|{}\n", "---|".repeat(3 + kinds.len())));
    for (run, points) in all {
        for remedy in REMEDIES {
            let mine = || outcomes.iter().filter(|((of, _, _, then), _)| of == run && *then == remedy);
            let count = |kind: &Outcome| {
                mine().filter(|(_, outcome)| outcome.to_string() == kind.to_string()).count()
            };
            let cells = [title(run), points.len().to_string(), remedy.to_string()];
            row(
                &mut text,
                &cells
                    .into_iter()
                    .chain(kinds.iter().map(|kind| count(kind).to_string()))
                    .collect::<Vec<_>>(),
            );
        }
    }
    for (run, points) in all {
        text.push_str(&format!("\n## {}\n\n| | by | call |", title(run)));
        text.push_str(&format!(
            " {} |\n|{}\n",
            REMEDIES.map(|remedy| remedy.to_string()).join(" | "),
            "---|".repeat(3 + REMEDIES.len())
        ));
        for (number, point) in points.iter().enumerate() {
            let cell = |remedy| {
                let [before, after] = SIDES.map(|side| outcomes[&(*run, number, side, remedy)].to_string());
                if before == after { before } else { format!("{before}; {after}") }
            };
            let by = point.child.clone().unwrap_or_else(|| "ehost-device".to_owned());
            let cells = [(number + 1).to_string(), by, format!("`{}`", point.what)];
            row(&mut text, &cells.into_iter().chain(REMEDIES.map(cell)).collect::<Vec<_>>());
        }
    }
    text
}

const HEAD: &str = "\
# Killed at any call

`ehost-device` is stopped by ptrace(2) before and after each system call of ADD and DEL that changes something: every call is one unless it is known
to change nothing that outlives the process. At each of these places it is killed (SIGKILL), once before and once after the call; programs that it started go on. Then
comes one of

* a DEL of that container;
* a GC by a runtime that knows no container;
* an ADD of another container, and its DEL;
* the start of an agent that may bring NICs home.

Afterwards `ip -d -j link`, `addr` and `route` must show the same as before the ADD, byte for byte, on the node and in the pod, and there must be no lease, of the NIC or of an
address. The NIC is a port of a bridge with addresses, routes and alternative names of its own. What this file says was measured on Linux KERNEL; this
command makes it anew:

    KILL_POINTS=$PWD/docs/kill-points.md cargo test -p ehost-device --test plugin kill

The ordinary test run kills at the same places and takes what comes next in turns. `tests/system/tests/kill.rs` kills on real virtio NICs after some of these calls (`KILL_ALL=1`: after each), with a reboot
before what comes next and without, and takes that in turns, too.

* **whole**: so it was.
* **refused**: the ADD was complete, so that the NIC is in use and another pod does not get it. One DEL of its owner, and all was whole.
* **home**: the NIC was home as it was; the lease stays for its owner's DEL, or a GC, since its addresses are known by it. After that DEL all was whole.
* **in the pod**: an agent takes no NIC from a network namespace that lives. After the DEL of the owner all was whole.
* **AMISS**: none of these.

Where two words stand, the first is for the kill before the call.

";
