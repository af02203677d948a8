//! The plugin's own keys in the network configuration, and what they lead to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::delegate::Plugins;
use cni::runtime::Network;
use cni::{Code, Config, Environment, Error, NetworkName, Object, SearchPath};
use kubelet_api::KubeletDir;
use serde::Deserialize;
use serde_json::Value;

use crate::networks::Networks;
use crate::record::Store;

/// How long the API server and the kubelet may each take to answer one question.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name by which a container runtime passes the pod's annotations.
pub(crate) const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// What the configuration says.
pub(crate) struct Settings {
    /// The configuration as it came.
    pub(crate) config: Config,
    /// Whether a pod may only use networks of its own namespace.
    pub(crate) namespace_isolation: bool,
    /// Where device plugins describe their devices.
    pub(crate) device_info: PathBuf,
    keys: Keys,
}

// Unknown keys are other people's: the runtime's, and those of specifications to come.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    cluster_network: Option<Value>,
    kubeconfig: Option<PathBuf>,
    conf_dir: PathBuf,
    bin_dir: Option<PathBuf>,
    state_dir: PathBuf,
    kubelet_dir: PathBuf,
    device_info_dir: PathBuf,
    namespace_isolation: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Keys {
            cluster_network: None,
            kubeconfig: None,
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: None,
            state_dir: "/var/lib/virtnet".into(),
            kubelet_dir: "/var/lib/kubelet".into(),
            device_info_dir: "/var/run/k8s.cni.cncf.io/devinfo/dp".into(),
            namespace_isolation: false,
        }
    }
}

impl Settings {
    /// Reads the keys. What they name is looked at when it is needed: a DEL must not fail for a kubeconfig.
    pub(crate) fn of(config: &Config) -> Result<Settings, Error> {
        let keys: Keys = config.parse()?;
        Ok(Settings {
            config: config.clone(),
            namespace_isolation: keys.namespace_isolation,
            device_info: keys.device_info_dir.clone(),
            keys,
        })
    }

    /// The cluster's network: a plugin or list in the configuration itself, else the file of that path, else the
    /// network of that name in the configuration folder. Never virt-meta, which would call itself for ever.
    pub(crate) fn cluster_network(&self) -> Result<Network, Error> {
        let network = match &self.keys.cluster_network {
            Some(Value::Object(inline)) => self.inline(inline),
            Some(Value::String(path)) if path.starts_with('/') => Network::from_file(Path::new(path)),
            Some(Value::String(name)) => name
                .parse()
                .map_err(|error: cni::NameError| Error::new(Code::INVALID_CONFIG, error.to_string()))
                .and_then(|name: NetworkName| self.network_of_node(&name)),
            Some(_) => Err(Error::new(Code::INVALID_CONFIG, "neither an object, nor a path, nor a name")),
            None => Err(Error::new(
                Code::INVALID_CONFIG,
                "missing: it names the network that gives pods their first interface",
            )),
        };
        let network = network.map_err(|error| error.within("clusterNetwork"))?;
        self.refuse_ourselves(&network).map_err(|error| error.within("clusterNetwork"))?;
        Ok(network)
    }

    /// Another network of the node's configuration folder.
    pub(crate) fn network_of_node(&self, name: &NetworkName) -> Result<Network, Error> {
        Network::load(&self.keys.conf_dir, name)
    }

    /// A network that would call us would do so for ever.
    pub(crate) fn refuse_ourselves(&self, network: &Network) -> Result<(), Error> {
        let own = self.config.plugin_type()?;
        if network.types().any(|kind| *kind == own || kind.as_str() == "virt-meta") {
            let message = format!("network {} is virt-meta itself", network.name());
            return Err(Error::new(Code::INVALID_CONFIG, message));
        }
        Ok(())
    }

    pub(crate) fn store(&self) -> Store {
        Store::at(&self.keys.state_dir)
    }

    /// The delegates: those in `binDir` first, if there is one.
    pub(crate) fn plugins(&self, environment: &Environment) -> Plugins {
        let Some(bin_dir) = &self.keys.bin_dir else { return Plugins::on(environment.path.clone()) };
        let mut path = bin_dir.clone().into_os_string();
        path.push(":");
        path.push(environment.path.as_os_str());
        Plugins::on(SearchPath::new(path))
    }

    /// Where pods and networks are looked up.
    pub(crate) fn networks(&self) -> Result<Networks, Error> {
        match &self.keys.kubeconfig {
            Some(path) => Networks::of_api_server(path, PATIENCE),
            None => Ok(Networks::Nowhere),
        }
    }

    pub(crate) fn kubelet(&self) -> KubeletDir {
        KubeletDir::at(&self.keys.kubelet_dir)
    }

    pub(crate) fn patience(&self) -> Duration {
        PATIENCE
    }

    /// A cluster network that stands in our configuration may leave name and version to us.
    fn inline(&self, inline: &Object) -> Result<Network, Error> {
        let mut object = inline.clone();
        object.entry("name").or_insert_with(|| self.config.name().as_str().into());
        if !object.contains_key("cniVersions") {
            object.entry("cniVersion").or_insert_with(|| self.config.version().as_str().into());
        }
        Network::from_slice(&serde_json::to_vec(&object).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = include_str!("../README.md");
    const GUIDE: &str = include_str!("../../docs/guide.md");

    #[test]
    fn the_examples_of_the_documents_are_accepted() {
        let of_documents = [README, GUIDE]
            .into_iter()
            .flat_map(|document| document.split("```"))
            .filter(|block| block.contains(r#""type": "virt-meta""#))
            .map(|block| &block[block.find('{').unwrap()..=block.rfind('}').unwrap()]);
        let known = Keys::default();
        let mut count = 0;
        for json in of_documents.chain([include_str!("../../deployments/cni/00-virt-meta.conf")]) {
            count += 1;
            let config = Config::from_slice(json.as_bytes()).unwrap();
            let settings = Settings::of(&config).unwrap();
            assert_eq!(settings.keys.cluster_network, Some("cluster".into()));
            assert_eq!(settings.keys.conf_dir, known.conf_dir);
            for key in config.object().keys() {
                let common = ["cniVersion", "name", "type"].contains(&key.as_str());
                assert!(common || README.contains(&format!("| `{key}` |")), "{key} is not in the README");
            }
        }
        assert_eq!(count, 3);
    }

    #[test]
    fn the_annotations_of_the_guide_are_accepted() {
        let name = format!("{}: ", cluster::NETWORKS);
        let annotations = GUIDE.lines().filter_map(|line| line.trim().strip_prefix(&name));
        let mut count = 0;
        for annotation in annotations {
            count += 1;
            let text = annotation.trim_matches('\'');
            let own = "default".parse().unwrap();
            cluster::selections(text, &own, &"eth0".parse().unwrap()).unwrap();
        }
        assert_eq!(count, 3);
    }
}
