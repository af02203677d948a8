//! A node: what it has, and who has it.

use serde_json::Value;

use super::devices::{Devices, place};
use super::sheet::Sheet;
use super::{age, head};
use crate::api::json::Json;
use crate::api::validate::is_extended;

pub(super) fn describe(sheet: &mut Sheet, node: &Value, pods: &[Value], devices: &Devices) {
    head(sheet, node);
    let taint = |taint: &Value| format!("{}:{}", taint.text("/key"), taint.text("/effect"));
    sheet.lines("Taints", node.items("/spec/taints").iter().map(taint));
    sheet.line("Unschedulable", if node.is_true("/spec/unschedulable") { "true" } else { "false" });
    let condition = |condition: &Value| {
        ["/type", "/status", "/reason", "/message"]
            .map(|pointer| condition.text(pointer).trim().to_owned())
            .to_vec()
    };
    let conditions = node.items("/status/conditions").iter().map(condition).collect();
    sheet.table("Conditions", &["Condition", "Is", "Reason", "Message"], conditions);
    let address = |address: &Value| format!("{}: {}", address.text("/type"), address.text("/address"));
    sheet.lines("Addresses", node.items("/status/addresses").iter().map(address));
    resources(sheet, node);
    let of_kubelet = devices.all();
    match &devices.unknown {
        Some(why) => sheet.line("Devices", &format!("unknown: {why}")),
        None => {
            let row = |device: &super::devices::Device| {
                let (pod, container) =
                    device.owner.clone().unwrap_or_else(|| ("<free>".to_owned(), String::new()));
                let place = place(&device.id).unwrap_or_default();
                vec![device.resource.clone(), device.id.clone(), pod, container, place]
            };
            let rows = of_kubelet.iter().map(row).collect();
            sheet.table("Devices", &["Resource", "Device", "Pod", "Container", "Place"], rows);
        }
    }
    let pod = |pod: &Value| {
        vec![
            pod.namespace().to_owned(),
            pod.name().to_owned(),
            pod.text("/status/phase").to_owned(),
            asks(pod),
            age(pod.text("/metadata/creationTimestamp")),
        ]
    };
    let rows = pods.iter().map(pod).collect();
    sheet.table("Pods", &["Namespace", "Name", "Phase", "Asks for", "Age"], rows);
}

fn resources(sheet: &mut Sheet, node: &Value) {
    let (capacity, allocatable) = (node.map("/status/capacity"), node.map("/status/allocatable"));
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "<none>".to_owned(),
    };
    let row = |(name, value): (&String, &Value)| {
        vec![name.clone(), text(Some(value)), text(allocatable.and_then(|map| map.get(name)))]
    };
    let rows = capacity.into_iter().flatten().map(row).collect();
    sheet.table("Resources", &["Resource", "Capacity", "Allocatable"], rows);
}

/// The extended resources of a pod's containers.
fn asks(pod: &Value) -> String {
    let limits =
        pod.items("/spec/containers").iter().filter_map(|container| container.map("/resources/limits"));
    let extended = limits.flatten().filter(|(name, _)| is_extended(name));
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    extended.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_told_with_its_resources_and_pods() {
        let node = json!({
            "metadata": {"name": "n"},
            "status": {
                "capacity": {"cpu": "2", "kernel.org/virt": "2"}, "allocatable": {"cpu": "2", "kernel.org/virt": "1"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        });
        let pod = json!({
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {"containers": [{"resources": {"limits": {"kernel.org/virt": "1", "memory": "1Mi"}}}]},
            "status": {"phase": "Running"},
        });
        let mut sheet = Sheet::default();
        describe(&mut sheet, &node, &[pod], &Devices::default());
        for line in [
            "  kernel.org/virt   2          1",
            "  default     a      Running   kernel.org/virt=1   <unknown>",
            "Devices:       <none>",
        ] {
            assert!(sheet.text().lines().any(|found| found == line), "no {line:?} in\n{}", sheet.text());
        }
    }
}
