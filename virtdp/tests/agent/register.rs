//! Registration: made, watched, made anew, ended.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use tokio::time::timeout;
use virtsim::kubelet::{Kubelet as Simulated, Options};

use crate::kubelet::Kubelet;
use crate::stage::{PATIENCE, Stage, until};

const NIC: &str = "0000:00:0a.0";
const LIST: &[&str] = &["0000:00:0a.0 Healthy []"];

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_serves_registers_and_sends_its_devices() {
    let stage = Stage::with_spares(&["0000:00:09.0", NIC]);
    stage.tree.write("pci0000:00/0000:00:09.0", "numa_node", "1");
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let request = kubelet.registered().await;
    assert_eq!((request.version.as_str(), request.resource_name.as_str()), ("v1beta1", "kernel.org/virt"));
    assert!(
        request.endpoint.starts_with("virtNet") && !request.endpoint.contains('/'),
        "{}",
        request.endpoint
    );
    // Nobody asks for the devices: the agent does not sit there and hope.
    let mut plugin = kubelet.plugin().await;
    assert_ne!(plugin.socket.file_name().unwrap().to_str(), Some(request.endpoint.as_str()));
    let list = plugin.list().await.unwrap();
    assert_eq!(list, ["0000:00:09.0 Healthy [1]", "0000:00:0a.0 Healthy []"]);
    agent.says(&["Skipping default interface", "0000:00:03.0", "IPv4 default route"]);
    agent.says(&["registered with the Kubelet"]);
    agent.says(&["ListAndWatch: send", "0000:00:09.0", NIC, "Healthy"]);
    agent.says(&["W", "did not ask for the devices"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_or_said_when_nothing_has_changed() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(LIST).await;
    stage.poke();
    stage.ip("link add other type bridge");
    stage.tree.interface(None, "other", 77);
    stage.tree.remove_interface("other");
    stage.ip("link del other");
    stage.poke();
    assert!(timeout(Duration::from_millis(1500), plugin.list()).await.is_err(), "{}", agent.log());
    assert_eq!(agent.count(&["Skipping default interface"]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_is_followed_by_a_new_registration_under_a_new_name() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut first = kubelet.plugin().await;
    first.lists(LIST).await;
    let old = first.socket.clone();
    drop(first);
    let mut second = kubelet.plugin().await;
    second.lists(LIST).await;
    assert_ne!(second.socket, old);
    assert!(!old.exists(), "the old socket is still there");
    agent.says(&["the kubelet closed the stream"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_removed_is_followed_by_a_new_registration_when_the_old_stream_is_closed() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut first = kubelet.plugin().await;
    first.lists(LIST).await;
    std::fs::remove_file(&first.socket).unwrap();
    assert_eq!(first.list().await, None, "the old stream goes on");
    kubelet.plugin().await.lists(LIST).await;
    agent.says(&["our socket was removed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_kubelet_on_the_same_path_is_noticed_though_the_old_stream_lives() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut first = kubelet.plugin().await;
    first.lists(LIST).await;
    let mut next = Kubelet::start(stage.kubelet_dir());
    next.plugin().await.lists(LIST).await;
    assert_eq!(first.list().await, None);
    agent.says(&["the kubelet has a new socket"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_quiet_and_clean() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(LIST).await;
    assert_eq!(agent.terminate(), Some(0));
    // The stream is closed; an empty list would have said that the devices are gone.
    assert_eq!(plugin.list().await, None);
    assert_eq!(stage.sockets(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_comes_also_while_the_agent_waits_for_the_kubelet() {
    let stage = Stage::with_spares(&[NIC]);
    let mut agent = stage.start();
    agent.says(&["waiting for the kubelet"]);
    assert_eq!(agent.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_an_earlier_run_left_are_removed() {
    let stage = Stage::with_spares(&[NIC]);
    let folder = stage.make_folder();
    drop(UnixListener::bind(folder.join("virtNet-old.sock")).unwrap());
    let _other_agent = UnixListener::bind(folder.join("virtNet-other.sock")).unwrap();
    let agent = stage.start();
    agent.says(&["removed a socket", "virtNet-old.sock"]);
    agent.says(&["left alone", "virtNet-other.sock"]);
    assert_eq!(stage.sockets(), ["virtNet-other.sock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_restarts_has_its_capacity_back() {
    let stage = Stage::with_spares(&["0000:00:09.0", NIC]);
    let kubelet = Simulated::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let agent = stage.start();
    let virt = "kernel.org/virt".parse().unwrap();
    let mut capacity = kubelet.capacity();
    for round in 0..3 {
        let full = capacity.wait_for(|all| all.get(&virt).is_some_and(|virt| virt.allocatable == 2));
        timeout(PATIENCE, full).await.unwrap_or_else(|_| panic!("round {round}: {}", agent.log())).unwrap();
        kubelet.restart().await.unwrap();
    }
    let full = capacity.wait_for(|all| all.get(&virt).is_some_and(|virt| virt.allocatable == 2));
    timeout(PATIENCE, full).await.unwrap().unwrap();
    until("one socket is left", || stage.sockets().len() == 1);
    kubelet.stop().await;
}
