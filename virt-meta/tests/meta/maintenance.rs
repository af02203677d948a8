//! CHECK, GC, STATUS and VERSION.

use std::fs;

use serde_json::{Value, json};

use crate::bench::Bench;

#[test]
fn check_reaches_all_networks_with_their_own_results() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"cniVersion": "1.0.0", "type": "nic"}));
    bench.define("apps/old", None, &json!({"cniVersion": "0.3.1", "type": "nic"}));
    bench.add("a,old").unwrap();
    bench.calls();
    bench.call("CHECK", &bench.config(None)).unwrap();
    let configs = bench.configs();
    let calls: Vec<_> = configs.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!(calls, ["bridge CHECK eth0", "nic CHECK net1"]);
    assert_eq!(configs[1].1["prevResult"]["interfaces"][0]["name"], "net1");
    bench.fail("nic", "CHECK", 77);
    let fault = bench.call("CHECK", &bench.config(None)).unwrap_err();
    assert_eq!(
        (fault.code, fault.message.as_str()),
        (77, "network apps/a (interface net1): plugin nic: nic will not CHECK")
    );
    bench.del().unwrap();
    assert_eq!(bench.call("CHECK", &bench.config(None)).unwrap_err().code, 3);
}

/// The configuration of a GC with these containers valid.
fn gc(bench: &Bench, valid: &[&str]) -> Value {
    let mut config = bench.config(None);
    let list: Vec<_> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    config["cni.dev/valid-attachments"] = json!(list);
    config
}

#[test]
fn gc_detaches_what_is_not_valid_and_asks_each_network() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"cniVersion": "1.1.0", "type": "nic"}));
    bench.add("a").unwrap();
    bench.calls();
    bench.call("GC", &gc(&bench, &["c1"])).unwrap();
    let configs = bench.configs();
    let told = |index: usize| configs[index].1["cni.dev/valid-attachments"].clone();
    assert_eq!(configs.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(), ["bridge GC", "nic GC"]);
    assert_eq!(told(0), json!([{"containerID": "c1", "ifname": "eth0"}]));
    assert_eq!(told(1), json!([{"containerID": "c1", "ifname": "net1"}]));
    assert!(bench.record().is_some());
    bench.call("GC", &gc(&bench, &[])).unwrap();
    assert_eq!(bench.calls(), ["nic DEL net1", "bridge DEL eth0", "bridge GC", "nic GC"]);
    assert!(bench.record().is_none());
}

#[test]
fn gc_spares_the_networks_of_containers_that_somebody_else_attached() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"cniVersion": "1.1.0", "type": "nic"}));
    bench.add("a").unwrap();
    bench.calls();
    bench.call("GC", &gc(&bench, &["c1", "of-another-plugin"])).unwrap();
    assert_eq!(bench.calls(), ["bridge GC"]);
}

#[test]
fn gc_goes_on_after_an_error() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"cniVersion": "1.1.0", "type": "nic"}));
    bench.add("a").unwrap();
    bench.calls();
    bench.fail("bridge", "GC", 60);
    let fault = bench.call("GC", &gc(&bench, &["c1"])).unwrap_err();
    assert_eq!(fault.code, 60);
    // The question whether it knows GC at all is what VERSION is for.
    assert_eq!(bench.calls(), ["bridge GC", "bridge VERSION", "nic GC"]);
}

#[test]
fn networks_that_share_a_name_share_their_valid_attachments() {
    let bench = Bench::new();
    for name in ["apps/a", "apps/b"] {
        bench.define(name, None, &json!({"cniVersion": "1.1.0", "name": "shared", "type": "nic"}));
    }
    bench.add("a,b").unwrap();
    bench.calls();
    bench.call("GC", &gc(&bench, &["c1"])).unwrap();
    for (_, config) in bench.configs().into_iter().skip(1) {
        let both = json!([{"containerID": "c1", "ifname": "net1"}, {"containerID": "c1", "ifname": "net2"}]);
        assert_eq!(config["cni.dev/valid-attachments"], both);
    }
}

#[test]
fn status_is_the_cluster_networks() {
    let bench = Bench::new();
    bench.call("STATUS", &bench.config(None)).unwrap();
    assert_eq!(bench.calls(), ["bridge STATUS"]);
    bench.fail("bridge", "STATUS", 50);
    assert_eq!(bench.call("STATUS", &bench.config(None)).unwrap_err().code, 50);
}

#[test]
fn version_needs_neither_configuration_nor_state() {
    let bench = Bench::new();
    let output = bench.start("VERSION", b"").wait_with_output().unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap(), @r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#);
    assert!(!bench.file("state").exists());
}

#[test]
fn what_is_kept_is_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    bench.add("").unwrap();
    let mode = |path: &str| fs::metadata(bench.file(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("state/attachments"), 0o700);
    assert_eq!(mode("state/attachments/c1.json"), 0o600);
}
