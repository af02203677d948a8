//! A device plugin with a handful of devices, which says to containers which they have.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubelet_api::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, Empty,
    HEALTHY, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use kubelet_api::tonic::service::Routes;
use kubelet_api::tonic::{Request, Response, Status, async_trait};
use kubelet_api::{KubeletDir, LOCALHOST, bind, connect, serve};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

pub(crate) const RESOURCE: &str = "example.com/nic";

/// Serves devices until it is dropped.
pub(crate) struct Plugin {
    stop: CancellationToken,
    /// What was allocated, call by call.
    pub(crate) allocated: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Service {
    devices: Vec<Device>,
    allocated: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Plugin {
    /// Serves and registers these devices under a socket of this name.
    pub(crate) async fn start(kubelet: &Path, socket: &str, devices: &[&str]) -> Self {
        let dir = KubeletDir::at(kubelet);
        let plugin = Plugin { stop: CancellationToken::new(), allocated: Arc::default() };
        let device = |id: &&str| Device { id: (*id).to_owned(), health: HEALTHY.to_owned(), topology: None };
        let service =
            Service { devices: devices.iter().map(device).collect(), allocated: plugin.allocated.clone() };
        let listener = bind(&dir.device_plugins().join(socket)).unwrap();
        let stopped = plugin.stop.clone().cancelled_owned();
        tokio::spawn(async move {
            serve(listener, Routes::new(DevicePluginServer::new(service)), stopped).await.unwrap();
        });
        let channel = connect(&dir.registration_socket(), LOCALHOST, Duration::from_secs(10)).await.unwrap();
        let request = RegisterRequest {
            version: "v1beta1".to_owned(),
            endpoint: socket.to_owned(),
            resource_name: RESOURCE.to_owned(),
            options: None,
        };
        RegistrationClient::new(channel).register(request).await.unwrap();
        plugin
    }
}

#[async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (sender, lists) = tokio::sync::watch::channel(self.devices.clone());
        // Kept by the stream, which so never ends by itself.
        let stream = WatchStream::new(lists).map(move |devices| {
            let _ = &sender;
            Ok(ListAndWatchResponse { devices })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("no preference"))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let [asked] = &request.get_ref().container_requests[..] else { panic!("one container at a time") };
        self.allocated.lock().unwrap().push(asked.device_ids.clone());
        if asked.device_ids.iter().any(|id| id == "broken") {
            return Err(Status::internal("the device is broken"));
        }
        let envs = BTreeMap::from([("NIC".to_owned(), asked.device_ids.join(","))]);
        let response = ContainerAllocateResponse { envs, ..Default::default() };
        Ok(Response::new(AllocateResponse { container_responses: vec![response] }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
