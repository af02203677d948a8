//! What the pod's annotation network-status is to say.

use std::fs;
use std::path::Path;

use cluster::{DnsStatus, NetworkStatus};
use cni::Success;
use serde_json::Value;

use crate::record::{Record, Step};

/// One entry for each network, the cluster's first.
pub(crate) fn network_status(record: &Record, device_info: &Path) -> Vec<NetworkStatus> {
    record
        .steps
        .iter()
        .map(|step| status(step, &step.result().unwrap_or_default(), record.is_cluster(step), device_info))
        .collect()
}

fn status(step: &Step, result: &Success, default: bool, device_info: &Path) -> NetworkStatus {
    let inside = || result.container_interfaces();
    let interface = inside().find(|(_, interface)| interface.name == step.interface.as_str());
    let interface = interface.or_else(|| inside().next());
    let index = interface.map(|(index, _)| index);
    // An address without an interface is the only interface's.
    let ips = result.ips.iter().filter(|ip| ip.interface.is_none() || ip.interface == index);
    let has_default_route = result.routes.iter().any(|route| route.dst.prefix_len() == 0);
    NetworkStatus {
        name: step.network.clone(),
        interface: Some(step.interface.clone()),
        ips: ips.clone().map(|ip| ip.address.addr()).collect(),
        mac: interface.and_then(|(_, interface)| interface.mac.as_ref()?.parse().ok()),
        mtu: interface.and_then(|(_, interface)| interface.mtu),
        default,
        dns: DnsStatus {
            nameservers: result.dns.nameservers.clone(),
            domain: result.dns.domain.clone(),
            search: result.dns.search.clone(),
            options: result.dns.options.clone(),
        },
        device_info: info(step, device_info),
        gateway: if step.default_route.is_empty() {
            ips.filter(|_| has_default_route).filter_map(|ip| ip.gateway).collect()
        } else {
            step.default_route.clone()
        },
    }
}

/// What the device plugin says of the device. Whether there is such a file is the device plugin's business.
fn info(step: &Step, folder: &Path) -> Option<Value> {
    let (resource, device) = (step.resource.as_ref()?, step.device.as_ref()?);
    let file = folder.join(format!("{}-{device}-device.json", resource.file_stem()));
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}
