//! Running other plugins: find the program, give it the environment and the configuration, and take its answer within a
//! deadline.
//!
//! Codes of a delegate's errors are kept, its stderr ends up in the details. A delegate that does not speak the
//! configuration's version is asked which ones it speaks, and called again in the newest of them: Debian 12's plugins
//! stop at 1.0.0, and people should not have to know.
//! <https://www.cni.dev/docs/spec/#section-4-plugin-delegation>

mod process;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::{Code, Config, Environment, Error, PluginType, SearchPath, Success, Verb, Version};

/// The programs that a plugin or a runtime can call.
#[derive(Clone, Debug)]
pub struct Plugins {
    path: SearchPath,
    deadline: Duration,
    before: fn(&Path) -> io::Result<()>,
}

impl Plugins {
    /// How long a delegate may take unless told otherwise. The kubelet gives a pod's whole sandbox two minutes, and
    /// there must be time left to undo.
    pub const DEADLINE: Duration = Duration::from_secs(60);

    /// The programs on a search path.
    #[must_use]
    pub fn on(path: SearchPath) -> Self {
        Plugins { path, deadline: Self::DEADLINE, before: |_| Ok(()) }
    }

    /// The same with another deadline for each call.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Plugins { deadline, ..self }
    }

    /// The same with something to do before each program is started; where that fails, the program is not.
    #[must_use]
    pub fn with_before(self, before: fn(&Path) -> io::Result<()>) -> Self {
        Plugins { before, ..self }
    }

    /// The search path.
    #[must_use]
    pub fn path(&self) -> &SearchPath {
        &self.path
    }

    /// The program of a plugin: the first file of that name on the path that can be run.
    ///
    /// # Errors
    /// Code 5 when there is none; the message names the plugin, the details the path.
    pub fn find(&self, plugin: &PluginType) -> Result<PathBuf, Error> {
        let runs = |program: &Path| {
            program.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        self.path
            .folders()
            .map(|folder| folder.join(plugin.as_str()))
            .find(|program| runs(program))
            .ok_or_else(|| {
                Error::new(Code::IO, format!("plugin {plugin} was not found"))
                    .with_details(format!("looked in {}", self.path.as_os_str().display()))
            })
    }

    /// The versions that a plugin speaks, of those known here, oldest first.
    ///
    /// # Errors
    /// When it is not found, fails, or answers nonsense.
    pub fn versions(&self, plugin: &PluginType, environment: &Environment) -> Result<Vec<Version>, Error> {
        let stdin = format!(r#"{{"cniVersion":"{}"}}"#, Version::LATEST);
        let answer = self.run(plugin, &environment.with_verb(Verb::Version), stdin.as_bytes())?;
        let answer = decode(plugin, &answer)?;
        let supported = answer.get("supportedVersions").and_then(Value::as_array);
        let mut versions: Vec<Version> =
            supported.into_iter().flatten().filter_map(|version| version.as_str()?.parse().ok()).collect();
        versions.sort();
        Ok(versions)
    }

    /// ADD. After an error the caller owes the delegate a DEL.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn add(
        &self,
        plugin: &PluginType,
        config: &Config,
        environment: &Environment,
    ) -> Result<Success, Error> {
        // Every version knows ADD, so there is an answer.
        let answer = self.call(Verb::Add, plugin, config, environment)?;
        let (answer, version) = answer.unwrap_or_else(|| (Vec::new(), config.version()));
        let value = decode(plugin, &answer)?;
        Success::from_value(&value, Some(version)).map_err(|error| {
            Error::new(Code::DECODE, format!("plugin {plugin} returned a bad result")).caused_by(&error)
        })
    }

    /// DEL.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn del(&self, plugin: &PluginType, config: &Config, environment: &Environment) -> Result<(), Error> {
        self.call(Verb::Del, plugin, config, environment).map(drop)
    }

    /// CHECK. A delegate that is too old to know it has nothing to say.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn check(
        &self,
        plugin: &PluginType,
        config: &Config,
        environment: &Environment,
    ) -> Result<(), Error> {
        self.call(Verb::Check, plugin, config, environment).map(drop)
    }

    /// GC. A delegate that is too old to know it has nothing to do.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn gc(&self, plugin: &PluginType, config: &Config, environment: &Environment) -> Result<(), Error> {
        self.call(Verb::Gc, plugin, config, environment).map(drop)
    }

    /// STATUS. A delegate that is too old to know it has nothing to say.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn status(
        &self,
        plugin: &PluginType,
        config: &Config,
        environment: &Environment,
    ) -> Result<(), Error> {
        self.call(Verb::Status, plugin, config, environment).map(drop)
    }

    /// ADD to the plugin of `config`'s `ipam`, if there is one. If it fails it is also told to DEL, since it may have
    /// reserved an address before.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn ipam_add(&self, config: &Config, environment: &Environment) -> Result<Option<Success>, Error> {
        let Some(plugin) = config.ipam_type()? else { return Ok(None) };
        self.add(&plugin, config, environment).map(Some).map_err(|error| {
            match self.del(&plugin, config, environment) {
                Ok(()) => error,
                Err(undo) => error.and_also("then DEL failed, too", &undo),
            }
        })
    }

    /// DEL to the plugin of `config`'s `ipam`, if there is one. To be called in every DEL, whatever else is gone.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn ipam_del(&self, config: &Config, environment: &Environment) -> Result<(), Error> {
        config.ipam_type()?.map_or(Ok(()), |plugin| self.del(&plugin, config, environment))
    }

    /// CHECK to the plugin of `config`'s `ipam`, if there is one.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn ipam_check(&self, config: &Config, environment: &Environment) -> Result<(), Error> {
        config.ipam_type()?.map_or(Ok(()), |plugin| self.check(&plugin, config, environment))
    }

    /// GC to the plugin of `config`'s `ipam`, if there is one.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn ipam_gc(&self, config: &Config, environment: &Environment) -> Result<(), Error> {
        config.ipam_type()?.map_or(Ok(()), |plugin| self.gc(&plugin, config, environment))
    }

    /// STATUS to the plugin of `config`'s `ipam`, if there is one.
    ///
    /// # Errors
    /// The delegate's own, or why it could not be run.
    pub fn ipam_status(&self, config: &Config, environment: &Environment) -> Result<(), Error> {
        config.ipam_type()?.map_or(Ok(()), |plugin| self.status(&plugin, config, environment))
    }

    /// Calls a delegate; its stdout and the version that it was called in. `None` when it does not know the verb.
    fn call(
        &self,
        verb: Verb,
        plugin: &PluginType,
        config: &Config,
        environment: &Environment,
    ) -> Result<Option<(Vec<u8>, Version)>, Error> {
        let environment = environment.with_verb(verb);
        let refused = match self.run(plugin, &environment, &config.to_bytes()) {
            // A plugin older than the verb need not fail with code 1: those of containernetworking 1.1 answer a STATUS
            // with "missing containerID".
            Err(error) if error.code == Code::INCOMPATIBLE_VERSION || verb.since() > Version::V0_1_0 => error,
            answer => return answer.map(|answer| Some((answer, config.version()))),
        };
        let spoken = self.versions(plugin, &environment).unwrap_or_default();
        match spoken.last().copied() {
            // It spoke the version all along, so the refusal has another reason.
            Some(_) if spoken.contains(&config.version()) => Err(refused),
            Some(newest) if newest < verb.since() => Ok(None),
            Some(newest) if refused.code == Code::INCOMPATIBLE_VERSION => self
                .run(plugin, &environment, &config.clone().with_version(newest).to_bytes())
                .map(|answer| Some((answer, newest))),
            _ => Err(refused),
        }
    }

    fn run(&self, plugin: &PluginType, environment: &Environment, stdin: &[u8]) -> Result<Vec<u8>, Error> {
        let program = self.find(plugin)?;
        let refused = |source| process::Failure::Io { what: "starting it", source };
        (self.before)(&program)
            .map_err(refused)
            .and_then(|()| process::run(&program, environment, stdin, self.deadline))
            .map_err(|failure| failure.into_error(plugin, environment.verb))
    }
}

fn decode(plugin: &PluginType, answer: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(answer).map_err(|error| {
        let shown: String = String::from_utf8_lossy(answer).chars().take(200).collect();
        Error::new(Code::DECODE, format!("plugin {plugin} did not answer with JSON"))
            .with_details(format!("{error}, in {shown:?}"))
    })
}

#[cfg(test)]
mod tests;
