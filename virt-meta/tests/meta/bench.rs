//! A node in a temporary folder: delegates as shell scripts, an API server and a kubelet that say what they are told to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use kubelet_api::testing::{PodResourcesService, pod};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A plugin that notes each call. With a file `fail.TYPE.VERB` beside it, it fails with what is in there; with a pipe
/// `wait.TYPE.VERB` it first waits for its end.
const DELEGATE: &str = r#"#!/bin/sh
here=$(dirname "$0"); me=$(basename "$0"); config=$(cat)
printf '%s %s %s %s\n' "$me" "$CNI_COMMAND" "$CNI_IFNAME" "$config" >> "$here/calls.log"
[ ! -p "$here/wait.$me.$CNI_COMMAND" ] || cat "$here/wait.$me.$CNI_COMMAND" > "$here/waited"
if [ -f "$here/fail.$me.$CNI_COMMAND" ]; then cat "$here/fail.$me.$CNI_COMMAND"; exit 1; fi
[ "$CNI_COMMAND" != VERSION ] || printf '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'
[ "$CNI_COMMAND" != ADD ] || printf '{"cniVersion":"1.1.0","interfaces":[{"name":"%s","sandbox":"%s","mac":"52:54:00:00:00:01","mtu":1450}],"ips":[{"address":"10.0.%s.2/24","gateway":"10.0.%s.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}' "$CNI_IFNAME" "$CNI_NETNS" "${#CNI_IFNAME}" "${#CNI_IFNAME}"
"#;

pub(crate) struct Bench {
    folder: TempDir,
    pub(crate) api: ApiServer,
    settings: Value,
}

impl Bench {
    /// A node with the plugins `bridge` (the cluster's) and `nic`, and an API server without objects.
    pub(crate) fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let api = ApiServer::start();
        let bench = Bench { settings: json!({}), folder, api };
        for kind in ["bridge", "nic"] {
            bench.write(&format!("bin/{kind}"), DELEGATE);
            let file = bench.file(&format!("bin/{kind}"));
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let kubeconfig = json!({
            "current-context": "c", "users": [],
            "contexts": [{"name": "c", "context": {"cluster": "k"}}],
            "clusters": [{"name": "k", "cluster": {"server": bench.api.url()}}],
        });
        bench.write("kubeconfig", &kubeconfig.to_string());
        fs::create_dir_all(bench.file("kubelet/pod-resources")).unwrap();
        bench
    }

    /// One more key in virt-meta's configuration, or none of that name where the value is null.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.settings[key] = value;
    }

    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let file = self.file(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Makes a plugin fail from now on.
    pub(crate) fn fail(&self, kind: &str, verb: &str, code: u32) {
        let error = json!({"cniVersion": "1.0.0", "code": code, "msg": format!("{kind} will not {verb}")});
        self.write(&format!("bin/fail.{kind}.{verb}"), &error.to_string());
    }

    pub(crate) fn heal(&self, kind: &str, verb: &str) {
        fs::remove_file(self.file(&format!("bin/fail.{kind}.{verb}"))).unwrap();
    }

    /// Makes a plugin wait from now on, until what this returns is opened and closed again.
    pub(crate) fn hold(&self, kind: &str, verb: &str) -> PathBuf {
        let pipe = self.file(&format!("bin/wait.{kind}.{verb}"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        pipe
    }

    /// A network in the API server.
    pub(crate) fn define(&self, name: &str, resource: Option<&str>, config: &Value) {
        let (namespace, name) = name.split_once('/').unwrap();
        let mut metadata = json!({"namespace": namespace, "name": name});
        if let Some(resource) = resource {
            metadata["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": resource});
        }
        let config = if config.is_null() { String::new() } else { config.to_string() };
        self.api.put(
            &format!("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}"),
            &json!({"metadata": metadata, "spec": {"config": config}}),
        );
    }

    /// virt-meta's configuration: `annotation` is what the runtime says that the pod's annotation is.
    pub(crate) fn config(&self, annotation: Option<&str>) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "cluster", "type": "virt-meta",
            "capabilities": {"io.kubernetes.cri.pod-annotations": true},
            "clusterNetwork": {"type": "bridge"},
            "kubeconfig": self.file("kubeconfig"), "confDir": self.file("net.d"),
            "stateDir": self.file("state"), "kubeletDir": self.file("kubelet"), "deviceInfoDir": self.file("devinfo"),
        });
        if let Some(annotation) = annotation {
            config["runtimeConfig"] =
                json!({"io.kubernetes.cri.pod-annotations": {"k8s.v1.cni.cncf.io/networks": annotation}});
        }
        for (key, value) in self.settings.as_object().unwrap() {
            if value.is_null() {
                config.as_object_mut().unwrap().remove(key);
            } else {
                config[key] = value.clone();
            }
        }
        config
    }

    /// Starts virt-meta for container `c1` of pod apps/web-0.
    pub(crate) fn start(&self, verb: &str, config: &[u8]) -> Child {
        // Not a namespace of ours, and that is all that virt-meta looks at, unless the pod chooses a default route.
        self.start_in(Path::new("/dev/null"), verb, config)
    }

    pub(crate) fn start_in(&self, netns: &Path, verb: &str, config: &[u8]) -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_virt-meta"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_PATH", self.file("bin"))
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=apps;K8S_POD_NAME=web-0;K8S_POD_UID=u1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config).unwrap();
        child
    }

    pub(crate) fn call(&self, verb: &str, config: &Value) -> Result<Value, Fault> {
        answer(self.start(verb, config.to_string().as_bytes()).wait_with_output().unwrap())
    }

    pub(crate) fn add(&self, annotation: &str) -> Result<Value, Fault> {
        self.call("ADD", &self.config(Some(annotation)))
    }

    pub(crate) fn del(&self) -> Result<Value, Fault> {
        self.call("DEL", &self.config(None))
    }

    /// What the delegates were called for since the last look: `nic ADD net1`.
    pub(crate) fn calls(&self) -> Vec<String> {
        let lines = self.configs();
        lines.iter().map(|(call, _)| call.clone()).collect()
    }

    /// The same with the configuration that each got.
    pub(crate) fn configs(&self) -> Vec<(String, Value)> {
        let log = self.file("bin/calls.log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        fs::write(&log, "").unwrap();
        let parse = |line: &str| {
            let parts: Vec<_> = line.splitn(4, ' ').collect();
            (parts[..3].join(" ").trim().to_owned(), serde_json::from_str(parts[3]).unwrap())
        };
        text.lines().map(parse).collect()
    }

    pub(crate) fn record(&self) -> Option<Value> {
        let bytes = fs::read(self.file("state/attachments/c1.json")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }
}

/// What a plugin says when it fails.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: u64,
    pub(crate) message: String,
    pub(crate) details: String,
}

pub(crate) fn answer(output: Output) -> Result<Value, Fault> {
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "stderr is not for this");
    let json = if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).unwrap() };
    if output.status.success() {
        return Ok(json);
    }
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    Err(Fault { code: json["code"].as_u64().unwrap(), message: text("msg"), details: text("details") })
}

/// Answers GETs for the objects that were put into it.
pub(crate) struct ApiServer {
    address: SocketAddr,
    objects: Arc<Mutex<BTreeMap<String, String>>>,
    asked: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    fn start() -> ApiServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server = ApiServer {
            address: listener.local_addr().unwrap(),
            objects: Arc::default(),
            asked: Arc::default(),
            ends: Arc::default(),
            thread: None,
        };
        let (objects, asked, ends) = (server.objects.clone(), server.asked.clone(), server.ends.clone());
        server.thread = Some(thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                asked.fetch_add(1, Ordering::SeqCst);
                serve(stream.unwrap(), &objects);
            }
        }));
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn put(&self, path: &str, object: &Value) {
        self.objects.lock().unwrap().insert(path.to_owned(), object.to_string());
    }

    /// How many questions there were.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Nobody listens any more.
    pub(crate) fn stop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = TcpStream::connect(self.address);
            thread.join().unwrap();
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(mut stream: TcpStream, objects: &Mutex<BTreeMap<String, String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    for line in lines {
        if line.unwrap().is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap();
    let (status, body) = match objects.lock().unwrap().get(path) {
        Some(object) => ("200 OK", object.clone()),
        None => ("404 Not Found", "{}".to_owned()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
}

/// The kubelet's pod resources service with one pod, apps/web-0: the devices of `resource` that each of its containers has.
pub(crate) fn kubelet(bench: &Bench, resource: &str, containers: &[&[&str]]) -> PodResourcesService {
    let socket = bench.file("kubelet/pod-resources/kubelet.sock");
    PodResourcesService::start(&socket, vec![pod("apps", "web-0", resource, containers)])
}
