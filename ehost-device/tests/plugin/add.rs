//! ADD, as it should go.

use serde_json::json;

use crate::bench::{Bench, path_of};

#[test]
fn add_moves_the_nic_with_addresses_and_routes_and_del_brings_it_home_as_it_was() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    let added = bench.run("ADD", &config).expect();
    let mut shown = added.json.clone();
    assert_eq!(shown["interfaces"][0]["sandbox"].take(), json!(bench.pod_path()));
    assert_eq!(
        shown,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net1", "mac": "52:54:00:c4:e6:cd", "mtu": 1450, "sandbox": null}],
            "ips": [{"interface": 0, "address": "10.56.217.2/24", "gateway": "10.56.217.1"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.56.217.0/24"}, {"dst": "172.30.0.0/16", "gw": "10.56.217.9"}],
            "dns": {"nameservers": ["10.56.217.1"]},
        })
    );

    assert!(bench.node_link("eth1").is_none());
    let link = bench.pod_link("net1").unwrap();
    assert!(link.up && link.mtu == 1450);
    assert!(bench.in_pod("-4 addr show net1").contains("inet 10.56.217.2/24 brd 10.56.217.255"));
    let routes = bench.in_pod("route show");
    assert!(routes.contains("default via 10.56.217.1 dev net1"), "{routes}");
    assert!(routes.contains("172.30.0.0/16 via 10.56.217.9 dev net1"), "{routes}");
    let lease = ledger::Ledger::at(bench.state()).read(&"link:eth1".parse().unwrap()).unwrap().unwrap();
    assert_eq!(lease.stage, ledger::Stage::Plumbed { index: link.index });
    assert_eq!(lease.owner.pod.unwrap().name, "testpod1");

    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
}

#[test]
fn every_version_of_the_specification_is_spoken() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let bench = Bench::new();
        let before = bench.portrait();
        let config = bench.config(json!({"cniVersion": version}));
        let result = bench.run("ADD", &config).expect().json;
        assert_eq!(result["cniVersion"], version);
        match version {
            "0.1.0" | "0.2.0" => assert_eq!(result["ip4"]["ip"], "10.56.217.2/24"),
            "0.3.0" | "0.3.1" | "0.4.0" => {
                assert_eq!(result["ips"][0]["version"], "4");
                assert!(result["interfaces"][0].get("mtu").is_none());
            }
            "1.0.0" => assert!(result["ips"][0].get("version").is_none()),
            _ => assert_eq!(result["interfaces"][0]["mtu"], 1450),
        }
        bench.run("DEL", &config).expect();
        bench.assert_untouched(&before);
    }
}

#[test]
fn without_ipam_the_nic_is_moved_and_set_up_and_that_is_all() {
    let bench = Bench::new();
    let config = bench.config(json!({"ipam": {}}));
    let result = bench.run("ADD", &config).expect().json;
    assert!(result.get("ips").is_none(), "{result}");
    assert!(bench.pod_link("net1").unwrap().up);
    bench.run("DEL", &config).expect();
    assert!(bench.asked().is_empty());
}

#[test]
fn a_nic_is_chosen_by_mac_alternative_name_and_kernel_path() {
    for keys in [
        json!({"device": null, "hwaddr": "52:54:00:C4:E6:CD"}),
        json!({"device": "a-rather-long-alternative-name"}),
        json!({"device": null, "kernelpath": "/sys/devices/virtual/net/eth1"}),
    ] {
        let bench = Bench::new();
        let before = bench.portrait();
        let config = bench.config(keys);
        bench.run("ADD", &config).expect();
        assert!(bench.pod_link("net1").is_some());
        bench.run("DEL", &config).expect();
        bench.assert_untouched(&before);
    }
}

#[test]
fn mac_and_mtu_are_set_for_the_pod_and_taken_back() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({"mtu": 1300, "mac": "02:00:00:00:00:01",
        "runtimeConfig": {"mac": "02:00:00:00:00:02"}}));
    let result = bench.run("ADD", &config).expect().json;
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:02");
    assert_eq!(result["interfaces"][0]["mtu"], 1300);
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
}

#[test]
fn a_result_of_plugins_before_it_is_passed_on_with_ours_behind_it() {
    let bench = Bench::new();
    let config = bench.config(json!({"dns": {"nameservers": ["192.0.2.53"]}, "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/pod"}],
        "ips": [{"interface": 0, "address": "10.244.0.5/24"}],
    }}));
    let result = bench.run("ADD", &config).expect().json;
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(result["interfaces"][1]["name"], "net1");
    assert_eq!(result["ips"][0]["interface"], 0);
    assert_eq!(
        (&result["ips"][1]["interface"], &result["ips"][1]["address"]),
        (&json!(1), &json!("10.56.217.2/24"))
    );
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"]}));
    bench.run("DEL", &config).expect();
}

#[test]
fn ipv6_addresses_are_usable_when_add_returns() {
    let bench = Bench::new();
    bench.ipam(
        "six",
        r#"[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"fd00::2/64","gateway":"fd00::1"}],"routes":[{"dst":"::/0"}]}'"#,
    );
    // As runtimes leave it in IPv4 clusters.
    bench.pod.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).unwrap().unwrap();
    let config = bench.config(json!({"ipam": {"type": "six"}}));
    bench.run("ADD", &config).expect();
    let shown = bench.in_pod("-6 addr show net1");
    assert!(
        shown.contains("inet6 fd00::2/64 scope global")
            && !shown.contains("fd00::2/64 scope global tentative"),
        "{shown}"
    );
    assert!(bench.in_pod("-6 route show").contains("default via fd00::1"));
    bench.run("DEL", &config).expect();
}

#[test]
fn the_default_route_of_the_network_before_stays_the_pods() {
    let bench = Bench::new();
    bench.in_pod("link add eth0 type veth peer name cluster");
    bench.in_pod("link set cluster up");
    bench.in_pod("link set eth0 up");
    bench.in_pod("addr add 10.244.0.5/24 dev eth0");
    bench.in_pod("route add default via 10.244.0.1");
    let added = bench.run("ADD", &bench.config(json!({}))).expect();
    assert_eq!(bench.in_pod("route show default").trim(), "default via 10.244.0.1 dev eth0");
    assert!(added.stderr.contains("a route to 0.0.0.0/0 already"), "{}", added.stderr);
    bench.run("DEL", &bench.config(json!({}))).expect();
}

#[test]
fn adds_for_two_nics_do_not_wait_for_each_other() {
    let bench = Bench::new();
    bench.on_node("link add eth2 type veth peer name wire2");
    // Each IPAM call ends only when the other has begun.
    let here = bench.folder.path().display().to_string();
    bench.ipam(
        "meets",
        &format!(
            r#"[ $CNI_COMMAND = ADD ] || exit 0
               touch {here}/$CNI_CONTAINERID
               until [ -e {here}/one ] && [ -e {here}/two ]; do :; done
               echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.0.0.2/24"}}]}}'"#
        ),
    );
    let second = linux::Netns::create().unwrap();
    let path = path_of(&second).display().to_string();
    let first = bench.config(json!({"ipam": {"type": "meets"}}));
    let other = bench.config(json!({"device": "eth2", "ipam": {"type": "meets"}}));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| bench.run("ADD", &first));
        bench.run_for("ADD", "two", &path, &other).expect();
        thread.join().unwrap().expect();
    });
    bench.run("DEL", &first).expect();
    bench.run_for("DEL", "two", &path, &other).expect();
}

#[test]
fn a_gateway_outside_of_the_subnet_is_reached_all_the_same() {
    let bench = Bench::new();
    bench.ipam(
        "cloud",
        r#"[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/32","gateway":"169.254.1.1"}],"routes":[{"dst":"0.0.0.0/0","table":100,"priority":5,"mtu":1280}]}'"#,
    );
    let config = bench.config(json!({"ipam": {"type": "cloud"}}));
    bench.run("ADD", &config).expect();
    let routes = bench.in_pod("route show table 100");
    assert!(
        routes.contains("default via 169.254.1.1 dev net1") && routes.contains("onlink mtu 1280"),
        "{routes}"
    );
    bench.run("DEL", &config).expect();
}
