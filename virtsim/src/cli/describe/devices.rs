//! Which devices the kubelet gave to whom: asked over its pod resources service, as any monitoring agent does.

use std::path::Path;
use std::time::Duration;

use kubelet_api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use kubelet_api::podresources::{
    AllocatableResourcesRequest, ContainerDevices, ListPodResourcesRequest, PodResources,
};
use kubelet_api::{KubeletDir, LOCALHOST, connect};

use crate::cli::Context;
use crate::control::{Connection, Request, Status};

/// The kubelet is on this machine: it answers at once, or not at all.
const DEADLINE: Duration = Duration::from_secs(3);

/// What the kubelet says about devices.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pods: Vec<PodResources>,
    offered: Vec<ContainerDevices>,
    /// Why the kubelet said nothing.
    pub(super) unknown: Option<String>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    pub(super) resource: String,
    pub(super) id: String,
    /// Pod and container; none: free.
    pub(super) owner: Option<(String, String)>,
}

impl Devices {
    pub(super) fn of(context: &Context) -> Devices {
        if context.kubeconfig.is_some() {
            return Devices::unknown("another node's kubelet cannot be asked".to_owned());
        }
        let status: Result<Status, _> =
            Connection::open(&context.dir, &Request::Status).and_then(Connection::answer);
        match status {
            Ok(status) => ask(&KubeletDir::at(status.kubelet_dir)).unwrap_or_else(Devices::unknown),
            Err(error) => Devices::unknown(crate::chain(&error)),
        }
    }

    pub(super) fn unknown(why: String) -> Devices {
        Devices { unknown: Some(why), ..Devices::default() }
    }

    /// The devices of a container as the kubelet lists them.
    pub(super) fn of_container(&self, namespace: &str, pod: &str, container: &str) -> Vec<Device> {
        let pods = self.pods.iter().filter(|found| found.namespace == namespace && found.name == pod);
        let containers = pods.flat_map(|pod| &pod.containers).filter(|found| found.name == container);
        let mut devices: Vec<_> = containers
            .flat_map(|found| &found.devices)
            .flat_map(|devices| {
                let owner = (format!("{namespace}/{pod}"), container.to_owned());
                devices.device_ids.iter().map(move |id| Device {
                    resource: devices.resource_name.clone(),
                    id: id.clone(),
                    owner: Some(owner.clone()),
                })
            })
            .collect();
        devices.sort();
        devices.dedup();
        devices
    }

    /// All devices of the node, with those who have them.
    pub(super) fn all(&self) -> Vec<Device> {
        let mut all = Vec::new();
        for pod in &self.pods {
            for container in &pod.containers {
                all.extend(self.of_container(&pod.namespace, &pod.name, &container.name));
            }
        }
        for devices in &self.offered {
            for id in &devices.device_ids {
                let is_known = |known: &Device| known.resource == devices.resource_name && known.id == *id;
                if !all.iter().any(is_known) {
                    all.push(Device { resource: devices.resource_name.clone(), id: id.clone(), owner: None });
                }
            }
        }
        all.sort();
        all
    }
}

fn ask(kubelet: &KubeletDir) -> Result<Devices, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| crate::chain(&error))?;
    runtime.block_on(async {
        let socket = kubelet.pod_resources_socket();
        let channel = connect(&socket, LOCALHOST, DEADLINE).await.map_err(|error| crate::chain(&error))?;
        let mut client = PodResourcesListerClient::new(channel);
        let answers = async {
            let pods = client.list(ListPodResourcesRequest {}).await?.into_inner().pod_resources;
            let offered =
                client.get_allocatable_resources(AllocatableResourcesRequest {}).await?.into_inner().devices;
            Ok::<_, kubelet_api::tonic::Status>((pods, offered))
        };
        match tokio::time::timeout(DEADLINE, answers).await {
            Ok(Ok((pods, offered))) => Ok(Devices { pods, offered, unknown: None }),
            Ok(Err(status)) => Err(format!("{}: {}", socket.display(), status.message())),
            Err(_) => Err(format!("{} does not answer", socket.display())),
        }
    })
}

/// Where this machine has a device of this name.
pub(super) fn place(id: &str) -> Option<String> {
    // An ID is what a plugin chose: it must not lead out of the folder.
    if id.contains('/') || id.starts_with('.') {
        return None;
    }
    let mut buses =
        ["pci", "virtio"].into_iter().map(|bus| Path::new("/sys/bus").join(bus).join("devices").join(id));
    let path = buses.find_map(|path| path.canonicalize().ok())?;
    Some(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubelet_api::podresources::ContainerResources;

    #[test]
    fn devices_are_told_with_those_who_have_them_and_the_rest_is_free() {
        let of = |ids: &[&str]| ContainerDevices {
            resource_name: "kernel.org/virt".to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: None,
        };
        let container =
            ContainerResources { name: "c".to_owned(), devices: vec![of(&["b"])], ..Default::default() };
        let pod =
            PodResources { name: "p".to_owned(), namespace: "n".to_owned(), containers: vec![container] };
        let devices = Devices { pods: vec![pod], offered: vec![of(&["a", "b"])], unknown: None };
        let told: Vec<_> = devices.all().into_iter().map(|device| (device.id, device.owner)).collect();
        assert_eq!(
            told,
            [("a".to_owned(), None), ("b".to_owned(), Some(("n/p".to_owned(), "c".to_owned())))]
        );
        assert_eq!(devices.of_container("n", "p", "c").len(), 1);
        assert!(devices.of_container("n", "p", "d").is_empty());
    }

    #[test]
    fn a_device_id_cannot_lead_anywhere_else() {
        for id in ["../../kernel", "..", ".", "a/b", "no-such-device"] {
            assert_eq!(place(id), None, "{id}");
        }
    }
}
