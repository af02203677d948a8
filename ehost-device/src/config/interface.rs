//! What the interface is to be in the pod, beside what IPAM says.

use std::collections::BTreeMap;

use cni::{Config, Error, Route};
use linux::Sysctl;
use nic::MacAddr;
use serde::Deserialize;
use serde_json::Value;

use super::{key, runtime_text, text, unicast, wrong};

/// The largest tag of IEEE 802.1Q; 0 means none, 4095 is reserved.
const LARGEST_TAG: u16 = 4094;
/// The longest value of a sysctl, in bytes; the kernel's are numbers.
const LONGEST_VALUE: usize = 64;
/// The keys of a route, as the CNI specification names them.
const ROUTE_KEYS: [&str; 7] = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

/// The keys for the interface. What is `None` or empty stays as it is.
#[derive(Debug, Default)]
pub(crate) struct Interface {
    /// `mac` or `runtimeConfig.mac`: what the pod is to see.
    pub(crate) mac: Option<MacAddr>,
    /// `mtu` in bytes.
    pub(crate) mtu: Option<u32>,
    /// `queues`: how many the NIC is to use.
    pub(crate) queues: Option<u32>,
    /// `ring`: how many packets they are to hold.
    pub(crate) ring: Option<Ring>,
    /// `vlan`: the interface is a VLAN of this tag upon the NIC.
    pub(crate) vlan: Option<u16>,
    /// `sysctl`, in the order of their names.
    pub(crate) sysctls: Vec<(Sysctl, String)>,
    /// `routes`, beside those that IPAM names.
    pub(crate) routes: Vec<Route>,
    /// `keepAddresses`: the addresses and routes that the NIC has at home come along.
    pub(crate) keep_addresses: bool,
}

/// Numbers of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ring {
    pub(crate) rx: Option<u32>,
    pub(crate) tx: Option<u32>,
}

impl Interface {
    pub(super) fn read(config: &Config) -> Result<Interface, Error> {
        let mac = match runtime_text(config, "mac") {
            Some(mac) => Some(mac),
            None => text(config, "mac")?,
        };
        let keep_addresses = key(config, "keepAddresses", "true or false")?.unwrap_or(false);
        let vlan = vlan(config)?;
        if keep_addresses && vlan.is_some() {
            return Err(wrong(
                "keepAddresses and vlan: the addresses are the NIC's, and the pod is to use the VLAN upon it",
            ));
        }
        Ok(Interface {
            mac: mac.map(|mac| unicast("mac", mac)).transpose()?,
            mtu: key(config, "mtu", "a number of bytes")?,
            queues: key(config, "queues", "a number of queues")?,
            ring: key(config, "ring", "an object with rx, tx or both, numbers of packets")?,
            vlan,
            sysctls: sysctls(config)?,
            routes: routes(config)?,
            keep_addresses,
        })
    }

    /// The keys that ask something of an interface, of those that are there.
    pub(crate) fn wishes(&self) -> Vec<&'static str> {
        let wishes = [
            (self.mac.is_some(), "mac"),
            (self.mtu.is_some(), "mtu"),
            (self.queues.is_some(), "queues"),
            (self.ring.is_some(), "ring"),
            (self.vlan.is_some(), "vlan"),
            (!self.sysctls.is_empty(), "sysctl"),
            (!self.routes.is_empty(), "routes"),
            (self.keep_addresses, "keepAddresses"),
        ];
        wishes.into_iter().filter_map(|(there, key)| there.then_some(key)).collect()
    }
}

fn vlan(config: &Config) -> Result<Option<u16>, Error> {
    let tag = key(config, "vlan", "a tag")?;
    match tag {
        Some(tag) if !(1..=LARGEST_TAG).contains(&tag) => {
            Err(wrong(format!("vlan {tag} is not from 1 to {LARGEST_TAG}")))
        }
        tag => Ok(tag),
    }
}

fn sysctls(config: &Config) -> Result<Vec<(Sysctl, String)>, Error> {
    let all: BTreeMap<String, Value> = key(config, "sysctl", "an object of settings")?.unwrap_or_default();
    all.into_iter().map(sysctl).collect()
}

fn sysctl((name, value): (String, Value)) -> Result<(Sysctl, String), Error> {
    let setting =
        name.parse().map_err(|error: linux::ParseSysctlError| wrong(format!("sysctl {name:?}: {error}")))?;
    let value = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => return Err(wrong(format!("sysctl {name:?}: its value is neither a string nor a number"))),
    };
    let plain = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if value.is_empty() || value.len() > LONGEST_VALUE || !plain {
        return Err(wrong(format!(
            "sysctl {name:?}: its value is not from 1 to {LONGEST_VALUE} printable characters"
        )));
    }
    Ok((setting, value))
}

fn routes(config: &Config) -> Result<Vec<Route>, Error> {
    let all: Vec<Value> = key(config, "routes", "a list of routes")?.unwrap_or_default();
    all.iter().enumerate().map(|(number, value)| route(number, value)).collect()
}

fn route(number: usize, value: &Value) -> Result<Route, Error> {
    let refuse = |why: String| wrong(format!("routes[{number}]: {why}"));
    let keys = value.as_object().ok_or_else(|| refuse("it is not an object".to_owned()))?;
    // A typo must not make another route of it.
    if let Some(unknown) = keys.keys().find(|key| !ROUTE_KEYS.contains(&key.as_str())) {
        return Err(refuse(format!("{unknown:?} is none of {}", ROUTE_KEYS.join(", "))));
    }
    Route::deserialize(value).map_err(|error| refuse(error.to_string()))
}
