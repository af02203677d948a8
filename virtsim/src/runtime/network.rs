//! A sandbox's attachment to the cluster's network, as containerd asks for it.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::delegate::Plugins;
use cni::runtime::{Attachment, Cache, Network, Runtime};
use cni::{Args, ContainerId, Object, PluginType, SearchPath, Success};
use linux::Netns;
use serde_json::{Value, json};

use super::types::{Options, SandboxConfig};

/// containerd's name for the interface of the cluster's network.
const INTERFACE: &str = "eth0";

/// One sandbox's network. All of it blocks.
#[derive(Clone, Debug)]
pub(super) struct PodNetwork {
    runtime: Runtime,
    conf_dir: PathBuf,
    id: String,
    attachment: Attachment,
}

impl PodNetwork {
    pub(super) fn new(
        options: &Options,
        id: &str,
        netns: &Path,
        config: &SandboxConfig,
    ) -> Result<Self, String> {
        let wrong = |error: &dyn std::error::Error| error.to_string();
        let path = options.cni_bin_dirs.iter().fold(OsString::new(), |mut path, folder| {
            if !path.is_empty() {
                path.push(":");
            }
            path.push(folder);
            path
        });
        let attachment = Attachment {
            container_id: id.parse::<ContainerId>().map_err(|error| wrong(&error))?,
            if_name: INTERFACE.parse().map_err(|error| wrong(&error))?,
            netns: Some(netns.to_owned()),
            args: Args::from_pairs([
                ("IgnoreUnknown", "1"),
                ("K8S_POD_NAMESPACE", &config.pod.namespace),
                ("K8S_POD_NAME", &config.pod.name),
                ("K8S_POD_INFRA_CONTAINER_ID", id),
                ("K8S_POD_UID", &config.pod.uid),
            ]),
            capabilities: capabilities(config),
        };
        Ok(PodNetwork {
            runtime: Runtime::new(Plugins::on(SearchPath::new(path)), Cache::at(&options.cni_cache_dir)),
            conf_dir: options.cni_conf_dir.clone(),
            id: id.to_owned(),
            attachment,
        })
    }

    /// Brings up `lo`, then ADD; a failed ADD is followed by DEL. The configuration is read anew each time, since
    /// containerd watches its folder.
    pub(super) fn set_up(&self, netns: &Netns) -> Result<Success, String> {
        bring_up_loopback(netns).map_err(|error| crate::chain(&error))?;
        let network = Network::first(&self.conf_dir)
            .map_err(|error| format!("cni plugin not initialized: {}", in_words("add", &error)))?;
        self.runtime.add(&network, &self.attachment).map_err(|error| {
            // The ADD's error is the one that counts; what the DEL could not undo, the next one or GC does.
            let undone = self.runtime.del(&network, &self.attachment);
            if let Err(error) = undone {
                tracing::warn!(
                    sandbox = self.id,
                    error = in_words("delete", &error),
                    "the failed ADD could not be undone"
                );
            }
            in_words("add", &error)
        })
    }

    /// DEL, with the configuration of the ADD where it is remembered. Nothing to do is no error.
    pub(super) fn tear_down(&self, netns_is_there: bool) -> Result<(), String> {
        let remembered = self.runtime.cache().attachments().map_err(|error| in_words("delete", &error))?;
        let ours = remembered.into_iter().find(|cached| {
            cached.attachment.container_id == self.attachment.container_id
                && cached.attachment.if_name == self.attachment.if_name
        });
        // Without memory there was no successful ADD, and a failed one was undone.
        let Some(cached) = ours else { return Ok(()) };
        let network = Network::from_slice(&cached.config).map_err(|error| in_words("delete", &error))?;
        let mut attachment = self.attachment.clone();
        if !netns_is_there {
            attachment.netns = None;
        }
        self.runtime.del(&network, &attachment).map_err(|error| in_words("delete", &error))
    }
}

fn bring_up_loopback(netns: &Netns) -> Result<(), linux::Error> {
    let mut socket = netns.route_socket()?;
    if let Some(lo) = socket.link_by_name("lo")? {
        let up = linux::route::LinkChange { up: Some(true), ..Default::default() };
        socket.change_link(lo.index, &up)?;
    }
    Ok(())
}

/// What containerd offers; each plugin gets those that it declares.
fn capabilities(config: &SandboxConfig) -> Object {
    let mut capabilities = Object::new();
    let mut offer = |name: &str, value: Value| {
        capabilities.insert(name.to_owned(), value);
    };
    offer("io.kubernetes.cri.pod-annotations", json!(config.annotations));
    if !config.port_mappings.is_empty() {
        offer("portMappings", json!(config.port_mappings));
    }
    if let Some(dns) = &config.dns {
        offer("dns", json!(dns));
    }
    capabilities
}

/// The addresses of `eth0` in the pod: those without an interface count, too.
pub(super) fn addresses(result: &Success) -> Vec<IpAddr> {
    let is_ours = |index: Option<usize>| match index.map(|index| result.interfaces.get(index)) {
        Some(Some(interface)) => interface.name == INTERFACE && interface.sandbox.is_some(),
        Some(None) => false,
        None => true,
    };
    result.ips.iter().filter(|ip| is_ours(ip.interface)).map(|ip| ip.address.addr()).collect()
}

/// An error as libcni prints it: which plugin failed at what, message and details, without the code.
fn in_words(verb: &str, error: &cni::Error) -> String {
    let message = match error.message.strip_prefix("plugin ").and_then(|rest| rest.split_once(": ")) {
        Some((plugin, message)) if plugin.parse::<PluginType>().is_ok() => {
            format!("plugin type={plugin:?} failed ({verb}): {message}")
        }
        _ => error.message.clone(),
    };
    if error.details.is_empty() { message } else { format!("{message}; {}", error.details) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::{Code, Error};

    #[test]
    fn a_plugins_error_reads_as_libcni_prints_it() {
        let error =
            Error::new(Code::INVALID_CONFIG, "plugin ehost-device: no such device: x").with_details("why");
        let words = in_words("add", &error);
        assert_eq!(words, r#"plugin type="ehost-device" failed (add): no such device: x; why"#);
        let error = Error::new(Code::IO, "plugin bridge was not found");
        assert_eq!(in_words("add", &error), "plugin bridge was not found");
    }

    #[test]
    fn the_pods_addresses_are_those_of_eth0() {
        let result = serde_json::json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/n"}, {"name": "net1", "sandbox": "/n"}],
            "ips": [
                {"interface": 1, "address": "10.1.0.5/24"},
                {"interface": 2, "address": "10.2.0.5/24"},
                {"interface": 0, "address": "10.1.0.1/24"},
                {"address": "fd00::5/64"},
            ],
        });
        let result = Success::from_value(&result, None).unwrap();
        let found: Vec<_> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.0.5", "fd00::5"]);
    }
}
