//! A node in a folder of its own, and what tests ask of it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use virtsim::api::json::Json;
use virtsim::client::Client;
use virtsim::control::{Connection, Exec, Request};
use virtsim::node::Node;
use virtsim::options::Options;

use crate::plugin::{Plugin, RESOURCE};

/// Longest time in which a node under load does what it was told.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The test's program starts virtsim for the pods' processes.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_virtsim");

/// A CNI plugin that notes how it was called, fails when it is told to, and gives every pod the same address.
const SCRIPT: &str = r#"#!/bin/sh
here=@HERE@
cat > $here/stdin.$CNI_COMMAND
echo "$CNI_COMMAND ${CNI_NETNS:-none} $CNI_ARGS" >> $here/calls
if [ -e $here/fail.$CNI_COMMAND ]; then
    echo '{"cniVersion":"1.0.0","code":11,"msg":"'"$(cat $here/fail.$CNI_COMMAND)"'"}'
    exit 1
fi
case $CNI_COMMAND in
ADD)
    touch $here/attached.$CNI_CONTAINERID
    echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],
        "ips":[{"interface":0,"address":"10.99.0.5/24"}]}' ;;
DEL) rm -f $here/attached.$CNI_CONTAINERID ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
"#;

pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    tokio: tokio::runtime::Runtime,
    node: Option<Node>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A failed test must not leave a DEL that cannot succeed.
        self.mend("DEL");
        if self.node.is_none() && !self.left().is_empty() {
            // A node that was killed left something, which the next one undoes.
            let started = Node::start(self.options(), PathBuf::from(PROGRAM), PathBuf::new());
            self.node = self.tokio.block_on(started).ok();
        }
        if let Some(node) = self.node.take() {
            let _ = self.tokio.block_on(node.shutdown());
        }
    }
}

impl Bench {
    /// A node that runs.
    pub(crate) fn start() -> Self {
        let mut bench = Self::prepare();
        bench.up();
        bench
    }

    /// A node that does not run yet.
    pub(crate) fn prepare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["conf", "bin", "cni"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let plugin = folder.path().join("bin/noted");
        let here = folder.path().join("cni");
        std::fs::write(&plugin, SCRIPT.replace("@HERE@", &here.display().to_string())).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let network = json!({
            "cniVersion": "1.0.0", "name": "cluster",
            "plugins": [{"type": "noted", "capabilities": {"io.kubernetes.cri.pod-annotations": true}}],
        });
        std::fs::write(folder.path().join("conf/10-cluster.conflist"), network.to_string()).unwrap();
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Bench { folder, tokio, node: None }
    }

    pub(crate) fn options(&self) -> Options {
        let at = |name: &str| self.folder.path().join(name);
        let mut options = Options::at(at("run"));
        options.kubelet_dir = at("kubelet");
        options.cni_conf_dir = at("conf");
        options.cni_bin_dir = at("bin");
        options.cni_cache_dir = at("cache");
        options.netns_dir = at("netns");
        options.node_name = "node1".to_owned();
        options
    }

    pub(crate) fn up(&mut self) {
        let started = Node::start(self.options(), PathBuf::from(PROGRAM), PathBuf::new());
        self.node = Some(self.tokio.block_on(started).unwrap());
    }

    /// The error of a node that is not to start.
    pub(crate) fn second(&self) -> String {
        let started = Node::start(self.options(), PathBuf::from(PROGRAM), PathBuf::new());
        match self.tokio.block_on(started) {
            Ok(_) => panic!("a second node started"),
            Err(error) => format!("{error:#}"),
        }
    }

    pub(crate) fn down(&mut self) -> Result<(), String> {
        let node = self.node.take().unwrap();
        self.tokio.block_on(node.shutdown()).map_err(|error| format!("{error:#}"))
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub(crate) fn client(&self) -> Client {
        Client::of_node(&self.run_dir(), None).unwrap()
    }

    /// A device plugin with these devices, which the Node object shows.
    pub(crate) fn plugin(&self, socket: &str, devices: &[&str]) -> Plugin {
        let plugin = self.tokio.block_on(Plugin::start(&self.folder.path().join("kubelet"), socket, devices));
        self.until("/api/v1/nodes/node1", |node| self.is_offered(node, &devices.len().to_string()));
        plugin
    }

    fn is_offered(&self, node: &Value, count: &str) -> bool {
        node.text(&format!("/status/allocatable/{}", RESOURCE.replace('/', "~1"))) == count
    }

    pub(crate) fn wait_for_offer(&self, count: &str) {
        self.until("/api/v1/nodes/node1", |node| self.is_offered(node, count));
    }

    /// Makes a pod `name` of this spec.
    pub(crate) fn create(&self, name: &str, spec: Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.client().create("/api/v1/namespaces/default/pods", &pod).unwrap();
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.client().get(&format!("/api/v1/namespaces/default/pods/{name}")).unwrap()
    }

    pub(crate) fn until_phase(&self, name: &str, phase: &str) -> Value {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        self.until(&path, |pod| pod.text("/status/phase") == phase)
    }

    /// Asks again until it is as it should be.
    pub(crate) fn until(&self, path: &str, is: impl Fn(&Value) -> bool) -> Value {
        let client = self.client();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = client.get(path).unwrap();
            if is(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{path} stays {found:#}\nevents: {:#?}", self.events());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn delete(&self, name: &str) {
        self.client().delete(&format!("/api/v1/namespaces/default/pods/{name}"), None).unwrap();
    }

    pub(crate) fn until_gone(&self, name: &str) {
        let client = self.client();
        let deadline = Instant::now() + PATIENCE;
        while let Some(pod) = client.find(&format!("/api/v1/namespaces/default/pods/{name}")).unwrap() {
            assert!(Instant::now() < deadline, "{name} stays: {pod:#}\nevents: {:#?}", self.events());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reason and message of all events, of which one must be as it should be.
    pub(crate) fn until_event(&self, is: impl Fn(&str, &str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.events();
            if let Some((_, message)) = events.iter().find(|(reason, message)| is(reason, message)) {
                return message.clone();
            }
            assert!(Instant::now() < deadline, "there is only {events:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let list = self.client().get("/api/v1/namespaces/default/events").unwrap();
        let event = |event: &Value| (event.text("/reason").to_owned(), event.text("/message").to_owned());
        list.items("/items").iter().map(event).collect()
    }

    /// Runs a shell command in a pod's first container: exit code and output.
    pub(crate) fn exec(&self, pod: &str, command: &str) -> (i32, String) {
        let request = Request::Exec(Exec {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            container: None,
            command: ["sh", "-c", command].map(str::to_owned).to_vec(),
            stdin: false,
            terminal: None,
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = Connection::open(&self.run_dir(), &request).unwrap().run(&mut out, &mut err).unwrap();
        (code, String::from_utf8([out, err].concat()).unwrap())
    }

    pub(crate) fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> T {
        Connection::open(&self.run_dir(), request).unwrap().answer().unwrap()
    }

    /// Has the CNI plugin fail at this verb, in these words.
    pub(crate) fn break_cni(&self, verb: &str, words: &str) {
        std::fs::write(self.folder.path().join(format!("cni/fail.{verb}")), words).unwrap();
    }

    pub(crate) fn mend(&self, verb: &str) {
        let _ = std::fs::remove_file(self.folder.path().join(format!("cni/fail.{verb}")));
    }

    /// How often the CNI plugin was called with this verb.
    pub(crate) fn calls(&self, verb: &str) -> usize {
        let calls = std::fs::read_to_string(self.folder.path().join("cni/calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with(&format!("{verb} "))).count()
    }

    /// What is left of pods: attachments, network namespaces, records.
    pub(crate) fn left(&self) -> Vec<String> {
        let names = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let mut left = names(self.folder.path().join("cni"));
        left.retain(|name| name.starts_with("attached."));
        left.extend(names(self.folder.path().join("netns")));
        left.extend(names(self.run_dir().join("runtime/sandboxes")));
        left
    }
}

/// A pod that waits, with so many devices.
pub(crate) fn sleeper(devices: u32) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "none", "command": ["sleep", "1000"]}],
    });
    if devices > 0 {
        spec["containers"][0]["resources"] = json!({"limits": {RESOURCE: devices}});
    }
    spec
}
