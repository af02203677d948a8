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

/// A real kubelet deletes a pod without grace and gives its device to the next one before the CNI DEL has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_is_not_home_or_came_home_just_now_is_not_the_next_pods_if_there_is_another() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    stage.lease(FIRST);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    assert_eq!(plugin.list().await.unwrap().len(), 2);
    assert_eq!(plugin.prefers(&[FIRST, SECOND]).await, [SECOND]);
    // Given a moment ago is better than still away.
    plugin.allocate(&[&[SECOND]]).await.unwrap();
    assert_eq!(plugin.prefers(&[FIRST, SECOND]).await, [SECOND]);
    assert_eq!(plugin.prefers(&[FIRST]).await, [FIRST]);
    // Whether or not that it came home is known already.
    stage.close_lease(FIRST);
    assert_eq!(plugin.prefers(&[FIRST, SECOND]).await, [SECOND]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_vfio_holds_is_offered_when_asked_for_and_comes_with_its_group() {
    let stage = Stage::with_spares(&[FIRST]);
    stage.vfio_nic(SECOND, 12);
    let discovered = String::from_utf8(stage.discover(&[]).stdout).unwrap();
    let line = discovered.lines().find(|line| line.starts_with(SECOND)).unwrap();
    assert!(line.contains("skipped") && line.contains("driver vfio-pci is not in the pool's list"), "{line}");

    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut command = stage.command();
    command.extend(["--driver=virtio_net", "--driver=vfio-pci", "--need-vhost-net"].map(String::from));
    let _agent = stage.start_as(&command);
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"]).await;
    let answer = plugin.allocate(&[&[SECOND], &[FIRST]]).await.unwrap();
    let nodes = |n: usize| -> Vec<String> {
        let specs = answer.container_responses[n].devices.iter();
        specs.map(|node| format!("{} {} {}", node.host_path, node.container_path, node.permissions)).collect()
    };
    assert_eq!(
        nodes(0),
        [
            "/dev/net/tun /dev/net/tun rw",
            "/dev/vfio/12 /dev/vfio/12 rw",
            "/dev/vfio/vfio /dev/vfio/vfio rw",
            "/dev/vhost-net /dev/vhost-net rw"
        ]
    );
    assert_eq!(nodes(1), ["/dev/net/tun /dev/net/tun rw", "/dev/vhost-net /dev/vhost-net rw"]);
    let info = &answer.container_responses[0].envs["PCIDEVICE_KERNEL_ORG_VIRT_INFO"];
    let info: serde_json::Value = serde_json::from_str(info).unwrap();
    assert_eq!(
        info[SECOND]["vfio"],
        serde_json::json!({"mount": "/dev/vfio/vfio", "dev-mount": "/dev/vfio/12"})
    );
    assert_eq!(
        read(&stage.path(FILE)),
        r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:00:0a.0","vhost-net":"/dev/vhost-net"}}"#
    );

    std::fs::remove_file(stage.tree.folder(&crate::stage::position(SECOND)).join("iommu_group")).unwrap();
    let refused = plugin.allocate(&[&[SECOND]]).await.unwrap_err();
    assert!(refused.message().contains("device 0000:00:0a.0 cannot be used by a container"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_cdi_devices_are_named_and_their_file_follows_the_list() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    std::fs::create_dir_all(stage.path("cdi")).unwrap();
    std::fs::write(stage.path("cdi/virtnet-old.example_nics.json"), "{}").unwrap();
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let mut command = stage.command();
    command.extend(["--need-tun", "--cdi"].map(String::from));
    let mut agent = stage.start_as(&command);
    let mut plugin = kubelet.plugin().await;
    let files = || -> Vec<String> {
        let entries = std::fs::read_dir(stage.path("cdi")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(files(), ["virtnet-kernel.org_virt.json"]);
    let answer = plugin.allocate(&[&[FIRST, SECOND]]).await.unwrap().container_responses.remove(0);
    let names: Vec<&str> = answer.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["kernel.org/virt=0000:00:09.0", "kernel.org/virt=0000:00:0a.0"]);
    assert!(answer.devices.is_empty());
    let file = stage.path("cdi/virtnet-kernel.org_virt.json");
    let devices = || -> Vec<String> {
        let document: serde_json::Value = serde_json::from_str(&read(&file)).unwrap();
        let devices = document["devices"].as_array().unwrap().iter();
        devices.map(|device| device["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(devices(), [FIRST, SECOND]);
    assert!(read(&file).contains(r#"{"path":"/dev/net/tun","permissions":"rw"}"#));

    // What a reboot took is there again before the kubelet can ask; what is gone from the list is gone from the file.
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(devices(), [FIRST, SECOND], "containers that restart meanwhile need it");
    std::fs::remove_dir_all(stage.path("cdi")).unwrap();
    stage.tree.unplug(&crate::stage::position(SECOND));
    stage.ip("link del eth2");
    stage.tree.remove_interface("eth2-p");
    let mut agent = stage.start_as(&command);
    let _plugin = kubelet.plugin().await;
    assert_eq!(devices(), [FIRST]);
    assert_eq!(agent.terminate(), Some(0));

    // Switched off, it goes by a reboot: until then containers start again by the names that they were given.
    let mut agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    assert_eq!(devices(), [FIRST]);
    let answer = plugin.allocate(&[&[FIRST]]).await.unwrap().container_responses.remove(0);
    assert!(answer.cdi_devices.is_empty() && answer.devices.is_empty());
    assert_eq!(devices(), [FIRST]);
    assert_eq!(agent.terminate(), Some(0));
    std::fs::remove_file(&file).unwrap();
    let _agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.allocate(&[&[FIRST]]).await.unwrap();
    assert!(files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_device_goes_with_the_device() {
    let stage = Stage::with_spares(&[FIRST]);
    let folder = stage.path("devinfo/dp");
    std::fs::create_dir_all(&folder).unwrap();
    let others = folder.join("example.com-nic-0000:00:0a.0-device.json");
    for path in [&stage.path(FILE), &others] {
        std::fs::write(path, "{}").unwrap();
    }
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    assert_eq!(plugin.list().await.unwrap().len(), 1);
    assert!(!stage.path(FILE).exists() && others.exists());
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

    assert_eq!(agent.terminate(), Some(0));
    std::fs::remove_dir_all(stage.path("devinfo")).unwrap();
    let _agent = stage.start();
    until("the file is there again", || stage.path(FILE).exists());
    kubelet.stop().await;
}
