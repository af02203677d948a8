//! ADD that must fail: with the right code, in words that help, and with nothing changed.

use std::time::{Duration, Instant};

use linux::Netns;
use serde_json::json;

use crate::bench::{ANSWERS, Bench, ip, path_of};

#[test]
fn a_configuration_that_is_not_usable_is_refused_before_anything_is_touched() {
    let bench = Bench::new();
    let before = bench.portrait();
    let netns = bench.pod_path().display().to_string();
    assert_eq!(bench.run_raw("ADD", "one", &netns, b"this is not JSON").code(), 6);
    let code = |keys| {
        let answer = bench.run("ADD", &bench.config(keys));
        assert!(!answer.json["msg"].as_str().unwrap().is_empty());
        answer.code()
    };
    assert_eq!(code(json!({"name": null})), 7);
    assert_eq!(code(json!({"device": null})), 7);
    assert_eq!(code(json!({"device": 5})), 7);
    assert_eq!(code(json!({"cniVersion": "9.9.9"})), 1);
    assert_eq!(code(json!({"device": "eth99"})), 100);
    assert_eq!(code(json!({"deviceID": "0000:ff:1f.7"})), 100);
    assert_eq!(code(json!({"device": null, "hwaddr": "52:54:00:00:00:99"})), 100);
    assert_eq!(code(json!({"ipam": "host-local"})), 7);
    assert_eq!(code(json!({"ipam": {"type": "not-installed"}})), 5);
    assert_eq!(code(json!({"prevResult": {"ips": "nonsense"}})), 6);
    bench.assert_untouched(&before);
}

#[test]
fn a_name_that_no_link_can_have_and_a_namespace_that_is_none_are_refused() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    let file = bench.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(bench.run_for("ADD", "one", &file.display().to_string(), &config).code(), 8);
    assert_eq!(bench.run_for("ADD", "one", "/absent/netns", &config).code(), 8);
    let own = path_of(&bench.node).display().to_string();
    assert_eq!(bench.run_for("ADD", "one", &own, &config).code(), 8);
    assert_eq!(bench.run_for("ADD", "../one", &own, &config).code(), 4);
    bench.assert_untouched(&before);
}

#[test]
fn the_nic_that_carries_the_node_is_never_moved_unless_the_configuration_insists() {
    let bench = Bench::new();
    bench.on_node("addr add 192.0.2.2/24 dev eth1");
    bench.on_node("route add default via 192.0.2.1");
    let config = bench.config(json!({}));
    let refused = bench.run("ADD", &config);
    assert_eq!(refused.code(), 101);
    assert!(
        refused.text().contains("default route") && refused.text().contains("allowLifeline"),
        "{}",
        refused.text()
    );
    assert!(bench.node_link("eth1").unwrap().up && !bench.lease().exists());
    assert!(bench.on_node("route show").contains("default via 192.0.2.1"));

    // Only who writes the network's definition may insist: not the runtime's word, nor what a pod brings along (CNI_ARGS: see the bench).
    for keys in [
        json!({"runtimeConfig": {"allowLifeline": true}, "capabilities": {"allowLifeline": true}}),
        json!({"args": {"cni": {"allowLifeline": true}}}),
        json!({"ipam": {"type": "answers", "allowLifeline": true}}),
        json!({"allowLifeline": false}),
    ] {
        let refused = bench.run("ADD", &bench.config(keys.clone()));
        assert_eq!(refused.code(), 101, "{keys}");
        assert!(!refused.stderr.contains("allowLifeline"), "{keys}");
    }
    assert!(bench.node_link("eth1").unwrap().up && !bench.lease().exists());

    let config = bench.config(json!({"allowLifeline": true}));
    let added = bench.run("ADD", &config).expect();
    assert!(
        added.stderr.contains("WARNING: eth1 carries the IPv4 default route")
            && added.stderr.contains("allowLifeline"),
        "{}",
        added.stderr
    );
    bench.run("DEL", &config).expect();
    assert!(bench.on_node("addr show dev eth1").contains("192.0.2.2/24"), "the address did not come home");
}

#[test]
fn a_nic_that_the_node_leased_an_address_for_is_never_moved() {
    let bench = Bench::new();
    bench.on_node("addr add 10.7.0.5/24 dev eth1 valid_lft 3600 preferred_lft 3600");
    let refused = bench.run("ADD", &bench.config(json!({})));
    assert_eq!(refused.code(), 101);
    assert!(refused.text().contains("10.7.0.5"), "{}", refused.text());
}

#[test]
fn what_was_named_to_the_agent_as_vital_is_spared_and_a_torn_note_is_in_nobodys_way() {
    let bench = Bench::new();
    // Wires lead out of the node.
    let outside = Netns::create().unwrap();
    bench.on_node("link add up0 type veth peer name up0-wire");
    for wire in ["wire", "up0-wire"] {
        bench.on_node(&format!("link set {wire} netns {}", path_of(&outside).display()));
        ip(&outside, &format!("link set {wire} up"));
    }
    bench.on_node("addr add 192.0.2.2/24 dev up0");
    bench.on_node("link set up0 up");
    bench.on_node("route add default via 192.0.2.1");
    bench.on_node("addr add 198.51.100.5/24 dev eth1");
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    bench.run("DEL", &config).expect();

    let ledger = ledger::Ledger::at(bench.state());
    let before = bench.portrait();
    for (addresses, peers, reason) in [
        (&["198.51.100.5"][..], &[][..], "198.51.100.5"),
        (&[][..], &["198.51.100.9"][..], "is the way to the API server 198.51.100.9"),
    ] {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let vital = linux::route::Vital { addresses: ips(addresses), peers: ips(peers) };
        ledger.notes().write_vital(&vital).unwrap();
        let refused = bench.run("ADD", &config);
        assert_eq!(refused.code(), 101);
        assert!(refused.text().contains(reason), "{}", refused.text());
        bench.assert_untouched(&before);
    }

    std::fs::write(bench.state().join("vital.json"), "{").unwrap();
    let added = bench.run("ADD", &config).expect();
    assert!(
        added.stderr.contains("vital.json") && added.stderr.contains("what the kernel shows"),
        "{}",
        added.stderr
    );
    bench.run("DEL", &config).expect();
}

#[test]
fn an_interface_name_that_is_taken_in_the_pod_is_found_before_anything_moves() {
    let bench = Bench::new();
    let before = bench.portrait();
    for (name, alternative) in [("net1", None), ("other", Some("net1")), ("other", Some("enp0s10"))] {
        bench.in_pod(&format!("link add {name} type veth peer name x"));
        if let Some(alternative) = alternative {
            bench.in_pod(&format!("link property add dev {name} altname {alternative}"));
        }
        let theirs = bench.in_pod(&format!("-j link show dev {name}"));
        let refused = bench.run("ADD", &bench.config(json!({})));
        assert_eq!(refused.code(), 102);
        assert!(refused.text().contains(name), "{}", refused.text());
        assert_eq!(bench.in_pod(&format!("-j link show dev {name}")), theirs);
        bench.in_pod(&format!("link del {name}"));
        bench.assert_untouched(&before);
    }
    assert!(bench.asked().is_empty());
}

#[test]
fn a_nic_that_is_leased_is_refused_and_the_owner_is_named() {
    let bench = Bench::new();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    let again = bench.run("ADD", &config);
    assert_eq!(again.code(), 103);
    let second = Netns::create().unwrap();
    for keys in [json!({}), json!({"device": null, "hwaddr": "52:54:00:c4:e6:cd"})] {
        let config = bench.config(keys);
        let other = bench.run_for("ADD", "two", &path_of(&second).display().to_string(), &config);
        assert_eq!(other.code(), 11);
        assert!(other.text().contains("pod default/testpod1"), "{}", other.text());
    }
    assert!(bench.in_pod("addr show net1").contains("10.56.217.2/24"), "the owner's interface was touched");
    assert_eq!(bench.asked(), ["ADD"]);
    bench.run("DEL", &config).expect();
}

#[test]
fn a_nic_that_its_pod_took_out_of_sight_is_refused_and_neither_lease_nor_address_is_touched() {
    let bench = Bench::new();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    // A namespace that nobody finds from outside, as a container within a container has.
    let within = Netns::create().unwrap();
    bench.in_pod(&format!("link set net1 netns {}", path_of(&within).display()));
    let lease = std::fs::read(bench.lease()).unwrap();
    let second = Netns::create().unwrap();
    for (container, netns) in [("two", &second), ("one", &bench.pod)] {
        let refused = bench.run_for("ADD", container, &path_of(netns).display().to_string(), &config);
        assert_eq!(refused.code(), 11);
        for part in ["in use by pod default/testpod1", "in one below it"] {
            assert!(refused.text().contains(part), "{}", refused.text());
        }
        assert_eq!(std::fs::read(bench.lease()).unwrap(), lease);
    }
    assert!(within.route_socket().unwrap().link_by_name("net1").unwrap().is_some());
    assert_eq!(bench.asked(), ["ADD"]);
    bench.run("DEL", &config).expect();
}

#[test]
fn an_ipam_plugin_that_fails_leaves_nothing_behind_and_its_code_is_kept() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.ipam(
        "fails",
        r#"[ "$CNI_COMMAND" != ADD ] || { echo '{"cniVersion":"1.1.0","code":142,"msg":"no addresses left"}'; exit 1; }"#,
    );
    let failed = bench.run("ADD", &bench.config(json!({"ipam": {"type": "fails"}})));
    assert_eq!(failed.code(), 142);
    assert!(failed.text().contains("no addresses left"), "{}", failed.text());
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
}

#[test]
fn an_ipam_plugin_that_fails_in_its_del_too_leaves_a_lease_by_which_the_next_del_gives_the_address_back() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.ipam("fails", r#"echo '{"cniVersion":"1.1.0","code":142,"msg":"disk full"}'; exit 1"#);
    let config = bench.config(json!({"ipam": {"type": "fails"}}));
    let failed = bench.run("ADD", &config);
    assert_eq!(failed.code(), 142);
    assert!(failed.text().contains("the addresses could not be given back"), "{}", failed.text());
    assert_eq!(bench.portrait(), before);
    assert!(bench.lease().exists(), "nobody would know of the address");
    bench.ipam("fails", ANSWERS);
    // A runtime that forgot the container: its GC knows the address by the lease alone.
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    bench.run_for("GC", "", "", &gc).expect();
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["ADD", "DEL", "DEL", "GC"]);
}

#[test]
fn an_ipam_plugin_that_hangs_is_ended_and_the_nic_is_home_in_bounded_time() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.ipam("hangs", "sleep 1000");
    let config = bench.config(json!({"ipam": {"type": "hangs"}, "ipamTimeout": 1}));
    let began = Instant::now();
    let failed = bench.run("ADD", &config);
    assert_eq!(failed.code(), 11);
    assert!(began.elapsed() < Duration::from_secs(15), "took {:?}", began.elapsed());
    assert_eq!(bench.portrait(), before);
    bench.ipam("hangs", ANSWERS);
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
}

#[test]
fn an_ipam_plugin_that_talks_nonsense_or_gives_no_address_leaves_nothing_behind() {
    let bench = Bench::new();
    let before = bench.portrait();
    for (name, says, code) in [
        ("babbles", "hello", 6),
        ("silent", "", 6),
        ("empty", r#"{"cniVersion":"1.1.0"}"#, 107),
        ("future", r#"{"cniVersion":"7.0.0","ips":[]}"#, 6),
    ] {
        bench.ipam(name, &format!("[ $CNI_COMMAND != ADD ] || echo '{says}'"));
        assert_eq!(bench.run("ADD", &bench.config(json!({"ipam": {"type": name}}))).code(), code, "{name}");
        bench.assert_untouched(&before);
        assert_eq!(bench.asked().last().unwrap(), "DEL");
    }
}

#[test]
fn what_the_kernel_refuses_is_undone_and_told_in_its_words() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.ipam(
        "odd",
        r#"[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}],"routes":[{"dst":"fd01::/64","gw":"10.0.0.9"}]}'"#,
    );
    let failed = bench.run("ADD", &bench.config(json!({"ipam": {"type": "odd"}})));
    assert_eq!(failed.code(), 5);
    assert!(failed.text().contains("fd01::/64") && failed.text().contains("RTA_VIA"), "{}", failed.text());
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
    let failed = bench.run("ADD", &bench.config(json!({"mtu": 20})));
    assert!(failed.text().contains("mtu less than device minimum"), "{}", failed.text());
    bench.assert_untouched(&before);
}

#[test]
fn an_address_that_another_host_has_is_refused_and_undone() {
    let bench = Bench::new();
    let neighbour = Netns::create().unwrap();
    bench.on_node(&format!("link set wire netns {}", path_of(&neighbour).display()));
    ip(&neighbour, "link set wire up");
    ip(&neighbour, "addr add fd00::2/64 dev wire nodad");
    let before = bench.portrait();
    bench.ipam(
        "six",
        r#"[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"fd00::2/64"}]}'"#,
    );
    let failed = bench.run("ADD", &bench.config(json!({"ipam": {"type": "six"}})));
    assert_eq!(failed.code(), 105);
    assert!(failed.text().contains("fd00::2"), "{}", failed.text());
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
}

#[test]
fn a_state_folder_that_cannot_be_written_is_found_before_anything_moves() {
    let bench = Bench::new();
    let before = bench.portrait();
    let failed = bench.run("ADD", &bench.config(json!({"stateDir": "/proc/no-such-folder"})));
    assert_eq!(failed.code(), 108);
    bench.assert_untouched(&before);
    assert!(bench.asked().is_empty());
}

#[test]
fn of_many_adds_for_one_device_one_succeeds_and_the_others_can_try_again() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    let pods: Vec<Netns> = (0..6).map(|_| Netns::create().unwrap()).collect();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let run = |number: usize| {
            let netns = path_of(&pods[number]).display().to_string();
            bench.run_for("ADD", &format!("c{number}"), &netns, &config)
        };
        let threads: Vec<_> = (0..pods.len()).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let won: Vec<usize> = (0..pods.len()).filter(|number| answers[*number].ok).collect();
    assert_eq!(won.len(), 1);
    assert!(answers.iter().filter(|answer| !answer.ok).all(|answer| answer.code() == 11));
    for (number, pod) in pods.iter().enumerate() {
        bench.run_for("DEL", &format!("c{number}"), &path_of(pod).display().to_string(), &config).expect();
    }
    bench.assert_untouched(&before);
}

#[test]
fn every_error_names_the_device_and_the_pod() {
    let bench = Bench::new();
    bench.ipam("refuses", r#"echo '{"cniVersion":"1.0.0","code":142,"msg":"no"}'; exit 1"#);
    for keys in [
        json!({"mtu": 20}),
        json!({"queues": 70000}),
        json!({"ipam": {"type": "refuses"}}),
        json!({"allowUnallocated": false}),
        json!({"sysctl": {"net.ipv4.conf.IFNAME.no_such_setting": "1"}}),
    ] {
        let failed = bench.run("ADD", &bench.config(keys.clone()));
        assert_ne!(failed.code(), 999);
        for name in ["link:eth1", "default/testpod1"] {
            assert!(failed.text().contains(name), "{keys}: {}", failed.text());
        }
    }
    let result = bench.run("ADD", &bench.config(json!({}))).expect().json;
    bench.in_pod("address flush dev net1");
    let check = bench.run("CHECK", &bench.config(json!({"prevResult": result})));
    // IPAM gives nothing back, and a DEL without a lease has no device to name.
    let del = bench.run("DEL", &bench.config(json!({"ipam": {"type": "refuses"}})));
    let late = bench.run("DEL", &bench.config(json!({"ipam": {"type": "refuses"}})));
    assert_eq!(
        [check.text(), del.text(), late.text()],
        [
            "interface net1 is not as ADD left it: address 10.56.217.2/24 is missing; the route to 0.0.0.0/0 is missing; \
             the route to 10.56.217.0/24 is missing; the route to 172.30.0.0/16 is missing; device link:eth1; pod default/testpod1",
            "plugin refuses: no: device link:eth1; pod default/testpod1",
            "plugin refuses: no: pod default/testpod1",
        ]
    );
}
