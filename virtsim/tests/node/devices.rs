//! Devices: who gets them, who waits, and why.

use serde_json::json;
use virtsim::api::json::Json;
use virtsim::control::{Request, Status};

use crate::bench::{Bench, sleeper};

#[test]
fn a_third_pod_waits_for_one_of_two_devices_and_says_so() {
    let bench = Bench::start();
    let _plugin = bench.plugin("p.sock", &["nic-a", "nic-b"]);
    let mut given = Vec::new();
    for name in ["one", "two"] {
        bench.create(name, sleeper(1));
        bench.until_phase(name, "Running");
        let (_, nic) = bench.exec(name, "echo $NIC");
        given.push(nic.trim().to_owned());
    }
    given.sort();
    assert_eq!(given, ["nic-a", "nic-b"]);

    bench.create("three", sleeper(1));
    let path = "/api/v1/namespaces/default/pods/three";
    let pod = bench.until(path, |pod| !pod.items("/status/conditions").is_empty());
    let why = "0/1 nodes are available: 1 Insufficient example.com/nic. \
               preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let condition = &pod["status"]["conditions"][0];
    assert_eq!((condition.text("/type"), condition.text("/status")), ("PodScheduled", "False"));
    assert_eq!((condition.text("/reason"), condition.text("/message")), ("Unschedulable", why));
    assert_eq!(pod.text("/status/phase"), "Pending");
    bench.until_event(|reason, message| reason == "FailedScheduling" && message == why);

    let (_, freed) = bench.exec("one", "echo $NIC");
    bench.delete("one");
    bench.until_phase("three", "Running");
    assert_eq!(bench.exec("three", "echo $NIC").1, freed);
}

#[test]
fn a_resource_that_nobody_offers_is_waited_for() {
    let bench = Bench::start();
    bench.create("a", sleeper(1));
    bench.until_event(|reason, message| {
        reason == "FailedScheduling" && message.contains("1 Insufficient example.com/nic.")
    });
    let _plugin = bench.plugin("p.sock", &["nic-a"]);
    bench.until_phase("a", "Running");
}

#[test]
fn an_init_containers_device_is_used_again() {
    let bench = Bench::start();
    let plugin = bench.plugin("p.sock", &["nic-a", "nic-b"]);
    let mut spec = sleeper(1);
    let file = bench.folder.path().join("first");
    let mut init = spec["containers"][0].clone();
    init["name"] = json!("init");
    init["command"] = json!(["sh", "-c", format!("echo $NIC > {}", file.display())]);
    spec["initContainers"] = json!([init]);
    bench.create("a", spec);
    bench.until_phase("a", "Running");
    let (_, second) = bench.exec("a", "echo $NIC");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), second);
    let calls = plugin.allocated.lock().unwrap().clone();
    assert_eq!(calls, [[second.trim()], [second.trim()]]);
    // So there is one left for another pod.
    bench.create("b", sleeper(1));
    bench.until_phase("b", "Running");
}

#[test]
fn a_device_that_cannot_be_allocated_fails_the_pod_and_is_free_again() {
    let bench = Bench::start();
    let _plugin = bench.plugin("p.sock", &["broken"]);
    for name in ["a", "b"] {
        bench.create(name, sleeper(1));
        let pod = bench.until_phase(name, "Failed");
        assert_eq!(pod.text("/status/reason"), "UnexpectedAdmissionError");
        let message = pod.text("/status/message");
        assert!(message.starts_with("Pod was rejected: Allocate failed due to "), "{message}");
        assert!(message.contains("the device is broken"), "{message}");
    }
    bench.until_event(|reason, message| {
        reason == "UnexpectedAdmissionError" && message.ends_with(", which is unexpected")
    });
    assert_eq!(bench.calls("ADD"), 0);
}

#[test]
fn pods_outlive_a_restart_of_the_kubelet_and_keep_their_devices() {
    let bench = Bench::start();
    let plugin = bench.plugin("p.sock", &["nic-a", "nic-b"]);
    bench.create("one", sleeper(1));
    bench.until_phase("one", "Running");
    let (_, before) = bench.exec("one", "echo $NIC; readlink /proc/self/ns/net");
    bench.ask::<()>(&Request::RestartKubelet);
    drop(plugin);
    bench.wait_for_offer("0");
    let status: Status = bench.ask(&Request::Status);
    assert!(status.ready && status.kubelet_running && status.pods == 1, "{status:?}");
    assert_eq!(bench.exec("one", "echo $NIC; readlink /proc/self/ns/net").1, before);

    // Whoever comes meanwhile waits until the plugin is back.
    bench.create("two", sleeper(1));
    bench.until_event(|reason, message| reason == "FailedScheduling" && message.contains("example.com/nic"));
    let plugin = bench.plugin("q.sock", &["nic-a", "nic-b"]);
    bench.until_phase("two", "Running");
    let other = if before.contains("nic-a") { "nic-b" } else { "nic-a" };
    assert_eq!(bench.exec("two", "echo $NIC").1.trim(), other);
    assert_eq!(*plugin.allocated.lock().unwrap(), [[other]], "the first pod is not allocated again");
    bench.delete("one");
    bench.until_gone("one");
    bench.create("three", sleeper(1));
    bench.until_phase("three", "Running");
}
