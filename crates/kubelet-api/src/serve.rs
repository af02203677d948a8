//! Serving on a unix socket, with an end that reaches every connection.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the kernel says; a path of more than 107 bytes is `InvalidInput`.
        #[source]
        source: io::Error,
    },
    /// The server ended.
    #[error("the server ended")]
    Serve(#[source] tonic::transport::Error),
}

/// Listens on the unix socket `path`. The file must not exist, and stays when the listener is dropped.
///
/// # Errors
///
/// [`ServeError::Bind`].
pub fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    UnixListener::bind(path).map_err(|source| ServeError::Bind { path: path.to_owned(), source })
}

/// Serves until `stop`, then closes every connection at once, running streams included, and returns when they are closed.
///
/// That is what a peer sees when a gRPC server in Go stops. A caller that wants its streams to end in order ends them
/// before `stop`.
///
/// # Errors
///
/// [`ServeError::Serve`].
pub async fn serve(
    listener: UnixListener,
    routes: Routes,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    serve_counting(listener, routes, watch::Sender::default(), stop).await
}

/// As [`serve`], and `connections` tells how many there are.
///
/// # Errors
///
/// [`ServeError::Serve`].
pub async fn serve_counting(
    listener: UnixListener,
    routes: Routes,
    connections: watch::Sender<usize>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (closer, close) = watch::channel(false);
    let incoming = UnixListenerStream::new(listener).map(move |accepted| {
        accepted.map(|stream| Connection {
            stream,
            close: WatchStream::from_changes(close.clone()),
            _counted: Counted::among(&connections),
        })
    });
    let stop = async {
        stop.await;
        closer.send_replace(true);
    };
    Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
        .map_err(ServeError::Serve)
}

/// A connection that reads and writes fail on as soon as `close` says so.
struct Connection {
    stream: UnixStream,
    close: WatchStream<bool>,
    _counted: Counted,
}

/// One connection, until dropped.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn among(connections: &watch::Sender<usize>) -> Self {
        connections.send_modify(|open| *open = open.saturating_add(1));
        Counted(connections.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}

impl Connection {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match Pin::new(&mut self.close).poll_next(cx) {
            Poll::Pending => Ok(()),
            // Once `close` has spoken, its sender is gone: the stream stays ended, and so does the connection.
            Poll::Ready(_) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server stops")),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_open(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
