//! Whether the kubelet gave the NIC to the pod that is to have it.
//!
//! Whoever chose the NIC, a meta plugin or the network's author: under Kubernetes the kubelet alone says whose a device is. It has known
//! so since it admitted the pod, before it asked the runtime for a sandbox, and so needs no time to find out. Only ADD asks.
//!
//! <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/#monitoring-device-plugin-resources>

use std::time::Duration;

use cni::{Code, Error};
use kubelet_api::blocking::{self, allocated_devices};
use kubelet_api::podresources::PodResources;
use ledger::{Owner, Pod};
use linux::Devices;
use nic::DeviceId;

use crate::code::NOT_ALLOCATED;
use crate::config::Settings;

/// It answers within a millisecond or two, unless more than a hundred questions a second are asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// As many devices of a pod are named in an error.
const SHOWN: usize = 8;

/// Refuses a device that the kubelet did not give to the pod; asks nobody where there is no pod.
///
/// # Errors
/// Code 110; 11 when the kubelet does not say.
pub(crate) fn confirm(
    settings: &Settings,
    devices: &Devices,
    device: &DeviceId,
    wanted: &Owner,
) -> Result<(), Error> {
    let Some(pod) = &wanted.pod else { return Ok(()) };
    let Pod { namespace, name, .. } = pod;
    let socket = settings.kubelet.pod_resources_socket();
    let refusal = match allocated_devices(&socket, namespace, name, PATIENCE) {
        Ok(given) if is_among(device, &given, devices) => return Ok(()),
        Ok(given) => {
            not_allocated(device, pod, &format!("the kubelet gave it {}, not {device}", in_words(&given)))
        }
        Err(blocking::Error::UnknownPod { .. }) => not_allocated(
            device,
            pod,
            &format!("the kubelet knows no such pod, so none that may have {device}"),
        ),
        Err(error) => {
            let message =
                format!("the kubelet does not say whether device {device} is for pod {namespace}/{name}");
            let details =
                format!("device {device}: {}; its folder is named by kubeletDir", linux::chain(&error));
            Error::new(Code::TRY_AGAIN, message).with_details(details)
        }
    };
    settings.unallocated.weigh(refusal)
}

fn not_allocated(device: &DeviceId, pod: &Pod, details: &str) -> Error {
    let Pod { namespace, name, .. } = pod;
    let message = format!(
        "device {device} was not allocated to pod {namespace}/{name}: a container of it must request the network's resource"
    );
    Error::new(NOT_ALLOCATED, message).with_details(details)
}

/// Whether the device is among those of the pod, of whatever resource and container.
fn is_among(device: &DeviceId, given: &PodResources, devices: &Devices) -> bool {
    let same = |id: &str| id.parse().is_ok_and(|id: DeviceId| devices.canonical(id) == *device);
    all(given).any(|(_, id)| same(id))
}

/// The pod's devices: resource and ID.
fn all(given: &PodResources) -> impl Iterator<Item = (&str, &str)> {
    let devices = given.containers.iter().flat_map(|container| &container.devices);
    devices.flat_map(|of| of.device_ids.iter().map(|id| (of.resource_name.as_str(), id.as_str())))
}

/// `0000:00:09.0 of kernel.org/virt`.
fn in_words(given: &PodResources) -> String {
    let words: Vec<_> = all(given).take(SHOWN).map(|(resource, id)| format!("{id} of {resource}")).collect();
    match all(given).skip(SHOWN).count() {
        0 if words.is_empty() => "no device".to_owned(),
        0 => words.join(", "),
        more => format!("{} and {more} more", words.join(", ")),
    }
}

#[cfg(test)]
// The kubelet's messages grow fields; those that are not known here keep their defaults.
#[allow(clippy::needless_update)]
mod tests {
    use super::*;
    use kubelet_api::podresources::{ContainerDevices, ContainerResources};

    fn given(ids: &[&str]) -> PodResources {
        let devices = ids.iter().map(|id| ContainerDevices {
            resource_name: "kernel.org/virt".to_owned(),
            device_ids: vec![(*id).to_owned()],
            ..Default::default()
        });
        let containers =
            devices.map(|devices| ContainerResources { devices: vec![devices], ..Default::default() });
        PodResources { containers: containers.collect(), ..Default::default() }
    }

    #[test]
    fn a_device_is_known_by_each_of_its_ids_and_by_no_other() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("bus/virtio/devices");
        std::fs::create_dir_all(&folder).unwrap();
        let target = "../../../devices/pci0000:00/0000:00:0a.0/virtio2";
        std::os::unix::fs::symlink(target, folder.join("virtio2")).unwrap();
        let devices = Devices::at(root.path());
        let mine: DeviceId = "0000:00:0a.0".parse().unwrap();
        assert!(is_among(&mine, &given(&["GPU-1", "0000:00:0a.0"]), &devices));
        assert!(is_among(&mine, &given(&["virtio2"]), &devices));
        for others in [&["0000:00:0a.1", "virtio3", "../0000:00:0a.0", ""][..], &[]] {
            assert!(!is_among(&mine, &given(others), &devices), "{others:?}");
        }
    }

    #[test]
    fn what_the_pod_has_is_told_but_not_all_of_a_long_list() {
        assert_eq!(in_words(&given(&[])), "no device");
        assert_eq!(in_words(&given(&["a", "b"])), "a of kernel.org/virt, b of kernel.org/virt");
        let many = in_words(&given(&["a"; 300]));
        assert!(many.ends_with("a of kernel.org/virt and 292 more") && many.len() < 300, "{many}");
    }
}
