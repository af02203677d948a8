//! What an ADD and a DEL cost, each a process of its own as a runtime starts it: ours, containernetworking's host-device, and the bare
//! kernel operations (`bare.rs` beside this), in turn on one NIC. `cargo xtask bench cni` builds and runs it, in namespaces of its
//! own and in a VM, and makes sense of its lines: `<what> <microseconds> <bytes of resident memory at most>`, where
//! `<what>:processor` is the time that processors worked for the call.
//!
//! Arguments are `key=value`: `programs` (a folder with `ehost-device`, `bare`, `host-local`, `host-device`, and `host-device-beside` where a
//! second is to be measured), `state` (a folder on the disk that leases are to be written to), `rounds`, and
//! `nic`, without which a veth pair is made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use linux::Netns;
use linux::route::{LinkChange, Socket};
use nic::IfName;
use wait4::{ResourceUsage, Wait4 as _};

/// Between two calls: what the kernel still does for the last one (it ends network namespaces in the background) is not the next one's.
const PAUSE: Duration = Duration::from_millis(60);
/// The pause grows by up to so much, a little of everything in turn. The kernel's waits end with a tick of its clock (4 ms, or up to 10): if all calls of
/// a program began at the same place between two, it would always wait long or always short.
const SPREAD: Duration = Duration::from_millis(20);
const POD_NAME: &str = "net1";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let keys: BTreeMap<&str, &str> = words.iter().filter_map(|word| word.split_once('=')).collect();
    let bench = Bench::new(&keys);
    let rounds: usize = keys["rounds"].parse().unwrap();
    let mut trips = bench.trips();
    for _ in 0..rounds {
        for trip in &trips {
            bench.walk(trip);
        }
        // Nobody always comes after the same one.
        trips.rotate_left(1);
    }
}

struct Bench {
    nic: IfName,
    pod: Netns,
    pod_path: PathBuf,
    programs: PathBuf,
    folder: PathBuf,
    /// How many calls there were.
    calls: Cell<u32>,
}

/// Programs that are run one after the other.
struct Trip {
    calls: Vec<(String, Call)>,
}

struct Call {
    program: PathBuf,
    arguments: Vec<String>,
    verb: &'static str,
    stdin: PathBuf,
}

impl Bench {
    fn new(keys: &BTreeMap<&str, &str>) -> Self {
        let folder = PathBuf::from(keys["state"]);
        let nic = keys.get("nic").copied().unwrap_or("spare0");
        if !keys.contains_key("nic") {
            // The other end has carrier, as a NIC with its cable has.
            ip(&format!("link add {nic} type veth peer name wire"));
            ip("link set wire up");
        }
        let pod = Netns::create().unwrap();
        let pod_path = folder.join("pod");
        pod.pin(&pod_path).unwrap();
        Bench {
            nic: nic.parse().unwrap(),
            pod,
            pod_path,
            programs: keys["programs"].into(),
            folder,
            calls: Cell::new(0),
        }
    }

    fn trips(&self) -> Vec<Trip> {
        let ipam = format!(
            r#""ipam": {{"type": "host-local", "subnet": "10.56.217.0/24", "dataDir": "{}"}}"#,
            self.folder.join("addresses").display()
        );
        let state = format!(r#""stateDir": "{}""#, self.folder.join("state").display());
        let attach = |what: &str, program: &Path, keys: &str| {
            let stdin = self.write(what, keys);
            let call = |verb| Call { program: program.into(), arguments: vec![], verb, stdin: stdin.clone() };
            Trip { calls: ["ADD", "DEL"].map(|verb| (format!("{what}:{verb}"), call(verb))).into() }
        };
        let mut trips = vec![self.bare(&self.programs.join("bare"))];
        trips.push(attach(
            "host-local",
            &self.programs.join("host-local"),
            &format!(r#""type": "host-local", {ipam}"#),
        ));
        for name in ["ehost-device", "host-device", "host-device-beside"] {
            let program = self.programs.join(name);
            if !program.exists() {
                continue;
            }
            let keys = format!(r#""type": "{name}", "device": "{}", {state}"#, self.nic);
            trips.push(attach(name, &program, &keys));
            trips.push(attach(&format!("{name}+host-local"), &program, &format!("{keys}, {ipam}")));
            let stdin = self.write("version", "");
            let version = Call { program, arguments: vec![], verb: "VERSION", stdin };
            trips.push(Trip { calls: vec![(format!("{name}:VERSION"), version)] });
        }
        trips
    }

    fn bare(&self, program: &Path) -> Trip {
        let call = |way: &str, verb| {
            let (nic, pod) = (self.nic.to_string(), self.pod_path.display().to_string());
            let arguments = vec![way.to_owned(), nic, pod, POD_NAME.to_owned()];
            (
                format!("bare:{verb}"),
                Call { program: program.into(), arguments, verb, stdin: "/dev/null".into() },
            )
        };
        Trip { calls: vec![call("out", "ADD"), call("home", "DEL")] }
    }

    /// A network configuration with these keys.
    fn write(&self, name: &str, keys: &str) -> PathBuf {
        let path = self.folder.join(format!("{name}.json"));
        let separator = if keys.is_empty() { "" } else { ", " };
        fs::write(&path, format!(r#"{{"cniVersion": "1.0.0", "name": "bench"{separator}{keys}}}"#)).unwrap();
        path
    }

    /// Makes the calls of a trip and tells what they took.
    fn walk(&self, trip: &Trip) {
        // As host-device leaves it, down and with an alias, is not how the next one should find it.
        let mut node = Socket::open().unwrap();
        let index = node.link_by_name(self.nic.as_str()).unwrap().expect("the NIC is at home").index;
        let fresh = LinkChange { up: Some(true), alias: Some(""), ..LinkChange::default() };
        node.change_link(index, &fresh).unwrap();
        for (what, call) in &trip.calls {
            std::thread::sleep(self.pause());
            let (took, usage) = self.run(what, call);
            println!("{what} {} {}", took.as_micros(), usage.maxrss);
            println!("{what}:processor {} {}", (usage.utime + usage.stime).as_micros(), usage.maxrss);
            if call.verb != "VERSION" && !what.starts_with("host-local:") {
                let there = self.pod.route_socket().unwrap().link_by_name(POD_NAME).unwrap();
                assert_eq!(there.is_some(), call.verb == "ADD", "{what} did not do its work");
            }
        }
    }

    /// Multiples of the golden ratio fill the spread evenly, also for every tenth call.
    fn pause(&self) -> Duration {
        self.calls.set(self.calls.get() + 1);
        PAUSE + SPREAD.mul_f64((f64::from(self.calls.get()) * 0.618_033_988_75).fract())
    }

    /// From before the process is started until it has ended, and what it used.
    fn run(&self, what: &str, call: &Call) -> (Duration, ResourceUsage) {
        let said = self.folder.join("said");
        let output = File::create(&said).unwrap();
        let mut command = Command::new(&call.program);
        command.args(&call.arguments).env_clear();
        command.env("CNI_COMMAND", call.verb).env("CNI_CONTAINERID", "bench").env("CNI_IFNAME", POD_NAME);
        command.env("CNI_NETNS", &self.pod_path).env("CNI_PATH", &self.programs);
        command.stdin(File::open(&call.stdin).unwrap());
        command.stdout(output.try_clone().unwrap()).stderr(Stdio::from(output));
        let begin = Instant::now();
        let ended = command.spawn().unwrap().wait4().unwrap();
        let took = begin.elapsed();
        assert!(ended.status.success(), "{what}: {}", fs::read_to_string(&said).unwrap());
        (took, ended.rusage)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        Netns::unpin(&self.pod_path).unwrap();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}
