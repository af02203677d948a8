use std::fs;
use std::path::Path;

use super::*;
use crate::Code;
use crate::testing::Scripts;
use proptest::prelude::*;
use serde_json::json;

/// A plugin that notes each call and its configuration, and on ADD adds an interface with its own name.
const NOTE: &str = r#"config=$(cat); printf '%s %s %s\n' "$(basename "$0")" "$CNI_COMMAND" "$config" >> "$(dirname "$0")/calls.log"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.1.0","interfaces":[{"name":"'"$(basename "$0")"'","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]}'"#;

struct Bench {
    scripts: Scripts,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let scripts = Scripts::new();
        scripts.add("one", NOTE);
        scripts.add("two", NOTE);
        let runtime = Runtime::new(Plugins::on(scripts.path()), Cache::at(scripts.file("results")));
        Bench { scripts, runtime }
    }

    fn calls(&self) -> String {
        self.scripts.log("calls")
    }

    /// The verbs alone.
    fn verbs(&self) -> Vec<String> {
        self.calls().lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }
}

fn network(extra: serde_json::Value) -> Network {
    let mut list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
        {"type": "one", "capabilities": {"mac": true}, "own": 1}, {"type": "two"}
    ]});
    for (key, value) in extra.as_object().unwrap() {
        list[key] = value.clone();
    }
    Network::from_slice(&serde_json::to_vec(&list).unwrap()).unwrap()
}

fn attachment(container: &str) -> Attachment {
    Attachment {
        container_id: container.parse().unwrap(),
        if_name: "eth0".parse().unwrap(),
        netns: Some("/var/run/netns/x".into()),
        args: Args::new("K8S_POD_NAME=p;X=1"),
        capabilities: json!({"mac": "52:54:00:00:00:01", "bandwidth": {}}).as_object().cloned().unwrap(),
    }
}

#[test]
fn a_list_is_added_in_order_and_deleted_in_reverse_with_the_cached_result() {
    let bench = Bench::new();
    let net = network(json!({}));
    let result = bench.runtime.add(&net, &attachment("c1")).unwrap();
    assert_eq!(result.interfaces[0].name, "two");
    bench.runtime.check(&net, &attachment("c1")).unwrap();
    bench.runtime.del(&net, &attachment("c1")).unwrap();
    bench.runtime.del(&net, &attachment("c1")).unwrap();
    insta::assert_snapshot!(bench.calls(), @r#"
    one ADD {"capabilities":{"mac":true},"cniVersion":"1.1.0","name":"net","own":1,"runtimeConfig":{"mac":"52:54:00:00:00:01"},"type":"one"}
    two ADD {"cniVersion":"1.1.0","name":"net","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"one","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]},"type":"two"}
    one CHECK {"capabilities":{"mac":true},"cniVersion":"1.1.0","name":"net","own":1,"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"two","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]},"runtimeConfig":{"mac":"52:54:00:00:00:01"},"type":"one"}
    two CHECK {"cniVersion":"1.1.0","name":"net","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"two","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]},"type":"two"}
    two DEL {"cniVersion":"1.1.0","name":"net","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"two","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]},"type":"two"}
    one DEL {"capabilities":{"mac":true},"cniVersion":"1.1.0","name":"net","own":1,"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"two","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]},"runtimeConfig":{"mac":"52:54:00:00:00:01"},"type":"one"}
    two DEL {"cniVersion":"1.1.0","name":"net","type":"two"}
    one DEL {"capabilities":{"mac":true},"cniVersion":"1.1.0","name":"net","own":1,"runtimeConfig":{"mac":"52:54:00:00:00:01"},"type":"one"}
    "#);
}

#[test]
fn the_cache_file_is_libcnis() {
    let bench = Bench::new();
    bench.runtime.add(&network(json!({})), &attachment("c1")).unwrap();
    let file = bench.scripts.file("results/net-c1-eth0");
    insta::assert_snapshot!(fs::read_to_string(&file).unwrap(), @r#"{"kind":"cniCacheV1","containerId":"c1","config":"eyJjbmlWZXJzaW9uIjoiMS4xLjAiLCJuYW1lIjoibmV0IiwicGx1Z2lucyI6W3siY2FwYWJpbGl0aWVzIjp7Im1hYyI6dHJ1ZX0sIm93biI6MSwidHlwZSI6Im9uZSJ9LHsidHlwZSI6InR3byJ9XX0=","ifName":"eth0","networkName":"net","netns":"/var/run/netns/x","cniArgs":[["K8S_POD_NAME","p"],["X","1"]],"capabilityArgs":{"bandwidth":{},"mac":"52:54:00:00:00:01"},"result":{"cniVersion":"1.1.0","interfaces":[{"name":"two","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24"}]}}"#);
    let kept = bench.runtime.cache().attachments().unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].attachment, attachment("c1"));
    assert_eq!(Network::from_slice(&kept[0].config).unwrap().name().as_str(), "net");
    bench.runtime.del(&network(json!({})), &attachment("c1")).unwrap();
    assert!(!file.exists());
}

#[test]
fn a_torn_cache_file_does_not_stop_del() {
    let bench = Bench::new();
    let net = network(json!({}));
    bench.runtime.add(&net, &attachment("c1")).unwrap();
    fs::write(bench.scripts.file("results/net-c1-eth0"), "{\"kind\":\"cni").unwrap();
    assert_eq!(bench.runtime.check(&net, &attachment("c1")).unwrap_err().code, Code::DECODE);
    bench.runtime.del(&net, &attachment("c1")).unwrap();
    assert!(!bench.scripts.file("results/net-c1-eth0").exists());
}

#[test]
fn a_failed_add_is_left_to_the_caller_and_a_failed_del_keeps_the_cache() {
    let bench = Bench::new();
    let net = network(json!({}));
    bench.scripts.add("two", r#"echo '{"code":11,"msg":"later"}'; exit 1"#);
    let error = bench.runtime.add(&net, &attachment("c1")).unwrap_err();
    assert_eq!(error.to_string(), "plugin two: later (code 11)");
    assert_eq!(bench.verbs(), ["one ADD"]);
    bench.scripts.add("two", NOTE);
    bench.runtime.add(&net, &attachment("c1")).unwrap();
    bench.scripts.add("one", "exit 1");
    assert!(bench.runtime.del(&net, &attachment("c1")).is_err());
    assert!(bench.scripts.file("results/net-c1-eth0").exists());
}

#[test]
fn gc_deletes_what_is_not_valid_and_then_asks_the_plugins() {
    let bench = Bench::new();
    let net = network(json!({}));
    for container in ["c1", "c2"] {
        bench.runtime.add(&net, &attachment(container)).unwrap();
    }
    fs::write(bench.scripts.file("calls.log"), "").unwrap();
    let valid = [ValidAttachment { container_id: "c2".parse().unwrap(), if_name: "eth0".parse().unwrap() }];
    bench.runtime.gc(&net, &valid).unwrap();
    assert_eq!(bench.verbs(), ["two DEL", "one DEL", "one GC", "two GC"]);
    assert!(bench.calls().contains(r#""cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}]"#));
    let left: Vec<_> = bench.runtime.cache().attachments().unwrap().iter().map(Cached::id).collect();
    assert_eq!(left, valid);
    bench.runtime.gc(&network(json!({"disableGC": true})), &[]).unwrap();
    assert_eq!(bench.runtime.cache().attachments().unwrap().len(), 1);
    // Before 1.1.0 there is no GC, but what the runtime knows to be stale goes all the same.
    bench.runtime.gc(&network(json!({"cniVersion": "1.0.0"})), &[]).unwrap();
    assert!(bench.runtime.cache().attachments().unwrap().is_empty());
    assert_eq!(bench.verbs().len(), 6);
}

#[test]
fn check_and_status_follow_the_networks_version_and_flags() {
    let bench = Bench::new();
    let check = |extra| bench.runtime.check(&network(extra), &attachment("c1"));
    assert_eq!(check(json!({"cniVersion": "0.3.1"})).unwrap_err().code, Code::INCOMPATIBLE_VERSION);
    check(json!({"disableCheck": "true"})).unwrap();
    bench.runtime.status(&network(json!({"cniVersion": "1.0.0"}))).unwrap();
    assert_eq!(bench.verbs(), Vec::<String>::new());
    bench.runtime.status(&network(json!({}))).unwrap();
    assert_eq!(bench.verbs(), ["one STATUS", "two STATUS"]);
}

#[test]
fn the_newest_known_version_of_a_list_is_taken() {
    let version = |extra| network(extra).version();
    assert_eq!(
        version(json!({"cniVersions": ["0.4.0", "1.1.0", "3.0.0"], "cniVersion": "1.0.0"})),
        Version::V1_1_0
    );
    assert_eq!(version(json!({"cniVersions": ["0.4.0"], "cniVersion": "1.0.0"})), Version::V1_0_0);
    let unknown = Network::from_slice(br#"{"cniVersion":"3.0.0","name":"n","plugins":[{"type":"a"}]}"#);
    assert_eq!(unknown.unwrap_err().code, Code::INCOMPATIBLE_VERSION);
}

#[test]
fn bad_lists_are_refused_with_the_place() {
    let fault = |text: &str| Network::from_slice(text.as_bytes()).unwrap_err().to_string();
    insta::assert_snapshot!(fault(r#"{"name":"n","plugins":[{"type":"a"},{"type":"a/b"}]}"#), @r#"plugins[1]: "a/b" is not a plugin type: it is a file name, without a path (code 7)"#);
    insta::assert_snapshot!(fault(r#"{"name":"n","plugins":[7]}"#), @"plugins[0] is not an object (code 7)");
    insta::assert_snapshot!(fault(r#"{"name":"n","plugins":[]}"#), @"network n has no plugins (code 7)");
    insta::assert_snapshot!(fault(r#"{"name":"n"}"#), @"network n has no plugins (code 7)");
    insta::assert_snapshot!(fault(r#"{"plugins":[{"type":"a"}]}"#), @"the network configuration has no name (code 7)");
    insta::assert_snapshot!(fault(r#"{"name":"n","disableGC":3,"plugins":[{"type":"a"}]}"#), @"disableGC is neither true nor false (code 7)");
}

fn put(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

#[test]
fn networks_are_found_in_a_folder() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let types = |network: Network| network.types().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(Network::first(&folder.join("absent")).unwrap_err().code, Code::INVALID_CONFIG);
    put(folder, "00-broken.conflist", "{");
    put(folder, "10-single.conf", r#"{"cniVersion":"1.0.0","name":"single","type":"a"}"#);
    put(folder, "20-list.conflist", r#"{"cniVersion":"1.0.0","name":"list","plugins":[{"type":"b"}]}"#);
    put(folder, "30-spread.conflist", r#"{"cniVersion":"1.1.0","name":"spread"}"#);
    put(
        folder,
        "40-alone.conflist",
        r#"{"name":"alone","loadOnlyInlinedPlugins":true,"plugins":[{"type":"c"}]}"#,
    );
    put(folder, "spread/2.conf", r#"{"type":"e"}"#);
    put(folder, "spread/1.conf", r#"{"type":"d"}"#);
    put(folder, "alone/1.conf", r#"{"type":"x"}"#);
    put(folder, "readme.txt", "");
    let load = |name: &str| Network::load(folder, &name.parse().unwrap());
    assert_eq!(types(Network::first(folder).unwrap()), ["a"]);
    assert_eq!(types(load("single").unwrap()), ["a"]);
    assert_eq!(types(load("list").unwrap()), ["b"]);
    assert_eq!(types(load("spread").unwrap()), ["d", "e"]);
    // What is remembered for DEL has all of them, too.
    assert_eq!(types(Network::from_slice(load("spread").unwrap().bytes()).unwrap()), ["d", "e"]);
    assert_eq!(types(load("alone").unwrap()), ["c"]);
    let error = load("absent").unwrap_err();
    assert!(error.message.starts_with("no network absent in"), "{error}");
    assert!(error.details.contains("00-broken.conflist"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, text in r#"\{"name":"n","(plugins|cniVersions|type|disableGC)":.{0,20}\}"#) {
        let _ = Network::from_slice(&bytes);
        let _ = Network::from_slice(text.as_bytes());
    }
}
