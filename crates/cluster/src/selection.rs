//! The network selection annotation: which networks a pod asks for, in which order, under which names.
//!
//! Two forms: a JSON list of objects, taken when any of `[ { "` is in the text, or `[namespace/]name[@interface]`
//! separated by commas. Network Custom Resource Definition De-facto Standard 1.3, section 4.1.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use nic::{IfName, MacAddr};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Label;

/// The annotation.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// Kubernetes allows 256 KiB for all annotations of an object together.
const LARGEST: usize = 256 << 10;
/// More NICs than this no pod has; each costs a call of a plugin.
const MOST: usize = 64;

/// One network that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The network's namespace: the pod's own unless it says otherwise.
    pub namespace: Label,
    /// The network's name.
    pub name: Label,
    /// What the interface is to be called in the pod: as asked for, else `net1`, `net2`, ... by position.
    pub interface: IfName,
    /// Addresses asked for, with or without the length of a prefix, as written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// The hardware address asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The InfiniBand GUID asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infiniband_guid: Option<String>,
    /// Ports to map, for the capability `portMappings`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<Map<String, Value>>,
    /// Limits, for the capability `bandwidth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Map<String, Value>>,
    /// What the plugin gets as `args.cni`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_args: Option<Map<String, Value>>,
    /// Gateways of the default routes that this network is to have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_route: Vec<IpAddr>,
    /// The IPAM claim asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam_claim_reference: Option<String>,
}

/// Why an annotation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// It is larger than Kubernetes would store.
    #[error("annotation {NETWORKS} has {bytes} bytes, at most {LARGEST} are read")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// It asks for more networks than a pod could have.
    #[error("annotation {NETWORKS} asks for {count} networks, at most {MOST} are allowed")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// It looks like JSON, and is not a list.
    #[error("annotation {NETWORKS} is not a JSON list")]
    Json(#[source] serde_json::Error),
    /// One of the networks is wrong.
    #[error("annotation {NETWORKS}, item {number} ({item})")]
    Item {
        /// Which one, from 1.
        number: usize,
        /// What stands there, shortened.
        item: String,
        /// What is wrong with it.
        #[source]
        source: Box<FaultyItem>,
    },
}

/// What is wrong with one network of the annotation.
#[derive(Debug, thiserror::Error)]
pub enum FaultyItem {
    /// `a/b/c`, `a@b@c`.
    #[error("expected [namespace/]name[@interface]")]
    Form,
    /// `["a"]`.
    #[error("expected an object with the key name")]
    NoObject,
    /// It lacks `name`, or has a key of the wrong type or one that is unknown.
    #[error(transparent)]
    Object(serde_json::Error),
    /// The value of a key has not the form that it should have.
    #[error("{key}: {why}")]
    Key {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Device IDs come from the kubelet, never from the pod's author.
    #[error("deviceID may not be chosen by the pod")]
    DeviceId,
    /// Two networks would have one interface.
    #[error("interface {interface} is taken already")]
    Interface {
        /// The name that both want.
        interface: IfName,
    },
}

/// Reads the annotation of a pod in `namespace`. `taken` is the interface of the cluster's network.
///
/// # Errors
/// When anything in it is wrong: a pod that is half connected helps nobody.
pub fn selections(text: &str, namespace: &Label, taken: &IfName) -> Result<Vec<Selection>, SelectionError> {
    if text.len() > LARGEST {
        return Err(SelectionError::TooLarge { bytes: text.len() });
    }
    let requests = if text.contains(['[', '{', '"']) { from_json(text)? } else { from_list(text)? };
    let mut interfaces = BTreeSet::from([taken.clone()]);
    let mut selections = Vec::new();
    for (index, (item, request)) in requests.into_iter().enumerate() {
        let selection = request
            .select(index + 1, namespace)
            .and_then(|selection| {
                let interface = selection.interface.clone();
                if interfaces.insert(interface.clone()) {
                    Ok(selection)
                } else {
                    Err(FaultyItem::Interface { interface })
                }
            })
            .map_err(|fault| faulty(index, &item, fault))?;
        selections.push(selection);
    }
    Ok(selections)
}

fn faulty(index: usize, item: &str, fault: FaultyItem) -> SelectionError {
    let item = item.chars().take(80).collect();
    SelectionError::Item { number: index + 1, item, source: Box::new(fault) }
}

/// One item as it is written; both forms come to this.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Request {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    // Older versions of Multus called it interfaceRequest.
    #[serde(default, alias = "interfaceRequest")]
    interface: Option<String>,
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    infiniband_guid: Option<String>,
    #[serde(default, rename = "portMappings")]
    port_mappings: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    bandwidth: Option<Map<String, Value>>,
    #[serde(default)]
    cni_args: Option<Map<String, Value>>,
    #[serde(default)]
    default_route: Option<Vec<String>>,
    #[serde(default)]
    ipam_claim_reference: Option<String>,
    #[serde(default, rename = "deviceID")]
    device_id: Option<Value>,
}

fn from_json(text: &str) -> Result<Vec<(String, Request)>, SelectionError> {
    let items: Vec<Value> = serde_json::from_str(text).map_err(SelectionError::Json)?;
    check_count(items.len())?;
    let read = |(index, item): (usize, Value)| {
        let shown = item.to_string();
        if !item.is_object() {
            return Err(faulty(index, &shown, FaultyItem::NoObject));
        }
        match Request::deserialize(&item) {
            Ok(request) => Ok((shown, request)),
            Err(error) => Err(faulty(index, &shown, FaultyItem::Object(error))),
        }
    };
    items.into_iter().enumerate().map(read).collect()
}

fn from_list(text: &str) -> Result<Vec<(String, Request)>, SelectionError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    check_count(text.split(',').count())?;
    let read = |(index, item): (usize, &str)| {
        let item = item.trim();
        let request = from_item(item).ok_or_else(|| faulty(index, item, FaultyItem::Form))?;
        Ok((item.to_owned(), request))
    };
    text.split(',').enumerate().map(read).collect()
}

fn check_count(count: usize) -> Result<(), SelectionError> {
    if count > MOST { Err(SelectionError::TooMany { count }) } else { Ok(()) }
}

/// `[namespace/]name[@interface]`.
fn from_item(item: &str) -> Option<Request> {
    let (network, interface) = match item.split_once('@') {
        Some((network, interface)) => (network, Some(interface)),
        None => (item, None),
    };
    let (namespace, name) = match network.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, network),
    };
    let odd = name.contains('/') || interface.is_some_and(|interface| interface.contains(['@', '/']));
    (!odd).then(|| Request {
        name: name.to_owned(),
        namespace: namespace.map(str::to_owned),
        interface: interface.map(str::to_owned),
        ..Request::default()
    })
}

impl Request {
    fn select(self, number: usize, own: &Label) -> Result<Selection, FaultyItem> {
        if self.device_id.is_some() {
            return Err(FaultyItem::DeviceId);
        }
        let interface = self.interface.unwrap_or_else(|| format!("net{number}"));
        let mac: Option<MacAddr> = self.mac.map(|text| parse("mac", &text)).transpose()?;
        if let Some(mac) = mac.filter(|mac| !mac.is_unicast()) {
            let why = format!("{mac} cannot be an interface's address");
            return Err(FaultyItem::Key { key: "mac", why });
        }
        let ips = self.ips.unwrap_or_default();
        check_count(ips.len()).map_err(|_| too_many("ips"))?;
        for ip in &ips {
            // Either form: IPAM plugins take both, and the length of the prefix is theirs to say.
            if ip.parse::<IpNet>().is_err() {
                parse::<IpAddr>("ips", ip)?;
            }
        }
        let port_mappings = self.port_mappings.unwrap_or_default();
        check_count(port_mappings.len()).map_err(|_| too_many("portMappings"))?;
        let gateways = self.default_route.unwrap_or_default();
        check_count(gateways.len()).map_err(|_| too_many("default-route"))?;
        Ok(Selection {
            namespace: self
                .namespace
                .map(|text| parse("namespace", &text))
                .transpose()?
                .unwrap_or_else(|| own.clone()),
            name: parse("name", &self.name)?,
            interface: parse("interface", &interface)?,
            ips,
            mac,
            infiniband_guid: self.infiniband_guid,
            port_mappings,
            bandwidth: self.bandwidth,
            cni_args: self.cni_args,
            default_route: gateways
                .iter()
                .map(|text| parse("default-route", text))
                .collect::<Result<_, _>>()?,
            ipam_claim_reference: self.ipam_claim_reference,
        })
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(key: &'static str, text: &str) -> Result<T, FaultyItem> {
    text.parse().map_err(|error: T::Err| {
        let shown: String = text.chars().take(80).collect();
        let why = error.to_string();
        // Not all errors of the standard library say what they are about.
        FaultyItem::Key { key, why: if why.contains(&shown) { why } else { format!("{shown:?}: {why}") } }
    })
}

fn too_many(key: &'static str) -> FaultyItem {
    FaultyItem::Key { key, why: format!("more than {MOST} items") }
}

#[cfg(test)]
mod tests;
