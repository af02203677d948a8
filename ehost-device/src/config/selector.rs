//! Which NIC the configuration means.

use std::fmt;
use std::path::{Component, PathBuf};

use cni::{Config, Error};
use nic::{DeviceId, MacAddr};

use super::{runtime_text, text, unicast, wrong};

/// Which NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// By the device behind it: `runtimeConfig.deviceID`, `deviceID`, `pciBusID`, `kernelpath`.
    Device(DeviceId),
    /// By its name or an alternative name: `device`.
    Name(String),
    /// By its MAC: `hwaddr`.
    Mac(MacAddr),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Device(id) => id.fmt(f),
            Selector::Name(name) => name.fmt(f),
            Selector::Mac(mac) => mac.fmt(f),
        }
    }
}

/// Which NIC the configuration means. A device ID, which a meta plugin hands over for this very pod, goes before what the
/// network's author wrote.
pub(crate) fn selector(config: &Config) -> Result<Selector, Error> {
    let device = |key: &str, id: &str| {
        id.parse::<DeviceId>().map(Selector::Device).map_err(|error| wrong(format!("{key}: {error}")))
    };
    let named = [
        ("runtimeConfig.deviceID", runtime_text(config, "deviceID")),
        ("deviceID", text(config, "deviceID")?),
        ("pciBusID", text(config, "pciBusID")?),
    ];
    let mut named = named.into_iter().filter_map(|(key, id)| Some((key, id?)));
    if let Some((key, id)) = named.next() {
        // A meta plugin writes the pod's own device into all of them. Where they differ, one is the network author's
        // and one the kubelet's, and the NIC of another pod might be taken.
        return match named.find(|(_, other)| *other != id) {
            Some((second, other)) => {
                Err(wrong(format!("{key} {id:?} and {second} {other:?} are not the same")))
            }
            None => device(key, id),
        };
    }
    match (text(config, "device")?, text(config, "hwaddr")?, text(config, "kernelpath")?) {
        (Some(name), None, None) => Ok(Selector::Name(name.to_owned())),
        (None, Some(mac), None) => Ok(Selector::Mac(unicast("hwaddr", mac)?)),
        (None, None, Some(path)) => by_kernel_path(path),
        (None, None, None) => {
            Err(wrong("no device is named: give one of deviceID, pciBusID, device, hwaddr or kernelpath"))
        }
        _ => Err(wrong("give only one of device, hwaddr and kernelpath")),
    }
}

/// The device that a path below /sys/devices leads to; the interface's folder and `net` may follow it.
fn by_kernel_path(path: &str) -> Result<Selector, Error> {
    let refuse = |why: &str| wrong(format!("kernelpath {path:?} {why}"));
    // /sys/class/net/eth1 and /sys/bus/pci/devices/... lead there. While the NIC is in a pod its own folder is gone.
    let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let below =
        resolved.strip_prefix("/sys/devices").map_err(|_| refuse("does not lead below /sys/devices"))?;
    let mut parts = Vec::new();
    for component in below.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(|| refuse("is not UTF-8"))?),
            _ => return Err(refuse("is not a plain path")),
        }
    }
    match parts.as_slice() {
        ["virtual", "net", name] => Ok(Selector::Name((*name).to_owned())),
        [.., device, "net", _] | [.., device, "net"] | [.., device] => device
            .parse()
            .map(Selector::Device)
            .map_err(|error: nic::NameError| refuse(&format!("names no device: {error}"))),
        [] => Err(refuse("names no device")),
    }
}
