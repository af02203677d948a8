//! A node and a pod as two network namespaces, a spare NIC, a state folder, and IPAM plugins that are shell scripts.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use linux::Netns;
use linux::route::Socket;
use nic::Link;
use serde_json::{Value, json};

/// Answers ADD with one address, DEL and CHECK with nothing, and writes down what it was asked.
pub(crate) const ANSWERS: &str = r#"
if [ "$CNI_COMMAND" = ADD ]; then
  echo '{"cniVersion":"1.0.0","ips":[{"address":"10.56.217.2/24","gateway":"10.56.217.1"}],
         "routes":[{"dst":"0.0.0.0/0"},{"dst":"10.56.217.0/24"},{"dst":"172.30.0.0/16","gw":"10.56.217.9"}],
         "dns":{"nameservers":["10.56.217.1"]}}'
fi"#;

/// Those of pod default/testpod1. A pod that insists on what only a network's author may insist on is not heard, in no test.
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=testpod1;allowLifeline=true;\
                    allowUnallocated=true;allowAnotherNic=true";

pub(crate) struct Bench {
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    pub(crate) folder: tempfile::TempDir,
}

/// What the program said.
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Answer {
    /// The error's code; panics if it was a success.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.ok, "succeeded: {}", self.json);
        self.json["code"].as_u64().unwrap()
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "{}: {}",
            self.json["msg"].as_str().unwrap(),
            self.json["details"].as_str().unwrap_or_default()
        )
    }

    pub(crate) fn expect(self) -> Self {
        assert!(self.ok, "{}\n{}", self.json, self.stderr);
        self
    }
}

impl Bench {
    /// A node with a spare NIC `eth1`, which is one end of a veth pair whose other end has carrier.
    pub(crate) fn new() -> Self {
        let bench = Bench {
            node: Netns::create().unwrap(),
            pod: Netns::create().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(bench.folder.path().join("bin")).unwrap();
        bench.ipam("answers", ANSWERS);
        bench.on_node(
            "link add eth1 mtu 1450 txqueuelen 777 address 52:54:00:c4:e6:cd type veth peer name wire",
        );
        bench.on_node("link set eth1 alias spare up");
        bench.on_node("link property add dev eth1 altname enp0s10 altname a-rather-long-alternative-name");
        bench.on_node("link set wire up");
        bench
    }

    pub(crate) fn ipam(&self, name: &str, script: &str) {
        let path = self.folder.path().join("bin").join(name);
        let log = self.folder.path().join("ipam.log");
        let text =
            format!("#!/bin/sh\ncat >/dev/null\necho \"$CNI_COMMAND\" >>{}\n{script}\n", log.display());
        // Written elsewhere and renamed, so that no other test's fork holds it open for writing when it is run.
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        let moved = Command::new("cp").arg("-p").arg(&new).arg(&path).status().unwrap();
        assert!(moved.success());
    }

    /// What IPAM was asked, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("ipam.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub(crate) fn on_node(&self, arguments: &str) -> String {
        ip(&self.node, arguments)
    }

    pub(crate) fn in_pod(&self, arguments: &str) -> String {
        ip(&self.pod, arguments)
    }

    /// A path that stands for the pod's namespace as long as that lives.
    pub(crate) fn pod_path(&self) -> PathBuf {
        path_of(&self.pod)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn kubelet(&self) -> PathBuf {
        self.folder.path().join("kubelet")
    }

    pub(crate) fn lease(&self) -> PathBuf {
        self.state().join("leases/link:eth1.json")
    }

    /// A configuration for `eth1` with the IPAM plugin that answers, changed by `keys`; null removes a key. There is no kubelet,
    /// unless a test starts one, and no device plugin offers `eth1`.
    pub(crate) fn config(&self, keys: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "virt-net1", "type": "ehost-device", "device": "eth1",
            "ipam": {"type": "answers"}, "stateDir": self.state(), "ipamTimeout": 20,
            "kubeletDir": self.kubelet(), "allowUnallocated": true,
        });
        let object = config.as_object_mut().unwrap();
        for (key, value) in keys.as_object().unwrap() {
            if value.is_null() {
                object.remove(key);
            } else {
                object.insert(key.clone(), value.clone());
            }
        }
        config
    }

    /// Runs a verb for container `one`, interface `net1`, in the pod.
    pub(crate) fn run(&self, verb: &str, config: &Value) -> Answer {
        self.run_for(verb, "one", &self.pod_path().display().to_string(), config)
    }

    pub(crate) fn run_for(&self, verb: &str, container: &str, netns: &str, config: &Value) -> Answer {
        self.run_raw(verb, container, netns, config.to_string().as_bytes())
    }

    pub(crate) fn run_raw(&self, verb: &str, container: &str, netns: &str, stdin: &[u8]) -> Answer {
        self.run_with(ARGS, verb, container, netns, stdin)
    }

    /// As [`Bench::run`], below a runtime that knows no pods.
    pub(crate) fn run_without_pod(&self, verb: &str, config: &Value) -> Answer {
        let netns = self.pod_path().display().to_string();
        self.run_with("IgnoreUnknown=1", verb, "one", &netns, config.to_string().as_bytes())
    }

    /// As [`Bench::run`], through a program that changes what the process may do.
    pub(crate) fn run_through(&self, program: &[impl AsRef<OsStr>], verb: &str, config: &Value) -> Answer {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).arg(env!("CARGO_BIN_EXE_ehost-device"));
        self.converse(
            command,
            ARGS,
            verb,
            "one",
            &self.pod_path().display().to_string(),
            config.to_string().as_bytes(),
        )
    }

    fn run_with(&self, args: &str, verb: &str, container: &str, netns: &str, stdin: &[u8]) -> Answer {
        self.converse(Command::new(env!("CARGO_BIN_EXE_ehost-device")), args, verb, container, netns, stdin)
    }

    fn converse(
        &self,
        command: Command,
        args: &str,
        verb: &str,
        container: &str,
        netns: &str,
        stdin: &[u8],
    ) -> Answer {
        let path = self.folder.path().join("bin");
        let run = || start(command, args, verb, container, netns, &path, stdin);
        Self::hear(self.node.run(run).unwrap())
    }

    /// Starts a verb as [`Bench::run`] does, and leaves it at work.
    pub(crate) fn start(&self, verb: &str, config: &Value) -> Child {
        let (netns, path) = (self.pod_path().display().to_string(), self.folder.path().join("bin"));
        let command = Command::new(env!("CARGO_BIN_EXE_ehost-device"));
        let config = config.to_string();
        self.node.run(|| start(command, ARGS, verb, "one", &netns, &path, config.as_bytes())).unwrap()
    }

    /// The program as [`Bench::run`] runs it.
    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ehost-device"));
        let netns = self.pod_path().display().to_string();
        surround(&mut command, ARGS, verb, "one", &netns, &self.folder.path().join("bin"));
        command
    }

    /// What a program says up to its end.
    pub(crate) fn hear(program: Child) -> Answer {
        let output = program.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        Answer {
            ok: output.status.success(),
            json: if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).expect(&stdout) },
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn node_link(&self, name: &str) -> Option<Link> {
        self.node.route_socket().unwrap().link_by_name(name).unwrap()
    }

    pub(crate) fn pod_link(&self, name: &str) -> Option<Link> {
        self.pod.route_socket().unwrap().link_by_name(name).unwrap()
    }

    /// All that `ip` knows of `eth1` on the node, but for counters and timers, and what depends on the time since it
    /// was set up.
    pub(crate) fn portrait(&self) -> Value {
        self.portrait_of("eth1")
    }

    /// The same of another link on the node.
    pub(crate) fn portrait_of(&self, name: &str) -> Value {
        let text = self.on_node(&format!("-d -j link show dev {name}"));
        let mut portrait: Value = serde_json::from_str(&text).unwrap();
        let link = portrait[0].as_object_mut().unwrap();
        for volatile in ["operstate", "ifindex", "link_index", "link"] {
            link.remove(volatile);
        }
        link.get_mut("flags")
            .unwrap()
            .as_array_mut()
            .unwrap()
            .retain(|flag| flag != "LOWER_UP" && flag != "M-DOWN");
        // Their order is that in which they were given, and says nothing.
        let names = link.get_mut("altnames").and_then(Value::as_array_mut).into_iter().flatten();
        let mut names: Vec<String> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
        names.sort();
        link.insert("altnames".to_owned(), json!(names));
        portrait
    }

    /// Asserts that node, pod, ledger are as before an ADD.
    pub(crate) fn assert_untouched(&self, before: &Value) {
        assert_eq!(self.portrait(), *before);
        let names: Vec<_> =
            routes(&self.pod).links().unwrap().into_iter().map(|link| link.name.to_string()).collect();
        assert_eq!(names, ["lo"], "something stayed in the pod");
        assert!(!self.lease().exists(), "the lease stayed");
    }
}

pub(crate) fn routes(netns: &Netns) -> Socket {
    netns.route_socket().unwrap()
}

pub(crate) fn path_of(netns: &Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into()
}

pub(crate) fn ip(netns: &Netns, arguments: &str) -> String {
    let output = netns
        .run(|| {
            Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed")
        })
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn start(
    mut command: Command,
    args: &str,
    verb: &str,
    container: &str,
    netns: &str,
    path: &Path,
    stdin: &[u8],
) -> Child {
    surround(&mut command, args, verb, container, netns, path);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It need not read all of it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child
}

/// The environment that a runtime sets.
fn surround(command: &mut Command, args: &str, verb: &str, container: &str, netns: &str, path: &Path) {
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "net1")
        .env("CNI_PATH", path)
        .env("CNI_ARGS", args);
}
