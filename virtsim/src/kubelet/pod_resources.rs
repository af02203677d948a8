//! The pod resources service on `pod-resources/kubelet.sock`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use kubelet_api::podresources::pod_resources_lister_server::PodResourcesLister;
use kubelet_api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    NumaNode, PodResources, TopologyInfo,
};
use kubelet_api::tonic::{Request, Response, Status, async_trait};
use tokio::sync::watch;

use super::devices::Devices;
use super::owner::{Owner, Stopped};
use super::types::{ContainerKind, Pod, Pods};

pub(super) struct PodResourcesService {
    pub(super) owner: Owner,
    pub(super) pods: watch::Receiver<Pods>,
    pub(super) get_enabled: bool,
    pub(super) limit: Mutex<RateLimit>,
}

impl PodResourcesService {
    fn limit(&self) -> Result<(), Status> {
        let mut limit = self.limit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if limit.admits(Instant::now()) {
            Ok(())
        } else {
            Err(Status::resource_exhausted("rejected by rate limit"))
        }
    }

    async fn describe(&self, pods: Vec<Pod>) -> Result<Vec<PodResources>, Status> {
        self.owner
            .ask(move |state| pods.iter().map(|pod| describe(&state.devices, pod)).collect())
            .await
            .map_err(|Stopped| Status::unavailable("the kubelet stops"))
    }
}

#[async_trait]
impl PodResourcesLister for PodResourcesService {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.limit()?;
        let pods = self.pods.borrow().values().cloned().collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources: self.describe(pods).await? }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.limit()?;
        let devices = self.owner.ask(|state| {
            // One entry for each NUMA node, so that a topology without nodes has none.
            let devices = state.devices.allocatable().flat_map(|(name, device)| {
                let entry = |node| container_devices(name.to_string(), device.id.clone(), node);
                match &device.topology {
                    None => vec![entry(None)],
                    Some(topology) => topology.nodes.iter().map(|node| entry(Some(node.id))).collect(),
                }
            });
            devices.collect()
        });
        let devices = devices.await.map_err(|Stopped| Status::unavailable("the kubelet stops"))?;
        Ok(Response::new(AllocatableResourcesResponse { devices, ..Default::default() }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.limit()?;
        // Plain Go errors in the real one, which gRPC sends under code Unknown.
        if !self.get_enabled {
            return Err(Status::unknown("PodResources API Get method disabled"));
        }
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let pod = {
            let pods = self.pods.borrow();
            pods.values().find(|pod| pod.key.name == pod_name && pod.key.namespace == pod_namespace).cloned()
        };
        let pod = pod.ok_or_else(|| {
            Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"))
        })?;
        let pod_resources = self.describe(vec![pod]).await?.into_iter().next();
        Ok(Response::new(GetPodResourcesResponse { pod_resources }))
    }
}

fn describe(devices: &Devices, pod: &Pod) -> PodResources {
    let container = |name: &String| ContainerResources {
        name: name.clone(),
        devices: devices
            .of_container(&pod.key.uid, name)
            .map(|(resource, id, node)| container_devices(resource.to_string(), id.to_owned(), node))
            .collect(),
        ..Default::default()
    };
    // Init containers that end are left out: their devices may be somebody else's by now.
    let lasting = pod.containers.iter().filter(|(_, kind)| *kind != ContainerKind::Init);
    PodResources {
        name: pod.key.name.clone(),
        namespace: pod.key.namespace.clone(),
        containers: lasting.map(|(name, _)| container(name)).collect(),
    }
}

/// One entry for each device and NUMA node, as the kubelet has it.
fn container_devices(resource_name: String, id: String, node: Option<i64>) -> ContainerDevices {
    let topology = node.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] });
    ContainerDevices { resource_name, device_ids: vec![id], topology }
}

/// 100 calls a second, 10 in a burst: the kubelet's limit for all callers together.
pub(super) struct RateLimit {
    tokens: u32,
    filled: Instant,
}

impl RateLimit {
    const BURST: u32 = 10;
    const INTERVAL: Duration = Duration::from_millis(10);

    pub(super) fn new(now: Instant) -> Self {
        RateLimit { tokens: Self::BURST, filled: now }
    }

    fn admits(&mut self, now: Instant) -> bool {
        while self.tokens < Self::BURST && now >= self.filled + Self::INTERVAL {
            self.tokens += 1;
            self.filled += Self::INTERVAL;
        }
        if self.tokens == Self::BURST {
            self.filled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_calls_pass_at_once_and_then_one_each_ten_milliseconds() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        assert_eq!((0..20).filter(|_| limit.admits(start)).count(), 10);
        assert!(!limit.admits(start + Duration::from_millis(9)));
        assert!(limit.admits(start + Duration::from_millis(10)));
        assert!(!limit.admits(start + Duration::from_millis(11)));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| limit.admits(later)).count(), 10);
    }
}
