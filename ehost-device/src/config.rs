//! Our keys of the network configuration: what was typed, and what it means.

use std::path::{Component, PathBuf};
use std::time::Duration;

use cni::delegate::Plugins;
use cni::{Code, Config, Dns, Error, SearchPath};
use ledger::Ledger;
use nic::{DeviceId, MacAddr};
use serde::Deserialize;

const STATE: &str = "/var/lib/virtnet";
/// In seconds. With an IPAM plugin that hangs in ADD and in the DEL that undoes it, this counts twice.
const IPAM_TIMEOUT: u32 = 30;
const LONGEST_IPAM_TIMEOUT: u32 = 600;

/// What an ADD is to do.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) selector: Selector,
    /// `allowLifeline`: move the NIC even if it carries the node.
    pub(crate) allow_lifeline: bool,
    /// `mac` or `runtimeConfig.mac`: what the pod is to see.
    pub(crate) mac: Option<MacAddr>,
    /// `mtu` in bytes.
    pub(crate) mtu: Option<u32>,
    /// `dns`: in place of what IPAM says.
    pub(crate) dns: Dns,
    pub(crate) surroundings: Surroundings,
}

/// What every verb needs, and DEL must find even in a configuration that is otherwise nonsense.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) ledger: Ledger,
    ipam_timeout: Duration,
}

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

impl Settings {
    pub(crate) fn read(config: &Config) -> Result<Settings, Error> {
        let mac = match runtime_text(config, "mac") {
            Some(mac) => Some(mac),
            None => text(config, "mac")?,
        };
        Ok(Settings {
            selector: selector(config)?,
            allow_lifeline: key(config, "allowLifeline", "true or false")?.unwrap_or(false),
            mac: mac.map(|mac| unicast("mac", mac)).transpose()?,
            mtu: key(config, "mtu", "a number of bytes")?,
            dns: key(config, "dns", "an object of name servers, domain, search list and options")?
                .unwrap_or_default(),
            surroundings: Surroundings::read(config)?,
        })
    }
}

impl Surroundings {
    pub(crate) fn read(config: &Config) -> Result<Surroundings, Error> {
        Ok(Surroundings::new(state_folder(config)?, ipam_timeout(config)?))
    }

    /// For DEL: a key that is wrong is as good as absent. An ADD with it has been refused, and the DEL that follows must
    /// not be, or the pod would never end.
    pub(crate) fn read_leniently(config: &Config) -> Surroundings {
        let told = |error: &Error| eprintln!("ehost-device: {error}: the usual value is taken");
        Surroundings::new(
            state_folder(config).inspect_err(told).unwrap_or(STATE),
            ipam_timeout(config).inspect_err(told).unwrap_or(IPAM_TIMEOUT),
        )
    }

    fn new(state: &str, seconds: u32) -> Surroundings {
        Surroundings { ledger: Ledger::at(state), ipam_timeout: Duration::from_secs(seconds.into()) }
    }

    pub(crate) fn plugins(&self, path: &SearchPath) -> Plugins {
        Plugins::on(path.clone()).with_deadline(self.ipam_timeout)
    }
}

fn state_folder(config: &Config) -> Result<&str, Error> {
    let state = text(config, "stateDir")?.unwrap_or(STATE);
    if state.starts_with('/') {
        Ok(state)
    } else {
        Err(wrong(format!("stateDir {state:?} is not an absolute path")))
    }
}

fn ipam_timeout(config: &Config) -> Result<u32, Error> {
    let seconds = key(config, "ipamTimeout", "a number of seconds")?.unwrap_or(IPAM_TIMEOUT);
    if (1..=LONGEST_IPAM_TIMEOUT).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(wrong(format!("ipamTimeout {seconds} is not from 1 to {LONGEST_IPAM_TIMEOUT} seconds")))
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

fn runtime_text<'a>(config: &'a Config, capability: &str) -> Option<&'a str> {
    config.runtime(capability)?.as_str().filter(|text| !text.is_empty())
}

/// A text; Go programs write what is not set as an empty one.
fn text<'a>(config: &'a Config, name: &str) -> Result<Option<&'a str>, Error> {
    key::<&str>(config, name, "a string").map(|text| text.filter(|text| !text.is_empty()))
}

/// A key of any type; null is as good as absent.
fn key<'a, T: Deserialize<'a>>(config: &'a Config, name: &str, kind: &str) -> Result<Option<T>, Error> {
    match config.object().get(name) {
        None => Ok(None),
        Some(value) => Option::<T>::deserialize(value)
            .map_err(|error| wrong(format!("{name} is not {kind}")).caused_by(&error)),
    }
}

fn unicast(key: &str, text: &str) -> Result<MacAddr, Error> {
    let mac: MacAddr = text.parse().map_err(|error: nic::ParseMacError| wrong(format!("{key}: {error}")))?;
    if mac.is_unicast() {
        Ok(mac)
    } else {
        Err(wrong(format!("{key}: {mac} is not an address that a NIC can own")))
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(Code::INVALID_CONFIG, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(keys: Value) -> Result<Settings, Error> {
        let mut object = json!({"cniVersion": "1.0.0", "name": "n", "type": "ehost-device"});
        object.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Settings::read(&Config::from_object(object.as_object().unwrap().clone()).unwrap())
    }

    fn device(id: &str) -> Selector {
        Selector::Device(id.parse().unwrap())
    }

    /// Every key that is ours or goes to the IPAM plugin.
    const KEYS: [&str; 18] = [
        "cniVersion",
        "name",
        "type",
        "ipam",
        "capabilities",
        "runtimeConfig",
        "deviceID",
        "pciBusID",
        "device",
        "hwaddr",
        "kernelpath",
        "mac",
        "mtu",
        "dns",
        "ipamTimeout",
        "allowLifeline",
        "stateDir",
        "prevResult",
    ];

    /// The JSON in a document's fenced blocks, bare or inside YAML, that names this plugin.
    fn examples(document: &str) -> Vec<Value> {
        document
            .split("```")
            .filter(|block| block.contains(r#""type": "ehost-device""#))
            .map(|block| {
                let json = &block[block.find('{').unwrap()..=block.rfind('}').unwrap()];
                serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
            })
            .collect()
    }

    #[test]
    fn the_examples_of_the_documents_are_accepted() {
        let definition = concat!("```", include_str!("../../deployments/virt-crd.yaml"));
        let readme = include_str!("../README.md");
        let mut count = 0;
        for document in [include_str!("../../docs/guide.md"), readme, definition] {
            for mut example in examples(document) {
                count += 1;
                let object = example.as_object_mut().unwrap();
                let unknown: Vec<_> = object.keys().filter(|key| !KEYS.contains(&key.as_str())).collect();
                assert!(unknown.is_empty(), "{unknown:?}");
                if !["device", "hwaddr", "kernelpath"].iter().any(|key| object.contains_key(*key)) {
                    // As a meta plugin does for a network with a resource.
                    object.insert("deviceID".to_owned(), "0000:00:0a.0".into());
                }
                Settings::read(&Config::from_object(object.clone()).unwrap()).unwrap();
            }
        }
        assert!(count >= 5, "only {count} examples were found");
        for key in KEYS.iter().skip(6).filter(|key| **key != "prevResult") {
            assert!(readme.contains(&format!("`{key}`")), "{key} is not in the README");
        }
    }

    #[test]
    fn what_the_runtime_says_goes_before_what_the_network_says() {
        let selector = |keys| read(keys).unwrap().selector;
        assert_eq!(
            selector(
                json!({"deviceID": "0000:00:0a.0", "device": "eth1", "runtimeConfig": {"deviceID": "0000:00:0a.0"}})
            ),
            device("0000:00:0a.0")
        );
        assert_eq!(
            selector(json!({"deviceID": "0000:00:09.0", "pciBusID": "0000:00:09.0", "device": "eth1"})),
            device("0000:00:09.0")
        );
        assert_eq!(selector(json!({"pciBusID": "virtio3", "deviceID": ""})), device("virtio3"));
        assert_eq!(selector(json!({"device": "eth1", "hwaddr": ""})), Selector::Name("eth1".to_owned()));
        assert_eq!(
            selector(json!({"hwaddr": "52:54:00:C4:E6:CD"})),
            Selector::Mac(MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd]))
        );
    }

    #[test]
    fn a_kernel_path_names_the_device_with_or_without_the_interfaces_folder() {
        for path in [
            "/sys/devices/pci0000:ff/0000:ff:0a.0",
            "/sys/devices/pci0000:ff/0000:ff:0a.0/net",
            "/sys/devices/pci0000:ff/0000:ff:0a.0/net/eth7",
        ] {
            assert_eq!(read(json!({"kernelpath": path})).unwrap().selector, device("0000:ff:0a.0"), "{path}");
        }
        assert_eq!(
            read(json!({"kernelpath": "/sys/devices/virtual/net/veth0"})).unwrap().selector,
            Selector::Name("veth0".to_owned())
        );
    }

    #[test]
    fn bad_configurations_are_refused_in_words() {
        let refused = |keys: Value| {
            let error = read(keys).unwrap_err();
            assert_eq!(error.code, Code::INVALID_CONFIG);
            error.message
        };
        let all: Vec<String> = [
            json!({}),
            json!({"deviceID": "../../etc"}),
            json!({"deviceID": 7}),
            json!({"deviceID": "0000:00:09.0", "pciBusID": "0000:00:0a.0"}),
            json!({"deviceID": "0000:00:09.0", "runtimeConfig": {"deviceID": "0000:00:0a.0"}}),
            json!({"device": "eth1", "hwaddr": "52:54:00:c4:e6:cd"}),
            json!({"hwaddr": "52:54:00"}),
            json!({"hwaddr": "ff:ff:ff:ff:ff:ff"}),
            json!({"kernelpath": "/etc/passwd"}),
            json!({"kernelpath": "/sys/devices/../../etc"}),
            json!({"device": "eth1", "stateDir": "relative"}),
            json!({"device": "eth1", "ipamTimeout": 0}),
            json!({"device": "eth1", "mtu": -1}),
            json!({"device": "eth1", "dns": "192.0.2.53"}),
            json!({"device": "eth1", "allowLifeline": "yes"}),
        ]
        .into_iter()
        .map(refused)
        .collect();
        insta::assert_snapshot!(all.join("\n"), @r#"
        no device is named: give one of deviceID, pciBusID, device, hwaddr or kernelpath
        deviceID: "../../etc" is not a device ID: only letters, digits and . : _ - may stand in it, and no dot first
        deviceID is not a string
        deviceID "0000:00:09.0" and pciBusID "0000:00:0a.0" are not the same
        runtimeConfig.deviceID "0000:00:0a.0" and deviceID "0000:00:09.0" are not the same
        give only one of device, hwaddr and kernelpath
        hwaddr: "52:54:00" is not a MAC address (expected six pairs of hexadecimal digits: 52:54:00:c4:e6:cd)
        hwaddr: ff:ff:ff:ff:ff:ff is not an address that a NIC can own
        kernelpath "/etc/passwd" does not lead below /sys/devices
        kernelpath "/sys/devices/../../etc" does not lead below /sys/devices
        stateDir "relative" is not an absolute path
        ipamTimeout 0 is not from 1 to 600 seconds
        mtu is not a number of bytes
        dns is not an object of name servers, domain, search list and options
        allowLifeline is not true or false
        "#);
    }
}
