//! The NIC that the node lives by is never offered, whatever comes to lead to it, short of an operator who insists.

use std::time::Instant;

use crate::kubelet::Kubelet;
use crate::observe::{scrape, value};
use crate::stage::{Stage, UPLINK, until};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";

/// What `virtdp discover` says of a device: state and reason.
fn verdict(stage: &Stage, device: &str, more: &[&str]) -> (String, String) {
    let output = stage.discover(&[&["--json"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = json["interfaces"].as_array().unwrap();
    let row = rows.iter().find(|row| row["device"] == device).unwrap();
    (row["state"].as_str().unwrap().to_owned(), row["reason"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_gets_a_dhcp_lease_is_withdrawn_and_comes_back_without_it() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    let both = ["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"];
    plugin.lists(&both).await;
    // As a DHCP client does it where the server names no router.
    stage.ip("link set eth1 up");
    stage.ip("addr add 10.7.0.5/24 dev eth1 valid_lft 3600 preferred_lft 3600");
    let began = Instant::now();
    plugin.lists(&["0000:00:09.0 Unhealthy []", "0000:00:0a.0 Healthy []"]).await;
    eprintln!("withdrawn within {:?}", began.elapsed());
    agent.says(&["Skipping default interface 0000:00:09.0", "10.7.0.5", "DHCP"]);
    plugin.lists(&["0000:00:0a.0 Healthy []"]).await;
    stage.ip("addr del 10.7.0.5/24 dev eth1");
    plugin.lists(&both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_nic_is_not_offered_while_it_is_configured_anew() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    // It leads to a wire, so that the rule is not cautious.
    stage.ip("link set eth1 up");
    stage.ip("addr add 10.7.0.5/24 dev eth1 valid_lft 3600 preferred_lft 3600");
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    kubelet.plugin().await.lists(&["0000:00:0a.0 Healthy []"]).await;
    stage.ip("addr flush dev eth0");
    agent.says(&["Skipping default interface 0000:00:03.0", "eth0 carried the node until a moment ago"]);
    stage.ip("link set eth0 down");
    stage.ip("addr add 192.0.2.2/24 dev eth0");
    stage.ip("link set eth0 up");
    stage.ip("route add default via 192.0.2.1 metric 7");
    agent.says(&["Skipping default interface 0000:00:03.0", "metric 7"]);
    assert_eq!(agent.count(&["Offering 0000:00:03.0"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_becomes_a_port_of_the_uplinks_bridge_is_withdrawn() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    stage.bridge("br0");
    stage.ip("link set br0 up");
    stage.ip("route add default dev br0 metric 50 table 300");
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"]).await;
    stage.ip("link set eth2 master br0");
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Unhealthy []"]).await;
    agent.says(&["Skipping default interface 0000:00:0a.0", "eth2 is a port of br0, which carries"]);
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    stage.ip("link set eth2 nomaster");
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_insists_on_the_lifeline_is_obeyed_and_warned_at_every_start() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut command = stage.command();
    command.extend(["--offer-lifeline", UPLINK, "--offer-lifeline", "0000:00:1f.7"].map(String::from));
    command.push(format!("--listen=unix:{}", stage.path("observe.sock").display()));
    for _ in 0..2 {
        let mut agent = stage.start_as(&command);
        let mut plugin = kubelet.plugin().await;
        plugin.lists(&["0000:00:03.0 Healthy []", "0000:00:09.0 Healthy []"]).await;
        agent.says(&["W", "--offer-lifeline: this NIC is offered even if", UPLINK]);
        agent.says(&["W", "Offering 0000:00:03.0, WHICH CARRIES THE NODE", "IPv4 default route"]);
        agent.says(&["W", "--offer-lifeline names a device that is no NIC of this node", "0000:00:1f.7"]);
        assert_eq!(value(&scrape(&stage), "virtdp_lifeline_offered_nics", &[]), 1.0);
        assert_eq!(plugin.allocate(&[&[UPLINK]]).await.unwrap().container_responses.len(), 1);
        agent.terminate();
    }
}

#[test]
fn an_override_is_for_one_nic_and_lifts_no_other_objection() {
    let stage = Stage::with_spares(&[FIRST]);
    stage.ip("link set eth1 up");
    stage.ip("route add default dev eth1 metric 500");
    let insist = ["--offer-lifeline", UPLINK];
    let (state, reason) = verdict(&stage, UPLINK, &insist);
    assert_eq!(state, "lifeline-offered");
    assert!(
        reason.contains("eth0 carries the IPv4 default route") && reason.contains("--offer-lifeline"),
        "{reason}"
    );
    assert_eq!(verdict(&stage, FIRST, &insist).0, "skipped");
    let (state, reason) = verdict(&stage, UPLINK, &[&insist[..], &["--driver", "e1000"]].concat());
    assert_eq!(state, "skipped");
    assert!(reason.contains("driver virtio_net"), "{reason}");
    let table = String::from_utf8(stage.discover(&insist).stdout).unwrap();
    assert!(table.lines().any(|line| line.contains(UPLINK) && line.contains("LIFELINE OFFERED")), "{table}");
}

#[test]
fn the_nic_on_the_way_to_the_api_server_is_left_alone_and_so_is_the_one_with_the_nodes_address() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    stage.ip("link set eth1 up");
    stage.ip("route add 198.51.100.0/24 dev eth1");
    stage.ip("link set eth2 up");
    stage.ip("route add 203.0.113.0/24 dev eth2 table 300");
    stage.ip("rule add to 203.0.113.0/24 lookup 300");
    assert_eq!(verdict(&stage, FIRST, &[]).0, "offered");
    let of_first = verdict(&stage, FIRST, &["--api-server", "https://198.51.100.7:6443"]);
    assert_eq!(of_first.1, "eth1 is the way to the API server 198.51.100.7");
    // The same from the pod's environment; a name that stands for this machine leads nowhere.
    let environment = [("KUBERNETES_SERVICE_HOST", "203.0.113.9"), ("VIRTDP_NODE_IPS", "192.0.2.2,fd00::9")];
    let output = stage.discover_in(&environment, &["--json", "--api-server", "localhost"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("eth2 is the way to the API server 203.0.113.9"), "{said}");
    assert_eq!(verdict(&stage, FIRST, &["--node-ip", "192.0.2.2"]).0, "offered");
}

#[test]
fn a_kubeconfig_tells_where_the_api_server_is_whatever_its_credentials() {
    let stage = Stage::with_spares(&[FIRST]);
    stage.ip("link set eth1 up");
    stage.ip("route add 198.51.100.0/24 dev eth1");
    let path = stage.path("kubeconfig");
    let option = format!("--kubeconfig={}", path.display());
    let unread = stage.discover(&[&option]);
    assert_eq!(unread.status.code(), Some(1));
    let said = String::from_utf8(unread.stderr).unwrap();
    assert!(said.contains("kubeconfig cannot be read"), "{said}");
    let text = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
                clusters: [{name: k, cluster: {server: 'https://198.51.100.7:6443'}}]\n\
                users: [{name: u, user: {exec: {command: login}}}]\n";
    std::fs::write(&path, text).unwrap();
    assert_eq!(verdict(&stage, FIRST, &[&option]).1, "eth1 is the way to the API server 198.51.100.7");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_named_as_vital_is_noted_for_who_moves_nics() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let notes = ledger::Notes::at(stage.path("state"));
    let mut command = stage.command();
    command.extend(["--node-ip", "192.0.2.2", "--api-server", "https://198.51.100.7:6443"].map(String::from));
    for named in [command, stage.command()] {
        let mut agent = stage.start_as(&named);
        kubelet.plugin().await.lists(&["0000:00:09.0 Healthy []"]).await;
        let one =
            |option: &str, ip: &str| named.iter().any(|word| word == option).then(|| ip.parse().unwrap());
        let vital = linux::route::Vital {
            addresses: one("--node-ip", "192.0.2.2").into_iter().collect(),
            peers: one("--api-server", "198.51.100.7").into_iter().collect(),
        };
        until("it is noted", || notes.vital().unwrap() == vital);
        agent.terminate();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_changes_the_way_to_the_api_server_is_followed() {
    let stage = Stage::with_spares(&[FIRST]);
    stage.ip("link set eth1 up");
    stage.ip("route add 198.51.100.0/24 dev eth1 table 300");
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut command = stage.command();
    command.extend(["--api-server", "198.51.100.7"].map(String::from));
    let _agent = stage.start_as(&command);
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    stage.ip("rule add to 198.51.100.0/24 lookup 300");
    plugin.lists(&["0000:00:09.0 Unhealthy []"]).await;
    stage.ip("rule del to 198.51.100.0/24 lookup 300");
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_servers_name_cannot_be_resolved_nothing_is_offered() {
    let stage = Stage::with_spares(&[FIRST]);
    let _kubelet = Kubelet::start(stage.kubelet_dir());
    // There is nobody to ask in this namespace; the resolver need not wait long for them.
    let mut command = ["env", "RES_OPTIONS=timeout:1 attempts:1"].map(String::from).to_vec();
    command.extend(stage.command());
    command.extend(["--api-server", "https://api.virtnet.invalid:6443"].map(String::from));
    let mut agent = stage.start_as(&command);
    agent.says(&["W", "the API server's name cannot be resolved: no NIC is offered", "api.virtnet.invalid"]);
    agent.says(&["E", "no NIC is offered", "api.virtnet.invalid cannot be resolved"]);
    assert!(agent.is_running());
    assert_eq!(stage.sockets(), Vec::<String>::new());
}

/// Runs `work` where nobody gets a netlink socket for routes, nor what is started there.
fn without_routes<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    // AF_NETLINK, NETLINK_ROUTE.
    const FILTER: &str = r#"{"main": {"mismatch_action": "allow", "match_action": {"errno": 13}, "filter": [{"syscall": "socket", "args": [
        {"index": 0, "type": "dword", "op": "eq", "val": 16}, {"index": 2, "type": "dword", "op": "eq", "val": 0}]}]}}"#;
    let filters =
        seccompiler::compile_from_json(FILTER.as_bytes(), std::env::consts::ARCH.try_into().unwrap());
    let filters = filters.unwrap();
    let filtered = || {
        seccompiler::apply_filter(&filters["main"]).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(filtered).join().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_routes_cannot_be_read_nothing_is_offered_and_nothing_is_shown() {
    let stage = Stage::with_spares(&[FIRST]);
    let _kubelet = Kubelet::start(stage.kubelet_dir());
    let mut agent = without_routes(|| stage.start());
    agent.says(&[
        "E",
        "no NIC is offered: the node's interfaces and routes cannot be read",
        "Permission denied",
    ]);
    assert!(agent.is_running());
    assert_eq!(stage.sockets(), Vec::<String>::new());
    let output = without_routes(|| stage.discover(&[]));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the node cannot be read") && said.contains("Permission denied"), "{said}");
}
