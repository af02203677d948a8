//! What the agent costs on a node with many NICs: generated sysfs trees, real links, a kubelet on real sockets. `cargo xtask bench` runs it,
//! in namespaces of its own; the program that is measured is named by VIRTDP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code)]

#[path = "../tests/agent/kubelet.rs"]
mod kubelet;
#[path = "../tests/agent/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use self::kubelet::{Kubelet, Plugin};
use self::stage::{Agent, Stage};

/// NICs on a large node, and in a tree that no node has.
const MANY: u32 = 200;
const VERY_MANY: u32 = 10_000;
/// How often each thing is done.
const LOOKS: usize = 9;
const ALLOCATIONS: usize = 5_000;
/// How long the agent is watched while nothing happens.
const QUIET: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let quiet = if quick { Duration::from_secs(5) } else { QUIET };

    let stage = node(MANY);
    let (looks, _) = looks(&stage);
    tell(&format!("{MANY} NICs in a generated sysfs, discovered"), &milliseconds(median(looks)));
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut agent = start(&stage);
    let mut plugin = kubelet.plugin().await;
    while plugin.list().await.unwrap().len() < usize::try_from(MANY).unwrap() {}
    tell(&format!("{MANY} NICs, resident"), &kilobytes(&agent));
    let mut allocations = allocate(&mut plugin).await;
    allocations.sort();
    tell("Allocate at the socket, median", &milliseconds(allocations[allocations.len() / 2]));
    tell("Allocate at the socket, 99th percentile", &milliseconds(allocations[allocations.len() * 99 / 100]));
    tell(&format!("{MANY} NICs, resident after {ALLOCATIONS} Allocates"), &kilobytes(&agent));
    let before = Usage::of(&agent);
    std::thread::sleep(quiet);
    let (cpu, wakeups) = Usage::of(&agent).since(&before);
    tell(
        &format!("CPU in {} s without any event", quiet.as_secs()),
        &format!("{}, {wakeups} wake-ups", milliseconds(cpu)),
    );
    let begun = Instant::now();
    assert_eq!(agent.terminate(), Some(0));
    tell("SIGTERM until the agent has ended", &milliseconds(begun.elapsed()));
    drop((plugin, stage));

    let stage = node(VERY_MANY);
    let (looks, agent) = self::looks(&stage);
    tell(&format!("{VERY_MANY} NICs in a generated sysfs, discovered"), &milliseconds(median(looks)));
    tell("the same, bare system calls of one thread", &milliseconds(median(bare_calls(&stage))));
    tell(&format!("{VERY_MANY} NICs, resident"), &kilobytes(&agent));
}

fn tell(what: &str, figure: &str) {
    println!("{what:58} {figure:>12}");
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A node with an uplink and `count` spare NICs, each with a real link, in slots and functions of as many PCI domains as that takes.
fn node(count: u32) -> Stage {
    let stage = Stage::new();
    let kind =
        ["dummy", "ifb"].into_iter().find(|kind| batch(&stage, &format!("link add nic0 type {kind}\n")));
    let kind = kind.expect("the kernel has neither dummy nor ifb links");
    let links: String = (1..count).map(|number| format!("link add nic{number} type {kind}\n")).collect();
    assert!(batch(&stage, &links));
    let links = stage.netns.route_socket().unwrap().links().unwrap();
    let indexes: BTreeMap<&str, u32> = links.iter().map(|link| (link.name.as_str(), link.index)).collect();
    for number in 0..count {
        let (domain, bus, device, function) =
            (number >> 16, (number >> 8) & 0xff, (number >> 3) & 0x1f, number & 7);
        // Bus 0 of domain 0 has the uplink.
        let domain = domain + 1;
        let position = format!("pci{domain:04x}:{bus:02x}/{domain:04x}:{bus:02x}:{device:02x}.{function}");
        let virtio = stage.tree.virtio_nic(&position, &format!("virtio{number}"));
        let name = format!("nic{number}");
        stage.tree.interface(Some(&virtio), &name, indexes[name.as_str()]);
    }
    stage
}

/// Whether `ip` could do all of it.
fn batch(stage: &Stage, commands: &str) -> bool {
    let run = || {
        let mut ip = Command::new("ip");
        let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        ip.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        ip.wait().unwrap().success()
    };
    stage.netns.run(run).unwrap()
}

fn start(stage: &Stage) -> Agent {
    let mut command = stage.command();
    if let Ok(program) = std::env::var("VIRTDP") {
        command[0] = program;
    }
    command.retain(|word| word != "-v=10");
    stage.start_as(&command)
}

/// How long the agent's first look took, each time anew; and the last agent.
fn looks(stage: &Stage) -> (Vec<Duration>, Agent) {
    let mut times = Vec::new();
    loop {
        let agent = start(stage);
        let line = agent.says(&["looked at all interfaces of the node"]);
        let figure = line.split("milliseconds=\"").nth(1).unwrap().split('"').next().unwrap();
        times.push(Duration::from_secs_f64(figure.parse::<f64>().unwrap() / 1e3));
        if times.len() == LOOKS {
            return (times, agent);
        }
    }
}

/// What no look can do without, again and again: the folders are listed, the links and files of each NIC read. Their paths are known before.
fn bare_calls(stage: &Stage) -> Vec<Duration> {
    let root = stage.tree.path();
    let folders = ["bus/pci/devices", "bus/virtio/devices", "class/net"].map(|folder| root.join(folder));
    let (mut links, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&folders[1]).unwrap() {
        let link = entry.unwrap().path();
        let device = link.canonicalize().unwrap();
        let function = device.parent().unwrap();
        links.extend([link, device.join("driver"), function.join("physfn")]);
        files.extend(["modalias", "acpi_index", "numa_node"].map(|name| function.join(name)));
    }
    for entry in fs::read_dir(&folders[2]).unwrap() {
        let link = entry.unwrap().path();
        files.push(link.canonicalize().unwrap().join("ifindex"));
        links.push(link);
    }
    let once = || {
        let begun = Instant::now();
        let listed: usize = folders.iter().map(|folder| fs::read_dir(folder).unwrap().count()).sum();
        let there = links.iter().filter(|link| fs::read_link(link).is_ok()).count();
        // Those that only some devices have are looked for all the same.
        let read = files
            .iter()
            .filter(|file| fs::File::open(file).is_ok_and(|mut file| file.read(&mut [0; 64]).is_ok()));
        assert!(listed > 0 && there > 0 && read.count() > 0);
        begun.elapsed()
    };
    (0..LOOKS).map(|_| once()).collect()
}

async fn allocate(plugin: &mut Plugin) -> Vec<Duration> {
    let mut times = Vec::new();
    for number in 0..u32::try_from(ALLOCATIONS).unwrap() {
        let number = number % MANY;
        let id = format!("0001:{:02x}:{:02x}.{}", (number >> 8) & 0xff, (number >> 3) & 0x1f, number & 7);
        let begun = Instant::now();
        plugin.allocate(&[&[&id]]).await.unwrap();
        times.push(begun.elapsed());
    }
    times
}

fn kilobytes(agent: &Agent) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().to_owned()
}

/// What each thread of a process has used so far.
struct Usage(BTreeMap<std::ffi::OsString, (Duration, u64)>);

impl Usage {
    fn of(agent: &Agent) -> Usage {
        let tasks = fs::read_dir(format!("/proc/{}/task", agent.id())).unwrap();
        let used = |task: std::fs::DirEntry| {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let nanoseconds = read("schedstat").split(' ').next().and_then(|word| word.parse().ok());
            let status = read("status");
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let wakeups = switches.and_then(|count| count.trim().parse().ok());
            (task.file_name(), (Duration::from_nanos(nanoseconds.unwrap_or(0)), wakeups.unwrap_or(0)))
        };
        Usage(tasks.map(|task| used(task.unwrap())).collect())
    }

    /// CPU and wake-ups since then. What a thread did that has ended meanwhile is not in it: it ends because there is nothing to do.
    fn since(&self, before: &Usage) -> (Duration, u64) {
        let grown = self.0.iter().map(|(task, now)| {
            let then = before.0.get(task).copied().unwrap_or_default();
            (now.0 - then.0, now.1 - then.1)
        });
        grown.fold((Duration::ZERO, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}
