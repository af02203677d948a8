//! The address of `--listen`: HTTP/1 for Prometheus and whoever asks for health.
//!
//! One request for each connection, few connections, short ones: whoever can reach the port cannot cost the node memory.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::View;

/// How many may ask at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 8;
/// How long a connection may last.
const LASTS: Duration = Duration::from_secs(5);
/// An agent that is being replaced may still have the address.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("the path of the socket is missing".to_owned()),
            Some(path) => Ok(Listen::Unix(path.into())),
            None => text.parse().map(Listen::Tcp).map_err(|_| {
                "expected an address with a port (127.0.0.1:9402, [::1]:9402) or unix:PATH".to_owned()
            }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "http://{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Answers at `listen` until `stop`. An address that cannot be had is said, and tried again: it is in nobody's way.
pub(crate) async fn serve(listen: Option<Listen>, view: View, stop: CancellationToken) {
    let Some(listen) = listen else { return stop.cancelled().await };
    let mut told = None;
    loop {
        let served = tokio::select! {
            served = listen_once(&listen, &view) => served,
            () = stop.cancelled() => return,
        };
        let Err(error) = served;
        let reason = error.to_string();
        if told.as_ref() != Some(&reason) {
            warn!(listen = %listen, reason, "metrics and health are not served there");
            told = Some(reason);
        }
        tokio::select! {
            () = sleep(AGAIN_AFTER) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Ends with an error only.
async fn listen_once(listen: &Listen, view: &View) -> io::Result<Infallible> {
    let socket = Socket::bind(listen).await?;
    info!(listen = %socket.address(listen), "metrics and health are served");
    // They end with this set.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = socket.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok(stream) => drop(connections.spawn(connection(stream, view.clone()))),
                // The peer has gone, or there are no descriptors left: neither ends by trying at once.
                Err(error) => {
                    debug!(reason = %error, "a connection was not accepted");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

enum Socket {
    Tcp(TcpListener),
    /// In this order: the path goes while nobody else can bind it.
    Unix {
        _path: Served,
        listener: UnixListener,
    },
}

/// The path of a socket that we bound. It goes with this, and so only where it is ours: another agent may serve it before or after us.
struct Served(PathBuf);

impl Drop for Served {
    fn drop(&mut self) {
        // It may be gone; and a dead socket is removed by whoever binds it next.
        let _ = std::fs::remove_file(&self.0);
    }
}

type Stream = Either<TcpStream, UnixStream>;

impl Socket {
    async fn bind(listen: &Listen) -> io::Result<Socket> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Socket::Tcp),
            Listen::Unix(path) => {
                remove_dead(path).await;
                let listener = UnixListener::bind(path)?;
                Ok(Socket::Unix { _path: Served(path.clone()), listener })
            }
        }
    }

    /// With the port that the kernel chose.
    fn address(&self, asked: &Listen) -> Listen {
        match self {
            Socket::Tcp(listener) => listener.local_addr().map_or_else(|_| asked.clone(), Listen::Tcp),
            Socket::Unix { .. } => asked.clone(),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| Either::Left(stream)),
            Socket::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Either::Right(stream)),
        }
    }
}

async fn connection(stream: Stream, view: View) {
    let service = service_fn(move |request: Request<Incoming>| {
        let view = view.clone();
        async move { Ok::<_, Infallible>(view.answer(request.method(), request.uri().path()).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LASTS, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(reason = %error, "a connection ended early"),
        Err(_) => debug!("a connection took too long"),
    }
}

/// Removes the socket of an agent that was killed, and nothing else.
async fn remove_dead(path: &Path) {
    if !std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return;
    }
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).await.is_err_and(|error| refused(&error)) {
        // If it stays, binding says why.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_that_nobody_serves_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        let _served = std::os::unix::net::UnixListener::bind(at("served")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("dead")).unwrap());
        for (name, stays) in [("file", true), ("served", true), ("dead", false), ("none", false)] {
            remove_dead(&at(name)).await;
            assert_eq!(at(name).exists(), stays, "{name}");
        }
    }

    #[test]
    fn an_address_is_an_ip_with_a_port_or_a_socket() {
        for (text, shown) in [
            ("127.0.0.1:9402", "http://127.0.0.1:9402"),
            ("[::1]:9402", "http://[::1]:9402"),
            ("unix:/run/virtdp.sock", "unix:/run/virtdp.sock"),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), shown);
        }
        for bad in ["", "9402", ":9402", "localhost:9402", "unix:", "127.0.0.1:99999"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad} was taken");
        }
    }
}
