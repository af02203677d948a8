//! How a node ends: in order, by force, and what the next one makes of that.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use virtsim::api::json::Json;
use virtsim::control::{Connection, Request, Status};

use crate::bench::{Bench, PATIENCE, PROGRAM, sleeper};

#[test]
fn a_shutdown_leaves_nothing() {
    let mut bench = Bench::start();
    let _plugin = bench.plugin("p.sock", &["nic-a"]);
    bench.create("a", sleeper(1));
    let mut host = sleeper(0);
    host["hostNetwork"] = json!(true);
    bench.create("b", host);
    for name in ["a", "b"] {
        bench.until_phase(name, "Running");
    }
    bench.down().unwrap();
    assert_eq!(bench.left(), [""; 0]);
    for gone in ["run/control.sock", "run/kubeconfig", "kubelet/device-plugins/kubelet.sock"] {
        assert!(!bench.folder.path().join(gone).exists(), "{gone} stays");
    }
    // And the next one begins with nothing.
    bench.up();
    assert!(bench.client().get("/api/v1/pods").unwrap().items("/items").is_empty());
}

#[test]
fn a_shutdown_that_cannot_take_a_network_back_says_so_and_the_next_start_does_it() {
    let mut bench = Bench::start();
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    bench.break_cni("DEL", "not yet");
    let said = bench.down().unwrap_err();
    assert!(said.contains("default/a") && said.contains("failed (delete): not yet"), "{said}");
    assert_eq!(bench.left().len(), 3, "{:?}", bench.left());
    bench.mend("DEL");
    bench.up();
    assert_eq!(bench.left(), [""; 0]);
}

#[test]
fn there_is_one_node_in_a_folder() {
    let bench = Bench::start();
    let said = bench.second();
    assert!(said.contains("another virtsim runs in"), "{said}");
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
}

/// Waits until so many processes sleep for so long.
fn until_sleeping(seconds: &str, count: usize) {
    let sleeps = |entry: &std::fs::DirEntry| {
        let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        command == format!("sleep\0{seconds}\0")
    };
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_dir("/proc").unwrap().flatten().filter(sleeps).count() != count {
        assert!(Instant::now() < deadline, "not {count} processes sleep for {seconds} s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `virtsim` in the foreground, ended with the test.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Foreground {
    fn start(bench: &Bench) -> Self {
        let at = |name: &str| bench.folder.path().join(name).display().to_string();
        let child = Command::new(PROGRAM)
            .args(["up", "--foreground", "--dir", &at("run"), "--node-name", "node1"])
            .args(["--kubelet-dir", &at("kubelet"), "--cni-conf-dir", &at("conf")])
            .args(["--cni-bin-dir", &at("bin"), "--cni-cache-dir", &at("cache")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let node = Foreground(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = Connection::open(&bench.run_dir(), &Request::Status);
            if asked.and_then(Connection::answer::<Status>).is_ok_and(|status| status.pid == node.0.id()) {
                return node;
            }
            assert!(Instant::now() < deadline, "it does not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end; gives what it said.
    fn ended(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

#[test]
fn a_killed_node_takes_its_processes_along_and_the_next_one_undoes_the_rest() {
    let bench = Bench::prepare();
    let node = Foreground::start(&bench);
    let mut spec = sleeper(0);
    // Nobody else sleeps for so long.
    let seconds = format!("98765.{}", std::process::id());
    spec["containers"][0]["command"] = json!(["sleep", seconds]);
    bench.create("a", spec);
    bench.until_phase("a", "Running");
    until_sleeping(&seconds, 1);
    drop(node);
    until_sleeping(&seconds, 0);
    let attached = bench.left();
    assert!(attached.iter().any(|name| name.starts_with("attached.")), "{attached:?}");
    assert_eq!(bench.calls("DEL"), 0);

    let node = Foreground::start(&bench);
    assert_eq!(bench.calls("DEL"), 1);
    assert_eq!(bench.left(), [""; 0]);
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    // SIGTERM ends it in order.
    let pid = i32::try_from(node.0.id()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let (code, said) = node.ended();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(bench.left(), [""; 0]);
    assert!(!bench.run_dir().join("kubeconfig").exists());
}

#[test]
fn down_tells_what_it_could_not_take_back_and_the_node_ends_all_the_same() {
    let bench = Bench::prepare();
    let node = Foreground::start(&bench);
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    bench.break_cni("DEL", "not yet");
    let dir = bench.run_dir();
    let output = Command::new(PROGRAM).arg("--dir").arg(dir).arg("down").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("default/a") && said.contains("not yet"), "{said}");
    assert_eq!(node.ended().0, Some(1));
}
