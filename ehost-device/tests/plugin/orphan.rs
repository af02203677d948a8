//! A DEL or GC that comes while an IPAM plugin is at work on an address: for an ADD that lives, or for one that was killed.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::Bench;

/// How long what must happen may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node with an IPAM plugin whose ADD notes its process ID in `ipam.pid` and gives an address once somebody writes to the pipe `go`.
/// The file `address` is there for as long as it is given out.
struct Slow {
    bench: Bench,
    config: Value,
}

impl Slow {
    /// `first` is what the plugin's ADD does before all else.
    fn new(first: &str, keys: Value) -> Self {
        let bench = Bench::new();
        let folder = bench.folder.path().display().to_string();
        bench.ipam(
            "slow",
            &format!(
                r#"cd {folder}
                case $CNI_COMMAND in
                  ADD) {first}
                       echo $$ >ipam.new; mv ipam.new ipam.pid
                       read go <go; echo one >address
                       echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.56.217.2/24"}}]}}' ;;
                  DEL) rm -f address ;;
                esac"#
            ),
        );
        rustix::fs::mknodat(
            rustix::fs::CWD,
            bench.folder.path().join("go"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let mut config = bench.config(keys);
        config["ipam"] = json!({"type": "slow"});
        Slow { bench, config }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bench.folder.path().join(name)
    }

    /// The plugin, once it is at work.
    fn at_work(&self) -> PathBuf {
        let pid = self.file("ipam.pid");
        until("the IPAM plugin is at work", || pid.exists());
        Path::new("/proc").join(std::fs::read_to_string(pid).unwrap().trim())
    }

    /// Lets the plugin go on when `program`, a DEL or GC, waits for the device's lock, or has done all without it.
    fn go_on_before(&self, program: &mut Child) {
        until("the lock is waited for", || self.opened(program) || program.try_wait().unwrap().is_some());
        std::fs::write(self.file("go"), "go\n").unwrap();
    }

    /// Whether a program has the file of the NIC's lock open.
    fn opened(&self, program: &Child) -> bool {
        let lock = self.bench.state().join("locks/link:eth1");
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.id()));
        let mut files = descriptors.into_iter().flatten().flatten();
        files.any(|file| file.path().read_link().is_ok_and(|file| file == lock))
    }

    fn assert_whole(&self, before: &Value) {
        self.bench.assert_untouched(before);
        assert!(!self.file("address").exists(), "the address is given out still");
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A GC that knows no container.
fn gc(config: &Value) -> Value {
    let mut config = config.clone();
    config["cni.dev/valid-attachments"] = json!([]);
    config
}

#[test]
fn a_del_during_an_add_gives_back_the_address_that_the_add_gets() {
    for verb in ["DEL", "GC"] {
        let slow = Slow::new("", json!({}));
        let before = slow.bench.portrait();
        let add = slow.bench.start("ADD", &slow.config);
        slow.at_work();
        let mut end = slow.bench.start(verb, &gc(&slow.config));
        slow.go_on_before(&mut end);
        Bench::hear(add).expect();
        Bench::hear(end).expect();
        slow.assert_whole(&before);
    }
}

/// An ADD takes the NIC's lock before it writes the lease.
#[test]
fn a_del_during_an_add_that_has_no_lease_yet_waits_all_the_same() {
    let slow = Slow::new("", json!({}));
    let before = slow.bench.portrait();
    let locks = slow.bench.state().join("locks");
    std::fs::create_dir_all(&locks).unwrap();
    let add = linux::files::Lock::acquire(&locks.join("link:eth1"), PATIENCE).unwrap();
    let mut end = slow.bench.start("DEL", &slow.config);
    std::fs::write(slow.file("address"), "one").unwrap();
    until("the lock is waited for", || slow.opened(&end));
    assert!(end.try_wait().unwrap().is_none() && slow.file("address").exists(), "it did not wait");
    drop(add);
    Bench::hear(end).expect();
    slow.assert_whole(&before);
}

#[test]
fn a_del_after_a_killed_add_waits_for_the_ipam_plugin_that_goes_on() {
    for verb in ["DEL", "GC"] {
        let slow = Slow::new("kill -9 $PPID", json!({}));
        let before = slow.bench.portrait();
        assert!(!slow.bench.run("ADD", &slow.config).ok);
        slow.at_work();
        let mut end = slow.bench.start(verb, &gc(&slow.config));
        slow.go_on_before(&mut end);
        Bench::hear(end).expect();
        slow.assert_whole(&before);
    }
}

#[test]
fn an_ipam_plugin_that_hangs_after_its_add_was_killed_is_ended_by_the_del() {
    let slow = Slow::new("kill -9 $PPID", json!({"ipamTimeout": 5}));
    let before = slow.bench.portrait();
    assert!(!slow.bench.run("ADD", &slow.config).ok);
    let plugin = slow.at_work();
    let said = slow.bench.run("DEL", &slow.config).expect().stderr;
    assert!(said.contains("ended 1 programs"), "{said}");
    // It may be waiting for whoever has to reap it.
    let state = std::fs::read_to_string(plugin.join("stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    slow.assert_whole(&before);
}
