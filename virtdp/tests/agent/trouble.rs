//! A kubelet that is not there, a folder that is not as it should be, a node that cannot be read: the agent waits, says for
//! what, and goes on by itself.

use std::process::Command;

use crate::kubelet::Kubelet;
use crate::stage::{Stage, until};

const NIC: &str = "0000:00:0a.0";
const LIST: &[&str] = &["0000:00:0a.0 Healthy []"];

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_comes_later_is_waited_for() {
    let stage = Stage::with_spares(&[NIC]);
    let mut agent = stage.start();
    agent.says(&["waiting for the kubelet", "kubelet/device-plugins does not exist"]);
    stage.make_folder();
    agent.says(&["waiting for the kubelet", "kubelet.sock does not exist", "is the kubelet running?"]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    kubelet.plugin().await.lists(LIST).await;
    assert!(agent.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_died_and_left_its_socket_is_waited_for() {
    let stage = Stage::with_spares(&[NIC]);
    Kubelet::start(stage.kubelet_dir()).die().await;
    let agent = stage.start();
    agent.says(&["waiting for the kubelet", "kubelet.sock", "refused"]);
    // Each attempt cleans up after itself.
    assert_eq!(stage.sockets(), Vec::<String>::new());
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    kubelet.plugin().await.lists(LIST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_registration_is_said_and_tried_again() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    kubelet.refuse(Some("the ResourceName is invalid"));
    let agent = stage.start();
    kubelet.registered().await;
    agent.says(&["refused the registration", "the ResourceName is invalid"]);
    until("the socket of the failed attempt is gone", || stage.sockets().is_empty());
    kubelet.refuse(None);
    // One more may have been refused meanwhile.
    loop {
        let request = kubelet.registered().await;
        if stage.kubelet_dir().device_plugins().join(request.endpoint).exists() {
            break;
        }
    }
    agent.says(&["registered with the Kubelet"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_place_of_the_folder_is_said_and_waited_out() {
    let stage = Stage::with_spares(&[NIC]);
    std::fs::create_dir(stage.path("kubelet")).unwrap();
    std::fs::write(stage.kubelet_dir().device_plugins(), "").unwrap();
    let mut agent = stage.start();
    agent.says(&["waiting", "device-plugins is not a folder"]);
    std::fs::remove_file(stage.kubelet_dir().device_plugins()).unwrap();
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    kubelet.plugin().await.lists(LIST).await;
    assert!(agent.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_is_said_and_waited_out() {
    let stage = Stage::with_spares(&[NIC]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let folder = stage.kubelet_dir().device_plugins();
    let folder = folder.to_str().unwrap();
    // Permissions do not stop root; a read-only mount does, in a mount namespace that ends with the agent.
    let script =
        format!("mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec \"$@\"");
    let mut command: Vec<String> = ["unshare", "-m", "sh", "-c", &script, "sh"].map(String::from).into();
    command.extend(stage.command());
    let mut agent = stage.start_as(&command);
    agent.says(&["waiting for the kubelet's folder", folder, "Read-only file system"]);
    assert!(agent.is_running());
    let id = agent.id().to_string();
    let remount = ["-m", "-t", &id, "mount", "-o", "remount,bind,rw", folder];
    assert!(Command::new("nsenter").args(remount).status().unwrap().success());
    kubelet.plugin().await.lists(LIST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_read_offers_nothing_until_it_can() {
    let stage = Stage::with_spares(&[NIC]);
    // Now sysfs does not show what netlink shows, as when it is mounted for another network namespace.
    stage.tree.remove_interface("eth0");
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut agent = stage.start();
    agent.says(&["no NIC is offered", "is sysfs of this network namespace?"]);
    assert_eq!(stage.sockets(), Vec::<String>::new());
    let index = stage.netns.route_socket().unwrap().link_by_name("eth0").unwrap().unwrap().index;
    stage.tree.interface(Some("pci0000:00/0000:00:03.0/virtio-eth0"), "eth0", index);
    let mut plugin = kubelet.plugin().await;
    plugin.lists(LIST).await;
    // And once more while it runs: what was offered is ill then.
    stage.tree.remove_interface("eth0");
    stage.poke();
    plugin.lists(&["0000:00:0a.0 Unhealthy []"]).await;
    stage.tree.interface(Some("pci0000:00/0000:00:03.0/virtio-eth0"), "eth0", index);
    stage.poke();
    plugin.lists(LIST).await;
    assert!(agent.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_ledger_and_a_torn_checkpoint_are_said_and_in_nobodys_way() {
    let stage = Stage::with_spares(&[NIC]);
    std::fs::create_dir_all(stage.path("state/leases")).unwrap();
    std::fs::write(stage.path("state/leases/0000:00:0a.0.json"), "{").unwrap();
    std::fs::write(stage.make_folder().join("kubelet_internal_checkpoint"), "\0\0").unwrap();
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    kubelet.plugin().await.lists(LIST).await;
    agent.says(&["W", "ledger", "0000:00:0a.0.json"]);
    agent.says(&["W", "checkpoint cannot be read"]);
}
