//! Allocating: what a container is told about the NICs that it is given, and which ones we would rather give.

pub(crate) mod checkpoint;
mod device_info;

use std::collections::BTreeMap;

use kubelet_api::deviceplugin::{
    AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    ContainerPreferredAllocationResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use nic::{Candidate, DeviceId, ResourceName, prefer};
use serde_json::json;

pub(crate) use self::device_info::DeviceInfo;
use crate::advertise::Offer;

/// The resource for which the variable of the 2018 project lives on.
const RESOURCE_OF_2018: &str = "kernel.org/virt";

/// The answer to Allocate. `containers` holds the devices of each container.
pub(crate) fn response(resource: &ResourceName, containers: &[Vec<Offer>]) -> AllocateResponse {
    let one = |offers: &Vec<Offer>| ContainerAllocateResponse {
        envs: environment(resource, offers),
        ..ContainerAllocateResponse::default()
    };
    AllocateResponse { container_responses: containers.iter().map(one).collect() }
}

/// What a container finds in its environment.
///
/// `PCIDEVICE_<RESOURCE>` and `PCIDEVICE_<RESOURCE>_INFO` are what users of sriov-network-device-plugin read. IDs are in the order of
/// addresses: the kubelet keeps none, and so the same devices read the same in an init container and in the one after it.
fn environment(resource: &ResourceName, offers: &[Offer]) -> BTreeMap<String, String> {
    let name = format!("PCIDEVICE_{}", resource.env_stem());
    let ids: Vec<&str> = offers.iter().map(|offer| offer.id.as_str()).collect();
    let info: serde_json::Map<_, _> =
        offers.iter().map(|offer| (offer.id.to_string(), info(offer))).collect();
    let mut environment = BTreeMap::from([
        (format!("{name}_INFO"), serde_json::Value::Object(info).to_string()),
        (name, ids.join(",")),
    ]);
    // Of two resources that set the same variable one is lost, so only one resource sets this.
    if resource.as_str() == RESOURCE_OF_2018 {
        let pci: Vec<String> =
            offers.iter().filter_map(|offer| offer.pci).map(|pci| pci.to_string()).collect();
        if !pci.is_empty() {
            environment.insert("VIRT_PCI_ADDR".to_owned(), pci.join(","));
        }
    }
    environment
}

fn info(offer: &Offer) -> serde_json::Value {
    let mut netdevice = serde_json::Map::new();
    netdevice.extend(offer.driver.as_ref().map(|driver| ("driver".to_owned(), json!(driver))));
    netdevice.extend(offer.mac.map(|mac| ("mac".to_owned(), json!(mac))));
    netdevice.extend(offer.numa_node.map(|node| ("numaNode".to_owned(), json!(node))));
    json!({ "generic": { "deviceID": offer.id }, "netdevice": netdevice })
}

/// The answer to GetPreferredAllocation. Never an error: that would fail the pod, and any choice is better.
pub(crate) fn preferred(
    request: &PreferredAllocationRequest,
    offers: &[Offer],
) -> PreferredAllocationResponse {
    let one = |request: &ContainerPreferredAllocationRequest| ContainerPreferredAllocationResponse {
        device_ids: preferred_by_one(request, offers),
    };
    PreferredAllocationResponse { container_responses: request.container_requests.iter().map(one).collect() }
}

fn preferred_by_one(request: &ContainerPreferredAllocationRequest, offers: &[Offer]) -> Vec<String> {
    let parse = |ids: &[String]| -> Vec<DeviceId> { ids.iter().filter_map(|id| id.parse().ok()).collect() };
    let candidate = |id: DeviceId| {
        let offer = offers.iter().find(|offer| offer.id == id);
        Candidate { id, numa_node: offer.and_then(|offer| offer.numa_node) }
    };
    let available: Vec<Candidate> = parse(&request.available_device_ids).into_iter().map(candidate).collect();
    let must = parse(&request.must_include_device_ids);
    let size = usize::try_from(request.allocation_size).unwrap_or(0);
    prefer(&available, &must, size).into_iter().map(|id| id.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(id: &str, numa_node: Option<u16>) -> Offer {
        let id: DeviceId = id.parse().unwrap();
        let mac = Some(nic::MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd]));
        Offer { pci: id.pci(), id, ill: None, numa_node, driver: Some("virtio_net".into()), mac }
    }

    #[test]
    fn a_container_finds_its_nics_in_the_environment() {
        let offers = [offer("0000:00:09.0", Some(1)), offer("0000:00:0a.0", None)];
        let environment = environment(&"kernel.org/virt".parse().unwrap(), &offers);
        let shown: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "PCIDEVICE_KERNEL_ORG_VIRT=0000:00:09.0,0000:00:0a.0",
                "PCIDEVICE_KERNEL_ORG_VIRT_INFO={\"0000:00:09.0\":{\"generic\":{\"deviceID\":\"0000:00:09.0\"},\
                 \"netdevice\":{\"driver\":\"virtio_net\",\"mac\":\"52:54:00:c4:e6:cd\",\"numaNode\":1}},\
                 \"0000:00:0a.0\":{\"generic\":{\"deviceID\":\"0000:00:0a.0\"},\
                 \"netdevice\":{\"driver\":\"virtio_net\",\"mac\":\"52:54:00:c4:e6:cd\"}}}",
                "VIRT_PCI_ADDR=0000:00:09.0,0000:00:0a.0",
            ]
        );
    }

    #[test]
    fn two_resources_share_no_variable_and_a_nic_without_pci_has_no_address() {
        let names = |resource: &str, id: &str| -> Vec<String> {
            environment(&resource.parse().unwrap(), &[offer(id, None)]).into_keys().collect()
        };
        let one = names("kernel.org/virt", "0000:00:0a.0");
        let two = names("example.com/virt", "0000:00:0a.0");
        assert!(one.iter().all(|name| !two.contains(name)), "{one:?} {two:?}");
        assert_eq!(
            names("kernel.org/virt", "vd0"),
            ["PCIDEVICE_KERNEL_ORG_VIRT", "PCIDEVICE_KERNEL_ORG_VIRT_INFO"]
        );
    }

    #[test]
    fn a_preference_is_given_whatever_is_asked() {
        let offers =
            [offer("0000:00:09.0", Some(0)), offer("0000:80:01.0", Some(1)), offer("0000:80:02.0", Some(1))];
        let ask = |available: &[&str], must: &[&str], size| {
            let request = ContainerPreferredAllocationRequest {
                available_device_ids: available.iter().map(ToString::to_string).collect(),
                must_include_device_ids: must.iter().map(ToString::to_string).collect(),
                allocation_size: size,
            };
            preferred_by_one(&request, &offers)
        };
        let all = ["0000:00:09.0", "0000:80:01.0", "0000:80:02.0"];
        assert_eq!(ask(&all, &[], 2), ["0000:80:01.0", "0000:80:02.0"]);
        assert_eq!(ask(&all, &["0000:00:09.0"], 1), ["0000:00:09.0"]);
        assert_eq!(ask(&["unknown-one", "not an id"], &[], 3), ["unknown-one"]);
        assert!(ask(&all, &[], -1).is_empty());
    }
}
