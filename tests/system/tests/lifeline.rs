//! The lifeline on real virtio NICs, through all that a distribution's kernel can put between a NIC and a default route.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::env;
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{MANAGEMENT, Node, machine, spare};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";
const THIRD: &str = "0000:00:0b.0";
const SOON: Duration = Duration::from_secs(30);
/// Set in the guest, where this test program runs once more: which links Open vSwitch is to have as ports.
const SWITCH_PORTS: &str = "VIRTNET_TEST_SWITCH_PORTS";

const THIS_TEST: &str =
    "lifeline::the_nics_below_whatever_the_kernel_can_stack_are_neither_offered_nor_moved";

/// What is built, and which of the spare NICs carry the node then. All links are set up, and go afterwards.
struct Topology {
    name: &'static str,
    /// `ip -batch -`; a line that begins with `switch` makes a datapath with the bridge br-ex and these ports.
    lines: &'static str,
    carriers: &'static [&'static str],
}

/// The default routes here come second to the node's own, and are in tables of their own.
const TOPOLOGIES: &[Topology] = &[
    Topology {
        name: "a bond",
        lines: "link add top type bond mode active-backup
                link set eth1 down\nlink set eth2 down\nlink set eth1 master top\nlink set eth2 master top
                link set top up\nroute add default dev top table 77",
        carriers: &[FIRST, SECOND],
    },
    Topology {
        name: "a VLAN",
        lines: "link add link eth1 name top type vlan id 5\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a VLAN in a VLAN",
        lines: "link add link eth2 name outer type vlan id 5 protocol 802.1ad\nlink set outer up
                link add link outer name top type vlan id 6\nlink set top up\nroute add ::/0 dev top table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "a bridge over a VLAN over a bond",
        lines: "link add bond7 type bond mode active-backup\nlink set eth1 down\nlink set eth1 master bond7\nlink set bond7 up
                link add link bond7 name bond7.5 type vlan id 5\nlink add top type bridge\nlink set bond7.5 master top
                link set bond7.5 up\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a VLAN over a bridge that filters VLANs over a bond",
        lines: "link add bond7 type bond mode active-backup\nlink set eth2 down\nlink set eth2 master bond7\nlink set bond7 up
                link add br7 type bridge vlan_filtering 1\nlink set bond7 master br7\nlink set br7 up
                link add link br7 name top type vlan id 6\nlink set top up\nroute add default dev top table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "a team",
        lines: "link add top type team\nlink set eth1 down\nlink set eth1 master top\nlink set eth1 up\nlink set top up
                route add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a bridge of Open vSwitch",
        lines: "switch eth1 eth2\nlink set br-ex up\nroute add default dev br-ex table 77",
        carriers: &[FIRST, SECOND],
    },
    Topology {
        name: "a bridge of Open vSwitch over a bond",
        lines: "link add bond7 type bond mode active-backup\nlink set eth2 down\nlink set eth2 master bond7\nlink set bond7 up
                switch bond7\nlink set br-ex up\nroute add default dev br-ex table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "a veth pair into Open vSwitch",
        lines: "link add top type veth peer name top-ovs\nlink set top-ovs up\nswitch eth1 top-ovs
                link set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a macvlan over a VLAN",
        lines: "link add link eth1 name eth1.5 type vlan id 5\nlink set eth1.5 up\nlink add link eth1.5 name top type macvlan
                link set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a macvtap",
        lines: "link add link eth2 name top type macvtap\nlink set top up\nroute add default dev top table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "an ipvlan",
        lines: "link add link eth1 name top type ipvlan mode l3\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "MACsec",
        lines: "link add link eth1 name top type macsec\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a VRF with its own table",
        lines: "link add top type vrf table 1001\nlink set top up\nlink set eth1 master top\naddr add 10.9.0.2/24 dev eth1
                route add default via 10.9.0.1 dev eth1 table 1001",
        carriers: &[FIRST],
    },
    Topology {
        name: "a route into a VRF",
        lines: "link add top type vrf table 1001\nlink set top up\nlink set eth2 master top\nroute add default dev top table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "a VXLAN over a VLAN",
        lines: "link add link eth1 name eth1.5 type vlan id 5\nlink set eth1.5 up
                link add top type vxlan id 9 dev eth1.5 remote 203.0.113.1 dstport 4789\nlink set top up
                route add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "GENEVE, which takes a route",
        lines: "addr add 10.9.0.2/24 dev eth1\nroute add 203.0.113.0/24 via 10.9.0.1
                link add top type geneve id 9 remote 203.0.113.1\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "GRE bound to a NIC",
        lines: "link add top type gre remote 203.0.113.1 local 10.9.0.2 dev eth2\nlink set top up
                route add default dev top table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "Ethernet over GRE, which takes a route, in a bridge",
        lines: "addr add 10.9.0.2/24 dev eth1\nroute add 203.0.113.0/24 via 10.9.0.1
                link add tap7 type gretap remote 203.0.113.1 local 10.9.0.2\nlink set tap7 up
                link add top type bridge\nlink set tap7 master top\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "IP in IP, which takes a route",
        lines: "addr add 10.9.0.2/24 dev eth2\nroute add 203.0.113.0/24 via 10.9.0.1
                link add top type ipip remote 203.0.113.1 local 10.9.0.2\nlink set top up\nroute add default dev top table 77",
        carriers: &[SECOND],
    },
    Topology {
        name: "IPv6 in IPv4, which takes a route",
        lines: "addr add 10.9.0.2/24 dev eth1\nroute add 203.0.113.0/24 via 10.9.0.1
                link add top type sit remote 203.0.113.1 local 10.9.0.2\nlink set top up\nroute add ::/0 dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "IPsec bound to a NIC",
        lines: "link add top type xfrm dev eth1 if_id 7\nlink set top up\nroute add default dev top table 77",
        carriers: &[FIRST],
    },
    Topology {
        name: "a dummy as an anchor for addresses, beside the hops of a multipath route",
        lines: "link add top type dummy\nlink set top up\naddr add 10.8.0.1/32 dev top
                addr add 10.9.0.2/24 dev eth1\naddr add 10.10.0.2/24 dev eth2
                route add default table 77 nexthop via 10.9.0.1 nexthop via 10.10.0.1\nroute add default dev top table 78",
        carriers: &[FIRST, SECOND],
    },
    Topology {
        name: "WireGuard alone, which hides its wire: every NIC that is up counts",
        lines: "route del default\naddr flush dev eth0\nlink set eth2 down\nlink add top type wireguard\nlink set top up
                route add default dev top",
        carriers: &[FIRST, THIRD],
    },
];

const TEAR_DOWN: &str = "for link in top top-ovs br7 tap7 bond7.5 bond7 outer eth1.5; do ip link del $link 2>/dev/null; done
    for nic in eth1 eth2 eth3; do ip link set $nic nomaster; ip addr flush dev $nic; ip link set $nic up; done
    ip route flush table 77; ip route flush table 78; ip -6 route flush table 77; ip route del 203.0.113.0/24 2>/dev/null
    ip addr replace 10.0.2.15/24 dev eth0; ip route replace default via 10.0.2.2 dev eth0";

#[test]
fn the_nics_below_whatever_the_kernel_can_stack_are_neither_offered_nor_moved() {
    if let Ok(ports) = env::var(SWITCH_PORTS) {
        let ports: Vec<&str> = ports.split_whitespace().collect();
        return match ports.as_slice() {
            [] => linux::testing::close_open_vswitch("ovs-system").unwrap(),
            ports => linux::testing::open_vswitch("ovs-system", &["br-ex"], ports).unwrap(),
        };
    }
    let node = Node::boot(&machine().nic(spare(FIRST)).nic(spare(SECOND)).nic(spare(THIRD)));
    let netns = node.netns("pod");
    node.sh(TEAR_DOWN);
    let mut failures = Vec::new();
    for topology in TOPOLOGIES {
        build(&node, topology);
        let carriers = [&[MANAGEMENT], topology.carriers].concat();
        let (skipped, reasons) = skipped(&node);
        if skipped != carriers {
            failures.push(format!("{}: {skipped:?} and not {carriers:?}: {reasons}", topology.name));
        } else {
            eprintln!("{}: {reasons}", topology.name);
        }
        let [device, ..] = topology.carriers else { panic!("{} carries nothing", topology.name) };
        let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "ehost-device", "deviceID": device})
            .to_string();
        let refused = node.cni("ehost-device", "ADD", "c1", &netns, &config);
        if refused.json["code"] != 101 {
            failures.push(format!("{}: {device} was moved: {}", topology.name, refused.text));
            let _ = node.cni("ehost-device", "DEL", "c1", &netns, &config);
        }
        if topology.lines.contains("switch ") {
            switch(&node, "");
        }
        node.sh(TEAR_DOWN);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // The tear-down tears all of it down, so none of the above came from what was before it.
    assert_eq!(skipped(&node).0, [MANAGEMENT]);
}

fn build(node: &Node, topology: &Topology) {
    let mut batch = String::new();
    let run = |batch: &mut String| {
        let output = node.command("ip").args(["-batch", "-"]).stdin(std::mem::take(batch)).output().unwrap();
        assert_eq!(output.code(), Some(0), "{}: {}", topology.name, output.error_text());
    };
    for line in topology.lines.lines().map(str::trim) {
        match line.strip_prefix("switch ") {
            None => batch.push_str(&format!("{line}\n")),
            Some(ports) => {
                run(&mut batch);
                switch(node, ports);
            }
        }
    }
    run(&mut batch);
}

/// Makes the datapath with these ports, or deletes it where there are none. `ip` can do neither.
fn switch(node: &Node, ports: &str) {
    let own = env::current_exe().unwrap();
    let again = node.command(own.to_str().unwrap()).args(["--exact", THIS_TEST]).env(SWITCH_PORTS, ports);
    let output = again.output().unwrap();
    assert_eq!(output.code(), Some(0), "{ports}: {}{}", output.text(), output.error_text());
}

/// The NICs that are left alone because they carry the node, and all reasons.
fn skipped(node: &Node) -> (Vec<String>, String) {
    let found = node.json("virtdp discover --json");
    let carries = |row: &&Value| row["state"] == "skipped" && !row["device"].is_null();
    let rows: Vec<&Value> = found["interfaces"].as_array().unwrap().iter().filter(carries).collect();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    (
        rows.iter().map(|row| text(row, "device")).collect(),
        rows.iter().map(|row| text(row, "reason")).collect::<Vec<_>>().join("; "),
    )
}

/// `failover=on` makes QEMU's virtio NIC a standby (VIRTIO_NET_F_STANDBY): the guest makes a master for it (net_failover) and takes the
/// NIC of the same MAC, which QEMU plugs in then, as its port. This is the shape that a VF has under netvsc. net_failover wants a port
/// that is a PCI device itself, so QEMU's e1000e plays the VF.
#[test]
fn a_nic_that_speeds_up_a_synthetic_one_is_left_alone_with_it() {
    const STANDBY: &str = "0000:00:0c.0";
    const PRIMARY: &str = "0000:01:00.0";
    let mac = "52:54:00:00:00:77";
    let standby = format!(
        "virtio-net-pci,netdev=standby,id=standby0,mac={mac},bus=pcie.0,addr=0c.0,romfile=,failover=on"
    );
    let primary =
        format!("e1000e,netdev=primary,id=primary0,mac={mac},bus=port01,romfile=,failover_pair_id=standby0");
    let spec = machine().nic(spare(FIRST)).root_port(1).qemu_arguments(&[
        "-netdev",
        "hubport,id=standby,hubid=0",
        "-device",
        &standby,
        "-netdev",
        "hubport,id=primary,hubid=0",
        "-device",
        &primary,
    ]);
    let node = Node::boot(&spec);
    let row = |device: &str| -> Value {
        let found = node.json("virtdp discover --json --driver virtio_net --driver e1000e");
        let rows = found["interfaces"].as_array().unwrap();
        rows.iter()
            .find(|row| row["device"] == device)
            .unwrap_or_else(|| panic!("no {device}: {found}"))
            .clone()
    };
    let reason = |device: &str| row(device)["reason"].as_str().unwrap().to_owned();
    let master = "eth2";
    node.sh("dmesg | grep 'eth2: failover master:eth2 registered'");
    // Nothing drives the VF yet. Both faces of the synthetic NIC are there.
    node.sh(&format!("ip link set {master} up && ip route add default dev {master} table 77"));
    assert!(reason(STANDBY).contains("eth2 carries the IPv4 default route (table 77"), "{}", reason(STANDBY));

    node.vm.modprobe("e1000e").unwrap();
    let port = node.wait_for(&format!("ls /sys/bus/pci/devices/{PRIMARY}/net"), "eth4", SOON);
    node.wait_for("ip link show dev eth4", "master eth2", SOON);
    assert_eq!(row(PRIMARY)["state"], "skipped", "{port}");
    assert!(reason(PRIMARY).starts_with("eth4 is a port of eth2, which carries"), "{}", reason(PRIMARY));

    // Without the route both are as good as any other; the synthetic one has two interfaces.
    node.sh("ip route del default dev eth2 table 77");
    assert_ne!(row(PRIMARY)["state"], "skipped", "{}", reason(PRIMARY));
    assert!(reason(STANDBY).contains("2 interfaces"), "{}", reason(STANDBY));

    // And upwards: whoever moves the master takes along what is below it.
    node.sh("ip link set eth4 up && ip route add default dev eth4 table 77");
    assert!(reason(STANDBY).contains("is one NIC with eth4, which carries"), "{}", reason(STANDBY));
}
