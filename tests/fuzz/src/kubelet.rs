//! What the kubelet says of pods: its checkpoint, and the answers of its pod resources service.

use kubelet_api::podresources::{ListPodResourcesResponse, PodResources};
use prost::Message as _;

use crate::Target;

pub(crate) const CHECKPOINT: Target = Target {
    name: "checkpoint",
    run: checkpoint,
    seeds: &[
        r#"{"Data":{"PodDeviceEntries":[{"PodUID":"a","ContainerName":"c","ResourceName":"kernel.org/virt","DeviceIDs":{"-1":["0000:00:0a.0"],"0":["0000:00:09.0"]},"AllocResp":"CgA="},{"PodUID":"b","ContainerName":"c","ResourceName":"example.com/gpu","DeviceIDs":{"-1":["gpu0"]},"AllocResp":""}],"RegisteredDevices":{"kernel.org/virt":["0000:00:0b.0"]}},"Checksum":3014321}"#,
        r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#,
    ],
};

fn checkpoint(bytes: &[u8]) {
    let Ok(holdings) = kubelet_api::checkpoint::holdings(bytes) else { return };
    for held in holdings {
        // Both may become part of a file's name.
        assert_eq!(held.device.as_str().parse().as_ref(), Ok(&held.device));
        assert!(!held.device.as_str().contains('/') && held.device.as_str().len() <= 63, "{held:?}");
        assert_eq!(held.resource.as_str().parse().as_ref(), Ok(&held.resource));
        assert!(!held.resource.file_stem().contains('/'), "{held:?}");
    }
}

pub(crate) const POD_RESOURCES: Target = Target {
    name: "pod-resources",
    run: pod_resources,
    // A pod `p` of `default`, whose container `c` has the device `0000:00:0a.0` of kernel.org/virt.
    seeds: &[
        "\n8\n\u{1}p\u{12}\u{7}default\u{1a}*\n\u{1}c\u{12}%\n\u{f}kernel.org/virt\u{12}\u{c}0000:00:0a.0\u{1a}\u{4}\n\u{2}\u{8}\u{1}",
        "",
    ],
};

fn pod_resources(bytes: &[u8]) {
    let Ok(answer) = ListPodResourcesResponse::decode(bytes) else { return };
    for pod in &answer.pod_resources {
        for resource in resources(pod) {
            let devices: Vec<&str> = pod.devices_of(resource).collect();
            let given = pod.containers.iter().flat_map(|container| &container.devices);
            let of_it = given.filter(|devices| devices.resource_name == resource);
            assert_eq!(
                devices.len(),
                of_it.map(|devices| devices.device_ids.len()).sum::<usize>(),
                "{pod:?}"
            );
        }
    }
    let again = answer.encode_to_vec();
    assert_eq!(ListPodResourcesResponse::decode(again.as_slice()).as_ref(), Ok(&answer));
}

fn resources(pod: &PodResources) -> impl Iterator<Item = &str> {
    let devices = pod.containers.iter().flat_map(|container| &container.devices);
    devices.map(|devices| devices.resource_name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_what_it_is_meant_to_be() {
        let answer = ListPodResourcesResponse::decode(POD_RESOURCES.seeds[0].as_bytes()).unwrap();
        let devices: Vec<&str> = answer.pod_resources[0].devices_of("kernel.org/virt").collect();
        assert_eq!(devices, ["0000:00:0a.0"]);
    }
}
