//! The Container Network Interface, specification 0.1.0 to 1.1.0, all blocking.
//!
//! * [`plugin`]: what a program needs to be a plugin: [`plugin::main`] over the trait [`plugin::Plugin`];
//! * [`delegate`]: how one plugin runs another, IPAM above all;
//! * [`runtime`]: what a container runtime does: lists of plugins, capabilities, cached results.
//!
//! <https://www.cni.dev/docs/spec/>

mod config;
pub mod delegate;
mod environment;
mod error;
mod name;
pub mod plugin;
mod result;
pub mod runtime;
#[cfg(test)]
mod testing;
mod version;

pub use config::{Config, Object, ValidAttachment};
pub use environment::{Args, Environment, SearchPath};
pub use error::{Code, Error};
pub use name::{ContainerId, NetworkName, PluginType};
pub use nic::NameError;
pub use result::{Dns, Interface, Ip, ReadResultError, Route, Success};
pub use version::{UnknownVersion, Verb, Version};
