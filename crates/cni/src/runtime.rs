//! The runtime's side: networks as lists of plugins, and what was attached to them, by the rules of libcni.
//!
//! [`Network`] knows the order of calls and what each plugin is given; whoever keeps results elsewhere uses it alone.
//! [`Runtime`] adds libcni's cache on disk, so that DEL, CHECK and GC find what ADD returned.
//! <https://www.cni.dev/docs/spec/#section-3-execution-of-network-configurations>

mod cache;
mod load;

use std::collections::BTreeSet;
use std::path::PathBuf;

use nic::IfName;

pub use self::cache::{Cache, Cached};
use crate::config::incompatible;
use crate::delegate::Plugins;
use crate::{
    Args, Config, ContainerId, Environment, Error, NetworkName, Object, PluginType, Success, ValidAttachment,
    Verb, Version,
};

/// A network: plugins that are called one after the other under one name.
#[derive(Clone, Debug)]
pub struct Network {
    name: NetworkName,
    version: Version,
    disable_check: bool,
    disable_gc: bool,
    plugins: Vec<Listed>,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Listed {
    kind: PluginType,
    object: Object,
}

/// A container's attachment to a network: what the runtime tells each plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The container.
    pub container_id: ContainerId,
    /// What the interface is called in it.
    pub if_name: IfName,
    /// Its network namespace; DEL goes without.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: Args,
    /// What each plugin gets as `runtimeConfig`, if it declares the capability of that name.
    pub capabilities: Object,
}

impl Attachment {
    fn environment(&self, verb: Verb, plugins: &Plugins) -> Environment {
        Environment {
            container_id: Some(self.container_id.clone()),
            netns: self.netns.clone(),
            if_name: Some(self.if_name.clone()),
            args: self.args.clone(),
            ..Environment::new(verb, plugins.path().clone())
        }
    }
}

impl Network {
    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// The version in which its plugins are called: the newest of those that the configuration names and that are
    /// known here.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The types of its plugins, in order.
    pub fn types(&self) -> impl DoubleEndedIterator<Item = &PluginType> {
        self.plugins.iter().map(|plugin| &plugin.kind)
    }

    /// The configuration as it was read; plugins from a folder of their own are in the list. [`Network::from_slice`]
    /// makes the same network of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// ADD, each plugin in order, each with the result of the one before. After an error the caller owes a
    /// [`Network::del`].
    ///
    /// # Errors
    /// That of the first plugin that fails.
    pub fn add(&self, plugins: &Plugins, attachment: &Attachment) -> Result<Success, Error> {
        let environment = attachment.environment(Verb::Add, plugins);
        let mut result = None;
        for plugin in &self.plugins {
            let config = self.config(plugin, Some(&attachment.capabilities), result.as_ref());
            result = Some(plugins.add(&plugin.kind, &config, &environment)?);
        }
        Ok(result.unwrap_or_default())
    }

    /// DEL, each plugin in reverse order, each with the result of the whole ADD, where that is known.
    ///
    /// # Errors
    /// That of the first plugin that fails; those before it in the list are not called, as they may be needed again.
    pub fn del(
        &self,
        plugins: &Plugins,
        attachment: &Attachment,
        previous: Option<&Success>,
    ) -> Result<(), Error> {
        let environment = attachment.environment(Verb::Del, plugins);
        let previous = previous.filter(|_| self.version >= Version::V0_4_0);
        self.plugins.iter().rev().try_for_each(|plugin| {
            let config = self.config(plugin, Some(&attachment.capabilities), previous);
            plugins.del(&plugin.kind, &config, &environment)
        })
    }

    /// CHECK, each plugin in order; nothing where the network says `disableCheck`.
    ///
    /// # Errors
    /// Code 1 where the network's version has no CHECK; else that of the first plugin that fails.
    pub fn check(
        &self,
        plugins: &Plugins,
        attachment: &Attachment,
        previous: Option<&Success>,
    ) -> Result<(), Error> {
        if self.version < Verb::Check.since() {
            return Err(incompatible(format!(
                "network {} is in version {}, which has no CHECK",
                self.name, self.version
            )));
        }
        if self.disable_check {
            return Ok(());
        }
        let environment = attachment.environment(Verb::Check, plugins);
        self.plugins.iter().try_for_each(|plugin| {
            let config = self.config(plugin, Some(&attachment.capabilities), previous);
            plugins.check(&plugin.kind, &config, &environment)
        })
    }

    /// GC of each plugin; nothing where the network says `disableGC` or is in a version without GC. Goes on after an
    /// error.
    ///
    /// # Errors
    /// All that went wrong, under the code of the first.
    pub fn gc(&self, plugins: &Plugins, valid: &[ValidAttachment]) -> Result<(), Error> {
        if self.disable_gc || self.version < Verb::Gc.since() {
            return Ok(());
        }
        let environment = Environment::new(Verb::Gc, plugins.path().clone());
        Error::all(self.plugins.iter().map(|plugin| {
            let config = self.config(plugin, None, None).with_valid_attachments(valid);
            plugins.gc(&plugin.kind, &config, &environment)
        }))
    }

    /// STATUS of each plugin; nothing where the network is in a version without STATUS.
    ///
    /// # Errors
    /// That of the first plugin that fails.
    pub fn status(&self, plugins: &Plugins) -> Result<(), Error> {
        if self.version < Verb::Status.since() {
            return Ok(());
        }
        let environment = Environment::new(Verb::Status, plugins.path().clone());
        self.plugins.iter().try_for_each(|plugin| {
            plugins.status(&plugin.kind, &self.config(plugin, None, None), &environment)
        })
    }

    fn config(&self, plugin: &Listed, capabilities: Option<&Object>, previous: Option<&Success>) -> Config {
        let config = Config::assemble(self.version, self.name.clone(), plugin.object.clone());
        let config = config.with_prev_result(previous);
        capabilities.map_or(config.clone(), |capabilities| config.with_runtime(capabilities))
    }
}

/// Networks, with libcni's memory of what is attached to them.
#[derive(Clone, Debug)]
pub struct Runtime {
    plugins: Plugins,
    cache: Cache,
}

impl Runtime {
    /// A runtime that finds its plugins here and remembers there.
    #[must_use]
    pub fn new(plugins: Plugins, cache: Cache) -> Self {
        Runtime { plugins, cache }
    }

    /// What it remembers.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// ADD, and the result remembered. After an error the caller owes a [`Runtime::del`], as with libcni.
    ///
    /// # Errors
    /// As [`Network::add`], or code 5 when the result cannot be kept.
    pub fn add(&self, network: &Network, attachment: &Attachment) -> Result<Success, Error> {
        let result = network.add(&self.plugins, attachment)?;
        self.cache.keep(network, attachment, &result)?;
        Ok(result)
    }

    /// DEL with the remembered result, which is forgotten afterwards.
    ///
    /// # Errors
    /// As [`Network::del`]; the result is then kept for the next try.
    pub fn del(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        // A memory that is torn must not stand in the way of a DEL.
        let cached = self.cache.read(network.name(), attachment).ok().flatten();
        network.del(&self.plugins, attachment, cached.and_then(|cached| cached.result).as_ref())?;
        self.cache.forget(network.name(), attachment)
    }

    /// CHECK with the remembered result.
    ///
    /// # Errors
    /// As [`Network::check`], or when the remembered result cannot be read.
    pub fn check(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        let cached = self.cache.read(network.name(), attachment)?;
        network.check(&self.plugins, attachment, cached.and_then(|cached| cached.result).as_ref())
    }

    /// DEL of each remembered attachment to this network that is not valid any more, then GC. Goes on after an error.
    ///
    /// # Errors
    /// All that went wrong, under the code of the first.
    pub fn gc(&self, network: &Network, valid: &[ValidAttachment]) -> Result<(), Error> {
        if network.disable_gc {
            return Ok(());
        }
        let valid_set: BTreeSet<_> = valid.iter().collect();
        let remembered = self.cache.attachments()?;
        let stale = remembered.into_iter().filter(|cached| {
            let Attachment { container_id, if_name, .. } = cached.attachment.clone();
            cached.network == *network.name()
                && !valid_set.contains(&ValidAttachment { container_id, if_name })
        });
        let deleted = Error::all(stale.map(|cached| self.del(network, &cached.attachment)));
        Error::all([deleted, network.gc(&self.plugins, valid)])
    }

    /// STATUS.
    ///
    /// # Errors
    /// As [`Network::status`].
    pub fn status(&self, network: &Network) -> Result<(), Error> {
        network.status(&self.plugins)
    }
}

#[cfg(test)]
mod tests;
