//! What pods have not any more, though the kubelet's checkpoint says so.
//!
//! The kubelet (1.36) forgets a pod that is gone when it allocates a device the next time, and writes the checkpoint then. A NIC that is to
//! change its pool would wait for that for ever, since nothing can be allocated of a pool that has none. The pod resources service looks
//! first, so it is asked where such a NIC hangs on the checkpoint alone. Without it all stays as the checkpoint says.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kubelet_api::podresources::PodResources;
use kubelet_api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use nic::{DeviceId, ResourceName};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::offers::Given;

const PATIENCE: Duration = Duration::from_secs(1);
/// A kubelet that has just started does not know its pods yet.
const AFTER: Duration = Duration::from_secs(15);

/// Since when the kubelet says of a device that no pod has it.
#[derive(Debug, Default)]
pub(super) struct Released(BTreeMap<DeviceId, Instant>);

impl Released {
    /// Takes out of `given` what no pod has any more. `doubtful` are those that hang on it.
    pub(super) async fn strike(
        &mut self,
        socket: &Path,
        doubtful: &[(DeviceId, ResourceName)],
        given: &mut Given,
    ) {
        if doubtful.is_empty() {
            self.0.clear();
            return;
        }
        let answer = timeout(PATIENCE, pods(socket)).await;
        match answer.unwrap_or_else(|_| Err("it did not answer in time".to_owned())) {
            Ok(pods) => self.believe(&pods, doubtful, given, Instant::now()),
            Err(reason) => {
                self.0.clear();
                debug!(reason, "the kubelet does not say what pods have: the checkpoint counts");
            }
        }
    }

    fn believe(
        &mut self,
        pods: &[PodResources],
        doubtful: &[(DeviceId, ResourceName)],
        given: &mut Given,
        now: Instant,
    ) {
        let has = |pod: &PodResources, id: &DeviceId, resource: &ResourceName| {
            pod.devices_of(resource.as_str()).any(|held| held == id.as_str())
        };
        let free =
            |(id, resource): &&(DeviceId, ResourceName)| !pods.iter().any(|pod| has(pod, id, resource));
        let free: Vec<&DeviceId> = doubtful.iter().filter(free).map(|(id, _)| id).collect();
        self.0.retain(|id, _| free.contains(&id));
        for id in free {
            let since = *self.0.entry(id.clone()).or_insert(now);
            if now.saturating_duration_since(since) >= AFTER {
                info!("No pod has {id} any more, though the kubelet's checkpoint says so");
                given.remove(id);
                self.0.remove(id);
            }
        }
    }
}

async fn pods(socket: &Path) -> Result<Vec<PodResources>, String> {
    let channel = kubelet_api::connect(socket, kubelet_api::LOCALHOST, PATIENCE).await;
    let channel = channel.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    let mut client =
        PodResourcesListerClient::new(channel).max_decoding_message_size(kubelet_api::MAX_MESSAGE);
    let answer = client.list(kubelet_api::podresources::ListPodResourcesRequest {}).await;
    answer.map(|answer| answer.into_inner().pod_resources).map_err(|status| status.to_string())
}

#[cfg(test)]
mod tests {
    use kubelet_api::podresources::{ContainerDevices, ContainerResources};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_the_kubelet_does_not_answer_the_checkpoint_counts() {
        let folder = tempfile::tempdir().unwrap();
        let doubtful: [(DeviceId, ResourceName); 1] =
            [("0000:00:0a.0".parse().unwrap(), "kernel.org/virt".parse().unwrap())];
        let whole = Given::from(doubtful.clone());
        let silent = folder.path().join("silent.sock");
        let _listens = std::os::unix::net::UnixListener::bind(&silent).unwrap();
        for socket in [silent, folder.path().join("absent.sock")] {
            let mut released = Released(BTreeMap::from([(doubtful[0].0.clone(), Instant::now())]));
            tokio::time::advance(AFTER * 2).await;
            let mut given = whole.clone();
            released.strike(&socket, &doubtful, &mut given).await;
            assert_eq!(given, whole, "{}", socket.display());
            assert!(released.0.is_empty(), "from when it says so again");
        }
    }

    #[test]
    fn what_no_pod_has_for_a_while_is_struck_out_and_what_one_has_again_is_not() {
        let id: DeviceId = "0000:00:0a.0".parse().unwrap();
        let resource: ResourceName = "kernel.org/virt".parse().unwrap();
        let devices = ContainerDevices {
            resource_name: resource.to_string(),
            device_ids: vec![id.to_string()],
            ..Default::default()
        };
        let container = ContainerResources { devices: vec![devices], ..Default::default() };
        let pod = PodResources { containers: vec![container], ..Default::default() };
        let doubtful = [(id.clone(), resource.clone())];
        let whole = Given::from([(id, resource)]);
        let begun = Instant::now();
        let mut released = Released::default();
        let mut after = |seconds: u64, pods: &[PodResources]| {
            let mut given = whole.clone();
            released.believe(pods, &doubtful, &mut given, begun + Duration::from_secs(seconds));
            given == whole
        };
        assert!(after(0, &[]) && after(14, &[]));
        assert!(after(15, std::slice::from_ref(&pod)));
        assert!(after(16, &[]) && after(30, &[]));
        assert!(!after(31, &[]));
        assert!(after(32, &[]));
    }
}
