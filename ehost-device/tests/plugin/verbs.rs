//! CHECK, GC, STATUS and VERSION.

use linux::Netns;
use serde_json::json;

use crate::bench::{ANSWERS, Bench, path_of};

#[test]
fn check_compares_the_pod_with_the_result_of_add() {
    let bench = Bench::new();
    let result = bench.run("ADD", &bench.config(json!({}))).expect().json;
    let config = bench.config(json!({"prevResult": result}));
    bench.run("CHECK", &config).expect();
    // Plugins chained after us add things, which is no fault.
    bench.in_pod("addr add 10.77.0.1/24 dev net1");
    bench.run("CHECK", &config).expect();
    assert_eq!(bench.run("CHECK", &bench.config(json!({}))).code(), 7);

    bench.in_pod("route del default");
    bench.in_pod("addr del 10.56.217.2/24 dev net1");
    bench.in_pod("link set net1 address 02:00:00:00:00:01");
    let failed = bench.run("CHECK", &config);
    assert_eq!(failed.code(), 106);
    for fault in
        ["address 10.56.217.2/24 is missing", "MAC is 02:00:00:00:00:01", "route to 0.0.0.0/0 is missing"]
    {
        assert!(failed.text().contains(fault), "{}", failed.text());
    }
    bench.run("DEL", &config).expect();
    let failed = bench.run("CHECK", &config);
    assert!(
        failed.text().contains("it is not in the pod") && failed.text().contains("no lease"),
        "{}",
        failed.text()
    );
}

#[test]
fn check_hears_ipam() {
    let bench = Bench::new();
    let result = bench.run("ADD", &bench.config(json!({}))).expect().json;
    bench
        .ipam("unhappy", r#"echo '{"cniVersion":"1.1.0","code":144,"msg":"address is not leased"}'; exit 1"#);
    let config = bench.config(json!({"prevResult": result, "ipam": {"type": "unhappy"}}));
    assert_eq!(bench.run("CHECK", &config).code(), 144);
}

#[test]
fn gc_brings_home_what_the_runtime_does_not_know_and_nothing_else() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.on_node("link add eth2 type veth peer name wire2");
    let other = Netns::create().unwrap();
    let config = bench.config(json!({}));
    let second = bench.config(json!({"device": "eth2", "ipam": {}}));
    bench.run("ADD", &config).expect();
    let path = path_of(&other).display().to_string();
    bench.run_for("ADD", "two", &path, &second).expect();

    let gc = |keys: serde_json::Value| bench.run_for("GC", "", "", &bench.config(keys));
    gc(json!({})).expect();
    gc(json!({"name": "another-network", "cni.dev/valid-attachments": []})).expect();
    assert!(bench.pod_link("net1").is_some(), "it went home without a list, or for another network");
    gc(json!({"cni.dev/valid-attachments": [{"containerID": "two", "ifname": "net1"}]})).expect();
    bench.assert_untouched(&before);
    assert!(other.route_socket().unwrap().link_by_name("net1").unwrap().is_some());
    assert!(bench.asked().ends_with(&["DEL".to_owned(), "GC".to_owned()]), "{:?}", bench.asked());
    bench.run_for("DEL", "two", &path, &second).expect();
}

#[test]
fn gc_gives_the_address_back_before_the_lease_goes_and_goes_on_after_an_error() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.run("ADD", &bench.config(json!({}))).expect();
    let lease = bench.lease().display().to_string();
    bench.ipam(
        "fails",
        &format!(r#"[ -e {lease} ] || exit 0; echo '{{"cniVersion":"1.1.0","code":143,"msg":"disk full"}}'; exit 1"#),
    );
    let gc = json!({"cni.dev/valid-attachments": [], "ipam": {"type": "fails"}});
    let failed = bench.run_for("GC", "", "", &bench.config(gc.clone()));
    assert_eq!(failed.code(), 143);
    assert!(bench.node_link("eth1").is_some());
    assert!(bench.lease().exists(), "nobody would know of the address");
    // Since its GC fails, too, it is asked whether it knows one.
    assert_eq!(bench.asked(), ["ADD", "DEL", "GC", "VERSION"]);
    bench.ipam("fails", ANSWERS);
    bench.run_for("GC", "", "", &bench.config(gc)).expect();
    bench.assert_untouched(&before);
}

#[test]
fn status_says_whether_a_lease_could_be_written() {
    let bench = Bench::new();
    bench.run_for("STATUS", "", "", &bench.config(json!({}))).expect();
    let failed = bench.run_for("STATUS", "", "", &bench.config(json!({"stateDir": "/proc/no-such-folder"})));
    assert_eq!(failed.code(), 50);
}

#[test]
fn status_says_whether_this_process_may_move_nics_into_namespaces() {
    let bench = Bench::new();
    for (capability, words) in [("net_admin", "CAP_NET_ADMIN"), ("sys_admin", "namespace can be entered")] {
        let without = ["setpriv", "--inh-caps=-all", &format!("--bounding-set=-{capability}")];
        let failed = bench.run_through(&without, "STATUS", &bench.config(json!({})));
        assert_eq!(failed.code(), 50, "{capability}");
        assert!(failed.text().contains(words), "{}", failed.text());
    }
    bench.run_through(&["setpriv", "--inh-caps=-all"], "STATUS", &bench.config(json!({}))).expect();
}

#[test]
fn status_hears_ipam() {
    let bench = Bench::new();
    bench.ipam(
        "full",
        r#"[ $CNI_COMMAND != STATUS ] || { echo '{"cniVersion":"1.1.0","code":51,"msg":"no addresses left"}'; exit 1; }"#,
    );
    let failed = bench.run_for("STATUS", "", "", &bench.config(json!({"ipam": {"type": "full"}})));
    assert_eq!(failed.code(), 51);
    assert!(failed.text().contains("no addresses left"), "{}", failed.text());
}

#[test]
fn verbs_that_a_version_does_not_have_are_refused_in_it() {
    let bench = Bench::new();
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let config = bench.config(json!({"cniVersion": version, "cni.dev/valid-attachments": []}));
        let refused = bench.run(verb, &config);
        assert_eq!((refused.code(), &refused.json["cniVersion"]), (1, &json!(version)), "{verb}");
    }
}

#[test]
fn version_needs_nothing() {
    let bench = Bench::new();
    let answer = bench.run_raw("VERSION", "", "", b"").expect().json;
    assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
}
