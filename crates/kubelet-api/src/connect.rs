//! Calling a service on a unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The `:authority` that the kubelet sends to device plugins, and that every server takes.
pub const LOCALHOST: &str = "localhost";

/// The longest answer of the pod resources service in bytes, as the kubelet's own clients allow it: List carries every pod of the node.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The HTTP library cannot send this `:authority`.
    #[error("{authority:?} cannot be sent as an :authority")]
    Authority {
        /// What was asked for.
        authority: String,
        /// The library's reason.
        #[source]
        source: http::Error,
    },
    /// Nobody answers on the socket, or not as an HTTP/2 server does.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The library's reason, which ends in that of the system call.
        #[source]
        source: tonic::transport::Error,
    },
    /// The deadline passed.
    #[error("{} did not answer within {} ms", path.display(), deadline.as_millis())]
    Deadline {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
}

/// Connects to the gRPC server on the unix socket `path`, sending `authority` with each request.
///
/// One socket connection is made, now. Once it is lost, calls fail with `Unavailable`: a socket of this name that
/// appears later belongs to another process, and is for the caller to judge.
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn connect(path: &Path, authority: &str, deadline: Duration) -> Result<Channel, ConnectError> {
    let uri = http::Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/")
        .build()
        .map_err(|source| ConnectError::Authority { authority: authority.to_owned(), source })?;
    let mut first = Some(path.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = first.take();
        async move {
            let Some(path) = path else {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the connection was lost"));
            };
            Ok(TokioIo::new(UnixStream::connect(path).await?))
        }
    });
    let endpoint = Endpoint::from(uri);
    match tokio::time::timeout(deadline, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(source)) => Err(ConnectError::Connect { path: path.to_owned(), source }),
        Err(_) => Err(ConnectError::Deadline { path: path.to_owned(), deadline }),
    }
}
