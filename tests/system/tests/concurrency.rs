//! Many calls of ehost-device at once on real virtio NICs, with the real host-local, as a confused runtime sends them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use fastrand::Rng;
use serde_json::{Value, json};
use system_tests::{Node, assert_same, machine, spare};

const NICS: [&str; 4] = ["0000:00:09.0", "0000:00:0a.0", "0000:00:0b.0", "0000:00:0c.0"];
/// Two for each NIC.
const PODS: usize = 2 * NICS.len();
const CALLS: usize = 16;
const TRY_AGAIN: u64 = 11;
const ALREADY_ATTACHED: u64 = 103;

#[derive(Debug)]
struct Call {
    verb: &'static str,
    pod: usize,
}

/// Starts all calls, waits for all, and gives what each said: null where it succeeded, else the error.
fn at_once(node: &Node, calls: &[Call]) -> Vec<Value> {
    let mut script = "cd /tmp\n".to_owned();
    for (number, Call { verb, pod }) in calls.iter().enumerate() {
        let nic = pod % NICS.len();
        script.push_str(&format!(
            "(CNI_COMMAND={verb} CNI_CONTAINERID=c{pod} CNI_NETNS=/var/run/netns/c{pod} CNI_IFNAME=net1 CNI_PATH=/opt/cni/bin \
             /opt/cni/bin/ehost-device <nic{nic} >said{number} 2>/dev/null && echo null >said{number}) &\n"
        ));
    }
    script.push_str("wait\n");
    node.sh(&script);
    (0..calls.len()).map(|number| node.json(&format!("cat /tmp/said{number}"))).collect()
}

#[test]
fn calls_at_once_in_any_order_lose_no_nic_and_give_none_away_twice() {
    let seed = std::env::var("EHOST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    println!("to be repeated with EHOST_SEED={seed}");
    let mut dice = Rng::with_seed(seed);
    let node = Node::boot(&NICS.iter().fold(machine().cpus(2), |machine, nic| machine.nic(spare(nic))));
    node.sh("ip link set eth2 mtu 1400 alias 'storage uplink' up && ip link property add dev eth2 altname storage0");
    for (number, nic) in NICS.iter().enumerate() {
        let ipam = json!({"type": "host-local", "subnet": "10.56.217.0/24"});
        let config = json!({"cniVersion": "1.0.0", "name": "virt-network", "type": "ehost-device", "deviceID": nic, "ipam": ipam});
        node.vm.write_file(format!("/tmp/nic{number}"), 0o644, config.to_string().as_bytes()).unwrap();
    }
    for pod in 0..PODS {
        node.sh(&format!("ip netns add c{pod}"));
    }
    let before = node.settled();

    // Somebody has every other NIC already, and their DELs come late, or not at all.
    let first: Vec<Call> = (0..NICS.len()).step_by(2).map(|pod| Call { verb: "ADD", pod }).collect();
    assert!(at_once(&node, &first).iter().all(Value::is_null));
    let verbs = ["ADD", "ADD", "DEL"];
    let calls: Vec<Call> =
        (0..CALLS).map(|_| Call { verb: verbs[dice.usize(..3)], pod: dice.usize(..PODS) }).collect();
    let said = at_once(&node, &calls);
    for (call, error) in calls.iter().zip(&said).filter(|(_, said)| !said.is_null()) {
        let code = error["code"].as_u64().unwrap();
        assert!(code == TRY_AGAIN || (call.verb == "ADD" && code == ALREADY_ATTACHED), "{call:?}: {error}");
    }
    let has = |pod: usize| !node.sh(&format!("ip -netns c{pod} -o link | grep net1 || true")).is_empty();
    let holders: Vec<usize> = (0..PODS).filter(|pod| has(*pod)).collect();
    let at_home = node.sh("ls /sys/bus/virtio/drivers/virtio_net/*/net | grep -c '^eth[1-9]' || true");
    assert_eq!(at_home.parse::<usize>().unwrap() + holders.len(), NICS.len(), "{holders:?}");
    for (nic, device) in NICS.iter().enumerate() {
        let lease = node.sh(&format!("cat /var/lib/virtnet/leases/{device}.json 2>/dev/null || echo null"));
        let lease: Value = serde_json::Deserializer::from_str(&lease).into_iter().next().unwrap().unwrap();
        let owner = holders.iter().find(|pod| **pod % NICS.len() == nic).map(|pod| format!("c{pod}"));
        assert_eq!(lease["owner"]["container_id"].as_str(), owner.as_deref(), "{lease}");
    }
    for pod in 0..PODS {
        let asks = |verb: &str| calls.iter().any(|call| call.verb == verb && call.pod == pod);
        let given = calls
            .iter()
            .zip(&said)
            .any(|(call, said)| call.verb == "ADD" && call.pod == pod && said.is_null());
        let had = given || first.iter().any(|call| call.pod == pod);
        assert!(asks("DEL") || holders.contains(&pod) == had, "pod {pod}: {calls:?}: {said:?}");
    }

    let last: Vec<Call> = (0..PODS).map(|pod| Call { verb: "DEL", pod }).collect();
    let said = at_once(&node, &last);
    assert!(said.iter().all(Value::is_null), "{said:?}");
    assert_same(&node.settled(), &before, "after a DEL for each pod");
    let left =
        node.sh("find /var/lib/virtnet/leases -name '*.json'; find /var/lib/cni/networks -name '10.*'");
    assert_eq!(left, "");
}
