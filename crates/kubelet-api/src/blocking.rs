//! One question to the kubelet from a program that has no runtime of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};

use crate::podresources::pod_resources_lister_client::PodResourcesListerClient;
use crate::podresources::{GetPodResourcesRequest, ListPodResourcesRequest, PodResources};
use crate::{ConnectError, LOCALHOST, MAX_MESSAGE, connect};

/// The kubelet answers 100 calls a second, 10 in a burst, and refuses the rest.
const RATE_LIMIT_PAUSE: Duration = Duration::from_millis(50);

/// Why we do not know what the kubelet gave to the pod.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime for the call could not be built.
    #[error("cannot set up the call to the kubelet")]
    Runtime(#[source] std::io::Error),
    /// The pod resources service is not there.
    #[error("the kubelet's pod resources service is not reachable")]
    Connect(#[source] ConnectError),
    /// The kubelet answered with an error.
    #[error("the kubelet's pod resources service at {} refused {method}", socket.display())]
    Call {
        /// The socket.
        socket: PathBuf,
        /// `Get` or `List`.
        method: &'static str,
        /// What it said.
        #[source]
        source: Box<Status>,
    },
    /// The kubelet does not know the pod.
    #[error("the kubelet knows no pod {namespace}/{name}")]
    UnknownPod {
        /// metadata.namespace
        namespace: String,
        /// metadata.name
        name: String,
    },
    /// The deadline passed.
    #[error("the kubelet's pod resources service at {} did not answer within {} ms", socket.display(), deadline.as_millis())]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
}

/// What the kubelet gave to the pod: `Get`, or `List` where the kubelet has no `Get` or keeps it switched off.
///
/// Returns within `deadline`, whatever the kubelet does. Calls that the kubelet's rate limit refuses are repeated.
///
/// # Errors
///
/// See [`Error`].
pub fn allocated_devices(
    socket: &Path,
    namespace: &str,
    name: &str,
    deadline: Duration,
) -> Result<PodResources, Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(async {
        let expiry = Instant::now() + deadline;
        let question = Question { socket, namespace, name };
        timeout_at(expiry, question.ask(deadline))
            .await
            .unwrap_or_else(|_| Err(Error::Deadline { socket: socket.to_owned(), deadline }))
    })
}

struct Question<'a> {
    socket: &'a Path,
    namespace: &'a str,
    name: &'a str,
}

impl Question<'_> {
    async fn ask(&self, deadline: Duration) -> Result<PodResources, Error> {
        let channel = connect(self.socket, LOCALHOST, deadline).await.map_err(Error::Connect)?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let get = GetPodResourcesRequest {
            pod_name: self.name.to_owned(),
            pod_namespace: self.namespace.to_owned(),
        };
        loop {
            match client.get(get.clone()).await {
                Ok(answer) => return answer.into_inner().pod_resources.ok_or_else(|| self.unknown()),
                Err(status) if is_rate_limit(&status) => sleep(RATE_LIMIT_PAUSE).await,
                Err(status) if is_get_missing(&status) => break,
                Err(status) if is_unknown_pod(&status) => return Err(self.unknown()),
                Err(status) => return Err(self.refused("Get", status)),
            }
        }
        loop {
            match client.list(ListPodResourcesRequest {}).await {
                Ok(answer) => {
                    return answer
                        .into_inner()
                        .pod_resources
                        .into_iter()
                        .find(|pod| pod.name == self.name && pod.namespace == self.namespace)
                        .ok_or_else(|| self.unknown());
                }
                Err(status) if is_rate_limit(&status) => sleep(RATE_LIMIT_PAUSE).await,
                Err(status) => return Err(self.refused("List", status)),
            }
        }
    }

    fn unknown(&self) -> Error {
        Error::UnknownPod { namespace: self.namespace.to_owned(), name: self.name.to_owned() }
    }

    fn refused(&self, method: &'static str, status: Status) -> Error {
        Error::Call { socket: self.socket.to_owned(), method, source: Box::new(status) }
    }
}

fn is_rate_limit(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("rate limit")
}

/// A kubelet older than 1.27 has no `Get`. With the feature gate KubeletPodResourcesGet off (the default until 1.33),
/// it returns a plain Go error, which gRPC turns into code Unknown: "PodResources API Get method disabled".
fn is_get_missing(status: &Status) -> bool {
    status.code() == Code::Unimplemented
        || (status.code() == Code::Unknown && status.message().contains("Get method disabled"))
}

/// "pod NAME in namespace NAMESPACE not found", again a plain Go error.
fn is_unknown_pod(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::NotFound) && status.message().ends_with("not found")
}
