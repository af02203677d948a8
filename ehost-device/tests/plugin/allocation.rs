//! Whose a NIC is under Kubernetes, the kubelet says.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use kubelet_api::testing::{PodResourcesService, pod};
use serde_json::{Value, json};

use crate::bench::Bench;

fn socket(bench: &Bench) -> PathBuf {
    let folder = bench.kubelet().join("pod-resources");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("kubelet.sock")
}

/// A kubelet that gave the device `id` to pod default/NAME.
fn kubelet(bench: &Bench, name: &str, id: &str) -> PodResourcesService {
    let other = pod("kube-system", "testpod1", "kernel.org/virt", &[&["link:eth1"]]);
    let pod = pod("default", name, "kernel.org/virt", &[&[], &["GPU-1", id]]);
    PodResourcesService::start(&socket(bench), vec![other, pod])
}

/// The bench's configuration without its override.
fn strict(bench: &Bench, keys: Value) -> Value {
    let mut config = bench.config(json!({"allowUnallocated": null}));
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

#[test]
fn a_nic_that_the_kubelet_gave_to_the_pod_is_moved_and_no_del_asks() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = strict(&bench, json!({}));
    let kubelet = kubelet(&bench, "testpod1", "link:eth1");
    let added = bench.run("ADD", &config).expect();
    assert!(!added.stderr.contains("WARNING"), "{}", added.stderr);
    assert_eq!(kubelet.asked(), 1);
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    assert_eq!(kubelet.asked(), 1);
}

#[test]
fn a_nic_that_the_kubelet_gave_to_nobody_or_another_pod_is_refused() {
    for (name, id, words) in [
        (
            "testpod1",
            "0000:00:0a.0",
            "the kubelet gave it GPU-1 of kernel.org/virt, 0000:00:0a.0 of kernel.org/virt",
        ),
        ("testpod2", "link:eth1", "the kubelet knows no such pod"),
    ] {
        let bench = Bench::new();
        let before = bench.portrait();
        let _kubelet = kubelet(&bench, name, id);
        let refused = bench.run("ADD", &strict(&bench, json!({})));
        assert_eq!(refused.code(), 110);
        for part in ["device link:eth1 was not allocated to pod default/testpod1", words, "allowUnallocated"]
        {
            assert!(refused.text().contains(part), "{}", refused.text());
        }
        bench.assert_untouched(&before);
        assert!(bench.asked().is_empty());
    }
}

#[test]
fn a_kubelet_that_is_not_there_or_does_not_answer_is_no_reason_to_trust() {
    let bench = Bench::new();
    let before = bench.portrait();
    let absent = bench.run("ADD", &strict(&bench, json!({})));
    // It takes the connection, and that is all.
    let _mute = UnixListener::bind(socket(&bench)).unwrap();
    let mute = bench.run("ADD", &strict(&bench, json!({})));
    for (refused, words) in [(absent, "is not reachable"), (mute, "did not answer")] {
        assert_eq!(refused.code(), 11);
        for part in ["link:eth1", "pod default/testpod1", words, "kubeletDir", "allowUnallocated"] {
            assert!(refused.text().contains(part), "{}", refused.text());
        }
    }
    bench.assert_untouched(&before);
}

#[test]
fn only_the_networks_own_configuration_may_insist_and_it_is_logged() {
    let bench = Bench::new();
    let _kubelet = kubelet(&bench, "testpod1", "0000:00:0a.0");
    // Nor what a pod brings along in CNI_ARGS: see the bench.
    for keys in [
        json!({"runtimeConfig": {"allowUnallocated": true}, "capabilities": {"allowUnallocated": true}}),
        json!({"args": {"cni": {"allowUnallocated": true}}}),
        json!({"ipam": {"type": "answers", "allowUnallocated": true}}),
        json!({"allowUnallocated": false}),
        json!({"allowLifeline": true, "allowAnotherNic": true}),
    ] {
        let refused = bench.run("ADD", &strict(&bench, keys.clone()));
        assert_eq!(refused.code(), 110, "{keys}");
        assert!(!refused.stderr.contains("WARNING"), "{keys}");
    }
    let config = bench.config(json!({}));
    let added = bench.run("ADD", &config).expect();
    let told = "WARNING: the kubelet gave it GPU-1 of kernel.org/virt, 0000:00:0a.0 of kernel.org/virt, not link:eth1; \
                allowUnallocated lets it pass";
    assert!(added.stderr.contains(told), "{}", added.stderr);
    bench.run("DEL", &config).expect();
}

#[test]
fn where_there_is_no_pod_nobody_is_asked() {
    let bench = Bench::new();
    let kubelet = kubelet(&bench, "testpod1", "0000:00:0a.0");
    let config = strict(&bench, json!({}));
    bench.run_without_pod("ADD", &config).expect();
    bench.run_without_pod("DEL", &config).expect();
    assert_eq!(kubelet.asked(), 0);
}
