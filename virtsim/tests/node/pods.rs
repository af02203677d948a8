//! What becomes of pods.

use std::io::BufRead;

use serde_json::json;
use virtsim::api::json::Json;
use virtsim::control::{Connection, Exec, Logs, Request, WindowSize};

use crate::bench::{Bench, sleeper};

#[test]
fn a_pod_runs_in_namespaces_of_its_own_and_goes_without_a_trace() {
    let bench = Bench::start();
    let mut spec = sleeper(0);
    spec["containers"][0]["env"] = json!([
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "ME", "value": "$(IP) here"},
    ]);
    bench.create("a", spec);
    let pod = bench.until_phase("a", "Running");
    assert_eq!((pod.text("/status/podIP"), pod.text("/spec/nodeName")), ("10.99.0.5", "node1"));
    let is_ready = |one: &serde_json::Value| one.text("/type") == "Ready" && one.text("/status") == "True";
    assert!(pod.items("/status/conditions").iter().any(is_ready), "{pod:#}");
    let (code, said) = bench.exec("a", "echo $ME; hostname; ls /sys/class/net | tr '\\n' ' '; exit 7");
    assert_eq!((code, said.as_str()), (7, "10.99.0.5 here\na\nlo "));
    for reason in ["Scheduled", "Created", "Started"] {
        bench.until_event(|found, _| found == reason);
    }
    bench.delete("a");
    bench.until_gone("a");
    bench.until_event(|reason, message| reason == "Killing" && message == "Stopping container c");
    assert_eq!(bench.left(), [""; 0]);
}

#[test]
fn a_pod_on_the_nodes_network_has_no_network_of_its_own() {
    let bench = Bench::start();
    let mut spec = sleeper(0);
    spec["hostNetwork"] = json!(true);
    bench.create("a", spec);
    let pod = bench.until_phase("a", "Running");
    assert_eq!(pod.text("/status/podIP"), pod.text("/status/hostIP"));
    assert_eq!(bench.calls("ADD"), 0);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let (_, theirs) = bench.exec("a", "readlink /proc/self/ns/net");
    assert_eq!(theirs.trim(), own.display().to_string());
}

#[test]
fn a_pod_that_ends_has_succeeded_or_failed_and_its_log_stays() {
    let bench = Bench::start();
    for (name, code, phase) in [("good", 0, "Succeeded"), ("bad", 3, "Failed")] {
        let command = format!("echo from $HOSTNAME; exit {code}");
        bench.create(
            name,
            json!({
                "restartPolicy": "Never",
                "containers": [{"name": "c", "image": "none", "command": ["sh", "-c", command]}],
            }),
        );
        let pod = bench.until_phase(name, phase);
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], code);
    }
    // The network is taken back although the objects stay.
    bench.until_phase("bad", "Failed");
    let deadline = std::time::Instant::now() + crate::bench::PATIENCE;
    while !bench.left().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", bench.left());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let server = bench.client().server().to_owned();
    let url = format!("{server}/api/v1/namespaces/default/pods/good/log");
    let log = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
    assert_eq!(log, "from good\n");
    bench.delete("good");
    bench.until_gone("good");
}

#[test]
fn a_container_that_ends_is_started_again_and_then_waits() {
    let bench = Bench::start();
    bench.create(
        "a",
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "none", "command": ["false"]}],
        }),
    );
    let path = "/api/v1/namespaces/default/pods/a";
    let pod = bench.until(path, |pod| {
        pod.text("/status/containerStatuses/0/state/waiting/reason") == "CrashLoopBackOff"
    });
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
    bench.until_event(|reason, message| {
        reason == "BackOff" && message.starts_with("Back-off restarting failed container c in pod a_default(")
    });
    bench.delete("a");
    bench.until_gone("a");
}

#[test]
fn init_containers_come_first_and_sidecars_stay() {
    let bench = Bench::start();
    let file = bench.folder.path().join("order");
    let say = |what: &str| format!("echo {what} >> {}", file.display());
    let container = |name: &str, after: &str| json!({"name": name, "image": "none", "command": ["sh", "-c", format!("{}{after}", say(name))]});
    let mut sidecar = container("side", "; exec sleep 1000");
    sidecar["restartPolicy"] = json!("Always");
    bench.create(
        "a",
        json!({
            "terminationGracePeriodSeconds": 1,
            "initContainers": [container("first", ""), sidecar, container("second", "")],
            "containers": [container("app", "; exec sleep 1000")],
        }),
    );
    bench.until_phase("a", "Running");
    let path = "/api/v1/namespaces/default/pods/a";
    bench.until(path, |_| std::fs::read_to_string(&file).is_ok_and(|text| text.contains("app")));
    let order = std::fs::read_to_string(&file).unwrap();
    // A sidecar has been started when the next one is; who writes first is theirs.
    assert!(order.starts_with("first\n") && order.ends_with("app\n") && order.contains("side\n"), "{order}");
    let pod = bench.pod("a");
    let running = |list: &str| {
        let all = pod.items(list).iter();
        all.filter(|one| one.pointer("/state/running").is_some())
            .map(|one| one.text("/name").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(running("/status/initContainerStatuses"), ["side"]);
    assert_eq!(running("/status/containerStatuses"), ["app"]);
}

#[test]
fn a_program_that_the_host_does_not_have_is_stood_in_for_and_that_is_told() {
    let bench = Bench::start();
    bench.create(
        "a",
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "none", "command": ["no-such-program"]}],
        }),
    );
    bench.until_phase("a", "Running");
    bench.until_event(|_, message| message.contains("the host has no program \"no-such-program\""));
}

#[test]
fn a_variable_from_nowhere_keeps_a_container_from_starting() {
    let bench = Bench::start();
    let mut spec = sleeper(0);
    spec["containers"][0]["env"] =
        json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "a"}}}]);
    bench.create("a", spec);
    let path = "/api/v1/namespaces/default/pods/a";
    let pod = bench.until(path, |pod| {
        pod.text("/status/containerStatuses/0/state/waiting/reason") == "CreateContainerConfigError"
    });
    assert_eq!(pod.text("/status/phase"), "Pending");
    bench.until_event(|reason, message| {
        reason == "Failed" && message == "Error: configmap \"none\" not found"
    });
}

#[test]
fn what_others_write_into_a_pods_annotations_stays() {
    let bench = Bench::start();
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    let path = "/api/v1/namespaces/default/pods/a";
    let patch = json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"}}});
    bench.client().patch(path, &patch).unwrap();
    bench.delete("a");
    let pod = bench.client().find(path).unwrap();
    assert!(pod.is_none_or(|pod| pod.annotations().contains_key("k8s.v1.cni.cncf.io/network-status")));
    bench.until_gone("a");
}

#[test]
fn a_pod_that_is_removed_by_force_is_cleaned_up_all_the_same() {
    let bench = Bench::start();
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    bench.client().delete("/api/v1/namespaces/default/pods/a", Some(0)).unwrap();
    bench.until_gone("a");
    // One of the same name does not wait for it.
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    bench.delete("a");
    bench.until_gone("a");
    let deadline = std::time::Instant::now() + crate::bench::PATIENCE;
    while !bench.left().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", bench.left());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_daemonset_has_a_pod_on_the_node() {
    let bench = Bench::start();
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": sleeper(0)},
        },
    });
    let sets = "/apis/apps/v1/namespaces/default/daemonsets";
    bench.client().create(sets, &set).unwrap();
    bench.until(&format!("{sets}/agent"), |set| set.integer("/status/numberReady") == Some(1));
    bench.client().delete(&format!("{sets}/agent"), None).unwrap();
    bench.until("/api/v1/namespaces/default/pods", |pods| pods.items("/items").is_empty());
}

#[test]
fn a_command_can_have_a_terminal() {
    let bench = Bench::start();
    bench.create("a", sleeper(0));
    bench.until_phase("a", "Running");
    let request = Request::Exec(Exec {
        namespace: "default".to_owned(),
        pod: "a".to_owned(),
        container: Some("c".to_owned()),
        command: ["sh", "-c", "stty size; read line; echo got $line; exit 5"].map(str::to_owned).to_vec(),
        stdin: true,
        terminal: Some(WindowSize { rows: 33, columns: 101 }),
    });
    let connection = Connection::open(&bench.run_dir(), &request).unwrap();
    connection.input().send(b"a line\n").unwrap();
    let mut out = Vec::new();
    let code = connection.run(&mut out, &mut std::io::sink()).unwrap();
    let said = String::from_utf8(out).unwrap();
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("33 101\r\n") && said.contains("got a line\r\n"), "{said:?}");
}

#[test]
fn a_log_is_followed_until_the_container_ends() {
    let bench = Bench::start();
    let go_on = bench.folder.path().join("go-on");
    let command = format!("echo one; until [ -e {} ]; do sleep 0.01; done; echo two", go_on.display());
    bench.create(
        "a",
        json!({
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "none", "command": ["sh", "-c", command]}],
        }),
    );
    bench.until_phase("a", "Running");
    let request = Request::Logs(Logs {
        namespace: "default".to_owned(),
        pod: "a".to_owned(),
        container: None,
        follow: true,
        tail: None,
    });
    let connection = Connection::open(&bench.run_dir(), &request).unwrap();
    let (read, mut written) = std::io::pipe().unwrap();
    let following = std::thread::spawn(move || connection.run(&mut written, &mut std::io::sink()).unwrap());
    let mut lines = std::io::BufReader::new(read).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    std::fs::write(&go_on, "").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    assert_eq!(following.join().unwrap(), 0);
    assert!(lines.next().is_none());
}

#[test]
fn a_second_deletion_with_less_grace_shortens_the_first() {
    let bench = Bench::start();
    bench.create("a", json!({
        "terminationGracePeriodSeconds": 600,
        "containers": [{"name": "c", "image": "none", "command": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]}],
    }));
    bench.until_phase("a", "Running");
    bench.delete("a");
    bench.until_event(|reason, _| reason == "Killing");
    bench.client().delete("/api/v1/namespaces/default/pods/a", Some(1)).unwrap();
    bench.until_gone("a");
    assert_eq!(bench.left(), [""; 0]);
}
