//! The Node object: made at start, and kept at what the kubelet offers.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::machine::Machine;
use crate::api::Api;
use crate::api::error::Error;
use crate::api::json::{Json, escape};
use crate::api::status::set_condition;
use crate::api::store::{Part, Store};
use crate::api::time::Timestamp;
use crate::kubelet::{Capacities, Kubelet};

/// Makes the Node object as a kubelet that registers itself does.
pub(super) async fn register(api: &Api, name: &str, machine: &Machine) -> Result<(), Error> {
    let (name, machine) = (name.to_owned(), machine.clone());
    api.run(move |store| {
        let kind = store.kind("", "v1", "nodes")?;
        let labels = json!({
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": machine.info().text("/architecture"),
        });
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {}});
        store.create(&kind, "", node, Timestamp::now())?;
        write(store, &name, |node| {
            node.put("/status/nodeInfo", machine.info());
            node.put(
                "/status/addresses",
                json!([
                    {"type": "InternalIP", "address": machine.address.to_string()},
                    {"type": "Hostname", "address": name},
                ]),
            );
            node.put("/status/capacity", machine.resources());
            node.put("/status/allocatable", machine.resources());
            for (kind, status, reason, message) in [
                (
                    "MemoryPressure",
                    "False",
                    "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available",
                ),
                ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ] {
                let condition = json!({
                    "type": kind, "status": status, "reason": reason, "message": message,
                    "lastHeartbeatTime": Timestamp::now().to_string(),
                });
                set_condition(node, condition, Timestamp::now());
            }
        })
    })
    .await
}

/// Brings the Node object up to date whenever the kubelet's resources change.
pub(super) async fn keep_up_to_date(api: Api, name: String, kubelet: Kubelet, stop: CancellationToken) {
    let mut capacities = kubelet.capacity();
    loop {
        let now = capacities.borrow_and_update().clone();
        let node = name.clone();
        let written = api.run(move |store| write(store, &node, |node| offer(node, &now))).await;
        if let Err(error) = written {
            warn!(%error, "the Node object is not up to date");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = capacities.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// Sets what device plugins offer. A resource that is gone stays, with nothing of it: so the kubelet does it.
fn offer(node: &mut Value, capacities: &Capacities) {
    for place in ["/status/capacity", "/status/allocatable"] {
        let known: Vec<_> = node.map(place).into_iter().flatten().map(|(name, _)| name.clone()).collect();
        for name in known.iter().filter(|name| crate::api::validate::is_extended(name)) {
            node.put(&format!("{place}/{}", escape(name)), "0");
        }
    }
    for (name, capacity) in capacities {
        let name = escape(name.as_str());
        node.put(&format!("/status/capacity/{name}"), capacity.capacity.to_string());
        node.put(&format!("/status/allocatable/{name}"), capacity.allocatable.to_string());
    }
}

fn write(store: &mut Store, name: &str, change: impl FnOnce(&mut Value)) -> Result<(), Error> {
    let kind = store.kind("", "v1", "nodes")?;
    let mut node = Value::clone(&*store.get(&kind, "", name)?);
    change(&mut node);
    store.update(&kind, "", name, Part::Status, node).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::Capacity;

    #[test]
    fn a_resource_that_is_gone_stays_with_nothing() {
        let mut node = json!({"status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}});
        let two = Capacity { capacity: 2, allocatable: 1, ..Capacity::default() };
        offer(&mut node, &Capacities::from([("kernel.org/virt".parse().unwrap(), two)]));
        assert_eq!(node["status"]["capacity"], json!({"cpu": "2", "kernel.org/virt": "2"}));
        assert_eq!(node["status"]["allocatable"], json!({"cpu": "2", "kernel.org/virt": "1"}));
        offer(&mut node, &Capacities::new());
        assert_eq!(node["status"]["allocatable"], json!({"cpu": "2", "kernel.org/virt": "0"}));
    }
}
