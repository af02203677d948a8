//! A plugin that is checked, and how it is to be called.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// The key by which a configuration names the NIC, and its value.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    key: String,
    template: String,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, template) = text.split_once('=').unwrap_or((text, "{name}"));
        if key.is_empty() || !(template.contains("{name}") || template.contains("{mac}")) {
            return Err("KEY, KEY={name} or KEY={mac} is expected".to_owned());
        }
        Ok(Way { key: key.to_owned(), template: template.to_owned() })
    }
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) kills: u32,
    pub(crate) call: Duration,
}

/// A plugin, copied to a folder of its own with the IPAM plugins that were found.
#[derive(Debug)]
pub(crate) struct Subject {
    name: String,
    folder: TempDir,
    way: Way,
    more: Map<String, Value>,
    pub(crate) limits: Limits,
    has_host_local: bool,
}

/// Where distributions put IPAM plugins.
const USUAL: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

impl Subject {
    /// Copies the program: folders of the machine are hidden from it later, perhaps the one that it is in.
    pub(crate) fn prepare(
        plugin: &Path,
        cni_path: &[PathBuf],
        way: &Way,
        more: &Map<String, Value>,
    ) -> Result<Self> {
        let name = plugin.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} is no file", plugin.display()))?.to_owned();
        let folder =
            tempfile::Builder::new().prefix("cni-suite-").tempdir().context("cannot make a folder")?;
        let copy = |from: &Path, name: &str| {
            fs::copy(from, folder.path().join(name))
                .with_context(|| format!("cannot copy {}", from.display()))
        };
        copy(plugin, &name)?;
        let own = plugin.parent().map(Path::to_owned);
        let host_local = own
            .into_iter()
            .chain(cni_path.iter().cloned())
            .chain(USUAL.map(PathBuf::from))
            .map(|folder| folder.join("host-local"))
            .find(|path| path.is_file());
        if let Some(path) = &host_local {
            copy(path, "host-local")?;
        }
        let limits = Limits { kills: 1, call: Duration::from_secs(60) };
        Ok(Subject {
            name,
            folder,
            way: way.clone(),
            more: more.clone(),
            limits,
            has_host_local: host_local.is_some(),
        })
    }

    pub(crate) fn within(self, limits: Limits) -> Self {
        Subject { limits, ..self }
    }

    pub(crate) fn title(&self) -> String {
        self.name.clone()
    }

    /// What `type` is in its configurations.
    pub(crate) fn kind(&self) -> &str {
        &self.name
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Where it and the IPAM plugins are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn has_host_local(&self) -> bool {
        self.has_host_local
    }

    /// The keys by which it is told which NIC, and whatever else it needs.
    pub(crate) fn keys(&self, name: &str, mac: &str) -> Vec<(String, Value)> {
        let value = self.way.template.replace("{name}", name).replace("{mac}", mac);
        let more = self.more.iter().map(|(key, value)| (key.clone(), value.clone()));
        std::iter::once((self.way.key.clone(), Value::from(value))).chain(more).collect()
    }
}
