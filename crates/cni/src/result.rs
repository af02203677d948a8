//! The result of an ADD: kept in the form of the newest version, written and read in any.
//!
//! <https://www.cni.dev/docs/spec/#add-success>

mod old;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Version;

/// What an ADD has made: interfaces, addresses on them, routes, name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Success {
    /// The interfaces that were made or moved, in the container and outside.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// The routes.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The name servers.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface. Names and hardware addresses are text here, since other plugins' results hold what they like
/// (InfiniBand addresses have 20 bytes) and must still be passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub mac: Option<String>,
    /// Its MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace that it is in; none for the host's.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub sandbox: Option<String>,
    /// A socket to reach it by, for what is no kernel interface (since 1.1.0).
    #[serde(rename = "socketPath", default, skip_serializing_if = "is_empty")]
    pub socket_path: Option<String>,
    /// The PCI address behind it (since 1.1.0).
    #[serde(rename = "pciID", default, skip_serializing_if = "is_empty")]
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The index of its interface in [`Success::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the length of its prefix; host bits are kept.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop; the interface's gateway when there is none.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along the path in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Maximal segment size to advertise, in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric; lower is better (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope, as in `rtnetlink(7)` (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with nothing but a destination and perhaps a next hop.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// What a resolver needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, the preferred one first.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "is_empty")]
    pub domain: Option<String>,
    /// Domains to search.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nameservers.is_empty()
            && is_empty(&self.domain)
            && self.search.is_empty()
            && self.options.is_empty()
    }
}

/// Why a result cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadResultError {
    /// It is in a version that is not known here.
    #[error("its cniVersion is unknown")]
    Version(#[source] crate::UnknownVersion),
    /// It is not what a result of its version looks like.
    #[error("it is not a result of version {version}")]
    Shape {
        /// The version that it says it has.
        version: Version,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl Success {
    /// Reads a result in the version that it names; `or` says which is meant when it names none (else 0.1.0).
    ///
    /// # Errors
    /// When the version is unknown, or the result is not one of its version.
    pub fn from_value(value: &Value, or: Option<Version>) -> Result<Success, ReadResultError> {
        let Value::Object(object) = value else {
            // serde would read a struct from a list, too.
            let source = serde_json::Error::custom("it is not an object");
            return Err(ReadResultError::Shape { version: or.unwrap_or(Version::V0_1_0), source });
        };
        let named = match object.get("cniVersion") {
            Some(Value::String(text)) if !text.is_empty() => {
                Some(text.parse().map_err(ReadResultError::Version)?)
            }
            _ => None,
        };
        let version = named.or(or).unwrap_or(Version::V0_1_0);
        let read = if version >= Version::V0_3_0 {
            Success::deserialize(value).and_then(check_indexes)
        } else {
            old::Success::deserialize(value).map(Success::from)
        };
        read.map_err(|source| ReadResultError::Shape { version, source })
    }

    /// Writes the result in a version. What the version has no place for is left out.
    #[must_use]
    pub fn to_value(&self, version: Version) -> Value {
        let written = if version >= Version::V0_3_0 {
            serde_json::to_value(self)
        } else {
            serde_json::to_value(old::Success::from(self.clone()))
        };
        // Nothing in these types can fail to be written: keys are text, numbers are whole.
        let mut object = match written {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        if (Version::V0_3_0..Version::V1_0_0).contains(&version) {
            to_0_4(&mut object);
        }
        object.insert("cniVersion".to_owned(), version.as_str().into());
        Value::Object(object)
    }

    /// The interfaces that are in a container rather than on the host.
    pub fn container_interfaces(&self) -> impl Iterator<Item = (usize, &Interface)> {
        self.interfaces.iter().enumerate().filter(|(_, interface)| !is_empty(&interface.sandbox))
    }
}

/// 0.3.0 to 0.4.0 say the family of each address, and know neither `mtu`, `socketPath` nor `pciID` of an interface
/// nor anything of a route but `dst` and `gw`.
fn to_0_4(object: &mut Map<String, Value>) {
    let objects = |value: Option<&mut Value>, change: &dyn Fn(&mut Map<String, Value>)| {
        for item in value.and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(item) = item {
                change(item);
            }
        }
    };
    objects(object.get_mut("interfaces"), &|interface| {
        interface.retain(|key, _| matches!(key.as_str(), "name" | "mac" | "sandbox"));
    });
    objects(object.get_mut("routes"), &|route| {
        route.retain(|key, _| matches!(key.as_str(), "dst" | "gw"));
    });
    objects(object.get_mut("ips"), &|ip| {
        let six = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
        ip.insert("version".to_owned(), if six { "6" } else { "4" }.into());
    });
}

/// An index that leads nowhere would be followed by every reader after us.
fn check_indexes(success: Success) -> Result<Success, serde_json::Error> {
    let count = success.interfaces.len();
    match success.ips.iter().find(|ip| ip.interface.is_some_and(|index| index >= count)) {
        // Some IPAM plugins name interface 0 while their result has no interfaces: it is the caller's to fill in.
        Some(_) if count == 0 => Ok(success),
        Some(ip) => Err(serde_json::Error::custom(format!(
            "address {} is on interface {}, of {count}",
            ip.address,
            ip.interface.unwrap_or_default()
        ))),
        None => Ok(success),
    }
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_ref().is_none_or(String::is_empty)
}

/// Go writes an empty list as `null`.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Go writes an address that is not set as an empty string.
fn empty_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => text.parse().map(Some).map_err(D::Error::custom),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
