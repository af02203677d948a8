//! The route socket against the kernel, each test in network namespaces of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod addresses;
mod events;
mod links;
mod routes;
mod settings;

use std::net::IpAddr;
use std::process::{Command, Stdio};

use linux::Netns;
use linux::route::Socket;
use nic::{IfName, Link};

/// A network namespace and a socket in it; both end with the test.
struct Space {
    netns: Netns,
    socket: Socket,
}

impl Space {
    fn new() -> Self {
        let netns = Netns::create().unwrap();
        let socket = netns.route_socket().unwrap();
        Space { netns, socket }
    }

    /// Runs `ip`, which knows the kernel better than we do, inside.
    fn ip(&self, arguments: &str) {
        self.lines_of_ip(arguments);
    }

    /// The lines that `ip` prints, without the white space around them, in alphabetical order.
    fn lines_of_ip(&self, arguments: &str) -> Vec<String> {
        let run =
            || Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
        let output = self.netns.run(run).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    }

    /// A link that can go anywhere: one end of a veth pair, whose other end `<name>-p` stays and is up. (Not a dummy:
    /// small kernels lack it.)
    fn spare(&self, name: &str, options: &str) {
        self.ip(&format!("link add {name} {options} type veth peer name {name}-p"));
        self.ip(&format!("link set {name}-p up"));
    }

    /// Feeds lines to `ip -batch -`.
    fn batch(&self, lines: &str) {
        use std::io::Write;
        let status = self
            .netns
            .run(|| {
                let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
                ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
                ip.wait().unwrap()
            })
            .unwrap();
        assert!(status.success());
    }

    fn link(&mut self, name: &str) -> Link {
        self.socket.link_by_name(name).unwrap().unwrap_or_else(|| panic!("no link {name}"))
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
