//! For tests: a kubelet's pod resources service that says what it is told to say.
#![allow(clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use crate::podresources::*;

/// The service, on a thread of its own until the value is dropped.
#[derive(Debug)]
pub struct PodResourcesService {
    asked: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PodResourcesService {
    /// Knows `pods` and no others, as a kubelet with `Get`. The folder of the socket must be there.
    ///
    /// # Panics
    /// Where the socket cannot be made.
    #[must_use]
    pub fn start(socket: &Path, pods: Vec<PodResources>) -> Self {
        let asked: Arc<AtomicUsize> = Arc::default();
        let lister = Lister { pods, asked: asked.clone() };
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = {
            let _inside = runtime.enter();
            crate::bind(socket).expect("a socket")
        };
        let thread = thread::spawn(move || runtime.block_on(serve(listener, lister, stopped)));
        PodResourcesService { asked, stop: Some(stop), thread: Some(thread) }
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for PodResourcesService {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A pod whose containers have these devices of one resource, container by container.
#[must_use]
// The messages grow fields; those that are not known here keep their defaults.
#[allow(clippy::needless_update)]
pub fn pod(namespace: &str, name: &str, resource: &str, containers: &[&[&str]]) -> PodResources {
    let container = |ids: &&[&str]| ContainerResources {
        devices: vec![ContainerDevices {
            resource_name: resource.to_owned(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    PodResources {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        containers: containers.iter().map(container).collect(),
        ..Default::default()
    }
}

async fn serve(listener: UnixListener, lister: Lister, stopped: oneshot::Receiver<()>) {
    let routes = Routes::new(PodResourcesListerServer::new(lister));
    let stop = async {
        let _ = stopped.await;
    };
    crate::serve(listener, routes, stop).await.expect("it serves until it is stopped");
}

struct Lister {
    pods: Vec<PodResources>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Err(Status::internal("Get is there"))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::internal("nobody needs this"))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let GetPodResourcesRequest { pod_name, pod_namespace, .. } = request.into_inner();
        let found = self.pods.iter().find(|pod| pod.name == pod_name && pod.namespace == pod_namespace);
        match found {
            Some(pod) => Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(pod.clone()) })),
            None => Err(Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"))),
        }
    }
}
