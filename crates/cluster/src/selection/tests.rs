use std::error::Error as _;

use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Vec<Selection>, SelectionError> {
    selections(text, &"apps".parse().unwrap(), &"eth0".parse().unwrap())
}

/// `namespace/name@interface` of each.
fn brief(text: &str) -> Vec<String> {
    read(text).unwrap().iter().map(|s| format!("{}/{}@{}", s.namespace, s.name, s.interface)).collect()
}

fn fault(text: &str) -> String {
    let error = read(text).unwrap_err();
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn the_short_form_is_read() {
    assert_eq!(brief("a"), ["apps/a@net1"]);
    assert_eq!(brief(" a , ns/b@up0, c"), ["apps/a@net1", "ns/b@up0", "apps/c@net3"]);
    assert_eq!(brief("a,a"), ["apps/a@net1", "apps/a@net2"]);
    assert!(brief("").is_empty() && brief("  ").is_empty() && brief("[]").is_empty());
}

#[test]
fn the_json_form_is_read() {
    let text = r#"[{"name": "a", "namespace": "ns", "interface": "up0", "mac": "52:54:00:00:00:01",
        "ips": ["10.0.0.2/24", "fd00::2"], "cni-args": {"k": 1}, "default-route": ["10.0.0.1"],
        "portMappings": [{"hostPort": 80}], "bandwidth": {"ingressRate": 1}, "ipam-claim-reference": "c"}, {"name": "b"}]"#;
    let selections = read(text).unwrap();
    assert_eq!(brief(text), ["ns/a@up0", "apps/b@net2"]);
    assert_eq!(selections[0].ips, ["10.0.0.2/24", "fd00::2"]);
    assert_eq!(selections[0].mac.unwrap().to_string(), "52:54:00:00:00:01");
    assert_eq!(selections[0].default_route, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    let again: Selection = serde_json::from_value(serde_json::to_value(&selections[0]).unwrap()).unwrap();
    assert_eq!(again, selections[0]);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    insta::assert_snapshot!(fault("a,b/c/d"), @"annotation k8s.v1.cni.cncf.io/networks, item 2 (b/c/d): expected [namespace/]name[@interface]");
    insta::assert_snapshot!(fault("a@b@c"), @"annotation k8s.v1.cni.cncf.io/networks, item 1 (a@b@c): expected [namespace/]name[@interface]");
    insta::assert_snapshot!(fault("a,,b"), @r#"annotation k8s.v1.cni.cncf.io/networks, item 2 (): name: "" is not a name (lower-case letters, digits and '-', a letter or digit at both ends)"#);
    insta::assert_snapshot!(fault("../etc"), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 (../etc): namespace: ".." is not a name (lower-case letters, digits and '-', a letter or digit at both ends)"#);
    insta::assert_snapshot!(fault("A"), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 (A): name: "A" is not a name (lower-case letters, digits and '-', a letter or digit at both ends)"#);
    insta::assert_snapshot!(fault("a@this-name-is-too-long"), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 (a@this-name-is-too-long): interface: "this-name-is-too-long" is not an interface name: it is longer than 15 bytes"#);
    insta::assert_snapshot!(fault("a@eth0"), @"annotation k8s.v1.cni.cncf.io/networks, item 1 (a@eth0): interface eth0 is taken already");
    insta::assert_snapshot!(fault("a@net2,b"), @"annotation k8s.v1.cni.cncf.io/networks, item 2 (b): interface net2 is taken already");
    insta::assert_snapshot!(fault(r#"{"name":"a"}"#), @"annotation k8s.v1.cni.cncf.io/networks is not a JSON list: invalid type: map, expected a sequence at line 1 column 0");
    insta::assert_snapshot!(fault(r#"[{"name":"a"},{"namespace":"b"}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 2 ({"namespace":"b"}): missing field `name`"#);
    insta::assert_snapshot!(fault(r#"[{"name":"a","interfce":"x"}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ({"interfce":"x","name":"a"}): unknown field `interfce`, expected one of `name`, `namespace`, `interface`, `interfaceRequest`, `ips`, `mac`, `infiniband-guid`, `portMappings`, `bandwidth`, `cni-args`, `default-route`, `ipam-claim-reference`, `deviceID`"#);
    insta::assert_snapshot!(fault(r#"[{"name":"a","deviceID":"0000:00:0a.0"}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ({"deviceID":"0000:00:0a.0","name":"a"}): deviceID may not be chosen by the pod"#);
    insta::assert_snapshot!(fault(r#"[{"name":"a","mac":"x"}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ({"mac":"x","name":"a"}): mac: "x" is not a MAC address (expected six pairs of hexadecimal digits: 52:54:00:c4:e6:cd)"#);
    insta::assert_snapshot!(fault(r#"[{"name":"a","mac":"01:00:00:00:00:01"}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ({"mac":"01:00:00:00:00:01","name":"a"}): mac: 01:00:00:00:00:01 cannot be an interface's address"#);
    insta::assert_snapshot!(fault(r#"[{"name":"a","ips":["10.0.0.300"]}]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ({"ips":["10.0.0.300"],"name":"a"}): ips: "10.0.0.300": invalid IP address syntax"#);
    insta::assert_snapshot!(fault(r#"["a"]"#), @r#"annotation k8s.v1.cni.cncf.io/networks, item 1 ("a"): expected an object with the key name"#);
}

#[test]
fn size_and_number_are_bounded() {
    assert!(matches!(read(&"a".repeat(LARGEST + 1)), Err(SelectionError::TooLarge { .. })));
    assert!(matches!(read(&["a"; 65].join(",")), Err(SelectionError::TooMany { count: 65 })));
    assert!(read(&["a"; 64].join(",")).is_ok());
}

proptest! {
    #[test]
    fn no_annotation_makes_the_reader_panic(text in ".{0,60}", json in r#"\[\{"name":"a",.{0,30}\}\]"#) {
        let _ = read(&text);
        let _ = read(&json);
    }

    #[test]
    fn interfaces_are_never_shared(items in prop::collection::vec("[a-c](@(net[1-4]|eth[01]))?", 0..6)) {
        if let Ok(selections) = read(&items.join(",")) {
            let names: BTreeSet<_> = selections.iter().map(|s| s.interface.clone()).collect();
            prop_assert_eq!(names.len(), selections.len());
            prop_assert!(!names.contains(&"eth0".parse::<IfName>().unwrap()));
        }
    }
}
