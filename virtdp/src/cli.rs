//! What was typed, and what it means.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use kubelet_api::KubeletDir;
use nic::{DeviceId, Pool, ResourceName};

use crate::advertise::Way;
use crate::allocate::Extras;
use crate::discover::{Host, List};
use crate::install;
use crate::log::{Logging, Style};
use crate::observe::{Credentials, Listen};

/// What the agent works on.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The configuration file, if there is one.
    pub(crate) config: Option<PathBuf>,
    /// What is in force without: which NICs, under which name.
    pub(crate) pool: Pool,
    /// The kubelet's folder.
    pub(crate) kubelet: KubeletDir,
    /// How to register with it.
    pub(crate) registration: Way,
    /// Where the ledger is.
    pub(crate) state: PathBuf,
    /// Where device-info files go.
    pub(crate) device_info: PathBuf,
    /// Where CDI files go.
    pub(crate) cdi: PathBuf,
    /// What containers get besides the NIC.
    pub(crate) extras: Extras,
    /// A mounted sysfs.
    pub(crate) sysfs: PathBuf,
    /// Addresses of the node.
    pub(crate) node_addresses: Vec<IpAddr>,
    /// Where the node's API servers are.
    pub(crate) api_servers: Vec<Host>,
    /// NICs that are offered even if they carry the node.
    pub(crate) offer_lifeline: BTreeSet<DeviceId>,
    /// Where metrics and health are served.
    pub(crate) listen: Option<Listen>,
    /// With what Events are posted on pods whose NIC is lost.
    pub(crate) events: Option<Credentials>,
}

/// Finds the virtual NICs of this node and offers them to the kubelet as an extended resource.
///
/// The NIC that the node lives by (default routes of IPv4 and IPv6, through bonds, bridges, VLANs and the like) is never offered.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    node: NodeArguments,
    #[command(flatten)]
    log: LogArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show every interface of this node: offered or not, and why. Changes nothing, and works beside a running agent.
    Discover {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of one NIC or interface. Changes nothing
    Explain {
        /// Its name, alternative name, device ID (PCI address) or MAC
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a configuration file: print what it means, or what is wrong with it and where
    Validate {
        /// The file
        file: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the CNI programs on the node, and with --meta virt-meta's configuration.
    Install(install::Options),
    /// Take away what `install` put there, and put back what was there before.
    Uninstall(install::Removal),
    /// Succeed if an agent answers at its socket and is well: for a pod's probes.
    Probe {
        /// Succeed only if pods can be given NICs: registered with the kubelet, the node readable
        #[arg(long)]
        ready: bool,
    },
    /// Say that the NIC which sits at this device ID now is the right one, though it was another before. The agent hears of it.
    Accept {
        /// The device, as `virtdp discover` shows it
        #[arg(value_name = "ID")]
        device: DeviceId,
    },
}

#[derive(Debug, Args)]
struct NodeArguments {
    /// A file that says which NICs are offered as which resources; read again when it changes and at SIGHUP
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["resource", "drivers"])]
    config: Option<PathBuf>,
    /// The extended resource that pods ask for, without a file
    #[arg(long, global = true, value_name = "NAME", default_value = "kernel.org/virt")]
    resource: ResourceName,
    /// A driver whose NICs are offered, without a file; may be repeated
    #[arg(long = "driver", global = true, value_name = "NAME", default_value = "virtio_net")]
    drivers: Vec<String>,
    /// An address of the node, whose NIC is never offered; may be repeated. VIRTDP_NODE_IPS in the environment names more, with commas
    #[arg(long = "node-ip", global = true, value_name = "IP")]
    node_addresses: Vec<List<IpAddr>>,
    #[arg(long, global = true, env = "VIRTDP_NODE_IPS", value_name = "LIST", hide = true)]
    more_node_ips: Option<List<IpAddr>>,
    /// The API server (address, name or URL): the NIC on the way to it is never offered; may be repeated. KUBERNETES_SERVICE_HOST in the
    /// environment is one
    #[arg(long = "api-server", global = true, value_name = "HOST")]
    api_servers: Vec<Host>,
    #[arg(long, global = true, env = "KUBERNETES_SERVICE_HOST", value_name = "HOST", hide = true)]
    pods_api_server: Option<List<Host>>,
    /// Offer this NIC even if it carries the node, which can cut the node off; may be repeated
    #[arg(long, global = true, value_name = "ID")]
    offer_lifeline: Vec<DeviceId>,
    /// The kubelet's folder (its --root-dir)
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// How to register: at the kubelet's socket, or by a socket that it finds in plugins_registry
    #[arg(long, global = true, value_name = "WAY", default_value = "kubelet-socket")]
    registration: Way,
    /// Where ehost-device keeps its ledger of NICs in pods, and this program its journal of which NIC sits at which ID
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/virtnet")]
    state_dir: PathBuf,
    /// Where device-info files are written
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/run/k8s.cni.cncf.io/devinfo/dp")]
    device_info_dir: PathBuf,
    /// Give containers /dev/vhost-net and /dev/net/tun, too
    #[arg(long, global = true)]
    need_vhost_net: bool,
    /// Give containers /dev/net/tun, too
    #[arg(long, global = true)]
    need_tun: bool,
    /// Give device nodes through CDI: the container runtime must have it switched on
    #[arg(long, global = true)]
    cdi: bool,
    /// Where CDI files are written
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/run/cdi")]
    cdi_dir: PathBuf,
    /// The mounted sysfs
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys")]
    sysfs: PathBuf,
    /// Serve /metrics, /healthz and /readyz at IP:PORT or unix:PATH; nowhere without it
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<Listen>,
    /// Post an Event on a pod whose NIC was unplugged or turned ill, as the service account of this pod
    #[arg(long, global = true)]
    events: bool,
    /// A kubeconfig: the NIC on the way to its API server is never offered, and with --events it is used in place of a service account
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LogArguments {
    /// What the log looks like: lines for people, klog's form, or one JSON object for each line
    #[arg(long, global = true, value_enum, value_name = "FORM")]
    log_format: Option<Style>,
    /// The same as --log-format=klog
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = clap::ArgAction::Set, value_name = "BOOL", hide_possible_values = true)]
    logtostderr: bool,
    /// The same as --logtostderr: there are no log files
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = clap::ArgAction::Set, value_name = "BOOL", hide = true)]
    alsologtostderr: bool,
    /// Accepted for glog's sake: there are no log files, so everything goes to standard error
    #[arg(long, global = true, value_name = "SEVERITY", hide = true)]
    stderrthreshold: Option<String>,
    /// How much to log: 4 and more is everything
    #[arg(short = 'v', long = "v", global = true, value_name = "N", default_value_t = 0)]
    verbosity: u32,
}

impl Arguments {
    pub(crate) fn settings(&self) -> Settings {
        let node = &self.node;
        Settings {
            config: node.config.clone(),
            pool: Pool::of_drivers(node.resource.clone(), node.drivers.clone()),
            kubelet: KubeletDir::at(&node.kubelet_dir),
            registration: node.registration,
            state: node.state_dir.clone(),
            device_info: node.device_info_dir.clone(),
            cdi: node.cdi_dir.clone(),
            extras: Extras { vhost_net: node.need_vhost_net, tun: node.need_tun, cdi: node.cdi },
            sysfs: node.sysfs.clone(),
            node_addresses: all(node.node_addresses.iter().chain(&node.more_node_ips)),
            api_servers: [
                node.api_servers.clone(),
                all(&node.pods_api_server),
                node.kubeconfig.iter().cloned().map(Host::Kubeconfig).collect(),
            ]
            .concat(),
            offer_lifeline: node.offer_lifeline.iter().cloned().collect(),
            listen: node.listen.clone(),
            events: node.events.then(|| match &node.kubeconfig {
                Some(path) => Credentials::Kubeconfig(path.clone()),
                None => Credentials::ServiceAccount,
            }),
        }
    }

    pub(crate) fn logging(&self) -> Logging {
        let of_2018 = self.log.logtostderr || self.log.alsologtostderr;
        let style = self.log.log_format.unwrap_or(if of_2018 { Style::Klog } else { Style::Readable });
        // From 4 on is what klog's users call debugging.
        Logging { style, debug: self.log.verbosity >= 4 }
    }
}

fn all<'a, T: Clone + 'a>(lists: impl IntoIterator<Item = &'a List<T>>) -> Vec<T> {
    lists.into_iter().flat_map(|List(each)| each.iter().cloned()).collect()
}

/// Go's `flag` takes long options with one dash, too, and so did the 2018 program.
pub(crate) fn with_two_dashes(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    const LONG: [&str; 3] = ["logtostderr", "alsologtostderr", "stderrthreshold"];
    arguments.map(|argument| {
        let name = argument.to_str().and_then(|text| text.strip_prefix('-')).unwrap_or_default();
        let name = name.split_once('=').map_or(name, |(name, _)| name);
        if !LONG.contains(&name) {
            return argument;
        }
        let mut long = OsString::from("-");
        long.push(argument);
        long
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        let words = line.split_whitespace().map(OsString::from);
        Arguments::try_parse_from(with_two_dashes(words)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_flags_of_2018_are_taken() {
        for line in [
            "virtdp --logtostderr -v 10",
            "virtdp --logtostderr -v=10",
            "virtdp -logtostderr=true -v=10",
            "virtdp --logtostderr --v 10",
            "virtdp -alsologtostderr --v=10 -stderrthreshold=INFO",
        ] {
            assert_eq!(parse(line).logging(), Logging { style: Style::Klog, debug: true }, "{line}");
        }
        assert_eq!(parse("virtdp").logging(), Logging { style: Style::Readable, debug: false });
        assert_eq!(parse("virtdp --logtostderr=false -v1").logging().style, Style::Readable);
    }

    #[test]
    fn defaults_are_those_of_a_node() {
        let settings = parse("virtdp").settings();
        assert_eq!(settings.pool.resource.as_str(), "kernel.org/virt");
        assert_eq!(
            settings.pool,
            Pool::of_drivers("kernel.org/virt".parse().unwrap(), vec!["virtio_net".into()])
        );
        assert_eq!(
            settings.kubelet.registration_socket().to_str(),
            Some("/var/lib/kubelet/device-plugins/kubelet.sock")
        );
    }

    #[test]
    fn options_may_stand_behind_the_command() {
        let arguments = parse(
            "virtdp discover --json --sysfs /tmp/x --driver e1000 --driver virtio_net --node-ip fd00::1",
        );
        assert!(matches!(arguments.command, Some(Command::Discover { json: true })));
        let settings = arguments.settings();
        assert_eq!(settings.sysfs.to_str(), Some("/tmp/x"));
        let drivers = vec!["e1000".into(), "virtio_net".into()];
        assert_eq!(settings.pool, Pool::of_drivers("kernel.org/virt".parse().unwrap(), drivers));
        assert_eq!(settings.node_addresses.len(), 1);
    }

    #[test]
    fn what_is_vital_comes_from_options_and_from_the_pods_environment() {
        let settings = parse(
            "virtdp --node-ip 192.0.2.1 --node-ip=192.0.2.2,fd00::1 --more-node-ips 192.0.2.3, --api-server https://api.example.org:6443 \
             --api-server 10.0.0.1 --pods-api-server 10.96.0.1",
        )
        .settings();
        assert_eq!(settings.node_addresses.len(), 4);
        let ip = |text: &str| Host::Ip(text.parse().unwrap());
        assert_eq!(
            settings.api_servers,
            [Host::Name("api.example.org".to_owned()), ip("10.0.0.1"), ip("10.96.0.1")]
        );
    }

    /// The command lines of all containers that run virtdp.
    fn in_manifest(text: &str) -> Vec<Vec<String>> {
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(text).unwrap();
        let words = |value: &serde_json::Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let specs =
            documents.iter().map(|object| object.pointer("/spec/template/spec").unwrap_or(&object["spec"]));
        let containers = specs.flat_map(|spec| ["initContainers", "containers"].map(|key| &spec[key]));
        let containers = containers.filter_map(serde_json::Value::as_array).flatten();
        containers.map(|each| [words(&each["command"]), words(&each["args"])].concat()).collect()
    }

    #[test]
    fn every_manifest_of_ours_has_command_lines_that_are_understood() {
        let manifests = [
            (include_str!("../../deployments/virtnet.yaml"), 3),
            (include_str!("../../deployments/virtnet-multus.yaml"), 2),
            (include_str!("../../deployments/virtnet-uninstall.yaml"), 2),
            (include_str!("../../deployments/pod-virtdp.yaml"), 1),
        ];
        for (manifest, containers) in manifests {
            let lines = in_manifest(manifest);
            assert_eq!(lines.len(), containers, "{lines:?}");
            lines.iter().for_each(|line| {
                parse(&line.join(" "));
            });
        }
    }

    #[test]
    fn every_command_line_in_the_documents_is_understood() {
        let documents = [
            include_str!("../README.md"),
            include_str!("../../README.md"),
            include_str!("../../docs/install.md"),
            include_str!("../../docs/operations.md"),
        ];
        let lines = documents.iter().flat_map(|text| text.lines());
        let lines: Vec<&str> = lines
            .filter_map(|line| line.strip_prefix("    "))
            .map(|line| line.trim_start_matches("# ").trim_start_matches("$ ").trim_start_matches("sudo "))
            .filter(|line| line.starts_with("virtdp "))
            // Up to what it is for.
            .map(|line| line.split("  ").next().unwrap().trim())
            .collect();
        assert!(lines.len() > 3, "{lines:?}");
        lines.iter().for_each(|line| {
            parse(&line.replace(" [--json]", " --json"));
        });
    }

    #[test]
    fn bad_names_and_addresses_are_refused() {
        for line in [
            "virtdp --resource virt",
            "virtdp --node-ip eth0",
            "virtdp --api-server 10.0.0.300",
            "virtdp --offer-lifeline ../x",
            "virtdp -v lots",
            "virtdp --sysfs",
        ] {
            assert!(Arguments::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
