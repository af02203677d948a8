//! The meta CNI plugin: cluster network first, then the networks a pod asks for, each with the device that the kubelet
//! gave to the pod for it.
//!
//! The flow of an ADD is [`plan`] (ask the API server and the kubelet, decide), then [`attach`] (run the delegates, in
//! order, each after it is on disk that it will run). DEL reads the disk and asks nobody.

// `eprintln!` panics where nobody reads stderr any more; `cni::tell!` does not.
#![warn(clippy::print_stderr)]

mod attach;
mod collect;
mod devices;
mod networks;
mod plan;
mod record;
mod report;
mod routes;
mod settings;

use std::process::ExitCode;

use cni::plugin::{self, About, Add, Check, Del, Gc, Plugin, Status};
use cni::{Code, Error, Success};

use crate::settings::Settings;

fn main() -> ExitCode {
    plugin::main(&Meta, &About::new("virt-meta", env!("CARGO_PKG_VERSION")))
}

/// Codes of our own.
mod code {
    use cni::Code;

    /// The kubelet gave the pod fewer devices than it has networks that need one.
    pub(crate) const TOO_FEW_DEVICES: Code = Code(Code::PLUGIN.0);
    /// There was an ADD for this container already, and no DEL since.
    pub(crate) const ATTACHED: Code = Code(Code::PLUGIN.0 + 1);
}

struct Meta;

impl Plugin for Meta {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        if add.config.prev_result()?.is_some() {
            let message =
                "virt-meta makes the pod's first interface, so it must be the first plugin in the list";
            return Err(Error::new(Code::INVALID_CONFIG, message));
        }
        let settings = Settings::of(&add.config)?;
        let store = settings.store();
        let _lock = store.lock(&add.container_id)?;
        if store.holds(&add.container_id)? {
            let message = format!("container {} is attached already; it needs a DEL first", add.container_id);
            return Err(Error::new(code::ATTACHED, message));
        }
        let record = plan::plan(&settings, add)?;
        attach::attach(record, &store, &settings.plugins(&add.environment), &settings.device_info)
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        let settings = Settings::of(&del.config)?;
        let store = settings.store();
        let _lock = store.lock(&del.container_id)?;
        let plugins = settings.plugins(&del.environment);
        match store.read(&del.container_id) {
            Some(record) if record.interface == del.if_name => {
                attach::detach(record, &store, &plugins, del.netns.as_deref())
            }
            // Never added, deleted already, or torn: the configuration tells what can be told.
            other => {
                let network = settings.cluster_network()?;
                let place = format!("cluster network {}", network.name());
                network
                    .del(&plugins, &plan::cluster_attachment(del), None)
                    .map_err(|error| error.within(place))?;
                // One of another interface is not this DEL's.
                if other.is_some() { Ok(()) } else { store.set_aside(&del.container_id) }
            }
        }
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        let settings = Settings::of(&check.config)?;
        let store = settings.store();
        let _lock = store.lock(&check.container_id)?;
        match store.read(&check.container_id) {
            Some(record) if record.interface == check.if_name => {
                attach::check(&record, &settings.plugins(&check.environment), &check.netns)
            }
            _ => Err(Error::new(
                Code::UNKNOWN_CONTAINER,
                format!("container {} is not attached", check.container_id),
            )),
        }
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let settings = Settings::of(&gc.config)?;
        collect::collect(&settings, gc)
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        let settings = Settings::of(&status.config)?;
        let network = settings.cluster_network()?;
        let place = format!("cluster network {}", network.name());
        network.status(&settings.plugins(&status.environment)).map_err(|error| error.within(place))
    }
}
