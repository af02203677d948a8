//! How the API server reaches the kubelet, which is behind the VM's router: it asks this proxy (HTTP CONNECT on a unix socket, as its
//! egress selector does it), which connects to the port of this machine that QEMU forwards to the kubelet, whatever address was asked for.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use anyhow::{Context as _, Result};

/// A request's head is longer than this only by mistake.
const LONGEST_HEAD: u64 = 16 * 1024;

/// The proxy; it serves until the process ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Egress {
    port: Arc<AtomicU16>,
}

impl Egress {
    /// Listens at `socket`.
    pub(super) fn listen(socket: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        let own = Self::default();
        let port = Arc::clone(&own.port);
        thread::Builder::new()
            .name("egress".to_owned())
            .spawn(move || {
                for client in listener.incoming().flatten() {
                    let port = port.load(Ordering::SeqCst);
                    thread::spawn(move || {
                        // The API server sees a closed connection and says so.
                        let _ = serve(client, port);
                    });
                }
            })
            .context("cannot start a thread")?;
        Ok(own)
    }

    /// All connections lead to this port of the loopback interface from now on.
    pub(super) fn lead_to(&self, port: u16) {
        self.port.store(port, Ordering::SeqCst);
    }
}

fn serve(client: UnixStream, port: u16) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?.take(LONGEST_HEAD));
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    let mut client = client;
    let server = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        Ok(server) => server,
        Err(error) => {
            return write!(
                client,
                "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nX-Reason: {error}\r\n\r\n"
            );
        }
    };
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    // The API server speaks again only after the answer, so nothing of what it says is left in the reader.
    let (mut up_from, mut up_to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut up_from, &mut up_to);
        let _ = up_to.shutdown(Shutdown::Write);
    });
    let mut server = server;
    let down = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    down.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_connection_leads_to_the_given_port_whatever_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("egress");
        let egress = Egress::listen(&socket).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        egress.lead_to(listener.local_addr().unwrap().port());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(b"pong").unwrap();
            asked
        });
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(b"CONNECT 10.0.2.15:10250 HTTP/1.1\r\nHost: 10.0.2.15:10250\r\n\r\n").unwrap();
        let mut head = [0; 19];
        client.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK\r\n\r\n");
        client.write_all(b"ping").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), &server.join().unwrap()), ("pong", b"ping"));
    }
}
