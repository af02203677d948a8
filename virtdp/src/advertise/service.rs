//! The service that the kubelet calls: decode, ask, encode.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use kubelet_api::deviceplugin::device_plugin_server::DevicePlugin;
use kubelet_api::deviceplugin::{
    AllocateRequest, AllocateResponse, Device, DevicePluginOptions, Empty, HEALTHY, ListAndWatchResponse,
    NumaNode, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, TopologyInfo, UNHEALTHY,
};
use kubelet_api::tonic::{self, Request, Response, Status};
use nic::ResourceName;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{debug, info, warn};

use super::desk::{Desk, List};
use super::offers::{Offer, Refusal};
use super::session::options;
use crate::allocate::{self, Allocator, Failure};
use crate::cli::Settings;
use crate::observe::{Metrics, View};

/// How many ListAndWatch streams there were, and are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) opened: u32,
    pub(crate) open: u32,
}

/// What is served on the socket of one registration.
#[derive(Clone)]
pub(crate) struct Service {
    resource: ResourceName,
    list: watch::Receiver<List>,
    desk: Desk,
    pub(super) view: View,
    allocator: Allocator,
    streams: watch::Sender<Streams>,
    leaving: CancellationToken,
    /// It was said that the kubelet accepted us.
    accepted: Arc<AtomicBool>,
    started: Instant,
}

impl Service {
    pub(crate) fn new(
        settings: &Settings,
        resource: ResourceName,
        list: watch::Receiver<List>,
        desk: Desk,
        view: View,
        started: Instant,
    ) -> Self {
        let allocator = Allocator::new(settings, &resource);
        Service {
            resource,
            list,
            desk,
            view,
            allocator,
            streams: watch::Sender::default(),
            leaving: CancellationToken::new(),
            accepted: Arc::default(),
            started,
        }
    }

    pub(crate) fn resource(&self) -> &ResourceName {
        &self.resource
    }

    /// Ends the lists. Calls are answered as before.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    pub(crate) fn streams(&self) -> watch::Receiver<Streams> {
        self.streams.subscribe()
    }

    /// Says once that we are registered. The kubelet asks for the devices before or after its answer to Register; both tell.
    pub(crate) fn accepted(&self) {
        if !self.accepted.swap(true, Ordering::Relaxed) {
            let milliseconds = self.started.elapsed().as_millis();
            info!(resource = %self.resource, milliseconds, "registered with the Kubelet");
        }
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        debug!("GetDevicePluginOptions");
        Ok(Response::new(options()))
    }

    type ListAndWatchStream = Lists;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Lists>, Status> {
        self.accepted();
        Ok(Response::new(Lists::new(self)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let list = Arc::clone(&self.list.borrow());
        let response = allocate::preferred(request.get_ref(), &list, Instant::now());
        debug!(preferred = ?response.container_responses, "GetPreferredAllocation");
        Ok(Response::new(response))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut containers = Vec::new();
        for container in request.into_inner().container_requests {
            let answer = self.desk.allocate(self.resource.clone(), container.device_ids).await;
            let answer = answer.map_err(|_| Status::unavailable("the agent stops"))?;
            containers.push(answer.map_err(|refusal| {
                warn!(reason = %refusal, "Allocate refused");
                self.view.metrics().refused(&self.resource, refusal.class());
                status(&refusal)
            })?);
        }
        let given: Vec<_> = containers.iter().flatten().map(|offer| offer.id.clone()).collect();
        let list = Arc::clone(&self.list.borrow());
        let answer = self.allocator.answer(containers, list).await.map_err(|failure| {
            warn!(reason = %failure, "Allocate failed");
            self.view.metrics().refused(&self.resource, failure.class());
            match failure {
                Failure::Unusable { .. } => Status::failed_precondition(failure.to_string()),
                Failure::Stopping => Status::unavailable(failure.to_string()),
            }
        })?;
        for id in &given {
            info!("DeviceID in Allocate: {id}");
        }
        self.view.metrics().allocated(&self.resource, given.len());
        Ok(Response::new(answer))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        // We do not ask for this call, but who makes it must not fail.
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn status(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Unknown(..) => Status::not_found(refusal.to_string()),
        Refusal::Ill(..) => Status::failed_precondition(refusal.to_string()),
    }
}

/// The lists that one ListAndWatch call sends: the first at once, others when they differ from what was sent.
pub(crate) struct Lists {
    list: WatchStream<List>,
    sent: Option<Vec<Device>>,
    resource: ResourceName,
    metrics: Metrics,
    streams: watch::Sender<Streams>,
    leaving: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Lists {
    fn new(service: &Service) -> Self {
        let streams = service.streams.clone();
        streams.send_modify(|streams| {
            streams.opened = streams.opened.saturating_add(1);
            streams.open = streams.open.saturating_add(1);
        });
        Lists {
            list: WatchStream::new(service.list.clone()),
            sent: None,
            resource: service.resource.clone(),
            metrics: service.view.metrics().clone(),
            streams,
            leaving: Box::pin(service.leaving.clone().cancelled_owned()),
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        self.streams.send_modify(|streams| streams.open = streams.open.saturating_sub(1));
    }
}

impl Stream for Lists {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.leaving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            let offers = match Pin::new(&mut self.list).poll_next(cx) {
                Poll::Ready(Some(offers)) => offers,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            let devices: Vec<Device> = offers.iter().map(device).collect();
            // The kubelet writes its checkpoint for each message.
            if self.sent.as_ref() != Some(&devices) {
                info!(resource = %self.resource, "ListAndWatch: send {}", describe(&offers));
                self.metrics.list_sent(&self.resource);
                self.sent = Some(devices.clone());
                return Poll::Ready(Some(Ok(ListAndWatchResponse { devices })));
            }
        }
    }
}

fn device(offer: &Offer) -> Device {
    Device {
        id: offer.id.to_string(),
        health: if offer.ill.is_none() { HEALTHY } else { UNHEALTHY }.to_owned(),
        // A node that is not known must not be named: the kubelet would align pods with node 0.
        topology: offer
            .numa_node
            .filter(|_| !offer.pool.exclude_topology)
            .map(|id| TopologyInfo { nodes: vec![NumaNode { id: id.into() }] }),
    }
}

fn describe(offers: &[Offer]) -> String {
    let one = |offer: &Offer| match &offer.ill {
        None => format!("{} {HEALTHY}", offer.id),
        Some(why) => format!("{} {UNHEALTHY} ({why})", offer.id),
    };
    let all: Vec<String> = offers.iter().map(one).collect();
    if all.is_empty() { "no devices: no NIC to offer".to_owned() } else { all.join(", ") }
}
