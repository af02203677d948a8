//! A pod: its containers, its devices, its networks.

use cluster::NETWORK_STATUS;
use serde_json::Value;

use super::devices::{Devices, place};
use super::head;
use super::sheet::Sheet;
use crate::api::json::{Json, escape};
use crate::api::validate::is_extended;

pub(super) fn describe(sheet: &mut Sheet, pod: &Value, devices: &Devices) {
    head(sheet, pod);
    sheet.line("Node", pod.text("/spec/nodeName"));
    sheet.line("Status", pod.text("/status/phase"));
    for (title, pointer) in [("Reason", "/status/reason"), ("Message", "/status/message")] {
        if !pod.text(pointer).is_empty() {
            sheet.line(title, pod.text(pointer).trim());
        }
    }
    sheet.lines("IP", pod.items("/status/podIPs").iter().map(|ip| ip.text("/ip").to_owned()));
    for (title, list, statuses) in [
        ("Init Containers", "/spec/initContainers", "/status/initContainerStatuses"),
        ("Containers", "/spec/containers", "/status/containerStatuses"),
    ] {
        if pod.items(list).is_empty() {
            continue;
        }
        sheet.section(title, |sheet| {
            for container in pod.items(list) {
                let statuses = pod.items(statuses).iter();
                let status =
                    statuses.into_iter().find(|status| status.text("/name") == container.text("/name"));
                sheet.section(container.text("/name"), |sheet| {
                    describe_container(sheet, pod, container, status, devices);
                });
            }
        });
    }
    networks(sheet, pod);
    let condition = |condition: &Value| {
        ["/type", "/status", "/reason", "/message"]
            .map(|pointer| condition.text(pointer).trim().to_owned())
            .to_vec()
    };
    let conditions = pod.items("/status/conditions").iter().map(condition).collect();
    sheet.table("Conditions", &["Condition", "Is", "Reason", "Message"], conditions);
}

fn describe_container(
    sheet: &mut Sheet,
    pod: &Value,
    container: &Value,
    status: Option<&Value>,
    devices: &Devices,
) {
    sheet.line("Image", container.text("/image"));
    let words = |pointer: &str| {
        let words = container.items(pointer).iter().map(|word| word.as_str().unwrap_or_default());
        words.collect::<Vec<_>>().join(" ")
    };
    for (title, pointer) in [("Command", "/command"), ("Args", "/args")] {
        if !container.items(pointer).is_empty() {
            sheet.line(title, &words(pointer));
        }
    }
    if let Some(status) = status {
        sheet.line("State", &state(status.get("state").unwrap_or(&Value::Null)));
        let last =
            status.get("lastState").filter(|last| last.as_object().is_some_and(|last| !last.is_empty()));
        if let Some(last) = last {
            sheet.line("Last State", &state(last));
        }
        sheet.line("Ready", if status.is_true("/ready") { "True" } else { "False" });
        sheet.line("Restarts", &status.integer("/restartCount").unwrap_or_default().to_string());
    }
    let limits = container.map("/resources/limits").into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    sheet.lines("Limits", limits.map(|(name, value)| format!("{name}: {}", text(value))));
    let asks = container.map("/resources/limits").into_iter().flatten().any(|(name, _)| is_extended(name));
    let given = devices.of_container(pod.namespace(), pod.name(), container.text("/name"));
    match &devices.unknown {
        Some(why) if asks => sheet.line("Devices", &format!("unknown: {why}")),
        _ if asks || !given.is_empty() => {
            let device = |device: super::devices::Device| match place(&device.id) {
                Some(place) => format!("{}: {} ({place})", device.resource, device.id),
                None => format!("{}: {}", device.resource, device.id),
            };
            sheet.lines("Devices", given.into_iter().map(device));
        }
        _ => {}
    }
}

fn state(state: &Value) -> String {
    if !state.text("/running/startedAt").is_empty() {
        return format!("Running since {}", state.text("/running/startedAt"));
    }
    let with = |word: &str, at: &str| {
        let (reason, message) =
            (state.text(&format!("{at}/reason")), state.text(&format!("{at}/message")).trim());
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let message = if message.is_empty() { String::new() } else { format!(" ({message})") };
        format!("{word}{reason}{message}")
    };
    if state.pointer("/terminated").is_some() {
        let code = state.integer("/terminated/exitCode").unwrap_or_default();
        return with(&format!("Terminated with exit code {code}"), "/terminated");
    }
    if state.pointer("/running").is_some() { "Running".to_owned() } else { with("Waiting", "/waiting") }
}

/// What the meta plugin reports in the network-status annotation.
fn networks(sheet: &mut Sheet, pod: &Value) {
    let text = pod.text(&format!("/metadata/annotations/{}", escape(NETWORK_STATUS)));
    if text.is_empty() {
        return;
    }
    let Ok(Value::Array(networks)) = serde_json::from_str::<Value>(text) else {
        sheet.line("Networks", &format!("the annotation {NETWORK_STATUS} is not a JSON list"));
        return;
    };
    let row = |network: &Value| {
        let ips: Vec<_> = network.items("/ips").iter().filter_map(Value::as_str).collect();
        let device = network.text("/device-info/pci/pci-address");
        let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
        vec![
            or_none(network.text("/interface")),
            or_none(network.text("/name")),
            or_none(&ips.join(",")),
            or_none(network.text("/mac")),
            or_none(device),
        ]
    };
    let rows = networks.iter().map(row).collect();
    sheet.table("Networks", &["Interface", "Network", "IPs", "MAC", "Device"], rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_told_with_its_networks_and_conditions() {
        let pod = json!({
            "metadata": {"name": "testpod1", "namespace": "default", "creationTimestamp": "2026-11-24T05:00:00Z",
                "annotations": {(NETWORK_STATUS): json!([{
                    "name": "default/virt-net1", "interface": "net1", "ips": ["10.56.217.10"], "mac": "52:54:00:00:00:0a",
                    "device-info": {"type": "pci", "pci": {"pci-address": "0000:00:0a.0"}},
                }]).to_string()}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "1"],
                "resources": {"limits": {"kernel.org/virt": "1"}}}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.5"}],
                "containerStatuses": [{"name": "c", "ready": false, "restartCount": 1, "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}],
                "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]},
        });
        let mut sheet = Sheet::default();
        describe(&mut sheet, &pod, &Devices::unknown("the kubelet is stopped".to_owned()));
        for line in [
            "Name:          testpod1",
            "IP:            10.244.0.5",
            "    Command:       sleep 1",
            "    State:         Terminated with exit code 3: Error",
            "    Limits:        kernel.org/virt: 1",
            "    Devices:       unknown: the kubelet is stopped",
            "  net1        default/virt-net1   10.56.217.10   52:54:00:00:00:0a   0000:00:0a.0",
        ] {
            assert!(sheet.text().lines().any(|found| found == line), "no {line:?} in\n{}", sheet.text());
        }
    }
}
