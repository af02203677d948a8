//! The kubelet's side in the hands of a test: what it hears, when it hangs up, what it refuses.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::registration_server::{Registration, RegistrationServer};
use kubelet_api::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Empty,
    ListAndWatchResponse, PreferredAllocationRequest, RegisterRequest,
};
use kubelet_api::tonic::service::Routes;
use kubelet_api::tonic::transport::Channel;
use kubelet_api::tonic::{Request, Response, Status, async_trait};
use kubelet_api::{KubeletDir, LOCALHOST, bind, connect, serve};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::stage::PATIENCE;

/// Takes registrations until dropped. Dialing back is the test's affair.
pub(crate) struct Kubelet {
    dir: KubeletDir,
    registrations: mpsc::UnboundedReceiver<RegisterRequest>,
    refusal: Arc<Mutex<Option<String>>>,
    stop: Option<oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<()>,
}

struct Desk {
    told: mpsc::UnboundedSender<RegisterRequest>,
    refusal: Arc<Mutex<Option<String>>>,
}

#[async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.told.send(request.into_inner()).unwrap();
        match self.refusal.lock().unwrap().clone() {
            Some(refusal) => Err(Status::unknown(refusal)),
            None => Ok(Response::new(Empty {})),
        }
    }
}

impl Kubelet {
    pub(crate) fn start(dir: KubeletDir) -> Kubelet {
        std::fs::create_dir_all(dir.device_plugins()).unwrap();
        // As a kubelet that was killed leaves it.
        let _ = std::fs::remove_file(dir.registration_socket());
        let listener = bind(&dir.registration_socket()).unwrap();
        let (told, registrations) = mpsc::unbounded_channel();
        let refusal = Arc::new(Mutex::new(None));
        let routes = Routes::new(RegistrationServer::new(Desk { told, refusal: Arc::clone(&refusal) }));
        let (stop, stopped) = oneshot::channel();
        let server =
            tokio::spawn(
                async move { serve(listener, routes, async { drop(stopped.await) }).await.unwrap() },
            );
        Kubelet { dir, registrations, refusal, stop: Some(stop), server }
    }

    pub(crate) fn refuse(&self, why: Option<&str>) {
        *self.refusal.lock().unwrap() = why.map(str::to_owned);
    }

    /// Waits for the next registration.
    pub(crate) async fn registered(&mut self) -> RegisterRequest {
        timeout(PATIENCE, self.registrations.recv()).await.expect("nobody registers").unwrap()
    }

    /// Waits for the next registration, and asks for the devices as a kubelet does.
    pub(crate) async fn plugin(&mut self) -> Plugin {
        let request = self.registered().await;
        Plugin::dial(self.dir.device_plugins().join(request.endpoint)).await
    }

    /// Ends at once, and leaves the socket's file.
    pub(crate) async fn die(mut self) {
        drop(self.stop.take());
        timeout(PATIENCE, self.server).await.unwrap().unwrap();
    }
}

/// A plugin, as the kubelet sees it.
pub(crate) struct Plugin {
    pub(crate) socket: PathBuf,
    pub(crate) client: DevicePluginClient<Channel>,
    lists: kubelet_api::tonic::Streaming<ListAndWatchResponse>,
}

impl Plugin {
    async fn dial(socket: PathBuf) -> Plugin {
        let channel = connect(&socket, LOCALHOST, PATIENCE).await.unwrap();
        let mut client = DevicePluginClient::new(channel);
        let options = client.get_device_plugin_options(Empty {}).await.unwrap().into_inner();
        assert!(options.get_preferred_allocation_available && !options.pre_start_required);
        let lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
        Plugin { socket, client, lists }
    }

    /// The next list: `<id> <health> [<NUMA nodes>]`. `None` when the stream has ended.
    pub(crate) async fn list(&mut self) -> Option<Vec<String>> {
        let list = timeout(PATIENCE, self.lists.message()).await.expect("no list comes").ok().flatten()?;
        let one = |device: kubelet_api::deviceplugin::Device| {
            let nodes: Vec<i64> =
                device.topology.into_iter().flat_map(|t| t.nodes).map(|node| node.id).collect();
            format!("{} {} {nodes:?}", device.id, device.health)
        };
        Some(list.devices.into_iter().map(one).collect())
    }

    /// Reads lists until one is as expected.
    pub(crate) async fn lists(&mut self, expected: &[&str]) {
        let mut seen = Vec::new();
        loop {
            let list = self.list().await.unwrap_or_else(|| panic!("the stream ended after {seen:?}"));
            if list == expected {
                return;
            }
            seen.push(list);
        }
    }

    /// Which one of these it would rather give.
    pub(crate) async fn prefers(&mut self, available: &[&str]) -> Vec<String> {
        let ask = ContainerPreferredAllocationRequest {
            available_device_ids: available.iter().map(ToString::to_string).collect(),
            must_include_device_ids: Vec::new(),
            allocation_size: 1,
        };
        let request = PreferredAllocationRequest { container_requests: vec![ask] };
        let answer = self.client.get_preferred_allocation(request).await.unwrap().into_inner();
        answer.container_responses.into_iter().flat_map(|one| one.device_ids).collect()
    }

    pub(crate) async fn allocate(&mut self, containers: &[&[&str]]) -> Result<AllocateResponse, Status> {
        let one = |ids: &&[&str]| ContainerAllocateRequest {
            device_ids: ids.iter().map(ToString::to_string).collect(),
        };
        let request = AllocateRequest { container_requests: containers.iter().map(one).collect() };
        self.client.allocate(request).await.map(Response::into_inner)
    }
}
