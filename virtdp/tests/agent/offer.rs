//! What is offered while the node changes.

use linux::Netns;

use crate::kubelet::Kubelet;
use crate::stage::{Stage, position, until};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";

#[tokio::test(flavor = "multi_thread")]
async fn without_a_nic_the_agent_stays_and_says_so_until_there_is_one() {
    let stage = Stage::new();
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    assert_eq!(plugin.list().await.unwrap(), Vec::<String>::new());
    agent.says(&["no NIC to offer"]);
    stage.nic(FIRST, "eth1");
    stage.poke();
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    agent.says(&["Offering 0000:00:09.0", "eth1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_carrier_is_ill_and_admin_down_is_not() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    stage.ip("link set eth1 up");
    stage.ip("link set eth1-p down");
    plugin.lists(&["0000:00:09.0 Unhealthy []"]).await;
    agent.says(&["ListAndWatch: send", "eth1 is up and has no carrier"]);
    stage.ip("link set eth1 down");
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_for_pods_is_not_sent() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    for harmless in [
        "link set eth1 up",
        "link set eth1 mtu 1400",
        "link set eth1 alias spare",
        "addr add 198.51.100.1/24 dev eth1",
        "route add 203.0.113.0/24 dev eth0",
        "link set eth1 down",
    ] {
        let looks = agent.count(&["looked at the node"]);
        stage.ip(harmless);
        until("the agent looked at the node", || agent.count(&["looked at the node"]) > looks);
    }
    stage.ip("link set eth1-p down");
    stage.ip("link set eth1 up");
    // The next that comes is the next that differs.
    assert_eq!(plugin.list().await.unwrap(), ["0000:00:09.0 Unhealthy []"]);
    assert_eq!(agent.count(&["ListAndWatch: send"]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_becomes_the_lifeline_is_withdrawn_and_comes_back() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    stage.ip("link set eth1 up");
    stage.ip("route add default dev eth1 metric 500");
    assert_eq!(plugin.list().await.unwrap(), ["0000:00:09.0 Unhealthy []"]);
    let refused = plugin.allocate(&[&[FIRST]]).await.unwrap_err();
    assert!(
        refused.message().contains("0000:00:09.0") && refused.message().contains("default route"),
        "{refused}"
    );
    assert_eq!(plugin.list().await.unwrap(), Vec::<String>::new());
    agent.says(&["Skipping default interface 0000:00:09.0", "metric 500"]);
    let refused = plugin.allocate(&[&[FIRST]]).await.unwrap_err();
    assert!(refused.message().contains("not offered: eth1 carries the IPv4 default route"), "{refused}");
    stage.ip("route del default dev eth1");
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_in_a_pod_stays_healthy_also_for_an_agent_that_starts_then() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    let both = ["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"];
    plugin.lists(&both).await;
    let pod = Netns::create().unwrap();
    stage.lease(FIRST);
    stage.move_away("eth1", &pod);
    agent.says(&["Offering 0000:00:09.0", "away for pod default/testpod1"]);
    drop(agent);
    let _agent = stage.start();
    assert_eq!(kubelet.plugin().await.list().await.unwrap(), both);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_is_unplugged_while_a_pod_has_it_is_listed_as_unhealthy_until_the_pod_is_gone() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"]).await;
    let pod = Netns::create().unwrap();
    stage.lease(FIRST);
    stage.move_away("eth1", &pod);
    stage.tree.unplug(&position(FIRST));
    // The other one was not in a pod: it goes after a moment, this one stays.
    stage.move_away("eth2", &pod);
    stage.tree.unplug(&position(SECOND));
    stage.poke();
    plugin.lists(&["0000:00:09.0 Unhealthy []", "0000:00:0a.0 Unhealthy []"]).await;
    plugin.lists(&["0000:00:09.0 Unhealthy []"]).await;
    stage.close_lease(FIRST);
    stage.poke();
    plugin.lists(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_understood_costs_that_device_only() {
    let stage = Stage::with_spares(&[FIRST]);
    let torn = stage.tree.virtio_nic(&position(SECOND), "virtio9");
    std::fs::create_dir_all(stage.tree.folder(&torn).join("net/eth9")).unwrap();
    stage.tree.write(&format!("{torn}/net/eth9"), "ifindex", "\u{1}\u{2}");
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    assert_eq!(kubelet.plugin().await.list().await.unwrap(), ["0000:00:09.0 Healthy []"]);
    agent.says(&["virtio9", "cannot be understood", "ifindex"]);
}
