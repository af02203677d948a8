//! Admission: a pod gets its devices, container after container, or it is refused for good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kubelet_api::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, PreStartContainerRequest,
    PreferredAllocationRequest,
};
use kubelet_api::tonic::Status;
use nic::ResourceName;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::devices::{Choice, PluginId, Question};
use super::owner::{Owner, Plugin, Stopped};
use super::plugin::rpc_error;
use super::types::{AdmissionError, ContainerAllocation, ContainerKind, ContainerRequest, PodKey};

/// `KubeletPreStartContainerRPCTimeoutInSecs`.
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// A pod at the door.
pub(super) struct Applicant {
    pub(super) pod: PodKey,
    pub(super) containers: Vec<ContainerRequest>,
    pub(super) reply: oneshot::Sender<Result<Vec<ContainerAllocation>, AdmissionError>>,
}

/// Admits one pod after the other, as the kubelet's sync loop does, until `stop`.
pub(super) async fn admit_in_order(
    owner: Owner,
    mut applicants: mpsc::Receiver<Applicant>,
    stop: CancellationToken,
) {
    loop {
        let applicant = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            applicant = applicants.recv() => applicant,
        };
        let Some(Applicant { pod, containers, reply }) = applicant else { return };
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => Err(AdmissionError::Stopped),
            outcome = admit(&owner, &pod, &containers) => outcome,
        };
        match &outcome {
            Ok(_) => info!(pod = %pod, "pod admitted"),
            Err(error) => warn!(pod = %pod, reason = error.reason(), %error, "pod refused"),
        }
        // Whoever asked may have gone.
        let _ = reply.send(outcome);
    }
}

impl From<Stopped> for AdmissionError {
    fn from(Stopped: Stopped) -> Self {
        AdmissionError::Stopped
    }
}

async fn admit(
    owner: &Owner,
    pod: &PodKey,
    containers: &[ContainerRequest],
) -> Result<Vec<ContainerAllocation>, AdmissionError> {
    // What init containers leave to those after them.
    let mut reusable: BTreeMap<ResourceName, BTreeSet<String>> = BTreeMap::new();
    let mut allocations = Vec::new();
    for container in containers {
        for (resource, required) in &container.limits {
            let required = usize::try_from(*required).unwrap_or(usize::MAX);
            let reuse = reusable.get(resource).cloned().unwrap_or_default();
            let step = Step { owner, uid: &pod.uid, container: &container.name, resource };
            if let Err(error) = step.allocate(required, reuse).await {
                // What was taken and not allocated is free again; earlier allocations of this pod stay until it goes.
                owner.ask(|state| state.devices.release_untaken()).await?;
                return Err(error);
            }
            let owned = step.owned().await?;
            let reuse = reusable.entry(resource.clone()).or_default();
            match container.kind {
                ContainerKind::Init => reuse.extend(owned),
                ContainerKind::Sidecar | ContainerKind::App => reuse.retain(|id| !owned.contains(id)),
            }
        }
        let (uid, name) = (pod.uid.clone(), container.name.clone());
        allocations.push(owner.ask(move |state| state.devices.options_of(&uid, &name)).await?);
    }
    Ok(allocations)
}

/// One resource of one container.
struct Step<'a> {
    owner: &'a Owner,
    uid: &'a str,
    container: &'a str,
    resource: &'a ResourceName,
}

impl Step<'_> {
    async fn allocate(&self, required: usize, reusable: BTreeSet<String>) -> Result<(), AdmissionError> {
        let (uid, container, name) = self.names();
        let choice = self
            .owner
            .ask(move |state| state.devices.choose(&uid, &container, &name, required, &reusable))
            .await?
            .map_err(AdmissionError::Unexpected)?;
        let choice = match choice {
            Choice::Ask { plugin, question } => self.ask(plugin, question).await?,
            choice => choice,
        };
        let Choice::Taken(devices) = choice else { return Ok(()) };

        let name = self.resource.clone();
        let plugin =
            self.owner.ask(move |state| state.plugin_of(&name)).await?.map_err(AdmissionError::Unexpected)?;
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: devices.iter().cloned().collect(),
            }],
        };
        let mut client = plugin.client.clone();
        let answer = call(&plugin, client.allocate(request)).await.map_err(AdmissionError::Unexpected)?;
        // Only the first answer is read, as there was one question.
        let Some(response) = answer.into_inner().container_responses.into_iter().next() else {
            let message = format!("no containers return in allocation response of {}", self.resource);
            return Err(AdmissionError::Unexpected(message));
        };
        let (uid, container, name) = self.names();
        self.owner
            .ask(move |state| {
                state.changed();
                state.devices.allocated(&uid, &container, &name, &devices, response)
            })
            .await?
            .map_err(AdmissionError::Unexpected)
    }

    /// Lets the plugin say which devices it prefers.
    async fn ask(&self, plugin: PluginId, question: Question) -> Result<Choice, AdmissionError> {
        let size = i32::try_from(question.required).unwrap_or(i32::MAX);
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: question.available.iter().cloned().collect(),
                must_include_device_ids: question.taken.iter().cloned().collect(),
                allocation_size: size,
            }],
        };
        let preferred = match self.owner.ask(move |state| state.plugin(plugin)).await? {
            Some(plugin) => {
                let mut client = plugin.client.clone();
                let answer = call(&plugin, client.get_preferred_allocation(request)).await;
                let answer = answer.map_err(|error| {
                    AdmissionError::Unexpected(format!(
                        "device plugin GetPreferredAllocation rpc failed with err: {error}"
                    ))
                })?;
                let first = answer.into_inner().container_responses.into_iter().next();
                first.map(|first| first.device_ids).unwrap_or_default()
            }
            None => Vec::new(),
        };
        let name = self.resource.clone();
        self.owner
            .ask(move |state| state.devices.take_preferred(&name, question, &preferred))
            .await?
            .map_err(AdmissionError::Unexpected)
    }

    async fn owned(&self) -> Result<BTreeSet<String>, AdmissionError> {
        let (uid, container, name) = self.names();
        Ok(self.owner.ask(move |state| state.devices.ids(&uid, &container, &name)).await?)
    }

    fn names(&self) -> (String, String, ResourceName) {
        (self.uid.to_owned(), self.container.to_owned(), self.resource.clone())
    }
}

/// Before each start of a container: PreStartContainer where the plugin wants it, then what the container is given.
pub(super) async fn container_options(
    owner: &Owner,
    uid: String,
    container: String,
) -> Result<ContainerAllocation, AdmissionError> {
    let (of, name) = (uid.clone(), container.clone());
    let wanted = owner
        .ask(move |state| {
            let wanted = state.devices.pre_start(&of, &name).into_iter();
            wanted.map(|(resource, id, devices)| (resource, state.plugin(id), devices)).collect::<Vec<_>>()
        })
        .await?;
    for (resource, plugin, device_ids) in wanted {
        let failed = |error: String| {
            AdmissionError::Unexpected(format!(
                "device plugin PreStartContainer rpc failed with err: {error} (resource {resource})"
            ))
        };
        let plugin = plugin.ok_or_else(|| failed(format!("endpoint {resource} has been stopped")))?;
        let mut client = plugin.client.clone();
        let request = client.pre_start_container(PreStartContainerRequest { device_ids });
        match tokio::time::timeout(PRE_START_TIMEOUT, call(&plugin, request)).await {
            Ok(answer) => answer.map_err(failed).map(drop)?,
            Err(_) => return Err(failed("context deadline exceeded".to_owned())),
        }
    }
    Ok(owner.ask(move |state| state.devices.options_of(&uid, &container)).await?)
}

/// A call that ends when the kubelet closes the connection.
async fn call<T>(plugin: &Plugin, request: impl Future<Output = Result<T, Status>>) -> Result<T, String> {
    tokio::select! {
        answer = request => answer.map_err(|status| rpc_error(&status)),
        () = plugin.closed.cancelled() => Err(rpc_error(&Status::cancelled("grpc: the client connection is closing"))),
    }
}
