//! What an ADD is going to do: all questions are asked here, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{Label, NetworkAttachmentDefinition, Pod, Selection, selections};
use cni::plugin::{Add, Del};
use cni::runtime::{Attachment, Network};
use cni::{Args, Code, Config, Error, Object};
use kubelet_api::KubeletDir;
use kubelet_api::blocking::allocated_devices;
use kubelet_api::podresources::PodResources;
use nic::ResourceName;
use serde_json::{Value, json};

use crate::devices::{Need, assign};
use crate::networks::Networks;
use crate::record::{PodId, Progress, Record, Step};
use crate::settings::{POD_ANNOTATIONS, Settings};

/// Plans an ADD.
pub(crate) fn plan(settings: &Settings, add: &Add) -> Result<Record, Error> {
    let cluster = settings.cluster_network()?;
    let mut steps = vec![Step {
        network: cluster.name().to_string(),
        interface: add.if_name.clone(),
        config: object_of(&cluster)?,
        // What the runtime passes us is meant for the pod's first interface.
        capabilities: runtime_config(&add.config),
        resource: None,
        device: None,
        default_route: Vec::new(),
        progress: Progress::Planned,
    }];
    let pod = pod_of(&add.environment.args)?;
    steps.extend(further_steps(settings, add, pod.as_ref())?);
    let plugins = settings.plugins(&add.environment);
    for step in &steps {
        // A plugin that is not there could not take part in undoing, either: the pod would never end.
        for kind in step.network()?.types() {
            plugins.find(kind).map_err(|error| error.within(format_args!("network {}", step.network)))?;
        }
    }
    Ok(Record {
        format: Record::FORMAT,
        container_id: add.container_id.clone(),
        interface: add.if_name.clone(),
        netns: add.netns.clone(),
        args: add.environment.args.as_str().to_owned(),
        pod,
        steps,
        network_status: Vec::new(),
    })
}

/// What the cluster's network is told in a DEL of which there is no record.
pub(crate) fn cluster_attachment(del: &Del) -> Attachment {
    Attachment {
        container_id: del.container_id.clone(),
        if_name: del.if_name.clone(),
        netns: del.netns.clone(),
        args: del.environment.args.clone(),
        capabilities: runtime_config(&del.config),
    }
}

/// The networks that the pod's annotation asks for.
fn further_steps(settings: &Settings, add: &Add, pod: Option<&PodId>) -> Result<Vec<Step>, Error> {
    let networks = Lazy::new(settings);
    let passed = passed_annotations(&add.config)?;
    let described = match (passed, pod) {
        (Some(described), _) => described,
        (None, Some(pod)) => networks.get()?.pod(&pod.namespace, &pod.name)?,
        // Not a pod at all: somebody runs us by hand, or below a runtime that knows no pods.
        (None, None) => Pod::default(),
    };
    let Some(annotation) = described.networks() else { return Ok(Vec::new()) };
    let own = match pod {
        Some(pod) => pod.namespace.clone(),
        None => parse_label("default")?,
    };
    let wanted = selections(annotation, &own, &add.if_name)
        .map_err(|error| Error::from_chain(Code::INVALID_CONFIG, &error))?;
    let mut steps = Vec::new();
    let mut definitions: BTreeMap<(Label, Label), NetworkAttachmentDefinition> = BTreeMap::new();
    for selection in wanted {
        let label = format!("{}/{}", selection.namespace, selection.name);
        if settings.namespace_isolation && selection.namespace != own {
            let message = format!("network {label} is not in the pod's namespace {own}, as it must be here");
            return Err(Error::new(Code::INVALID_CONFIG, message));
        }
        let key = (selection.namespace.clone(), selection.name.clone());
        if !definitions.contains_key(&key) {
            let definition = networks.get()?.definition(&key.0, &key.1)?;
            definitions.insert(key.clone(), definition);
        }
        if let Some(definition) = definitions.get(&key) {
            let step = step(settings, add, &selection, definition);
            steps.push(step.map_err(|error| error.within(format_args!("network {label}")))?);
        }
    }
    let mut chosen = steps.iter().filter(|step| !step.default_route.is_empty());
    if let (Some(one), Some(other)) = (chosen.next(), chosen.next()) {
        let message = format!(
            "both network {} (interface {}) and network {} (interface {}) are to have the default route",
            one.network, one.interface, other.network, other.interface
        );
        return Err(Error::new(Code::INVALID_CONFIG, message));
    }
    give_devices(settings, pod, &mut steps)?;
    Ok(steps)
}

fn step(
    settings: &Settings,
    add: &Add,
    selection: &Selection,
    definition: &NetworkAttachmentDefinition,
) -> Result<Step, Error> {
    let mut config = match definition.config() {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Error::new(Code::DECODE, "spec.config is not a JSON object").caused_by(&error)
        })?,
        None => {
            let name = selection.name.as_str().parse();
            let name =
                name.map_err(|error: cni::NameError| Error::new(Code::INVALID_CONFIG, error.to_string()))?;
            object_of(&settings.network_of_node(&name)?)?
        }
    };
    // A definition may leave the name to its object.
    if config.get("name").is_none_or(|name| name == "") {
        config.insert("name".to_owned(), selection.name.as_str().into());
    }
    let resource =
        definition.resource_name().map_err(|error| Error::from_chain(Code::INVALID_CONFIG, &error))?;
    if let Some(cni_args) = &selection.cni_args {
        for plugin in plugins_of(&mut config) {
            add_args(plugin, cni_args)?;
        }
    }
    let network = network_of(&config)?;
    settings.refuse_ourselves(&network)?;
    Ok(Step {
        network: format!("{}/{}", selection.namespace, selection.name),
        interface: selection.interface.clone(),
        capabilities: wishes(selection, &mut config, &runtime_config(&add.config))?,
        config,
        resource,
        device: None,
        default_route: selection.default_route.clone(),
        progress: Progress::Planned,
    })
}

/// Asks the kubelet, once, and only if some network needs a device.
fn give_devices(settings: &Settings, pod: Option<&PodId>, steps: &mut [Step]) -> Result<(), Error> {
    let resources: BTreeSet<&ResourceName> = steps.iter().filter_map(|step| step.resource.as_ref()).collect();
    if resources.is_empty() {
        return Ok(());
    }
    let Some(pod) = pod else {
        let message = "CNI_ARGS names no pod, so the kubelet cannot be asked for its devices";
        return Err(Error::new(Code::INVALID_ENVIRONMENT, message));
    };
    let socket = settings.kubelet().pod_resources_socket();
    let given: PodResources =
        allocated_devices(&socket, pod.namespace.as_str(), &pod.name, settings.patience()).map_err(
            |error| {
                let asked: Vec<_> = resources.iter().map(|resource| resource.as_str()).collect();
                let message = format!(
                    "the kubelet was asked at {} which devices of {} pod {}/{} has, without success",
                    socket.display(),
                    asked.join(", "),
                    pod.namespace,
                    pod.name
                );
                Error::new(Code::TRY_AGAIN, message).caused_by(&error)
            },
        )?;
    let needs: Vec<Need<'_>> =
        steps.iter().map(|step| Need { network: &step.network, resource: step.resource.as_ref() }).collect();
    let devices = assign(&needs, &given)?;
    for (step, device) in steps.iter_mut().zip(devices) {
        // The delegate may want to see for itself, and where there is another kubelet only we were told.
        if device.is_some()
            && settings.kubelet() != KubeletDir::default()
            && let Some(plugin) = plugins_of(&mut step.config).into_iter().next()
        {
            plugin.entry("kubeletDir").or_insert_with(|| json!(settings.kubelet().root()));
        }
        step.device = device;
    }
    Ok(())
}

/// What the pod wishes, by capability. A wish that no plugin of the network would hear is an error: a pod that asked for
/// an address and silently has another is worse off than one that says why it does not start.
fn wishes(selection: &Selection, config: &mut Object, passed: &Object) -> Result<Object, Error> {
    let unsupported = |key: &str, why: &str| {
        Err(Error::new(Code::UNSUPPORTED_FIELD, format!("the pod asks for {key}, which {why}")))
    };
    if selection.ipam_claim_reference.is_some() {
        return unsupported("ipam-claim-reference", "virt-meta does not support");
    }
    let mut wishes = Object::new();
    let mut wish = |capability: &str, value: Option<Value>| {
        if let Some(value) = value {
            wishes.insert(capability.to_owned(), value);
        }
    };
    wish("mac", selection.mac.map(|mac| mac.to_string().into()));
    wish("ips", (!selection.ips.is_empty()).then(|| json!(selection.ips)));
    wish("infinibandGUID", selection.infiniband_guid.clone().map(Value::from));
    wish("portMappings", (!selection.port_mappings.is_empty()).then(|| json!(selection.port_mappings)));
    wish("bandwidth", selection.bandwidth.clone().map(Value::from));
    let declared: BTreeSet<String> =
        plugins_of(config).into_iter().flat_map(|plugin| capabilities(plugin)).collect();
    if let Some(unheard) = wishes.keys().find(|capability| !declared.contains(*capability)) {
        return unsupported(unheard, "no plugin of the network declares as a capability");
    }
    if let Some(annotations) = passed.get(POD_ANNOTATIONS) {
        wishes.insert(POD_ANNOTATIONS.to_owned(), annotations.clone());
    }
    Ok(wishes)
}

fn capabilities(plugin: &Object) -> Vec<String> {
    let declared = plugin.get("capabilities").and_then(Value::as_object);
    let on = declared.into_iter().flatten().filter(|(_, value)| **value == Value::Bool(true));
    on.map(|(name, _)| name.clone()).collect()
}

/// `args.cni`, where the network's own arguments stay unless the pod names the same.
fn add_args(plugin: &mut Object, cni_args: &Object) -> Result<(), Error> {
    let wrong = || Error::new(Code::INVALID_CONFIG, "args or args.cni is not an object");
    let args = plugin.entry("args").or_insert_with(|| json!({})).as_object_mut().ok_or_else(wrong)?;
    let inner = args.entry("cni").or_insert_with(|| json!({})).as_object_mut().ok_or_else(wrong)?;
    inner.extend(cni_args.clone());
    Ok(())
}

/// The plugins of a configuration: those of a list, or the only one.
pub(crate) fn plugins_of(config: &mut Object) -> Vec<&mut Object> {
    if config.contains_key("plugins") {
        let list = config.get_mut("plugins").and_then(Value::as_array_mut);
        list.into_iter().flatten().filter_map(Value::as_object_mut).collect()
    } else {
        vec![config]
    }
}

pub(crate) fn network_of(config: &Object) -> Result<Network, Error> {
    Network::from_slice(&serde_json::to_vec(config).unwrap_or_default())
}

fn object_of(network: &Network) -> Result<Object, Error> {
    serde_json::from_slice(network.bytes())
        .map_err(|error| Error::new(Code::DECODE, "the network is not a JSON object").caused_by(&error))
}

fn runtime_config(config: &Config) -> Object {
    let passed = config.object().get("runtimeConfig").and_then(Value::as_object);
    passed.cloned().unwrap_or_default()
}

/// The pod's annotations as the runtime passes them; none where it does not know that capability.
fn passed_annotations(config: &Config) -> Result<Option<Pod>, Error> {
    let Some(annotations) = config.runtime(POD_ANNOTATIONS) else { return Ok(None) };
    let metadata = json!({ "metadata": { "annotations": annotations } });
    serde_json::from_value(metadata).map(Some).map_err(|error| {
        Error::new(Code::INVALID_CONFIG, format!("runtimeConfig.{POD_ANNOTATIONS} cannot be read"))
            .caused_by(&error)
    })
}

/// Which pod this is, as container runtimes say it in CNI_ARGS.
fn pod_of(args: &Args) -> Result<Option<PodId>, Error> {
    let (Some(namespace), Some(name)) = (args.value("K8S_POD_NAMESPACE"), args.value("K8S_POD_NAME")) else {
        return Ok(None);
    };
    Ok(Some(PodId {
        namespace: parse_label(namespace).map_err(|error| error.within("CNI_ARGS: K8S_POD_NAMESPACE"))?,
        name: name.to_owned(),
        uid: args.value("K8S_POD_UID").unwrap_or_default().to_owned(),
    }))
}

fn parse_label(text: &str) -> Result<Label, Error> {
    text.parse()
        .map_err(|error: cluster::LabelError| Error::new(Code::INVALID_ENVIRONMENT, error.to_string()))
}

/// The source of networks, opened when it is first needed: most pods ask for no network.
struct Lazy<'a> {
    settings: &'a Settings,
    opened: std::cell::OnceCell<Networks>,
}

impl<'a> Lazy<'a> {
    fn new(settings: &'a Settings) -> Self {
        Lazy { settings, opened: std::cell::OnceCell::new() }
    }

    fn get(&self) -> Result<&Networks, Error> {
        if let Some(networks) = self.opened.get() {
            return Ok(networks);
        }
        let networks = self.settings.networks()?;
        Ok(self.opened.get_or_init(|| networks))
    }
}
