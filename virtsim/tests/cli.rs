//! The program as a person uses it: the built binary, and a node of its own for each test.
//!
//! Pods here are on the node's network, so that no CNI plugin is needed and nothing of the machine's network is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "node/plugin.rs"]
mod plugin;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const POD: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: a
  labels: {app: a}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: none
    command: [sh, -c, "echo one; echo two; sleep 100000"]
"#;

/// A node's folders; the node in it, if one was started, is ended with it.
struct Sim(TempDir);

impl Sim {
    fn new() -> Self {
        Sim(tempfile::tempdir().unwrap())
    }

    /// A running node.
    fn up() -> Self {
        let sim = Sim::new();
        sim.start();
        sim
    }

    fn start(&self) -> String {
        self.ok(&self.up_arguments())
    }

    fn up_arguments(&self) -> Vec<String> {
        let dir = |name: &str| self.0.path().join(name).display().to_string();
        let mut words = vec!["up".to_owned(), "--node-name=node1".to_owned()];
        for name in ["kubelet-dir", "cni-conf-dir", "cni-bin-dir", "cni-cache-dir"] {
            words.extend([format!("--{name}"), dir(name)]);
        }
        words
    }

    fn dir(&self) -> std::path::PathBuf {
        self.0.path().join("node")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtsim"));
        command
            .env("VIRTSIM_DIR", self.dir())
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .env_remove("VIRTSIM_LOG");
        command
    }

    fn run(&self, words: &[impl AsRef<str>]) -> Output {
        self.run_with("", words)
    }

    fn run_with(&self, input: &str, words: &[impl AsRef<str>]) -> Output {
        let mut command = self.command();
        command.args(words.iter().map(AsRef::as_ref));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that does not read may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Standard output of what must succeed.
    fn ok(&self, words: &[impl AsRef<str>]) -> String {
        self.ok_with("", words)
    }

    fn ok_with(&self, input: &str, words: &[impl AsRef<str>]) -> String {
        let output = self.run_with(input, words);
        assert!(
            output.status.success(),
            "{:?}: {}",
            words.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of what must fail with exit code 1.
    fn fails(&self, words: &[impl AsRef<str>]) -> String {
        self.fails_with("", words)
    }

    fn fails_with(&self, input: &str, words: &[impl AsRef<str>]) -> String {
        let output = self.run_with(input, words);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    fn apply(&self, manifest: &str) -> String {
        self.ok_with(manifest, &["apply", "-f", "-"])
    }

    /// Runs a pod until it is ready.
    fn start_pod(&self) {
        self.apply(POD);
        self.ok(&["wait", "--for=condition=Ready", "pod/a", "--timeout=30s"]);
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let pid = self.pid();
        let _ = self.command().args(["down", "--timeout=10s"]).output();
        if let Some(pid) = pid
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

impl Sim {
    fn pid(&self) -> Option<u64> {
        let output = self.command().args(["status", "--json"]).output().ok()?;
        serde_json::from_slice::<Value>(&output.stdout).ok()?["pid"].as_u64()
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_node_starts_through_a_pipe_and_down_ends_it_and_is_repeatable() {
    let sim = Sim::new();
    // `start` reads until every writer of the pipe is gone: a daemon that kept it open would hang it.
    let said = sim.start();
    for words in ["node1 Ready", "kubeconfig", "virtsim.log", "http://127.0.0.1:"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    assert!(!said.contains('\u{1b}'), "colours in a pipe: {said:?}");
    let pid = sim.pid().unwrap();
    let status = sim.json(&["status", "--json"]);
    assert_eq!((status["ready"].as_bool(), status["node_name"].as_str()), (Some(true), Some("node1")));
    assert!(sim.ok(&["get", "nodes"]).contains("node1   Ready"));

    assert_eq!(sim.ok(&["down"]), "node stopped\n");
    // Nobody may have collected it yet, but it runs no program any more.
    assert!(std::fs::read_link(format!("/proc/{pid}/exe")).is_err());
    assert!(sim.ok(&["down"]).starts_with("no node runs in "));
    for words in [vec!["get", "pods"], vec!["status"], vec!["exec", "a", "--", "true"], vec!["logs", "a"]] {
        assert!(sim.fails(&words).contains("virtsim up"), "{words:?}");
    }
    sim.start();
}

#[test]
fn a_node_holds_nothing_that_its_starter_had_open() {
    let sim = Sim::new();
    let file = sim.0.path().join("held");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec 7>\"$1\"; shift; exec \"$@\"", "sh"])
        .arg(&file)
        .arg(env!("CARGO_BIN_EXE_virtsim"));
    let status =
        shell.args(sim.up_arguments()).env("VIRTSIM_DIR", sim.dir()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success() && file.exists());
    let targets: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", sim.pid().unwrap()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(targets.contains(&sim.dir().join("virtsim.log")), "{targets:?}");
    assert!(!targets.contains(&file), "{targets:?}");
}

#[test]
fn a_node_that_was_killed_is_told_apart_and_started_again() {
    let sim = Sim::up();
    sim.start_pod();
    let pid = sim.pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let begun = Instant::now();
    while std::fs::read_link(format!("/proc/{pid}/exe")).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{pid} is not killed");
        std::thread::yield_now();
    }
    assert!(sim.fails(&["get", "pods"]).contains("virtsim up"));
    let output = sim.run(&["down"]);
    assert!(output.status.success() && text(&output).contains("was killed"), "{}", text(&output));
    sim.start();
    assert_eq!(sim.ok(&["get", "pods", "-o", "name"]), "");
}

#[test]
fn a_second_node_in_the_same_folder_is_refused_and_the_first_goes_on() {
    let sim = Sim::up();
    let pid = sim.pid();
    let said = sim.fails(&sim.up_arguments());
    assert!(said.contains("runs in") && said.contains("virtsim down"), "{said}");
    assert_eq!(sim.pid(), pid);
}

#[test]
fn the_kubelets_folder_of_another_node_is_refused() {
    let first = Sim::up();
    let second = Sim::new();
    let mut words = second.up_arguments();
    words.extend(["--kubelet-dir".to_owned(), first.0.path().join("kubelet-dir").display().to_string()]);
    words.drain(2..4);
    let said = second.fails(&words);
    assert!(said.contains("a kubelet serves") && said.contains("--kubelet-dir"), "{said}");
    assert_eq!(first.json(&["status", "--json"])["kubelet_running"], true);
}

#[test]
fn a_node_that_cannot_start_tells_why_with_the_end_of_its_log() {
    let sim = Sim::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut words = sim.up_arguments();
    words.push(format!("--listen={}", taken.local_addr().unwrap()));
    let said = sim.fails(&words);
    assert!(said.contains("virtsim.log") && said.contains("in use"), "{said}");
    assert!(sim.ok(&["down"]).starts_with("no node runs"));
    let said = sim.fails(&["up", "--node-name", "Not_A_Name"]);
    assert!(said.contains("Not_A_Name"), "{said}");
    let said = sim.fails(&["up", "--log", "virtsim=loud"]);
    assert!(said.contains("--log"), "{said}");
}

#[test]
fn a_pod_is_created_shown_changed_and_deleted() {
    let sim = Sim::up();
    assert_eq!(sim.apply(POD), "pod/a created\n");
    assert_eq!(sim.ok(&["wait", "--for=condition=Ready", "pod/a"]), "pod/a condition met\n");
    assert_eq!(sim.apply(POD), "pod/a unchanged\n");
    assert_eq!(sim.apply(&POD.replace("{app: a}", "{app: b}")), "pod/a configured\n");
    let labels = sim.ok(&["get", "po", "a", "-o", "jsonpath={.metadata.labels.app}"]);
    assert_eq!(labels, "b");
    let table = sim.ok(&["get", "pods", "--show-labels"]);
    assert!(table.starts_with("NAME   READY   STATUS    RESTARTS   AGE"), "{table}");
    assert!(table.contains("a      1/1     Running   0") && table.contains("app=b"), "{table}");
    assert!(sim.ok(&["get", "pods", "-o", "wide"]).contains("node1"));
    assert!(sim.ok(&["get", "pods", "-A"]).starts_with("NAMESPACE   NAME"));
    assert_eq!(sim.ok(&["get", "pods,nodes", "-o", "name"]), "pod/a\nnode/node1\n");
    assert!(sim.ok(&["get", "all"]).contains("pod/a"));
    assert_eq!(sim.json(&["get", "pods", "--json"])["items"][0]["metadata"]["name"], "a");
    let yaml = sim.ok(&["get", "pod/a", "-o", "yaml"]);
    assert!(yaml.contains("kind: Pod\n") && yaml.contains("    app: b\n"), "{yaml}");
    assert_eq!(sim.ok(&["get", "pods", "-l", "app=a"]), "");
    assert!(sim.ok(&["get", "ev"]).contains("pod/a"));

    let described = sim.ok(&["describe", "pod", "a"]);
    assert!(described.contains("Running since") && described.contains("Scheduled"), "{described}");
    let described = sim.ok(&["describe", "no"]);
    assert!(described.contains("KubeletReady") && described.contains("default     a "), "{described}");

    assert_eq!(sim.ok(&["delete", "pod", "a"]), "pod/a deleted\n");
    assert!(sim.fails(&["get", "pod", "a"]).contains("pods \"a\" not found"));
    assert!(sim.fails(&["delete", "pod/a"]).contains("not found"));
    sim.ok(&["delete", "--wait", "pod/a", "--ignore-not-found"]);
    sim.apply(POD);
    sim.ok(&["delete", "pod/a", "--wait=false", "--now"]);
    sim.ok(&["wait", "--for=delete", "pod/a"]);
}

#[test]
fn commands_run_in_a_pod_with_their_streams_and_exit_code() {
    let sim = Sim::up();
    sim.start_pod();
    let output = sim.run(&["exec", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!(sim.ok_with("through\n", &["exec", "-i", "pod/a", "--", "cat"]), "through\n");
    // Without -i there is nothing to read.
    assert_eq!(sim.ok_with("not read", &["exec", "a", "-c", "c", "--", "cat"]), "");
    assert!(sim.ok(&["exec", "-t", "a", "--", "tty"]).contains("/dev/pts/"));
    let output = sim.run(&["exec", "a", "--", "no-such-program"]);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output));
    for (words, says) in [
        (vec!["exec", "b", "--", "true"], "b"),
        (vec!["exec", "a", "-c", "other", "--", "true"], "other"),
        (vec!["exec", "node/a", "--", "true"], "only pods"),
        (vec!["exec", "-it", "a", "--", "true"], "terminal"),
    ] {
        let said = sim.fails(&words);
        assert!(said.contains(says), "{words:?}: {said}");
    }
}

#[test]
fn logs_are_shown_whole_from_the_end_and_as_they_come() {
    let sim = Sim::up();
    sim.start_pod();
    let begun = Instant::now();
    while sim.ok(&["logs", "a"]) != "one\ntwo\n" {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", sim.ok(&["logs", "a"]));
        std::thread::yield_now();
    }
    assert_eq!(sim.ok(&["logs", "pod/a", "--tail", "1"]), "two\n");
    let mut following =
        sim.command().args(["logs", "-f", "a"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    sim.ok(&["delete", "pod", "a"]);
    // Following ends with the container.
    assert!(following.wait().unwrap().success());
    let output = following.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"one\ntwo\n");
    assert!(sim.fails(&["logs", "a"]).contains('a'));
}

#[test]
fn a_restart_of_the_kubelet_leaves_pods_running() {
    let sim = Sim::up();
    sim.start_pod();
    let pid = || sim.ok(&["exec", "a", "--", "readlink", "/proc/1/ns/pid"]);
    let before = pid();
    assert_eq!(sim.ok(&["restart", "kubelet"]), "kubelet restarted\n");
    assert_eq!(pid(), before);
    assert_eq!(sim.json(&["status", "--json"])["kubelet_running"], true);
}

#[test]
fn bad_manifests_change_nothing() {
    let sim = Sim::up();
    let network = "metadata:\n  annotations: {k8s.v1.cni.cncf.io/networks: virt-net9}";
    let cases = [
        (format!("{POD} bad: [oops\n"), "bad.yaml:18:"),
        (POD.replace("kind: Pod", "kind: Pot"), "bad.yaml:7:1: unknown kind Pot in v1: did you mean Pod?"),
        (POD.replace("metadata:", network), "bad.yaml:9:"),
        (
            format!("{POD}    resources: {{limits: {{kernel.org/other: 1}}}}\n"),
            "kernel.org/other, which no node has and no network is tied to (node1 has none)",
        ),
        (format!("{POD}    resources: {{limits: {{memory: lots}}}}\n"), "is not a quantity"),
        (POD.replace("name: a", "name: A_b"), "metadata.name"),
        (POD.replace("name: a\n", "name: a\n  namespace: nowhere\n"), "there is no namespace nowhere"),
    ];
    let file = sim.0.path().join("bad.yaml");
    for (manifest, says) in cases {
        let first = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: first\n---\n";
        std::fs::write(&file, format!("{first}{manifest}")).unwrap();
        let said = sim.fails(&["apply", "-f", file.to_str().unwrap()]);
        assert!(said.contains(says) && said.contains("bad.yaml:"), "no {says:?} in {said}");
        assert_eq!(sim.ok(&["get", "configmaps,pods", "-o", "name"]), "", "something was created: {said}");
    }
    let said = sim.fails(&["apply", "-f", "/nonexistent.yaml"]);
    assert!(said.contains("/nonexistent.yaml: cannot be read"), "{said}");
}

#[test]
fn what_the_server_refuses_keeps_the_other_objects_from_being_changed() {
    let sim = Sim::up();
    sim.start_pod();
    // A pod's command cannot be changed: only the server knows what is there.
    let both = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: first}}\n---\n{}",
        POD.replace("two", "three")
    );
    let said = sim.fails_with(&both, &["apply", "-f", "-"]);
    assert!(said.contains("-:5:1: ") && said.contains("pod updates may not change"), "{said}");
    assert_eq!(sim.ok(&["get", "cm", "-o", "name"]), "");
}

#[test]
fn what_a_manifest_lacks_is_taken_out_and_what_others_wrote_stays() {
    let sim = Sim::up();
    let map =
        |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{{data}}}\n");
    sim.apply(&map("a: '1', b: '2'"));
    assert_eq!(
        sim.ok_with(&map("a: '3'"), &["apply", "--dry-run", "-f", "-"]),
        "configmap/m configured (dry run)\n"
    );
    assert_eq!(sim.json(&["get", "cm", "m", "-o", "json"])["data"], serde_json::json!({"a": "1", "b": "2"}));
    assert_eq!(sim.apply(&map("a: '3'")), "configmap/m configured\n");
    assert_eq!(sim.json(&["get", "cm", "m", "-o", "json"])["data"], serde_json::json!({"a": "3"}));
}

#[test]
fn definitions_and_namespaces_are_made_before_what_needs_them_and_deleted_after_it() {
    let sim = Sim::up();
    let deployments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deployments");
    let file = |name: &str| deployments.join(name).display().to_string();
    let (definition, network) = (file("crdnetwork.yaml"), file("virt-crd.yaml"));
    let said = sim.fails(&["apply", "-f", &network]);
    assert!(said.contains("crdnetwork.yaml"), "{said}");
    let said = sim.ok(&["apply", "-f", &network, "-f", &definition]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.starts_with("customresourcedefinition"), "{said}");
    assert!(sim.ok(&["get", "net-attach-def"]).contains("virt-net1"));
    // A network ties the pods' resource, though its device plugin does not run yet: they wait for it.
    sim.ok(&["apply", "-f", &file("pod-tc1.yaml")]);
    let said = sim.fails(&["wait", "--for=condition=Ready", "pod/testpod1", "--timeout=200ms"]);
    assert!(said.contains("timed out") && said.contains("Insufficient kernel.org/virt"), "{said}");
    sim.ok(&["delete", "-f", &definition, "-f", &network, "-f", &file("pod-tc1.yaml")]);
    assert!(sim.fails(&["get", "net-attach-def"]).contains("api-resources"));
    let in_a_new_one = format!(
        "{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: other}}\n",
        POD.replace("name: a\n", "name: a\n  namespace: other\n")
    );
    assert_eq!(sim.apply(&in_a_new_one), "namespace/other created\npod/a created\n");
    assert!(sim.ok(&["get", "pods", "-n", "other"]).contains("a "));
}

#[test]
fn devices_are_told_with_who_has_them_and_a_plugin_that_is_away_keeps_no_pod_from_being_made() {
    let sim = Sim::up();
    let pod = |name: &str| {
        let named = POD.replace("name: a", &format!("name: {name}"));
        format!("{named}    resources: {{limits: {{{}: 1}}}}\n", plugin::RESOURCE)
    };
    assert!(sim.fails_with(&pod("a"), &["apply", "-f", "-"]).contains(plugin::RESOURCE));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let kubelet = sim.0.path().join("kubelet-dir");
    let plugin = runtime.block_on(plugin::Plugin::start(&kubelet, "nic.sock", &["nic-1"]));
    let offers = |count: u32| {
        let path = format!("--for=jsonpath={{.status.allocatable['{}']}}={count}", plugin::RESOURCE);
        sim.ok(&["wait", "node/node1", &path]);
    };
    offers(1);
    sim.apply(&pod("a"));
    sim.ok(&["wait", "pod/a", "--for=condition=Ready"]);
    assert_eq!(*plugin.allocated.lock().unwrap(), [["nic-1"]]);
    let described = sim.ok(&["describe", "pod", "a"]);
    assert!(described.contains("Devices:       example.com/nic: nic-1\n"), "{described}");
    let described = sim.ok(&["describe", "node", "node1"]);
    assert!(described.contains("example.com/nic   nic-1    default/a   c"), "{described}");

    sim.apply(&pod("b"));
    let said = sim.fails(&["wait", "pod/b", "--for=condition=Ready", "--timeout=500ms"]);
    assert!(said.contains("Insufficient example.com/nic"), "{said}");
    drop(plugin);
    offers(0);
    assert_eq!(sim.apply(&pod("d")), "pod/d created\n");
    assert!(sim.ok(&["get", "pods"]).contains("d      0/1     Pending"));
}

#[test]
fn waiting_ends_in_time_and_says_what_is_missing() {
    let sim = Sim::up();
    sim.start_pod();
    sim.ok(&["wait", "pod/a", "--for=jsonpath={.status.phase}=Running"]);
    let begun = Instant::now();
    let said = sim.fails(&["wait", "pod/a", "--for=delete", "--timeout=300ms"]);
    assert!(said.contains("not gone after 300 ms"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(sim.fails(&["wait", "pod/b", "--for=condition=Ready"]).contains("does not exist"));
    let mut waiting = sim
        .command()
        .args(["wait", "cm/late", "--for=create", "--timeout=30s"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    sim.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\n");
    assert!(waiting.wait().unwrap().success());
    let ended = POD
        .replace("name: a", "name: done")
        .replace("spec:", "spec:\n  restartPolicy: Never")
        .replace("sleep 100000", "exit 3");
    sim.apply(&ended);
    sim.ok(&["wait", "pod/done", "--for=jsonpath={.status.phase}=Failed"]);
    let said = sim.fails(&["wait", "pod/done", "--for=condition=Ready", "--timeout=30s"]);
    assert!(said.contains("its phase is Failed"), "{said}");
}

#[test]
fn a_watch_shows_each_change() {
    use std::io::{BufRead, BufReader};
    let sim = Sim::up();
    let mut watching = sim
        .command()
        .args(["get", "cm", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for name in ["x", "y"] {
        sim.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"));
        assert_eq!(lines.next().unwrap().unwrap(), format!("configmap/{name}"));
    }
    sim.ok(&["down"]);
    // Its node is gone: it ends, and says so by its exit code.
    assert!(!watching.wait().unwrap().success());
}

#[test]
fn slips_of_the_finger_are_answered_with_what_would_be_right() {
    let sim = Sim::up();
    assert!(sim.fails(&["get", "pood"]).contains("did you mean pod?"));
    assert!(sim.fails(&["delete", "pods"]).contains("--all"));
    assert!(sim.fails(&["delete", "pod", "a", "--all"]).contains("leave out one"));
    assert!(sim.fails(&["delete", "-f", "x.yaml", "--all"]).contains("leave out one"));
    assert!(sim.ok(&["api-resources"]).contains("daemonsets"));
    let output = sim.run(&["wait", "pod/a", "--for=Ready"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("condition=NAME"));
}
