//! Our keys of the network configuration: what was typed, and what it means.

mod insistence;
mod interface;
mod selector;

use std::time::Duration;

use cni::delegate::Plugins;
use cni::{Code, Config, Dns, Error, SearchPath};
use kubelet_api::KubeletDir;
use ledger::Ledger;
use nic::MacAddr;
use serde::Deserialize;

use crate::log::Sink;

pub(crate) use insistence::Insistence;
pub(crate) use interface::{Interface, Ring};
pub(crate) use selector::{Selector, selector};

const STATE: &str = "/var/lib/virtnet";
/// In seconds. With an IPAM plugin that hangs in ADD and in the DEL that undoes it, this counts twice.
const IPAM_TIMEOUT: u32 = 30;
const LONGEST_IPAM_TIMEOUT: u32 = 600;

/// What an ADD is to do.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) selector: Selector,
    /// `allowLifeline`: move the NIC even if it carries the node.
    pub(crate) lifeline: Insistence,
    /// `allowUnallocated`: move the NIC even if the kubelet did not give it to the pod.
    pub(crate) unallocated: Insistence,
    /// `allowAnotherNic`: move the NIC even if it is another than the one that was known by its device ID.
    pub(crate) another_nic: Insistence,
    /// `kubeletDir`: whom to ask what the pod was given.
    pub(crate) kubelet: KubeletDir,
    pub(crate) interface: Interface,
    /// `dns`: in place of what IPAM says.
    pub(crate) dns: Dns,
    pub(crate) surroundings: Surroundings,
}

/// What every verb needs, and DEL must find even in a configuration that is otherwise nonsense.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) ledger: Ledger,
    pub(crate) ipam_timeout: Duration,
}

impl Settings {
    pub(crate) fn read(config: &Config) -> Result<Settings, Error> {
        Sink::read(config)?;
        Ok(Settings {
            selector: selector(config)?,
            lifeline: Insistence::read(config, "allowLifeline")?,
            unallocated: Insistence::read(config, "allowUnallocated")?,
            another_nic: Insistence::read(config, "allowAnotherNic")?,
            kubelet: absolute(config, "kubeletDir")?.map_or_else(KubeletDir::default, KubeletDir::at),
            interface: Interface::read(config)?,
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
        let told = |error: &Error| cni::tell!("ehost-device: {error}: the usual value is taken");
        Surroundings::new(
            state_folder(config).inspect_err(told).unwrap_or(STATE),
            ipam_timeout(config).inspect_err(told).unwrap_or(IPAM_TIMEOUT),
        )
    }

    fn new(state: &str, seconds: u32) -> Surroundings {
        Surroundings { ledger: Ledger::at(state), ipam_timeout: Duration::from_secs(seconds.into()) }
    }

    pub(crate) fn plugins(&self, path: &SearchPath) -> Plugins {
        Plugins::on(path.clone()).with_deadline(self.ipam_timeout).with_before(linux::fault::before_program)
    }
}

fn state_folder(config: &Config) -> Result<&str, Error> {
    Ok(absolute(config, "stateDir")?.unwrap_or(STATE))
}

fn ipam_timeout(config: &Config) -> Result<u32, Error> {
    let seconds = key(config, "ipamTimeout", "a number of seconds")?.unwrap_or(IPAM_TIMEOUT);
    if (1..=LONGEST_IPAM_TIMEOUT).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(wrong(format!("ipamTimeout {seconds} is not from 1 to {LONGEST_IPAM_TIMEOUT} seconds")))
    }
}

fn runtime_text<'a>(config: &'a Config, capability: &str) -> Option<&'a str> {
    config.runtime(capability)?.as_str().filter(|text| !text.is_empty())
}

/// A text; Go programs write what is not set as an empty one.
pub(crate) fn text<'a>(config: &'a Config, name: &str) -> Result<Option<&'a str>, Error> {
    key::<&str>(config, name, "a string").map(|text| text.filter(|text| !text.is_empty()))
}

/// A path from the root.
fn absolute<'a>(config: &'a Config, name: &str) -> Result<Option<&'a str>, Error> {
    match text(config, name)? {
        Some(path) if !path.starts_with('/') => {
            Err(wrong(format!("{name} {path:?} is not an absolute path")))
        }
        path => Ok(path),
    }
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

pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(Code::INVALID_CONFIG, message)
}

#[cfg(test)]
mod tests;
