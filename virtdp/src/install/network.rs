//! virt-meta's configuration in the runtime's folder, and its way to the API server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cni::runtime::Network;
use linux::files;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// Ours: first in the order of names, which is how runtimes choose.
const CONFIG: &str = "00-virt-meta.conf";
/// The folder for what virt-meta needs, beside the configurations.
const FOLDER: &str = "virt-meta.d";
const KUBECONFIG: &str = "kubeconfig";
const TOKEN: &str = "token";
/// The configuration as it was written last: one that differs from it was adapted by somebody.
const WRITTEN: &str = "written.json";
const OWN_TYPE: &str = "virt-meta";
/// Other meta plugins: two of them would both want to be first.
const RIVALS: [&str; 3] = ["multus", "multus-shim", "genie"];
/// The kubelet's folder unless virt-meta is told another one.
const KUBELET_DIR: &str = "/var/lib/kubelet";
const SECRET: u32 = 0o600;

/// What is to be written.
pub(super) struct MetaPlugin {
    conf_dir: PathBuf,
    config: Value,
    kubeconfig: Value,
    token: PathBuf,
}

/// The file name of the configuration that gives pods their first interface: the first one but ours. None yet is no error.
pub(super) fn cluster_network(conf_dir: &Path) -> Result<Option<String>> {
    let mut names = Vec::new();
    match fs::read_dir(conf_dir) {
        Ok(folder) => {
            for file in folder {
                let file = file.with_context(|| format!("cannot list {}", conf_dir.display()))?;
                names.extend(file.file_name().into_string().ok());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", conf_dir.display())),
    }
    names.retain(|name| {
        [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)) && name != CONFIG
    });
    names.sort();
    let mut cluster = None;
    for name in names {
        let path = conf_dir.join(&name);
        // What the runtime cannot read it passes over, and so do we.
        let Ok(network) = Network::from_file(&path) else { continue };
        if let Some(rival) = network.types().find(|kind| RIVALS.contains(&kind.as_str())) {
            bail!(
                "{} makes {rival} the node's meta plugin: install without --meta (virtdp and ehost-device work with it), or \
                 remove that file",
                path.display()
            );
        }
        if network.types().any(|kind| kind.as_str() == OWN_TYPE) {
            bail!(
                "{} is a second configuration of virt-meta: remove it, {CONFIG} takes its place",
                path.display()
            );
        }
        if name.as_str() < CONFIG {
            bail!(
                "{} comes before {CONFIG} in the order of names, so the runtime would never call virt-meta: rename it to \
                 10-... or later",
                path.display()
            );
        }
        cluster.get_or_insert(name);
    }
    Ok(cluster)
}

/// Takes our configuration away; says what was done.
pub(super) fn uninstall(conf_dir: &Path) -> Result<Vec<String>> {
    let mut done = Vec::new();
    if conf_dir.is_dir() && files::remove_durably(conf_dir, CONFIG)? {
        done.push(format!("{} removed", conf_dir.join(CONFIG).display()));
    }
    let folder = conf_dir.join(FOLDER);
    for name in [KUBECONFIG, TOKEN, WRITTEN] {
        if folder.is_dir() {
            files::remove_durably(&folder, name)?;
        }
    }
    // Only if nobody else put something there.
    let _ = fs::remove_dir(&folder);
    Ok(done)
}

/// Ends at SIGTERM or SIGINT, which are caught from now on.
pub(super) fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

impl MetaPlugin {
    /// `node_conf_dir` is `conf_dir` as the node calls it.
    pub(super) fn new(
        node_conf_dir: &Path,
        conf_dir: PathBuf,
        cluster: &str,
        kubelet_dir: &Path,
        service_account: &Path,
        server: Option<&str>,
        namespace_isolation: bool,
    ) -> Result<MetaPlugin> {
        let server = match server {
            Some(server) => server.to_owned(),
            None => server_from_environment()?,
        };
        let authority = service_account.join("ca.crt");
        let authority = fs::read(&authority).with_context(|| {
            format!(
                "cannot read {}: does the pod have a service account (automountServiceAccountToken)?",
                authority.display()
            )
        })?;
        let folder = node_conf_dir.join(FOLDER);
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": OWN_TYPE,
            "type": OWN_TYPE,
            "capabilities": { "io.kubernetes.cri.pod-annotations": true },
            "clusterNetwork": node_conf_dir.join(cluster),
            "kubeconfig": folder.join(KUBECONFIG),
        });
        if let Some(config) = config.as_object_mut() {
            if kubelet_dir != Path::new(KUBELET_DIR) {
                config.insert("kubeletDir".to_owned(), json!(kubelet_dir));
            }
            if namespace_isolation {
                config.insert("namespaceIsolation".to_owned(), json!(true));
            }
        }
        Ok(MetaPlugin {
            config,
            kubeconfig: kubeconfig(&server, &authority, &folder.join(TOKEN)),
            token: service_account.join("token"),
            conf_dir,
        })
    }

    /// Writes what is needed first, and what makes the runtime call us last; says what was done.
    pub(super) fn install(&self) -> Result<Vec<String>> {
        let folder = self.conf_dir.join(FOLDER);
        files::make_folder(&folder)?;
        self.copy_token(&folder)?;
        files::replace(&folder, KUBECONFIG, &pretty(&self.kubeconfig)?, SECRET)?;
        let path = self.conf_dir.join(CONFIG);
        let there = json_in(&path);
        let done = match &there {
            Some(there) if *there == self.config => format!("{} is up to date", path.display()),
            // What it says is theirs.
            Some(adapted)
                if adapted.get("type") == Some(&Value::from(OWN_TYPE))
                    && there != json_in(&folder.join(WRITTEN)) =>
            {
                return Ok(vec![format!(
                    "{} is kept as it is: it was adapted by hand; remove it to have it made anew",
                    path.display()
                )]);
            }
            _ => {
                files::replace(&self.conf_dir, CONFIG, &pretty(&self.config)?, SECRET)?;
                format!("{} written: pods get the networks they ask for", path.display())
            }
        };
        // After it: if we are killed in between, the next time finds it up to date.
        files::replace(&folder, WRITTEN, &pretty(&self.config)?, SECRET)?;
        Ok(vec![done])
    }

    /// Keeps the token fresh until SIGTERM or SIGINT.
    pub(super) async fn follow(&self, interval: Duration) -> Result<()> {
        let mut told = std::pin::pin!(told_to_end()?);
        let folder = self.conf_dir.join(FOLDER);
        println!("keeping {} fresh", folder.join(TOKEN).display());
        loop {
            tokio::select! {
                () = &mut told => return Ok(()),
                () = tokio::time::sleep(interval) => {}
            }
            if let Err(error) = self.copy_token(&folder) {
                // The old token is good for a while, and the next attempt may succeed.
                eprintln!("virtdp: {error:#}");
            }
        }
    }

    fn copy_token(&self, folder: &Path) -> Result<()> {
        let token = fs::read(&self.token).with_context(|| format!("cannot read {}", self.token.display()))?;
        if fs::read(folder.join(TOKEN)).ok().as_ref() != Some(&token) {
            files::replace(folder, TOKEN, &token, SECRET)?;
        }
        Ok(())
    }
}

/// The API server, as a pod is told of it.
///
/// # Errors
/// We run in no pod.
pub(crate) fn server_from_environment() -> Result<String> {
    match (std::env::var("KUBERNETES_SERVICE_HOST"), std::env::var("KUBERNETES_SERVICE_PORT")) {
        (Ok(host), Ok(port)) if host.contains(':') => Ok(format!("https://[{host}]:{port}")),
        (Ok(host), Ok(port)) => Ok(format!("https://{host}:{port}")),
        _ => bail!(
            "no API server is known: set --server, or run in a pod (KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT)"
        ),
    }
}

fn json_in(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// JSON is YAML, too.
fn kubeconfig(server: &str, authority: &[u8], token: &Path) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "local",
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(authority) },
        }],
        "users": [{ "name": OWN_TYPE, "user": { "tokenFile": token } }],
        "contexts": [{ "name": "local", "context": { "cluster": "local", "user": OWN_TYPE } }],
        "current-context": "local",
    })
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).context("cannot encode a configuration")?;
    bytes.push(b'\n');
    Ok(bytes)
}
