//! Allocate and GetPreferredAllocation, over the socket.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use kubelet_api::deviceplugin::{
    ContainerPreferredAllocationRequest, PreStartContainerRequest, PreferredAllocationRequest,
};
use tokio::time::timeout;
use virtsim::kubelet::{ContainerKind, ContainerRequest, Kubelet as Simulated, Options, PodKey};

use crate::kubelet::Kubelet;
use crate::stage::{PATIENCE, Stage, read, until};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";
const FILE: &str = "devinfo/dp/kernel.org-virt-0000:00:0a.0-device.json";

#[tokio::test(flavor = "multi_thread")]
async fn each_container_gets_its_environment_and_each_device_its_file() {
    let stage = Stage::with_spares(&[FIRST, SECOND, "0000:00:0b.0"]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    assert_eq!(plugin.list().await.unwrap().len(), 3);
    let answer = plugin.allocate(&[&[SECOND, FIRST], &["0000:00:0b.0"], &[]]).await.unwrap();
    let env = |n: usize, key: &str| answer.container_responses[n].envs.get(key).map(String::as_str);
    assert_eq!(env(0, "PCIDEVICE_KERNEL_ORG_VIRT"), Some("0000:00:09.0,0000:00:0a.0"));
    assert_eq!(env(0, "VIRT_PCI_ADDR"), Some("0000:00:09.0,0000:00:0a.0"));
    assert_eq!(env(1, "PCIDEVICE_KERNEL_ORG_VIRT"), Some("0000:00:0b.0"));
    assert_eq!(answer.container_responses.len(), 3);
    let info: serde_json::Value =
        serde_json::from_str(env(1, "PCIDEVICE_KERNEL_ORG_VIRT_INFO").unwrap()).unwrap();
    assert_eq!(info["0000:00:0b.0"]["generic"]["deviceID"], "0000:00:0b.0");
    agent.says(&["DeviceID in Allocate: 0000:00:0a.0"]);
    let file = read(&stage.path(FILE));
    assert_eq!(file, r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:00:0a.0"}}"#);
    let mode = stage.path("devinfo/dp").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // The containers of a pod use what its init containers used.
    let again = plugin.allocate(&[&[FIRST, SECOND]]).await.unwrap();
    assert_eq!(again.container_responses[0].envs, answer.container_responses[0].envs);
    plugin
        .client
        .pre_start_container(PreStartContainerRequest { device_ids: vec![FIRST.into()] })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_refused_by_name() {
    let stage = Stage::with_spares(&[FIRST]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    for (device, words) in [
        ("0000:00:0f.0", "device 0000:00:0f.0 is not offered"),
        ("0000:00:03.0", "0000:00:03.0 is not offered: eth0 carries the IPv4 default route"),
        ("../../../etc/passwd", "../../../etc/passwd is not offered"),
    ] {
        let refused = plugin.allocate(&[&[FIRST, device]]).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused}");
    }
    assert!(!stage.path("devinfo").exists(), "a refused allocation left something");
    agent.says(&["Allocate refused", "0000:00:0f.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nics_of_one_numa_node_are_preferred() {
    let stage = Stage::with_spares(&[FIRST, SECOND, "0000:00:0b.0"]);
    for (device, node) in [(FIRST, "0"), (SECOND, "1"), ("0000:00:0b.0", "1")] {
        stage.tree.write(&crate::stage::position(device), "numa_node", node);
    }
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    let ask = ContainerPreferredAllocationRequest {
        available_device_ids: [FIRST, SECOND, "0000:00:0b.0", "never-heard-of"].map(String::from).into(),
        must_include_device_ids: Vec::new(),
        allocation_size: 2,
    };
    let request = PreferredAllocationRequest { container_requests: vec![ask] };
    let answer = plugin.client.get_preferred_allocation(request).await.unwrap().into_inner();
    assert_eq!(answer.container_responses[0].device_ids, [SECOND, "0000:00:0b.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_vanishes_after_its_allocation_is_kept_in_the_list() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.allocate(&[&[FIRST]]).await.unwrap();
    for (device, name) in [(FIRST, "eth1"), (SECOND, "eth2")] {
        stage.tree.unplug(&crate::stage::position(device));
        stage.ip(&format!("link del {name}"));
        stage.tree.remove_interface(&format!("{name}-p"));
    }
    stage.poke();
    plugin.lists(&["0000:00:09.0 Unhealthy []", "0000:00:0a.0 Unhealthy []"]).await;
    plugin.lists(&["0000:00:09.0 Unhealthy []"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reboot_takes_from_run_is_made_again_without_an_allocation() {
    let stage = Stage::with_spares(&[SECOND]);
    let kubelet = Simulated::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let mut agent = stage.start();
    let virt: nic::ResourceName = "kernel.org/virt".parse().unwrap();
    let mut capacity = kubelet.capacity();
    let offered = capacity.wait_for(|all| all.get(&virt).is_some_and(|virt| virt.allocatable == 1));
    drop(timeout(PATIENCE, offered).await.unwrap().unwrap());
    let pod = PodKey { uid: "u1".into(), namespace: "default".into(), name: "testpod1".into() };
    let container = ContainerRequest {
        name: "main".into(),
        kind: ContainerKind::App,
        limits: BTreeMap::from([(virt.clone(), 1)]),
    };
    let given = kubelet.admit(pod, vec![container]).await.unwrap();
    assert_eq!(given[0].devices[&virt], [SECOND]);
    agent.says(&["DeviceID in Allocate: 0000:00:0a.0"]);
    until("the file is there", || stage.path(FILE).exists());

    assert_eq!(agent.terminate().0, Some(0));
    std::fs::remove_dir_all(stage.path("devinfo")).unwrap();
    let _agent = stage.start();
    until("the file is there again", || stage.path(FILE).exists());
    kubelet.stop().await;
}
