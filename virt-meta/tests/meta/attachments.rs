//! ADD and DEL of pods with and without networks of their own.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::bench::{Bench, answer, kubelet};

#[test]
fn a_pod_without_networks_gets_the_clusters_and_nobody_is_asked() {
    let bench = Bench::new();
    let mut config = bench.config(None);
    config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"a": "b"}});
    let result = bench.call("ADD", &config).unwrap();
    insta::assert_snapshot!(result, @r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"52:54:00:00:00:01","mtu":1450,"name":"eth0","sandbox":"/dev/null"}],"ips":[{"address":"10.0.4.2/24","gateway":"10.0.4.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}"#);
    assert_eq!(bench.calls(), ["bridge ADD eth0"]);
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["bridge DEL eth0"]);
    assert!(bench.record().is_none());
    assert_eq!(bench.api.asked(), 0);
}

#[test]
fn a_pod_gets_its_networks_in_order_each_with_its_device() {
    let bench = Bench::new();
    let kubelet = kubelet(&bench, "kernel.org/virt", &[&["0000:00:0a.0"], &["virtio3", "0000:00:0a.0"]]);
    let nic = json!({"cniVersion": "1.0.0", "type": "nic", "capabilities": {"deviceID": true}});
    bench.define("apps/virt-net1", Some("kernel.org/virt"), &nic);
    let list =
        json!({"cniVersion": "1.1.0", "name": "other", "plugins": [{"type": "nic"}, {"type": "bridge"}]});
    bench.define("infra/list", Some("kernel.org/virt"), &list);
    bench.write("devinfo/kernel.org-virt-0000:00:0a.0-device.json", r#"{"type":"pci","version":"1.1.0"}"#);
    let result = bench.add("virt-net1,infra/list@up0").unwrap();
    // The runtime sees the cluster's network alone.
    assert_eq!(
        result["interfaces"],
        json!([{"name": "eth0", "sandbox": "/dev/null", "mac": "52:54:00:00:00:01", "mtu": 1450}])
    );
    assert_eq!(kubelet.asked(), 1);
    assert_eq!(bench.api.asked(), 2);
    let calls: Vec<_> =
        bench.configs().into_iter().map(|(call, config)| format!("{call} {config}")).collect();
    let calls = calls.join("\n").replace(&bench.file("kubelet").display().to_string(), "KUBELET");
    insta::assert_snapshot!(calls, @r#"
    bridge ADD eth0 {"cniVersion":"1.1.0","name":"cluster","type":"bridge"}
    nic ADD net1 {"capabilities":{"deviceID":true},"cniVersion":"1.0.0","deviceID":"0000:00:0a.0","kubeletDir":"KUBELET","name":"virt-net1","pciBusID":"0000:00:0a.0","runtimeConfig":{"deviceID":"0000:00:0a.0"},"type":"nic"}
    nic ADD up0 {"cniVersion":"1.1.0","deviceID":"virtio3","kubeletDir":"KUBELET","name":"other","type":"nic"}
    bridge ADD up0 {"cniVersion":"1.1.0","name":"other","prevResult":{"cniVersion":"1.1.0","interfaces":[{"mac":"52:54:00:00:00:01","mtu":1450,"name":"up0","sandbox":"/dev/null"}],"ips":[{"address":"10.0.3.2/24","gateway":"10.0.3.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]},"type":"bridge"}
    "#);
    let record = bench.record().unwrap();
    insta::assert_snapshot!(format!("{:#}", record["networkStatus"]), @r#"
    [
      {
        "default": true,
        "dns": {},
        "gateway": [
          "10.0.4.1"
        ],
        "interface": "eth0",
        "ips": [
          "10.0.4.2"
        ],
        "mac": "52:54:00:00:00:01",
        "mtu": 1450,
        "name": "cluster"
      },
      {
        "device-info": {
          "type": "pci",
          "version": "1.1.0"
        },
        "dns": {},
        "gateway": [
          "10.0.4.1"
        ],
        "interface": "net1",
        "ips": [
          "10.0.4.2"
        ],
        "mac": "52:54:00:00:00:01",
        "mtu": 1450,
        "name": "apps/virt-net1"
      },
      {
        "dns": {},
        "gateway": [
          "10.0.3.1"
        ],
        "interface": "up0",
        "ips": [
          "10.0.3.2"
        ],
        "mac": "52:54:00:00:00:01",
        "mtu": 1450,
        "name": "infra/list"
      }
    ]
    "#);
    // Neither the API server nor the kubelet has a part in DEL.
    drop(kubelet);
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["bridge DEL up0", "nic DEL up0", "nic DEL net1", "bridge DEL eth0"]);
    assert_eq!(bench.api.asked(), 2);
    assert!(bench.record().is_none());
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["bridge DEL eth0"]);
}

#[test]
fn del_gives_each_delegate_what_add_gave_it() {
    let bench = Bench::new();
    let _kubelet = kubelet(&bench, "kernel.org/virt", &[&["0000:00:0a.0"]]);
    bench.define("apps/a", Some("kernel.org/virt"), &json!({"cniVersion": "1.0.0", "type": "nic"}));
    bench.add("a").unwrap();
    let added = bench.configs().pop().unwrap().1;
    bench.del().unwrap();
    let mut deleted = bench.configs().remove(0).1;
    let previous = deleted.as_object_mut().unwrap().remove("prevResult").unwrap();
    assert_eq!(previous["interfaces"][0]["name"], "net1");
    assert_eq!(deleted, added);
}

#[test]
fn annotations_are_fetched_where_the_runtime_does_not_pass_them() {
    let bench = Bench::new();
    bench.api.put(
        "/api/v1/namespaces/apps/pods/web-0",
        &json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "a"}}}),
    );
    bench.define("apps/a", None, &json!({"type": "nic"}));
    bench.call("ADD", &bench.config(None)).unwrap();
    assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD net1"]);
    assert_eq!(bench.api.asked(), 2);
}

#[test]
fn wishes_reach_the_plugins_that_understand_them() {
    let bench = Bench::new();
    let config =
        json!({"type": "nic", "capabilities": {"mac": true, "ips": true}, "args": {"cni": {"x": 1, "y": 1}}});
    bench.define("apps/a", None, &config);
    bench
        .add(r#"[{"name":"a","mac":"52:54:00:00:00:09","ips":["10.0.0.9/24"],"cni-args":{"y":2}}]"#)
        .unwrap();
    let config = bench.configs().pop().unwrap().1;
    assert_eq!(config["runtimeConfig"], json!({"mac": "52:54:00:00:00:09", "ips": ["10.0.0.9/24"]}));
    assert_eq!(config["args"]["cni"], json!({"x": 1, "y": 2}));
}

#[test]
fn the_default_route_that_a_pod_chooses_goes_before_the_clusters() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    let pod = linux::Netns::create().unwrap();
    let ip = |arguments: &str| {
        let run = || Command::new("ip").args(arguments.split(' ')).output().unwrap();
        let output = pod.run(run).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // What the delegates would have made.
    for (name, four, six) in [("eth0", "10.0.4.2/24", "fd04::2/64"), ("net1", "10.0.4.3/24", "fd05::2/64")] {
        ip(&format!("link add {name} type veth peer name {name}-peer"));
        ip(&format!("link set {name}-peer up"));
        ip(&format!("link set {name} up"));
        ip(&format!("addr add {four} dev {name}"));
        ip(&format!("addr add {six} dev {name} nodad"));
    }
    ip("route add default via 10.0.4.1 dev eth0");
    ip("-6 route add default via fd04::1 dev eth0");
    let config = bench.config(Some(r#"[{"name":"a","default-route":["10.9.9.1","fd05::1"]}]"#));
    let path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
    let added = bench.start_in(Path::new(&path), "ADD", config.to_string().as_bytes());
    answer(added.wait_with_output().unwrap()).unwrap();
    // Outside of the subnet, so it must be told that it is on the link.
    assert!(ip("route get 192.0.2.1").contains("via 10.9.9.1 dev net1"), "{}", ip("route show"));
    assert!(ip("-6 route get 2001:db8::1").contains("via fd05::1 dev net1"), "{}", ip("-6 route show"));
    assert!(ip("route show default").contains("via 10.0.4.1 dev eth0"));
    assert_eq!(bench.record().unwrap()["networkStatus"][1]["gateway"], json!(["10.9.9.1", "fd05::1"]));
    ip("link set net1 down");
    assert!(ip("route get 192.0.2.1").contains("via 10.0.4.1 dev eth0"));
}

#[test]
fn a_default_route_that_cannot_be_added_undoes_all() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    let fault = bench.add(r#"[{"name":"a","default-route":["10.0.4.1"]}]"#).unwrap_err();
    assert_eq!(fault.code, 8);
    assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD net1", "nic DEL net1", "bridge DEL eth0"]);
    assert!(bench.record().is_none());
}

#[test]
fn what_a_networks_author_says_in_the_runtimes_name_is_not_passed_on() {
    let bench = Bench::new();
    let _kubelet = kubelet(&bench, "kernel.org/virt", &[&["0000:00:0a.0"]]);
    let forged = json!({"type": "nic", "deviceID": "0000:00:05.0", "pciBusID": "0000:00:05.0",
        "runtimeConfig": {"deviceID": "0000:00:05.0"}});
    bench.define("apps/a", Some("kernel.org/virt"), &forged);
    bench.add("a").unwrap();
    let config = bench.configs().pop().unwrap().1;
    assert_eq!((&config["deviceID"], &config["pciBusID"]), (&json!("0000:00:0a.0"), &json!("0000:00:0a.0")));
    assert!(config.get("runtimeConfig").is_none(), "{config}");
}

#[test]
fn interfaces_are_numbered_by_position_and_a_name_that_clashes_is_refused() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    bench.add("a,a@x,a").unwrap();
    assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD net1", "nic ADD x", "nic ADD net3"]);
    bench.del().unwrap();
    bench.calls();
    let fault = bench.add("a@net2,a").unwrap_err();
    assert!(fault.details.contains("interface net2 is taken already"), "{fault:?}");
    assert!(bench.calls().is_empty());
}

#[test]
fn a_network_without_configuration_is_the_nodes_of_that_name() {
    let bench = Bench::new();
    bench.write("net.d/10-a.conf", r#"{"cniVersion":"1.0.0","name":"a","type":"nic"}"#);
    bench.define("apps/a", None, &json!(null));
    bench.add("a").unwrap();
    assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD net1"]);
}

#[test]
fn the_cluster_network_is_found_by_name_and_by_path() {
    let mut bench = Bench::new();
    let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"nic"}]}"#;
    bench.write("net.d/10-pods.conflist", list);
    let path = bench.file("net.d/10-pods.conflist");
    for value in [json!("pods"), json!(path)] {
        bench.set("clusterNetwork", value);
        bench.add("").unwrap();
        assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD eth0"]);
        bench.del().unwrap();
        assert_eq!(bench.calls(), ["nic DEL eth0", "bridge DEL eth0"]);
    }
}

#[test]
fn a_failing_delegate_undoes_all_and_its_code_is_kept() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "bridge"}));
    bench.define("apps/b", None, &json!({"type": "nic"}));
    bench.fail("nic", "ADD", 42);
    let fault = bench.add("a,b,a@x").unwrap_err();
    assert_eq!(fault.code, 42);
    assert_eq!(fault.message, "network apps/b (interface net2): plugin nic: nic will not ADD");
    let expected = [
        "bridge ADD eth0",
        "bridge ADD net1",
        "nic ADD net2",
        "nic DEL net2",
        "bridge DEL net1",
        "bridge DEL eth0",
    ];
    assert_eq!(bench.calls(), expected);
    assert!(bench.record().is_none());
}

#[test]
fn what_cannot_be_undone_is_left_to_the_next_del() {
    let bench = Bench::new();
    bench.define("apps/b", None, &json!({"type": "nic"}));
    bench.fail("nic", "ADD", 42);
    bench.fail("nic", "DEL", 43);
    let fault = bench.add("b").unwrap_err();
    assert_eq!(fault.code, 42);
    assert!(fault.details.contains("nic will not DEL (code 43)"), "{fault:?}");
    assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD net1", "nic DEL net1", "bridge DEL eth0"]);
    assert_eq!(bench.record().unwrap()["steps"].as_array().unwrap().len(), 1);
    let fault = bench.del().unwrap_err();
    assert_eq!((fault.code, bench.calls()), (43, vec!["nic DEL net1".to_owned()]));
    bench.heal("nic", "DEL");
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["nic DEL net1"]);
    assert!(bench.record().is_none());
}

#[test]
fn del_goes_on_after_an_error() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    bench.add("a,a").unwrap();
    bench.calls();
    bench.fail("nic", "DEL", 11);
    let fault = bench.del().unwrap_err();
    assert_eq!(fault.code, 11);
    assert_eq!(fault.message, "network apps/a (interface net2): plugin nic: nic will not DEL");
    assert!(fault.details.contains("network apps/a (interface net1)"), "{fault:?}");
    assert_eq!(bench.calls(), ["nic DEL net2", "nic DEL net1", "bridge DEL eth0"]);
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let bench = Bench::new();
    bench.add("").unwrap();
    let before = bench.record();
    let fault = bench.add("").unwrap_err();
    assert_eq!(
        (fault.code, fault.message.as_str()),
        (101, "container c1 is attached already; it needs a DEL first")
    );
    assert_eq!(bench.calls(), ["bridge ADD eth0"]);
    assert_eq!(bench.record(), before);
}

#[test]
fn a_killed_add_is_cleaned_up_by_del() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    let pipe = bench.hold("nic", "ADD");
    let mut add = bench.start("ADD", bench.config(Some("a,a")).to_string().as_bytes());
    // It opens when the delegate is at the other end.
    let hold = OpenOptions::new().write(true).open(&pipe).unwrap();
    add.kill().unwrap();
    add.wait().unwrap();
    bench.del().unwrap();
    assert_eq!(bench.calls(), ["bridge ADD eth0", "nic ADD net1", "nic DEL net1", "bridge DEL eth0"]);
    assert!(bench.record().is_none());
    drop(hold);
}

#[test]
fn add_and_del_of_one_container_never_interleave() {
    let bench = Bench::new();
    bench.define("apps/a", None, &json!({"type": "nic"}));
    let pipe = bench.hold("nic", "ADD");
    let add = bench.start("ADD", bench.config(Some("a,a")).to_string().as_bytes());
    let hold = OpenOptions::new().write(true).open(&pipe).unwrap();
    let del = bench.start("DEL", bench.config(None).to_string().as_bytes());
    fs::remove_file(&pipe).unwrap();
    drop(hold);
    answer(add.wait_with_output().unwrap()).unwrap();
    answer(del.wait_with_output().unwrap()).unwrap();
    let expected = [
        "bridge ADD eth0",
        "nic ADD net1",
        "nic ADD net2",
        "nic DEL net2",
        "nic DEL net1",
        "bridge DEL eth0",
    ];
    assert_eq!(bench.calls(), expected);
}
