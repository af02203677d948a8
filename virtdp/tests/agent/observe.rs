//! What can be seen of a running agent: metrics, health, probes.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use linux::Netns;

use crate::kubelet::Kubelet;
use crate::openmetrics::{self, Sample};
use crate::stage::{Agent, Stage, position, until};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";
const BOTH: [&str; 2] = ["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"];

/// Starts the agent, listening on a unix socket.
pub(crate) fn start(stage: &Stage) -> Agent {
    let mut command = stage.command();
    command.push(format!("--listen=unix:{}", stage.path("observe.sock").display()));
    stage.start_as(&command)
}

/// The status line and what follows the head.
fn ask(mut stream: impl std::io::Read + std::io::Write, request: &str) -> (String, String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    (status.to_owned(), headers.to_owned(), body.to_owned())
}

fn get(stage: &Stage, path: &str) -> (String, String) {
    let socket = stage.path("observe.sock");
    until("the agent listens", || UnixStream::connect(&socket).is_ok());
    let (status, _, body) =
        ask(UnixStream::connect(&socket).unwrap(), &format!("GET {path} HTTP/1.1\r\nhost: virtdp\r\n\r\n"));
    (status, body)
}

pub(crate) fn scrape(stage: &Stage) -> Vec<Sample> {
    let (status, text) = get(stage, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK", "{text}");
    openmetrics::parse(&text)
}

/// The value of the one sample of this name with these labels.
pub(crate) fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        sample.name == name
            && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
    };
    let found: Vec<&Sample> = samples.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?} of {samples:#?}");
    found[0].value
}

fn probe(stage: &Stage, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_virtdp"))
        .args(["probe", "--kubelet-dir"])
        .arg(stage.kubelet_dir().root())
        .args(more)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_tell_what_the_kubelet_hears_and_what_the_node_has() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    stage.tree.pci(&position("0000:00:05.0"), linux::testing::ETHERNET, 0x8086, 0x100e);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = start(&stage);
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&BOTH).await;
    until("the registration is seen", || value(&scrape(&stage), "virtdp_registered", &[]) == 1.0);
    let samples = scrape(&stage);
    let resource = ("resource", "kernel.org/virt");
    let is = |name: &str, labels: &[(&str, &str)]| value(&samples, name, labels);
    assert_eq!(is("virtdp_devices", &[resource, ("state", "healthy")]), 2.0);
    assert_eq!(is("virtdp_devices", &[resource, ("state", "unhealthy")]), 0.0);
    assert_eq!(is("virtdp_skipped_nics", &[("reason", "lifeline")]), 1.0);
    assert_eq!(is("virtdp_skipped_nics", &[("reason", "no_driver")]), 1.0);
    assert_eq!(is("virtdp_skipped_nics", &[("reason", "unreadable")]), 0.0);
    assert_eq!(is("virtdp_registrations_total", &[resource]), 1.0);
    assert_eq!(is("virtdp_registrations_ended_total", &[resource, ("reason", "stream_lost")]), 0.0);
    assert_eq!(is("virtdp_allocations_total", &[resource]), 0.0);
    assert_eq!(is("virtdp_node_readable", &[]), 1.0);
    assert_eq!(is("virtdp_ledger_readable", &[]), 1.0);
    assert_eq!(is("virtdp_failed_looks_total", &[]), 0.0);
    assert_eq!(is("virtdp_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(is("virtdp_lists_sent_total", &[resource]) >= 1.0 && is("virtdp_looks_total", &[]) >= 1.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for time in [
        "virtdp_last_list_timestamp_seconds",
        "virtdp_last_look_timestamp_seconds",
        "process_start_time_seconds",
    ] {
        assert!((now - is(time, &[])).abs() < 600.0, "{time}: {} at {now}", is(time, &[]));
    }
    assert!(is("process_resident_memory_bytes", &[]) > 1e6);
}

#[tokio::test(flavor = "multi_thread")]
async fn allocations_refusals_leases_and_new_registrations_are_counted() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = start(&stage);
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&BOTH).await;
    plugin.allocate(&[&[FIRST, SECOND]]).await.unwrap();
    plugin.allocate(&[&["0000:00:03.0"]]).await.unwrap_err();
    let pod = Netns::create().unwrap();
    stage.lease(FIRST);
    std::fs::write(stage.path("state/leases/vd0.json"), "{").unwrap();
    stage.move_away("eth1", &pod);
    stage.ip("link set eth2 up");
    stage.ip("link set eth2-p down");
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Unhealthy []"]).await;
    plugin.allocate(&[&[SECOND]]).await.unwrap_err();
    let samples = scrape(&stage);
    assert_eq!(value(&samples, "virtdp_allocations_total", &[]), 2.0);
    assert_eq!(value(&samples, "virtdp_allocation_refusals_total", &[("reason", "unknown")]), 1.0);
    assert_eq!(value(&samples, "virtdp_allocation_refusals_total", &[("reason", "unhealthy")]), 1.0);
    assert_eq!(value(&samples, "virtdp_devices", &[("state", "healthy")]), 1.0);
    assert_eq!(value(&samples, "virtdp_devices", &[("state", "unhealthy")]), 1.0);
    assert_eq!(value(&samples, "virtdp_leases", &[("stage", "plumbed")]), 1.0);
    assert_eq!(value(&samples, "virtdp_leases", &[("stage", "prepared")]), 0.0);
    assert_eq!(value(&samples, "virtdp_unusable_leases", &[]), 1.0);

    drop(plugin);
    kubelet.die().await;
    until("the end is seen", || value(&scrape(&stage), "virtdp_registered", &[]) == 0.0);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Unhealthy []"]).await;
    until("the new one is seen", || value(&scrape(&stage), "virtdp_registered", &[]) == 1.0);
    let samples = scrape(&stage);
    assert_eq!(value(&samples, "virtdp_registrations_total", &[]), 2.0);
    let ended: f64 =
        samples.iter().filter(|s| s.name == "virtdp_registrations_ended_total").map(|s| s.value).sum();
    assert_eq!(ended, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_turns_false_when_the_node_cannot_be_read_or_the_kubelet_is_gone_and_true_again() {
    let stage = Stage::with_spares(&[FIRST]);
    let _agent = start(&stage);
    let is_ready = || get(&stage, "/readyz").0 == "HTTP/1.1 200 OK";
    until("it waits for the kubelet", || {
        get(&stage, "/readyz").1.contains("[-] kernel.org/virt is not registered: waiting")
    });
    // Without a kubelet the agent is well all the same, and the probe has nobody to ask.
    let (status, text) = get(&stage, "/healthz");
    assert_eq!(status, "HTTP/1.1 200 OK", "{text}");
    assert!(!probe(&stage, &[]).status.success());

    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    until("it is ready", is_ready);
    let (_, text) = get(&stage, "/readyz");
    assert!(
        text.starts_with("ok\n") && text.contains("[+] kernel.org/virt is registered with the kubelet\n"),
        "{text}"
    );
    for more in [[].as_slice(), &["--ready"]] {
        let output = probe(&stage, more);
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    // As from another pod, whose agent it may be that does not answer.
    let mut inside = std::process::Command::new("unshare");
    inside.args(["--pid", "--fork", env!("CARGO_BIN_EXE_virtdp"), "probe", "--kubelet-dir"]);
    let output = inside.arg(stage.path("kubelet")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("but in another container"), "{said}");

    // Now sysfs does not show what netlink shows.
    let index = stage.index("eth0");
    stage.tree.remove_interface("eth0");
    stage.poke();
    until("it is not ready", || !is_ready());
    let (status, text) = get(&stage, "/readyz");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(text.contains("[-] the node cannot be read: "), "{text}");
    assert!(probe(&stage, &[]).status.success());
    let output = probe(&stage, &["--ready"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("is sysfs of this network namespace?"),
        "{said}"
    );
    stage.tree.interface(Some("pci0000:00/0000:00:03.0/virtio-eth0"), "eth0", index);
    stage.poke();
    until("it is ready again", is_ready);

    drop(plugin);
    kubelet.die().await;
    until("it is not ready without a kubelet", || !is_ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_is_served_too_and_odd_requests_are_refused() {
    let stage = Stage::with_spares(&[FIRST]);
    stage.ip("link set lo up");
    let mut command = stage.command();
    command.push("--listen=127.0.0.1:0".to_owned());
    let agent = stage.start_as(&command);
    let line = agent.says(&["metrics and health are served", "http://127.0.0.1:"]);
    let address = line.split("http://").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let ask = |request: &str| {
        let stream = stage.netns.run(|| TcpStream::connect(&address).unwrap()).unwrap();
        ask(stream, request)
    };
    let (status, headers, text) = ask("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(
        headers.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{headers}"
    );
    openmetrics::parse(&text);
    for (request, expected) in [
        ("HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n", "200"),
        ("GET /metrics?x=y HTTP/1.0\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        assert_eq!(ask(request).0.split(' ').nth(1), Some(expected), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_said_and_the_agent_works_all_the_same() {
    let stage = Stage::with_spares(&[FIRST]);
    let taken = std::os::unix::net::UnixListener::bind(stage.path("observe.sock")).unwrap();
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = start(&stage);
    kubelet.plugin().await.lists(&["0000:00:09.0 Healthy []"]).await;
    agent.says(&["metrics and health are not served there", "observe.sock"]);
    // What a killed agent leaves is no obstacle.
    drop(taken);
    until("it is served", || get(&stage, "/healthz").0 == "HTTP/1.1 200 OK");
    drop(agent);
    assert!(stage.path("observe.sock").exists());
    let mut second = start(&stage);
    until("it is served again", || UnixStream::connect(stage.path("observe.sock")).is_ok());
    // Nor does one that never had it take it away, when an update is called off.
    let mut third = start(&stage);
    third.says(&["metrics and health are not served there", "observe.sock"]);
    assert_eq!(third.terminate(), Some(0));
    assert!(stage.path("observe.sock").exists());
    assert_eq!(second.terminate(), Some(0));
    assert!(!stage.path("observe.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_nobody_out_for_long() {
    let stage = Stage::with_spares(&[FIRST]);
    let _agent = start(&stage);
    until("the agent listens", || UnixStream::connect(stage.path("observe.sock")).is_ok());
    let silent: Vec<UnixStream> =
        (0..10).map(|_| UnixStream::connect(stage.path("observe.sock")).unwrap()).collect();
    assert_eq!(get(&stage, "/healthz").0, "HTTP/1.1 200 OK");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_for_programs_is_one_json_object_for_each_line() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut command = stage.command();
    command.push("--log-format=json".to_owned());
    let mut agent = stage.start_as(&command);
    kubelet.plugin().await.lists(&["0000:00:09.0 Healthy []"]).await;
    agent.says(&["\"message\":\"registered with the Kubelet\"", "\"resource\":\"kernel.org/virt\""]);
    assert_eq!(agent.terminate(), Some(0));
    agent.says(&["virtdp stops"]);
    let log = agent.log();
    for line in log.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(event[key].is_string(), "{key}: {line}");
        }
    }
}
