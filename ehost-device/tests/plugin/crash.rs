//! Processes that died, and files that are not what they should be.

use linux::Netns;
use serde_json::{Value, json};

use crate::bench::{ANSWERS, Bench, path_of};

/// An ADD that is killed by its own IPAM plugin: the NIC is in the pod, the lease is open.
fn killed_add(bench: &Bench) -> Value {
    bench.ipam("kills", "kill -9 $PPID");
    let config = bench.config(json!({"ipam": {"type": "kills"}}));
    let killed = bench.run("ADD", &config);
    assert!(!killed.ok && killed.json.is_null(), "{}", killed.json);
    assert!(bench.pod_link("net1").is_some() && bench.lease().exists());
    bench.ipam("kills", ANSWERS);
    config
}

#[test]
fn after_a_killed_add_a_del_brings_the_nic_home() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = killed_add(&bench);
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
}

#[test]
fn after_a_killed_add_the_next_add_of_any_container_succeeds() {
    for container in ["one", "two"] {
        let bench = Bench::new();
        let before = bench.portrait();
        let config = killed_add(&bench);
        let second = Netns::create().unwrap();
        let path = path_of(&second).display().to_string();
        bench.run_for("ADD", container, &path, &config).expect();
        assert!(bench.pod_link("net1").is_none());
        bench.run_for("DEL", container, &path, &config).expect();
        bench.assert_untouched(&before);
    }
}

#[test]
fn a_nic_that_fell_home_under_its_pods_name_is_restored_by_the_next_add() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    // What the kernel does with real NICs when a namespace ends: down, and under the pod's name.
    let node = path_of(&bench.node);
    bench.in_pod(&format!("link set net1 netns {}", node.display()));
    assert!(bench.node_link("net1").is_some());
    let second = Netns::create().unwrap();
    let path = path_of(&second).display().to_string();
    bench.run_for("ADD", "two", &path, &config).expect();
    bench.run_for("DEL", "two", &path, &config).expect();
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
}

#[test]
fn an_add_that_repairs_a_lease_gives_back_the_address_that_its_network_gave() {
    for (network, given_back) in [("virt-net1", true), ("another", false)] {
        let bench = Bench::new();
        let said = bench.folder.path().join("said");
        let tell = format!("echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>{}", said.display());
        bench.ipam("tells", &format!("{tell}\n{ANSWERS}"));
        let config = bench.config(json!({"ipam": {"type": "tells"}}));
        bench.run("ADD", &config).expect();
        // The namespace ends, and the runtime forgets the container, as after a power cut: no DEL comes.
        bench.in_pod(&format!("link set net1 netns {}", path_of(&bench.node).display()));
        let second = Netns::create().unwrap();
        let path = path_of(&second).display().to_string();
        let config = bench.config(json!({"ipam": {"type": "tells"}, "name": network}));
        bench.run_for("ADD", "two", &path, &config).expect();
        let said = std::fs::read_to_string(said).unwrap();
        let mut expected = vec!["ADD one net1", "DEL one net1", "ADD two net1"];
        expected.retain(|line| given_back || !line.starts_with("DEL"));
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        bench.run_for("DEL", "two", &path, &config).expect();
    }
}

#[test]
fn a_torn_lease_is_set_aside_when_the_nic_is_home() {
    let bench = Bench::new();
    let before = bench.portrait();
    std::fs::create_dir_all(bench.state().join("leases")).unwrap();
    std::fs::write(bench.lease(), "{\"version\": 1, \"dev").unwrap();
    let config = bench.config(json!({}));
    bench.run("DEL", &config).expect();
    let added = bench.run("ADD", &config).expect();
    assert!(added.stderr.contains("cannot be used"), "{}", added.stderr);
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    assert!(bench.lease().with_extension("json.unusable").exists());
}

#[test]
fn a_lease_of_a_newer_release_is_respected_and_never_deleted() {
    let bench = Bench::new();
    let before = bench.portrait();
    std::fs::create_dir_all(bench.state().join("leases")).unwrap();
    let newer = r#"{"version": 99, "new": "things"}"#;
    std::fs::write(bench.lease(), newer).unwrap();
    let config = bench.config(json!({}));
    let refused = bench.run("ADD", &config);
    assert_eq!(refused.code(), 108);
    assert!(refused.text().contains("version 99"), "{}", refused.text());
    bench.run("DEL", &config).expect();
    assert_eq!(std::fs::read_to_string(bench.lease()).unwrap(), newer);
    std::fs::remove_file(bench.lease()).unwrap();
    bench.assert_untouched(&before);
}
