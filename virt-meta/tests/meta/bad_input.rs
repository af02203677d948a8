//! What is wrong is refused before anything is changed, with words that name it.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, answer, kubelet};

/// An ADD that must fail before any delegate runs.
fn refused(bench: &Bench, config: &Value) -> String {
    let fault = bench.call("ADD", config).unwrap_err();
    assert_eq!(bench.calls(), Vec::<String>::new(), "a delegate ran");
    assert!(bench.record().is_none());
    let folder = bench.file("").display().to_string();
    let text = format!("{} (code {}): {}", fault.message, fault.code, fault.details);
    text.replace(&bench.api.url(), "API").replace(folder.trim_end_matches('/'), "BENCH")
}

fn annotated(bench: &Bench, annotation: &str) -> String {
    refused(bench, &bench.config(Some(annotation)))
}

#[test]
fn a_configuration_that_is_none() {
    let bench = Bench::new();
    for (stdin, code) in [("{", 6), ("", 6), ("{}", 7), (r#"{"name":"n","cniVersion":"9.0.0"}"#, 1)] {
        for verb in ["ADD", "DEL", "CHECK"] {
            let output = bench.start(verb, stdin.as_bytes()).wait_with_output().unwrap();
            assert_eq!(answer(output).unwrap_err().code, code, "{verb} {stdin:?}");
        }
    }
    let mut config = bench.config(None);
    config["stateDir"] = json!(7);
    insta::assert_snapshot!(refused(&bench, &config), @"the configuration of network cluster is wrong (code 7): invalid type: integer `7`, expected path string");
    let mut config = bench.config(Some(""));
    config["prevResult"] = json!({"cniVersion": "1.1.0"});
    insta::assert_snapshot!(refused(&bench, &config), @"virt-meta makes the pod's first interface, so it must be the first plugin in the list (code 7):");
}

#[test]
fn a_cluster_network_that_is_missing_or_is_virt_meta() {
    let mut bench = Bench::new();
    let mut with = |value: Value| {
        bench.set("clusterNetwork", value);
        annotated(&bench, "")
    };
    insta::assert_snapshot!(with(Value::Null), @"clusterNetwork: missing: it names the network that gives pods their first interface (code 7):");
    insta::assert_snapshot!(with(json!(7)), @"clusterNetwork: neither an object, nor a path, nor a name (code 7):");
    insta::assert_snapshot!(with(json!({"name": "n"})), @"clusterNetwork: network n has no plugins (code 7):");
    insta::assert_snapshot!(with(json!("absent")), @"clusterNetwork: no network absent in BENCH/net.d (code 7):");
    insta::assert_snapshot!(with(json!("../absent")), @r#"clusterNetwork: "../absent" is not a network name: it does not begin with a letter or digit (code 7):"#);
    insta::assert_snapshot!(with(json!("/absent.conflist")), @"clusterNetwork: /absent.conflist cannot be read (code 5): No such file or directory (os error 2)");
    insta::assert_snapshot!(with(json!({"type": "virt-meta"})), @"clusterNetwork: network cluster is virt-meta itself (code 7):");
    // By name it may find its own file.
    bench.write("net.d/00-cluster.conf", r#"{"cniVersion":"1.0.0","name":"cluster","type":"virt-meta"}"#);
    bench.set("clusterNetwork", json!("cluster"));
    insta::assert_snapshot!(annotated(&bench, ""), @"clusterNetwork: network cluster is virt-meta itself (code 7):");
}

#[test]
fn an_annotation_that_is_malformed() {
    let bench = Bench::new();
    insta::assert_snapshot!(annotated(&bench, "a,b/c/d"), @"annotation k8s.v1.cni.cncf.io/networks, item 2 (b/c/d) (code 7): expected [namespace/]name[@interface]");
    insta::assert_snapshot!(annotated(&bench, r#"[{"name":"a","deviceID":"0000:00:0a.0"}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ({"deviceID":"0000:00:0a.0","name":"a"}) (code 7): deviceID may not be chosen by the pod"#);
    insta::assert_snapshot!(annotated(&bench, "a@eth0"), @"annotation k8s.v1.cni.cncf.io/networks, item 1 (a@eth0) (code 7): interface eth0 is taken already");
    let mut config = bench.config(None);
    config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"a": 1}});
    insta::assert_snapshot!(refused(&bench, &config), @"runtimeConfig.io.kubernetes.cri.pod-annotations cannot be read (code 7): invalid type: integer `1`, expected a string");
}

#[test]
fn a_network_that_is_unknown_or_not_to_be_used() {
    let mut bench = Bench::new();
    insta::assert_snapshot!(annotated(&bench, "infra/absent"), @"API server API knows no NetworkAttachmentDefinition infra/absent (code 7):");
    bench.define("infra/own", None, &json!({"type": "virt-meta"}));
    insta::assert_snapshot!(annotated(&bench, "infra/own"), @"network infra/own: network own is virt-meta itself (code 7):");
    bench.define("infra/odd", None, &json!([]));
    insta::assert_snapshot!(annotated(&bench, "infra/odd"), @"network infra/odd: spec.config is not a JSON object (code 6): invalid type: sequence, expected a map at line 1 column 0");
    bench.define("infra/path", None, &json!({"type": "../../bin/sh"}));
    insta::assert_snapshot!(annotated(&bench, "infra/path"), @r#"network infra/path: "../../bin/sh" is not a plugin type: it is a file name, without a path (code 7):"#);
    bench.define("infra/typo", Some("virt"), &json!({"type": "nic"}));
    insta::assert_snapshot!(annotated(&bench, "infra/typo"), @r#"network infra/typo: annotation k8s.v1.cni.cncf.io/resourceName of network infra/typo names no resource (code 7): "virt" is not an extended resource name: it has no prefix (expected the form kernel.org/virt)"#);
    bench.define("infra/empty", None, &Value::Null);
    insta::assert_snapshot!(annotated(&bench, "infra/empty"), @"network infra/empty: no network empty in BENCH/net.d (code 7):");
    bench.define("infra/plain", None, &json!({"type": "nic"}));
    insta::assert_snapshot!(annotated(&bench, r#"[{"name":"plain","namespace":"infra","mac":"52:54:00:00:00:01"}]"#), @"network infra/plain: the pod asks for mac, which no plugin of the network declares as a capability (code 2):");
    insta::assert_snapshot!(annotated(&bench, r#"[{"name":"plain","namespace":"infra","default-route":["10.0.0.1"]},{"name":"plain","namespace":"infra","default-route":["10.0.0.2"]}]"#), @"both network infra/plain (interface net1) and network infra/plain (interface net2) are to have the default route (code 7):");
    insta::assert_snapshot!(annotated(&bench, r#"[{"name":"plain","namespace":"infra","ipam-claim-reference":"c"}]"#), @"network infra/plain: the pod asks for ipam-claim-reference, which virt-meta does not support (code 2):");
    bench.set("namespaceIsolation", json!(true));
    insta::assert_snapshot!(annotated(&bench, "infra/plain"), @"network infra/plain is not in the pod's namespace apps, as it must be here (code 7):");
}

#[test]
fn an_api_server_that_is_down_stops_add_but_not_del() {
    let mut bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    bench.add("a").unwrap();
    bench.calls();
    bench.api.stop();
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["nic DEL net1", "bridge DEL eth0"]);
    let said = annotated(&bench, "a");
    insta::assert_snapshot!(said, @"API server API did not answer the question for NetworkAttachmentDefinition apps/a (code 11): io: Connection refused (os error 111)");
    // Nor without a record.
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["bridge DEL eth0"]);
}

#[test]
fn annotations_that_nobody_tells() {
    let mut bench = Bench::new();
    bench.set("kubeconfig", Value::Null);
    insta::assert_snapshot!(refused(&bench, &bench.config(None)), @"the annotations of pod apps/web-0 are unknown: the runtime does not pass them, and the configuration has no kubeconfig (code 7):");
    insta::assert_snapshot!(annotated(&bench, "a"), @"network apps/a cannot be looked up: the configuration has no kubeconfig (code 7):");
    bench.set("kubeconfig", json!("/absent/kubeconfig"));
    insta::assert_snapshot!(annotated(&bench, "a"), @"/absent/kubeconfig cannot be read (code 5): No such file or directory (os error 2)");
    // A pod without networks needs none of it.
    bench.add("").unwrap();
}

#[test]
fn devices_that_the_kubelet_does_not_tell_or_did_not_give() {
    let bench = Bench::new();
    bench.define("apps/a", Some("kernel.org/virt"), &json!({"type": "nic"}));
    insta::assert_snapshot!(annotated(&bench, "a"), @"the kubelet was asked at BENCH/kubelet/pod-resources/kubelet.sock which devices of kernel.org/virt pod apps/web-0 has, without success (code 11): the kubelet's pod resources service is not reachable: cannot connect to BENCH/kubelet/pod-resources/kubelet.sock: transport error: No such file or directory (os error 2): No such file or directory (os error 2)");
    let kubelet = kubelet(&bench, "kernel.org/virt", &[&["0000:00:0a.0"]]);
    insta::assert_snapshot!(annotated(&bench, "a,a"), @"network apps/a needs a device of resource kernel.org/virt, and the kubelet gave the pod 1 only, which other networks have (code 100): a container of the pod must request as many of the resource as the pod has such networks");
    bench.define("apps/b", Some("kernel.org/other"), &json!({"type": "nic"}));
    insta::assert_snapshot!(annotated(&bench, "b"), @"network apps/b needs a device of resource kernel.org/other, and the kubelet gave the pod none (code 100): a container of the pod must request as many of the resource as the pod has such networks");
    assert_eq!(kubelet.asked(), 2);
}

#[test]
fn a_delegate_that_is_missing() {
    let mut bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "absent"}));
    insta::assert_snapshot!(annotated(&bench, "a"), @"network apps/a: plugin absent was not found (code 5): looked in BENCH/bin");
    bench.set("clusterNetwork", json!({"type": "absent"}));
    insta::assert_snapshot!(annotated(&bench, ""), @"network cluster: plugin absent was not found (code 5): looked in BENCH/bin");
    bench.set("clusterNetwork", json!({"type": "bridge"}));
    // One that went away since is an error of DEL: what it has done is still there.
    bench.set("binDir", json!(bench.file("more")));
    bench.write("net.d/10-b.conf", r#"{"cniVersion":"1.0.0","name":"b","type":"passing"}"#);
    bench.define("apps/b", None, &Value::Null);
    fs::create_dir(bench.file("more")).unwrap();
    fs::copy(bench.file("bin/nic"), bench.file("more/passing")).unwrap();
    bench.add("b").unwrap();
    fs::remove_file(bench.file("more/passing")).unwrap();
    assert_eq!(bench.del().unwrap_err().code, 5);
    assert_eq!(bench.record().unwrap()["steps"][0]["network"], "apps/b");
}

#[test]
fn a_record_that_is_torn_does_not_stop_del() {
    let bench = Bench::new();
    for unreadable in [r#"{"format":1,"#, r#"{"format":2,"of":"a newer release"}"#] {
        bench.write("state/attachments/c1.json", unreadable);
        let output = bench.start("DEL", bench.config(None).to_string().as_bytes());
        let output = output.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be read"));
        assert_eq!(bench.calls(), ["bridge DEL eth0"]);
        assert!(!bench.file("state/attachments/c1.json").exists());
        assert_eq!(fs::read_to_string(bench.file("state/attachments/c1.json.unusable")).unwrap(), unreadable);
    }
}
