//! The kubelet driven by a small plugin over real sockets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kubelet_api::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    Device, DevicePluginOptions, Empty, HEALTHY, ListAndWatchResponse, NumaNode, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
    TopologyInfo, UNHEALTHY,
};
use kubelet_api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use kubelet_api::podresources::{
    AllocatableResourcesRequest, GetPodResourcesRequest, ListPodResourcesRequest,
};
use kubelet_api::tonic::service::Routes;
use kubelet_api::tonic::{Code, Request, Response, Status, async_trait};
use kubelet_api::{KubeletDir, LOCALHOST, bind, connect, serve};
use nic::ResourceName;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use super::*;

mod registry;

const DEADLINE: Duration = Duration::from_secs(20);

/// What the kubelet asked the plugin.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Options,
    Preferred { available: Vec<String>, must: Vec<String>, size: i32 },
    Allocate(Vec<String>),
    PreStart(Vec<String>),
}

struct Service {
    options: DevicePluginOptions,
    devices: watch::Receiver<Vec<Device>>,
    preferred: Vec<String>,
    fails: bool,
    end_streams: watch::Receiver<bool>,
    calls: mpsc::UnboundedSender<Call>,
}

#[async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        self.calls.send(Call::Options).unwrap();
        Ok(Response::new(self.options))
    }

    type ListAndWatchStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        use tokio_stream::StreamExt;
        let lists =
            WatchStream::new(self.devices.clone()).map(|devices| Some(ListAndWatchResponse { devices }));
        let end = WatchStream::from_changes(self.end_streams.clone()).map(|_| None);
        let stream = lists.merge(end).map_while(|list| list.map(Ok));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let [asked] = &request.get_ref().container_requests[..] else { panic!("one container at a time") };
        let call = Call::Preferred {
            available: asked.available_device_ids.clone(),
            must: asked.must_include_device_ids.clone(),
            size: asked.allocation_size,
        };
        self.calls.send(call).unwrap();
        let response = ContainerPreferredAllocationResponse { device_ids: self.preferred.clone() };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![response] }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let [asked] = &request.get_ref().container_requests[..] else { panic!("one container at a time") };
        self.calls.send(Call::Allocate(asked.device_ids.clone())).unwrap();
        if self.fails {
            return Err(Status::internal("the plugin is ill"));
        }
        let envs = BTreeMap::from([("NICS".to_owned(), asked.device_ids.join(","))]);
        let response = ContainerAllocateResponse { envs, ..Default::default() };
        Ok(Response::new(AllocateResponse { container_responses: vec![response] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.calls.send(Call::PreStart(request.into_inner().device_ids)).unwrap();
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// How a plugin is to be.
#[derive(Default)]
struct Character {
    options: DevicePluginOptions,
    preferred: Vec<String>,
    fails: bool,
}

/// A plugin that runs.
struct Plugin {
    devices: watch::Sender<Vec<Device>>,
    end_streams: watch::Sender<bool>,
    calls: mpsc::UnboundedReceiver<Call>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Plugin {
    fn start(socket: PathBuf, devices: Vec<Device>, character: Character) -> Self {
        let (devices, devices_out) = watch::channel(devices);
        let (end_streams, end) = watch::channel(false);
        let (calls, calls_out) = mpsc::unbounded_channel();
        let Character { options, preferred, fails } = character;
        let service = Service { options, devices: devices_out, preferred, fails, end_streams: end, calls };
        let stop = CancellationToken::new();
        let listener = bind(&socket).unwrap();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            serve(listener, Routes::new(DevicePluginServer::new(service)), stopped).await.unwrap();
        });
        Plugin { devices, end_streams, calls: calls_out, stop, server }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.server.await.unwrap();
    }

    /// The next call that is not the one for options.
    async fn next_call(&mut self) -> Call {
        loop {
            let call = tokio::time::timeout(DEADLINE, self.calls.recv()).await.unwrap().unwrap();
            if !matches!(call, Call::Options) {
                return call;
            }
        }
    }

    fn no_more_calls(&mut self) {
        while let Ok(call) = self.calls.try_recv() {
            assert!(matches!(call, Call::Options), "unexpected {call:?}");
        }
    }
}

struct Bench {
    folder: tempfile::TempDir,
    kubelet: Kubelet,
}

impl Bench {
    async fn start(options: Options) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::start(KubeletDir::at(folder.path()), options).await.unwrap();
        Bench { folder, kubelet }
    }

    fn dir(&self) -> KubeletDir {
        KubeletDir::at(self.folder.path())
    }

    fn plugin(&self, file: &str, devices: Vec<Device>, character: Character) -> Plugin {
        Plugin::start(self.dir().device_plugins().join(file), devices, character)
    }

    async fn register(&self, file: &str, resource: &str, version: &str) -> Result<(), Status> {
        let channel = connect(&self.dir().registration_socket(), LOCALHOST, DEADLINE).await.unwrap();
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: file.to_owned(),
            resource_name: resource.to_owned(),
            options: None,
        };
        RegistrationClient::new(channel).register(request).await.map(drop)
    }

    /// A registered plugin whose devices the kubelet has.
    async fn ready(&self, file: &str, devices: Vec<Device>, character: Character) -> Plugin {
        let plugin = self.plugin(file, devices.clone(), character);
        self.register(file, "kernel.org/virt", "v1beta1").await.unwrap();
        let healthy =
            u64::try_from(devices.iter().filter(|device| device.health == HEALTHY).count()).unwrap();
        self.capacity(u64::try_from(devices.len()).unwrap(), healthy).await;
        plugin
    }

    /// Waits until the resource has this capacity and this much allocatable.
    async fn capacity(&self, capacity: u64, allocatable: u64) {
        let mut capacities = self.kubelet.capacity();
        let expected = |capacities: &Capacities| {
            capacities
                .get(&virt())
                .is_some_and(|now| (now.capacity, now.allocatable) == (capacity, allocatable))
        };
        let waited = tokio::time::timeout(DEADLINE, capacities.wait_for(expected)).await;
        assert!(waited.is_ok(), "{:?} instead of {capacity}/{allocatable}", self.kubelet.capacity().borrow());
    }

    async fn admit(&self, pod: &str, count: u64) -> Result<Vec<String>, AdmissionError> {
        let allocations =
            self.kubelet.admit(key(pod), vec![container("c", ContainerKind::App, count)]).await?;
        Ok(allocations[0].devices.get(&virt()).cloned().unwrap_or_default())
    }

    async fn pod_resources(&self) -> PodResourcesListerClient<kubelet_api::tonic::transport::Channel> {
        let channel = connect(&self.dir().pod_resources_socket(), LOCALHOST, DEADLINE).await.unwrap();
        PodResourcesListerClient::new(channel)
    }
}

fn virt() -> ResourceName {
    "kernel.org/virt".parse().unwrap()
}

fn key(name: &str) -> PodKey {
    PodKey { uid: format!("uid-{name}"), namespace: "default".to_owned(), name: name.to_owned() }
}

fn container(name: &str, kind: ContainerKind, count: u64) -> ContainerRequest {
    ContainerRequest { name: name.to_owned(), kind, limits: BTreeMap::from([(virt(), count)]) }
}

fn device(id: &str, health: &str, node: Option<i64>) -> Device {
    let topology = node.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] });
    Device { id: id.to_owned(), health: health.to_owned(), topology }
}

fn healthy(ids: &[&str]) -> Vec<Device> {
    ids.iter().map(|id| device(id, HEALTHY, None)).collect()
}

fn preferring() -> DevicePluginOptions {
    DevicePluginOptions { get_preferred_allocation_available: true, ..Default::default() }
}

fn message(outcome: Result<Vec<String>, AdmissionError>) -> String {
    let error = outcome.unwrap_err();
    assert_eq!(error.reason(), "UnexpectedAdmissionError");
    error.to_string()
}

#[tokio::test]
async fn start_removes_every_socket_but_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let dir = KubeletDir::at(folder.path());
    std::fs::create_dir(dir.device_plugins()).unwrap();
    let old = dir.device_plugins().join("old.sock");
    let notes = dir.device_plugins().join("notes");
    drop(std::os::unix::net::UnixListener::bind(&old).unwrap());
    std::fs::write(&notes, "").unwrap();
    let kubelet = Kubelet::start(dir.clone(), Options::default()).await.unwrap();
    assert!(!old.exists());
    assert!(notes.exists() && dir.registration_socket().exists() && dir.pod_resources_socket().exists());
    kubelet.stop().await;
    assert!(!dir.registration_socket().exists() && !dir.pod_resources_socket().exists());
    assert_eq!(kubelet.admit(key("a"), Vec::new()).await, Err(AdmissionError::Stopped));
}

#[tokio::test]
async fn register_refuses_wrong_versions_and_names_in_the_kubelets_words() {
    let bench = Bench::start(Options { dial_timeout: Duration::from_millis(50), ..Options::default() }).await;
    let refusal = |status: Result<(), Status>| {
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::Unknown);
        status.message().to_owned()
    };
    assert_eq!(
        refusal(bench.register("p.sock", "kernel.org/virt", "v1").await),
        r#"requested API version "v1" is not supported by kubelet. Supported version is ["v1beta1"]"#
    );
    for name in ["virt", "kubernetes.io/virt", "requests.kernel.org/virt", "kernel.org/-"] {
        let said = refusal(bench.register("p.sock", name, "v1beta1").await);
        assert_eq!(said, format!("the ResourceName {name:?} is invalid"));
    }
    let said = refusal(bench.register("p.sock", "kernel.org/virt", "v1beta1").await);
    assert_eq!(said, "failed to dial device plugin: context deadline exceeded");
    assert!(bench.kubelet.capacity().borrow().is_empty());
}

#[tokio::test]
async fn register_dials_back_before_it_answers_and_waits_for_a_late_socket() {
    let bench = Bench::start(Options::default()).await;
    let registration = bench.register("late.sock", "kernel.org/virt", "v1beta1");
    let late = async {
        tokio::task::yield_now().await;
        bench.plugin("late.sock", healthy(&["a"]), Character::default())
    };
    let (registered, mut plugin) = tokio::join!(registration, late);
    registered.unwrap();
    // Options were asked for before the answer came.
    assert!(matches!(plugin.calls.try_recv(), Ok(Call::Options)));
    bench.capacity(1, 1).await;
}

#[tokio::test]
async fn each_list_replaces_the_one_before() {
    let bench = Bench::start(Options::default()).await;
    let plugin = bench.ready("p.sock", healthy(&["a", "b", "c"]), Character::default()).await;
    plugin.devices.send(vec![device("a", UNHEALTHY, None), device("d", HEALTHY, None)]).unwrap();
    bench.capacity(2, 1).await;
    plugin.devices.send(Vec::new()).unwrap();
    bench.capacity(0, 0).await;
}

#[tokio::test]
async fn a_lost_stream_makes_all_unhealthy_and_capacity_stays_for_the_grace_period() {
    let grace_period = Duration::from_millis(300);
    let bench = Bench::start(Options { grace_period, ..Options::default() }).await;
    let plugin = bench.ready("p.sock", healthy(&["a", "b"]), Character::default()).await;
    plugin.stop().await;
    bench.capacity(2, 0).await;
    assert_eq!(
        message(bench.admit("p", 1).await),
        "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices kernel.org/virt, which is unexpected"
    );
    let mut capacities = bench.kubelet.capacity();
    tokio::time::timeout(DEADLINE, capacities.wait_for(Capacities::is_empty)).await.unwrap().unwrap();
    // A resource that nobody knows is none of the device manager's business.
    assert_eq!(bench.admit("p", 1).await, Ok(Vec::new()));
}

#[tokio::test]
async fn the_end_of_an_old_stream_disconnects_the_new_one_as_in_1_36() {
    for (old_stream_ends_new, left) in [(true, 0), (false, 1)] {
        let bench = Bench::start(Options { old_stream_ends_new, ..Options::default() }).await;
        let old = bench.ready("old.sock", healthy(&["a"]), Character::default()).await;
        let new = bench.plugin("new.sock", healthy(&["a", "b"]), Character::default());
        bench.register("new.sock", "kernel.org/virt", "v1beta1").await.unwrap();
        bench.capacity(2, 2).await;
        // The old one still counts: its list replaces the new one's.
        old.devices.send(vec![device("a", UNHEALTHY, None), device("b", HEALTHY, None)]).unwrap();
        bench.capacity(2, 1).await;
        old.stop().await;
        if left == 0 {
            bench.capacity(2, 0).await;
        } else {
            new.devices.send(healthy(&["b"])).unwrap();
            bench.capacity(1, left).await;
        }
    }
}

#[tokio::test]
async fn a_plugin_that_ends_its_stream_in_order_can_register_anew() {
    let bench = Bench::start(Options::default()).await;
    let old = bench.ready("old.sock", healthy(&["a"]), Character::default()).await;
    old.end_streams.send(true).unwrap();
    bench.capacity(1, 0).await;
    old.stop().await;
    bench.ready("new.sock", healthy(&["a", "b"]), Character::default()).await;
}

#[tokio::test]
async fn a_pod_gets_free_healthy_devices_until_there_are_none() {
    let bench = Bench::start(Options::default()).await;
    let devices = vec![device("a", UNHEALTHY, None), device("b", HEALTHY, None), device("c", HEALTHY, None)];
    let mut plugin = bench.ready("p.sock", devices, Character::default()).await;
    let allocations =
        bench.kubelet.admit(key("p1"), vec![container("c", ContainerKind::App, 1)]).await.unwrap();
    assert_eq!(allocations[0].devices[&virt()], ["b"]);
    assert_eq!(allocations[0].options.envs["NICS"], "b");
    assert_eq!(plugin.next_call().await, Call::Allocate(vec!["b".to_owned()]));
    assert_eq!(
        message(bench.admit("p2", 2).await),
        "Allocate failed due to requested number of devices unavailable for kernel.org/virt. \
         Requested: 2, Available: 1, which is unexpected"
    );
    bench.capacity(3, 2).await;
    let owner = |id: &str| bench.kubelet.capacity().borrow()[&virt()].devices[id].pod.clone();
    assert_eq!((owner("b").as_deref(), owner("c")), (Some("uid-p1"), None));
    // Asking again changes nothing, and the plugin is not asked.
    assert_eq!(bench.admit("p1", 1).await.unwrap(), ["b"]);
    assert!(
        message(bench.admit("p1", 2).await)
            .contains("changed request for resource \"kernel.org/virt\" from 1 to 2")
    );
    plugin.no_more_calls();
    bench.kubelet.remove_pod("uid-p1").await;
    assert_eq!(bench.admit("p3", 2).await.unwrap(), ["b", "c"]);
}

#[tokio::test]
async fn the_plugins_preference_counts_as_far_as_it_goes() {
    let bench = Bench::start(Options::default()).await;
    let character = Character {
        options: preferring(),
        preferred: vec!["c".to_owned(), "nonsense".to_owned()],
        ..Character::default()
    };
    let mut plugin = bench.ready("p.sock", healthy(&["a", "b", "c"]), character).await;
    assert_eq!(bench.admit("p1", 2).await.unwrap(), ["a", "c"]);
    let available = ["a", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(plugin.next_call().await, Call::Preferred { available, must: Vec::new(), size: 2 });
}

#[tokio::test]
async fn devices_of_one_numa_node_go_together_where_that_is_asked_for() {
    let devices =
        || [("a", 0), ("b", 1), ("c", 1)].map(|(id, node)| device(id, HEALTHY, Some(node))).to_vec();
    for (align_numa, expected) in [(false, ["a", "b"]), (true, ["b", "c"])] {
        let bench = Bench::start(Options { align_numa, ..Options::default() }).await;
        let _plugin = bench.ready("p.sock", devices(), Character::default()).await;
        assert_eq!(bench.admit("p", 2).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn init_containers_leave_their_devices_to_the_others_and_sidecars_do_not() {
    let bench = Bench::start(Options::default()).await;
    let mut plugin = bench.ready("p.sock", healthy(&["a", "b", "c"]), Character::default()).await;
    let containers = vec![
        container("init", ContainerKind::Init, 2),
        container("sidecar", ContainerKind::Sidecar, 1),
        container("app", ContainerKind::App, 2),
    ];
    let allocations = bench.kubelet.admit(key("p"), containers).await.unwrap();
    let given: Vec<_> = allocations.iter().map(|allocation| allocation.devices[&virt()].join(" ")).collect();
    assert_eq!(given, ["a b", "a", "b c"]);
    for devices in [["a", "b"].as_slice(), &["a"], &["b", "c"]] {
        let devices = devices.iter().map(|id| (*id).to_owned()).collect();
        assert_eq!(plugin.next_call().await, Call::Allocate(devices));
    }
}

#[tokio::test]
async fn a_failed_allocate_fails_the_pod_and_frees_the_device() {
    let bench = Bench::start(Options::default()).await;
    let ill = Character { fails: true, ..Character::default() };
    let plugin = bench.ready("ill.sock", healthy(&["a"]), ill).await;
    assert_eq!(
        message(bench.admit("p1", 1).await),
        "Allocate failed due to rpc error: code = Internal desc = the plugin is ill, which is unexpected"
    );
    plugin.end_streams.send(true).unwrap();
    bench.capacity(1, 0).await;
    let _plugin = bench.ready("well.sock", healthy(&["a"]), Character::default()).await;
    assert_eq!(bench.admit("p2", 1).await.unwrap(), ["a"]);
}

#[tokio::test]
async fn pre_start_is_called_before_each_start_where_the_plugin_wants_it() {
    let bench = Bench::start(Options::default()).await;
    let options = DevicePluginOptions { pre_start_required: true, ..Default::default() };
    let mut plugin =
        bench.ready("p.sock", healthy(&["a"]), Character { options, ..Character::default() }).await;
    bench.admit("p", 1).await.unwrap();
    assert_eq!(plugin.next_call().await, Call::Allocate(vec!["a".to_owned()]));
    for _ in 0..2 {
        let given = bench.kubelet.container_options("uid-p", "c").await.unwrap();
        assert_eq!(given.options.envs["NICS"], "a");
        assert_eq!(plugin.next_call().await, Call::PreStart(vec!["a".to_owned()]));
    }
}

#[tokio::test]
async fn a_restart_wipes_sockets_and_keeps_allocations_without_another_allocate() {
    let bench = Bench::start(Options::default()).await;
    let plugin = bench.ready("p.sock", healthy(&["a", "b"]), Character::default()).await;
    bench.admit("p1", 1).await.unwrap();
    bench.kubelet.restart().await.unwrap();
    assert!(!bench.dir().device_plugins().join("p.sock").exists());
    bench.capacity(0, 0).await;
    assert_eq!(bench.kubelet.container_options("uid-p1", "c").await.unwrap().options.envs["NICS"], "a");
    assert!(message(bench.admit("p2", 1).await).contains("no healthy devices present"));
    plugin.stop().await;

    let mut plugin = bench.ready("again.sock", healthy(&["a", "b"]), Character::default()).await;
    assert_eq!(bench.admit("p1", 1).await.unwrap(), ["a"]);
    plugin.no_more_calls();
    assert_eq!(bench.admit("p2", 1).await.unwrap(), ["b"]);
    // Another process finds the same in the checkpoint.
    bench.kubelet.stop().await;
    let kubelet = Kubelet::start(bench.dir(), Options::default()).await.unwrap();
    kubelet.retain_pods(&["uid-p2".to_owned()].into()).await;
    let given = |uid: &'static str| {
        let kubelet = kubelet.clone();
        async move { kubelet.container_options(uid, "c").await.unwrap().devices.get(&virt()).cloned() }
    };
    assert_eq!(given("uid-p2").await, Some(vec!["b".to_owned()]));
    assert_eq!(given("uid-p1").await, None);
}

#[tokio::test]
async fn pod_resources_show_what_each_pod_has() {
    let bench = Bench::start(Options::default()).await;
    let devices = vec![
        device("a", HEALTHY, Some(1)),
        device("b", HEALTHY, None),
        device("c", HEALTHY, None),
        device("d", UNHEALTHY, None),
    ];
    let _plugin = bench.ready("p.sock", devices, Character::default()).await;
    let containers = vec![container("init", ContainerKind::Init, 1), container("app", ContainerKind::App, 2)];
    bench.kubelet.admit(key("p1"), containers).await.unwrap();
    bench.kubelet.admit(key("plain"), Vec::new()).await.unwrap();
    assert!(bench.admit("refused", 9).await.is_err());

    let mut client = bench.pod_resources().await;
    let pods = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
    assert_eq!(pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["p1", "plain"]);
    let get = |name: &str| GetPodResourcesRequest { pod_name: name.into(), pod_namespace: "default".into() };
    let pod = client.get(get("p1")).await.unwrap().into_inner().pod_resources.unwrap();
    assert_eq!(pod, pods[0]);
    assert_eq!(pod.containers.len(), 1, "an init container is shown");
    assert_eq!(pod.devices_of("kernel.org/virt").collect::<Vec<_>>(), ["b", "a"]);
    let nodes: Vec<_> = pod.containers[0].devices.iter().map(|devices| devices.topology.is_some()).collect();
    assert_eq!(nodes, [false, true]);
    let status = client.get(get("absent")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unknown, "pod absent in namespace default not found")
    );
    let allocatable = client.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap();
    let ids: Vec<_> =
        allocatable.into_inner().devices.into_iter().flat_map(|devices| devices.device_ids).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    bench.kubelet.remove_pod("uid-p1").await;
    assert_eq!(client.get(get("p1")).await.unwrap_err().code(), Code::Unknown);
}

#[tokio::test]
async fn get_is_refused_where_the_feature_is_off() {
    let bench = Bench::start(Options { pod_resources_get: false, ..Options::default() }).await;
    bench.kubelet.admit(key("p"), Vec::new()).await.unwrap();
    let request = GetPodResourcesRequest { pod_name: "p".into(), pod_namespace: "default".into() };
    let status = bench.pod_resources().await.get(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "PodResources API Get method disabled"));
}
