//! DEL: succeeds whatever is gone, brings home whatever is there, and touches nothing that is another's.

use linux::Netns;
use linux::testing::bpf;
use nic::Offloads;
use serde_json::json;

use crate::bench::{Bench, path_of, routes};

#[test]
fn del_succeeds_when_there_is_nothing_to_do_and_always_asks_ipam() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    bench.run("DEL", &config).expect();
    bench.run_for("DEL", "one", "", &config).expect();
    bench.run_for("DEL", "one", "/absent/netns", &config).expect();
    assert_eq!(bench.asked(), ["DEL", "DEL", "DEL"]);
    bench.run("ADD", &config).expect();
    bench.run("DEL", &config).expect();
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["DEL", "DEL", "DEL", "ADD", "DEL", "DEL"]);
}

#[test]
fn del_needs_neither_the_namespaces_path_nor_the_device_in_the_configuration() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.run("ADD", &bench.config(json!({}))).expect();
    bench.run_for("DEL", "one", "", &bench.config(json!({"device": null}))).expect();
    bench.assert_untouched(&before);
}

#[test]
fn a_namespace_that_ended_takes_a_virtual_link_with_it_and_del_closes_the_lease() {
    let mut bench = Bench::new();
    let config = bench.config(json!({}));
    let gone = bench.pod_path().display().to_string();
    bench.run("ADD", &config).expect();
    let peer = bench.node_link("wire").unwrap();
    bench.pod = Netns::create().unwrap();
    // The end of a namespace is asynchronous; the other end of the pair goes with it.
    let mut monitor =
        bench.node.run(|| linux::route::Monitor::open(linux::route::Groups::LINKS)).unwrap().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while bench.node_link("wire").is_some_and(|wire| wire.index == peer.index) {
        monitor.wait(deadline).unwrap().expect("the namespace ends");
    }
    bench.run_for("DEL", "one", &gone, &config).expect();
    assert!(!bench.lease().exists());
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
}

#[test]
fn a_late_del_of_another_container_does_not_touch_the_nic() {
    let bench = Bench::new();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    let before = bench.in_pod("-j addr show net1");
    bench.run_for("DEL", "two", &bench.pod_path().display().to_string(), &config).expect();
    assert_eq!(bench.in_pod("-j addr show net1"), before);
    assert!(bench.lease().exists());
    bench.run("DEL", &config).expect();
}

#[test]
fn whatever_the_pod_did_to_the_nic_it_comes_home_as_it_was() {
    let bench = Bench::new();
    let before = bench.portrait();
    let offloads = routes(&bench.node).offloads(&"eth1".parse().unwrap()).unwrap();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    routes(&bench.pod).set_offloads(&"net1".parse().unwrap(), Offloads::default()).unwrap();
    bench.in_pod("link set net1 down");
    bench.in_pod("link set net1 name mine address 02:00:00:00:00:99 mtu 1200 txqueuelen 5 promisc on");
    bench.in_pod("link set mine alias theirs multicast off arp off allmulticast on");
    bench.in_pod("link set mine group 42 gso_max_size 20000 gso_max_segs 7 gro_max_size 20000");
    bench.in_pod("link property del dev mine altname enp0s10");
    bench.in_pod("link property add dev mine altname eth1 altname another");
    bench.in_pod("link add br0 type bridge");
    bench.in_pod("link add link mine name upon type macvlan mode private");
    bench.in_pod("link set mine up");
    bench.run("DEL", &config).expect();
    assert_eq!(bench.portrait(), before);
    assert_eq!(routes(&bench.node).offloads(&"eth1".parse().unwrap()).unwrap(), offloads);
    assert!(bench.pod_link("upon").is_none(), "what was built upon the NIC stayed");
    bench.run("ADD", &config).expect();
    bench.in_pod("link add br1 type bridge");
    bench.in_pod("link set net1 master br1");
    bench.run("DEL", &config).expect();
    assert_eq!(bench.portrait(), before);
    assert!(!bench.lease().exists());
}

/// The pod's would see the node's packets, and those of the next pod.
#[test]
fn bpf_programs_of_the_pods_are_taken_off_and_the_nodes_own_stay() {
    if !bpf::can_attach() {
        return;
    }
    let bench = Bench::new();
    let index = bench.node_link("eth1").unwrap().index;
    let on_node = || bench.node.run(|| linux::bpf::tcx(index)).unwrap().unwrap().unwrap();
    bench.node.run(|| bpf::attach_tcx(index)).unwrap().unwrap();
    let nodes = bench.node.run(|| bpf::link_tcx(index)).unwrap().unwrap();
    let (before, portrait) = (on_node(), bench.portrait());
    assert_eq!(before.len(), 2);
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    let in_pod = bench.pod_link("net1").unwrap().index;
    let held = bench.pod.run(|| {
        bpf::attach_tcx(in_pod).unwrap();
        // Open for longer than the NIC is in the pod.
        [bpf::link_tcx(in_pod).unwrap(), bpf::link_xdp(in_pod).unwrap()]
    });
    let there = bench.pod.run(|| linux::bpf::tcx(in_pod)).unwrap().unwrap().unwrap();
    assert_eq!(there.len(), 4, "two went with the NIC, and two came: {there:?}");
    assert_eq!(bench.pod_link("net1").unwrap().xdp.len(), 1);
    bench.run("DEL", &config).expect();
    assert_eq!(on_node(), before);
    assert_eq!(bench.node_link("eth1").unwrap().xdp, []);
    assert_eq!(bench.portrait(), portrait);
    assert!(!bench.lease().exists());
    drop((nodes, held));
}

#[test]
fn sysctls_of_the_nic_come_home_with_it_before_it_is_up() {
    let bench = Bench::new();
    let quiet = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/{}", name.replace("IFNAME", "eth1"));
        bench.node.run(|| std::fs::write(path, value)).unwrap().unwrap();
    };
    quiet("ipv6/conf/IFNAME/addr_gen_mode", "1");
    quiet("ipv6/conf/IFNAME/accept_ra", "0");
    quiet("ipv4/conf/IFNAME/rp_filter", "2");
    bench.on_node("-6 addr flush dev eth1");
    let index = bench.node_link("eth1").unwrap().index;
    let settings = || routes(&bench.node).settings(index).unwrap().unwrap();
    let (before, portrait) = (settings(), bench.portrait());
    let config = bench.config(json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"}}));
    bench.run("ADD", &config).expect();
    let told = bench.run("DEL", &config).expect().stderr;
    assert!(!told.contains("WARNING"), "{told}");
    assert_eq!(settings(), before);
    assert_eq!(bench.portrait(), portrait, "it asked nobody, and gave itself no address");
}

#[test]
fn sysctls_that_the_node_changed_meanwhile_are_as_if_the_nic_had_stayed() {
    let bench = Bench::new();
    bench.on_node("link add stays type veth peer name stays-wire");
    let set = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/{name}");
        bench.node.run(|| std::fs::write(path, value)).unwrap().unwrap();
    };
    let sysctls = |name: &str| {
        let index = bench.node_link(name).unwrap().index;
        let mut settings = routes(&bench.node).settings(index).unwrap().unwrap();
        settings.retain(|name, _| name.starts_with("net."));
        settings
    };
    assert_eq!(sysctls("eth1"), sysctls("stays"));
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    let before = sysctls("stays");
    // Some of these hold for the interfaces that are there, and some for new ones alone.
    for name in ["ipv4/conf/default/rp_filter", "ipv6/conf/default/accept_ra", "ipv6/conf/default/hop_limit"]
    {
        set(name, "2");
    }
    for name in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding", "ipv6/conf/all/addr_gen_mode"] {
        set(name, "1");
    }
    bench.run("DEL", &config).expect();
    assert_ne!(sysctls("stays"), before);
    assert_eq!(sysctls("eth1"), sysctls("stays"));
}

/// As on a node whose `/proc/sys` nobody may write to.
#[test]
fn what_cannot_be_set_back_of_a_nic_is_told_and_does_not_keep_it_from_being_home() {
    let bench = Bench::new();
    for (name, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/eth1/{name}");
        bench.node.run(|| std::fs::write(path, value)).unwrap().unwrap();
    }
    bench.on_node("addr add fe80::9/64 dev eth1 nodad");
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let told =
        bench.run_through(&["unshare", "-m", "sh", "-ec", read_only, "sh"], "DEL", &config).expect().stderr;
    for setting in ["addr_gen_mode of 1: it is 0", "accept_ra of 0: it is 1"] {
        assert!(
            told.contains(&format!("is home as eth1, without its net.ipv6.conf.IFNAME.{setting}")),
            "{told}"
        );
    }
    assert!(!bench.lease().exists());
    assert!(bench.on_node("-6 addr show dev eth1").contains("fe80::9/64"));
}

#[test]
fn an_address_that_the_node_takes_no_more_is_told_and_does_not_keep_the_nic_from_being_home() {
    let bench = Bench::new();
    bench.on_node("addr add fd00:7::2/64 dev eth1 nodad");
    // No route here tells which NIC carries the node.
    let config = bench.config(json!({"allowLifeline": true}));
    bench.run("ADD", &config).expect();
    bench.node.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).unwrap().unwrap();
    let told = bench.run("DEL", &config).expect().stderr;
    assert!(
        told.contains("WARNING: device link:eth1 is home as eth1, without its address fd00:7::2/64"),
        "{told}"
    );
    assert!(bench.node_link("eth1").unwrap().up && !bench.lease().exists());
}

#[test]
fn a_nic_that_was_down_comes_home_down_and_a_bridge_port_to_its_bridge() {
    let bench = Bench::new();
    bench.on_node("link set eth1 down");
    bench.on_node("link add br0 type bridge");
    bench.on_node("link set eth1 master br0");
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    bench.run("DEL", &config).expect();
    let link = bench.node_link("eth1").unwrap();
    assert!(!link.up);
    assert_eq!(link.master, bench.node_link("br0").map(|bridge| bridge.index));
}

#[test]
fn a_nic_whose_name_is_taken_comes_home_under_another_and_gets_its_own_back_later() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    bench.on_node("link add eth1 type veth peer name thief");
    bench.on_node("link property add dev thief altname enp0s10");
    let gone = bench.run("DEL", &config).expect();
    assert!(gone.stderr.contains("home as eth1-2"), "{}", gone.stderr);
    assert_eq!(bench.node_link("eth1-2").unwrap().alias.as_deref(), Some("spare"));
    assert!(bench.lease().exists(), "nobody would know its name");
    bench.on_node("link del eth1");
    // The next DEL for that container puts it right, as would GC or the next ADD.
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
}

#[test]
fn a_nic_under_another_name_can_be_given_to_the_next_pod_and_keeps_its_past() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    bench.on_node("link add eth1 type veth peer name thief");
    bench.run("DEL", &config).expect();
    bench.on_node("link del eth1");
    let second = Netns::create().unwrap();
    let path = path_of(&second).display().to_string();
    let by_mac = bench.config(json!({"device": null, "hwaddr": "52:54:00:c4:e6:cd"}));
    bench.run_for("ADD", "two", &path, &by_mac).expect();
    bench.run_for("DEL", "two", &path, &by_mac).expect();
    bench.run("DEL", &config).expect();
    bench.assert_untouched(&before);
}

#[test]
fn del_succeeds_with_a_configuration_that_no_add_could_have_had() {
    let bench = Bench::new();
    let before = bench.portrait();
    for keys in [
        json!({"ipam": "host-local"}),
        json!({"ipam": {"type": "../sh"}}),
        json!({"ipamTimeout": 0}),
        json!({"mtu": "large", "device": 7}),
        json!({"prevResult": {"ips": "nonsense"}}),
    ] {
        bench.run("ADD", &bench.config(json!({}))).expect();
        bench.run("DEL", &bench.config(keys)).expect();
        bench.assert_untouched(&before);
    }
    let told = bench.run("DEL", &bench.config(json!({"stateDir": "relative"}))).expect();
    assert!(told.stderr.contains("is not an absolute path"), "{}", told.stderr);
    // Its ADD was refused, since nothing can be written there.
    let file = tempfile::NamedTempFile::new().unwrap();
    bench.run("DEL", &bench.config(json!({"stateDir": file.path()}))).expect();
}

#[test]
fn a_bridge_that_is_gone_keeps_no_nic_from_coming_home() {
    let bench = Bench::new();
    bench.on_node("link add br0 type bridge");
    bench.on_node("link set eth1 master br0");
    bench.run("ADD", &bench.config(json!({}))).expect();
    bench.on_node("link del br0");
    bench.run("DEL", &bench.config(json!({}))).expect();
    assert_eq!(bench.node_link("eth1").unwrap().master, None);
    assert!(!bench.lease().exists());
}

#[test]
fn after_a_reboot_del_gives_the_address_back_and_leaves_the_nic_as_it_is_now() {
    let bench = Bench::new();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    bench.in_pod(&format!("link set net1 netns {} name eth1", path_of(&bench.node).display()));
    let lease = std::fs::read_to_string(bench.lease()).unwrap();
    let boot = linux::boot_id().unwrap();
    assert!(lease.contains(&boot));
    std::fs::write(bench.lease(), lease.replace(&boot, "of-another-boot")).unwrap();
    bench.on_node("link set eth1 mtu 1300");
    let now = bench.portrait();
    bench.run_for("DEL", "one", "", &config).expect();
    bench.assert_untouched(&now);
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
}

#[test]
fn an_ipam_plugin_that_hangs_in_del_is_ended_and_the_nic_comes_home() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.run("ADD", &bench.config(json!({}))).expect();
    bench.ipam("hangs", "sleep 1000");
    let failed = bench.run("DEL", &bench.config(json!({"ipam": {"type": "hangs"}, "ipamTimeout": 1})));
    assert_eq!(failed.code(), 11);
    bench.assert_untouched(&before);
}

#[test]
fn an_ipam_plugin_that_is_not_there_is_missed_before_the_move_and_the_del_that_follows_succeeds() {
    let bench = Bench::new();
    let before = bench.portrait();
    let log = bench.folder.path().join("log.json");
    let mistyped = bench.config(json!({"ipam": {"type": "no-such-plugin"}, "log": log}));
    let refused = bench.run("ADD", &mistyped);
    assert_eq!(refused.code(), 5);
    assert!(refused.text().contains("plugin no-such-plugin was not found"), "{}", refused.text());
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains(r#""step":"judge""#) && !log.contains("move") && !log.contains("undo"), "{log}");
    bench.assert_untouched(&before);
    let told = bench.run("DEL", &mistyped).expect().stderr;
    assert!(told.contains("WARNING: plugin no-such-plugin was not found"), "{told}");
    assert!(bench.asked().is_empty());
    // Where the lease is gone, the result still tells of an address.
    let mut config = bench.config(json!({"ipam": {"type": "no-such-plugin"}}));
    config["prevResult"] = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
    bench.run("DEL", &config).expect();
    config["prevResult"]["ips"] = json!([{"address": "10.56.217.9/24"}]);
    assert_eq!(bench.run("DEL", &config).code(), 5);
}

#[test]
fn while_an_ipam_plugin_that_gave_an_address_is_away_del_brings_the_nic_home_and_fails() {
    let bench = Bench::new();
    let before = bench.portrait();
    let config = bench.config(json!({}));
    bench.run("ADD", &config).expect();
    let plugin = bench.folder.path().join("bin/answers");
    std::fs::rename(&plugin, plugin.with_extension("away")).unwrap();
    for _ in 0..2 {
        let failed = bench.run("DEL", &config);
        assert_eq!(failed.code(), 5);
        assert!(failed.text().contains("plugin answers was not found"), "{}", failed.text());
        assert_eq!(bench.portrait(), before);
        assert!(bench.lease().exists(), "nobody would know of the address");
    }
    // What somebody makes of it meanwhile is not undone.
    bench.on_node("link set eth1 mtu 1350");
    std::fs::rename(plugin.with_extension("away"), plugin).unwrap();
    let told = bench.run("DEL", &config).expect().stderr;
    assert!(!told.contains("WARNING"), "{told}");
    assert_eq!(bench.node_link("eth1").unwrap().mtu, 1350);
    bench.on_node("link set eth1 mtu 1450");
    bench.assert_untouched(&before);
    assert_eq!(bench.asked(), ["ADD", "DEL"]);
}

#[test]
fn an_ipam_plugin_that_fails_in_del_is_told_and_the_nic_comes_home_all_the_same() {
    let bench = Bench::new();
    let before = bench.portrait();
    bench.run("ADD", &bench.config(json!({}))).expect();
    bench.ipam("fails", r#"echo '{"cniVersion":"1.1.0","code":143,"msg":"disk full"}'; exit 1"#);
    let failed = bench.run("DEL", &bench.config(json!({"ipam": {"type": "fails"}})));
    assert_eq!(failed.code(), 143);
    bench.assert_untouched(&before);
}
