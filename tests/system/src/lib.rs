//! A node in a VM, as the whole-system tests use it.
//!
//! A failure here is a failure of the test, so everything panics with what was run and what came of it.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]
// Indexing a JSON value gives null where there is nothing.
#![allow(clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use vm::{GUEST_PATH, Nic, Output, Programs, Spec, Vm};

/// The NIC that the node lives by: `eth0`, with the default route.
pub const MANAGEMENT: &str = "0000:00:03.0";

/// A spare virtio NIC at this PCI address, with a MAC made from the address.
#[must_use]
pub fn spare(address: &str) -> Nic {
    Nic::virtio(address.parse().unwrap(), mac(address).parse().unwrap())
}

/// The MAC of the NIC at this PCI address.
#[must_use]
pub fn mac(address: &str) -> String {
    let digits: String = address.chars().filter(char::is_ascii_hexdigit).collect();
    let (_, tail) = digits.split_at(digits.len() - 5);
    let (bus, rest) = tail.split_at(2);
    let (device, function) = rest.split_at(2);
    format!("52:54:00:{bus}:{device}:0{function}")
}

/// A machine with the management NIC and nothing else, and one processor: as many run at a time as the host has processors.
#[must_use]
pub fn machine() -> Spec {
    Spec::new().cpus(1).memory(768).nic(spare(MANAGEMENT).management())
}

/// What a CNI plugin answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit status.
    pub status: Option<i32>,
    /// Standard output as JSON; null where there is none.
    pub json: Value,
    /// Standard output and error, to be shown when a test fails.
    pub text: String,
}

impl Answer {
    /// The result of a call that must have succeeded.
    ///
    /// # Panics
    /// When it failed.
    pub fn result(self) -> Value {
        assert_eq!(self.status, Some(0), "the call failed: {}", self.text);
        self.json
    }

    /// The code and the message with its details, of a call that must have failed.
    ///
    /// # Panics
    /// When it succeeded, or failed without the error JSON of the specification.
    pub fn error(self) -> (u64, String) {
        assert_ne!(self.status, Some(0), "the call succeeded: {}", self.text);
        let code = self.json["code"].as_u64().unwrap_or_else(|| panic!("no error code: {}", self.text));
        (
            code,
            format!(
                "{} {}",
                self.json["msg"].as_str().unwrap_or(""),
                self.json["details"].as_str().unwrap_or("")
            ),
        )
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Its machine.
    pub vm: Vm,
    programs: Programs,
}

impl Node {
    /// Boots a machine and puts the CNI programs where a node has them.
    ///
    /// # Panics
    /// When it does not boot.
    #[must_use]
    pub fn boot(spec: &Spec) -> Self {
        let vm = Vm::boot(spec).unwrap_or_else(|error| panic!("{error}"));
        let node = Node { vm, programs: vm::programs().unwrap_or_else(|error| panic!("{error}")) };
        node.install();
        node
    }

    fn install(&self) {
        let plugins = self.vm.bed().debian().cni_plugins.clone();
        self.sh(&format!(
            "mkdir -p /opt/cni/bin /etc/cni/net.d/virt-meta.d && cd {} && \
             ln -s $PWD/bridge $PWD/host-local $PWD/static $PWD/dhcp {} {} /opt/cni/bin/",
            plugins.display(),
            self.programs.ehost_device.display(),
            self.programs.virt_meta.display(),
        ));
    }

    /// Restarts the machine; only `/persist` survives.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn power_cycle(&mut self) {
        self.vm.power_cycle().unwrap_or_else(|error| panic!("{error}"));
        self.install();
    }

    /// The project's folder, which is at the same path in the guest.
    #[must_use]
    pub fn repository() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
    }

    /// A command in the project's folder, with our programs on the PATH.
    #[must_use]
    pub fn command(&self, program: &str) -> vm::Command {
        let path = format!("{}:{GUEST_PATH}", self.programs.folder.display());
        self.vm.command(program).env("PATH", path).cwd(Self::repository())
    }

    /// Runs a shell script, whatever comes of it.
    ///
    /// # Panics
    /// When the guest does not answer.
    #[must_use]
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).output().unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Runs a shell script that must succeed; gives its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert_eq!(output.code(), Some(0), "{script}\n{}\n{}", output.text(), output.error_text());
        output.text()
    }

    /// The JSON that a shell script prints.
    ///
    /// # Panics
    /// When it fails or prints something else.
    #[must_use]
    pub fn json(&self, script: &str) -> Value {
        let text = self.sh(script);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{script}: {error} in {text}"))
    }

    /// Repeats a script until its output contains `wanted`; gives that output.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub fn wait_for(&self, script: &str, wanted: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let output = self.try_sh(&format!("exec 2>&1; {script}"));
            if output.text().contains(wanted) {
                return output.text();
            }
            assert!(
                Instant::now() < deadline,
                "{script}: no {wanted:?} within {limit:?}, but\n{}",
                output.text()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A network namespace of this name; gives its path.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn netns(&self, name: &str) -> String {
        self.sh(&format!("ip netns add {name}"));
        format!("/var/run/netns/{name}")
    }

    /// Calls a CNI plugin as a runtime does.
    ///
    /// # Panics
    /// When the guest does not answer.
    #[must_use]
    pub fn cni(&self, plugin: &str, verb: &str, container: &str, netns: &str, config: &str) -> Answer {
        let output = self
            .command(&format!("/opt/cni/bin/{plugin}"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "net1")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(config)
            .output()
            .unwrap_or_else(|error| panic!("{plugin} {verb}: {error}"));
        let json = serde_json::from_str(&output.text()).unwrap_or(Value::Null);
        Answer { status: output.code(), json, text: format!("{}\n{}", output.text(), output.error_text()) }
    }

    /// Starts the simulated node with the cluster network, the definition of networks, and `virt-net1`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_cluster(&self) {
        self.sh("cp deployments/cni/*.conf* /etc/cni/net.d/ && virtsim up && cp /run/virtsim/kubeconfig /etc/cni/net.d/virt-meta.d/");
        self.sh("virtsim apply -f deployments/crdnetwork.yaml -f deployments/virt-crd.yaml");
    }

    /// Starts the agent as a process of its own, and waits until the kubelet lists what it offers.
    ///
    /// # Panics
    /// When the node does not come to offer `devices` NICs.
    pub fn start_agent(&self, devices: u32) -> vm::Child {
        let agent = self.command("virtdp").args(["--logtostderr", "-v", "10"]).spawn();
        let agent = agent.unwrap_or_else(|error| panic!("virtdp: {error}"));
        self.wait_for_devices(devices);
        agent
    }

    /// Waits until the node offers this many NICs.
    ///
    /// # Panics
    /// When it does not within 30 s.
    pub fn wait_for_devices(&self, devices: u32) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.try_sh("virtsim get nodes -o json");
            let nodes: Value = serde_json::from_str(&output.text()).unwrap_or(Value::Null);
            let found = nodes["items"][0]["status"]["allocatable"]["kernel.org/virt"].as_str();
            if found == Some(&devices.to_string()) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "allocatable is {found:?}, not {devices}: {}",
                output.error_text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// As [`Node::snapshot`], once nothing comes by itself any more: IPv6 link-local addresses come and go with the state of a link, a moment
    /// after it; what the administrator set does not, but the kernel asks for a second whether an address is unique, and has no route to it so
    /// long. So each link that is up must have its own, and have asked, before anything is compared; a link in a bond or a bridge has none.
    ///
    /// # Panics
    /// When it does not settle within 10 s.
    #[must_use]
    pub fn settled(&self) -> Value {
        self.sh("for i in $(seq 100); do
               missing=
               for link in $(ip -j link show up nomaster | grep -o '\"ifname\":\"[^\"]*' | cut -d'\"' -f4); do
                 [ $link = lo ] && continue
                 ip -6 -o addr show dev $link scope link -tentative | grep -q . || missing=\"$missing $link\"
                 [ -z \"$(ip -6 -o addr show dev $link tentative)\" ] || missing=\"$missing $link\"
               done
               [ \"$missing\" ] || exit 0
               sleep 0.1
             done
             echo addresses do not settle on$missing >&2; exit 1");
        self.snapshot()
    }

    /// All that must be the same before and after, see [`vm::snapshot`].
    ///
    /// # Panics
    /// When iproute2 fails.
    #[must_use]
    pub fn snapshot(&self) -> Value {
        vm::snapshot(self.json("ip -d -j addr show"), self.json("ip -d -j route show table all"))
    }
}

/// Panics with the lines that differ, where two snapshots do.
///
/// # Panics
/// When they differ.
pub fn assert_same(now: &Value, before: &Value, when: &str) {
    if let Some(differs) = vm::differences(before, now) {
        panic!("{when}: it is not as it was\n{differs}");
    }
}
