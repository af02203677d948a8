//! CNI plugins that fail.

use std::time::{Duration, Instant};

use serde_json::Value;
use virtsim::api::json::Json;

use crate::bench::{Bench, PATIENCE, sleeper};

#[test]
fn a_failed_add_is_told_in_the_kubelets_words_undone_and_tried_again() {
    let bench = Bench::start();
    let _plugin = bench.plugin("p.sock", &["nic-a"]);
    bench.break_cni("ADD", "no address left");
    bench.create("a", sleeper(1));
    let said = bench.until_event(|reason, _| reason == "FailedCreatePodSandBox");
    let (begin, rest) = said.split_once("sandbox \"").unwrap();
    assert_eq!(
        begin,
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for "
    );
    let (id, words) = rest.split_once('"').unwrap();
    assert_eq!(id.len(), 64, "{said}");
    assert_eq!(words, ": plugin type=\"noted\" failed (add): no address left");
    let pod = bench.pod("a");
    assert_eq!(pod.text("/status/phase"), "Pending");
    assert_eq!(pod.text("/status/containerStatuses/0/state/waiting/reason"), "ContainerCreating");
    // Each failed ADD is followed by a DEL and leaves no namespace.
    let deadline = Instant::now() + PATIENCE;
    while bench.calls("ADD") < 2 {
        assert!(Instant::now() < deadline, "it is not tried again");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(bench.calls("DEL") >= 1);
    bench.mend("ADD");
    bench.until_phase("a", "Running");
    assert_eq!(bench.left().len(), 3, "one attachment, one namespace, one record: {:?}", bench.left());
    bench.delete("a");
    bench.until_gone("a");
    assert_eq!(bench.left(), [""; 0]);
}

#[test]
fn a_pod_whose_add_fails_can_be_deleted_and_gives_its_device_back() {
    let bench = Bench::start();
    let _plugin = bench.plugin("p.sock", &["nic-a"]);
    bench.break_cni("ADD", "no");
    bench.create("a", sleeper(1));
    bench.until_event(|reason, _| reason == "FailedCreatePodSandBox");
    bench.delete("a");
    bench.until_gone("a");
    assert_eq!(bench.left(), [""; 0]);
    bench.mend("ADD");
    bench.create("b", sleeper(1));
    bench.until_phase("b", "Running");
}

#[test]
fn a_failed_del_keeps_pod_and_device_until_it_succeeds() {
    let bench = Bench::start();
    let _plugin = bench.plugin("p.sock", &["nic-a"]);
    bench.create("a", sleeper(1));
    let uid = bench.until_phase("a", "Running").uid().to_owned();
    bench.break_cni("DEL", "the bridge is gone");
    bench.delete("a");
    let said = bench.until_event(|reason, _| reason == "FailedKillPod");
    assert!(
        said.starts_with(&format!(
            "error killing pod: failed to \"KillPodSandbox\" for \"{uid}\" with KillPodSandboxError: \
             \"rpc error: code = Unknown desc = failed to destroy network for sandbox"
        )) && said.contains("plugin type=\"noted\" failed (delete): the bridge is gone"),
        "{said}"
    );
    let pod = bench.pod("a");
    assert!(pod.is_terminating());
    assert!(pod.pointer("/status/containerStatuses/0/state/terminated").is_some(), "{pod:#}");
    bench.create("b", sleeper(1));
    bench.until_event(|reason, _| reason == "FailedScheduling");
    bench.mend("DEL");
    bench.until_gone("a");
    bench.until_phase("b", "Running");
}

#[test]
fn plugins_get_what_containerd_gives_them() {
    let bench = Bench::start();
    bench.create("a", sleeper(0));
    let uid = bench.until_phase("a", "Running").uid().to_owned();
    let calls = std::fs::read_to_string(bench.folder.path().join("cni/calls")).unwrap();
    let add = calls.lines().find(|line| line.starts_with("ADD ")).unwrap();
    let netns = bench.folder.path().join("netns/cni-");
    assert!(add.starts_with(&format!("ADD {}", netns.display())), "{add}");
    for argument in
        ["IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=a", &format!("K8S_POD_UID={uid}")]
    {
        assert!(add.contains(argument), "{argument} is not in {add}");
    }
    let stdin = std::fs::read(bench.folder.path().join("cni/stdin.ADD")).unwrap();
    let stdin: Value = serde_json::from_slice(&stdin).unwrap();
    assert_eq!(stdin.text("/name"), "cluster");
    assert!(stdin.pointer("/runtimeConfig/io.kubernetes.cri.pod-annotations").is_some(), "{stdin:#}");
}
