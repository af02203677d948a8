//! Reading networks: from bytes, from a file, from a folder by name or the first one.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Listed, Network};
use crate::config::{incompatible, name_of, type_of};
use crate::{Code, Error, NetworkName, Object, Version};

impl Network {
    /// Reads a list of plugins, or a single plugin, which is a list of one.
    ///
    /// # Errors
    /// Codes 6, 7 and 1, as for a plugin's configuration. A list without plugins is refused.
    pub fn from_slice(bytes: &[u8]) -> Result<Network, Error> {
        let network = read(bytes)?.0;
        if network.plugins.is_empty() { Err(no_plugins(&network.name)) } else { Ok(network) }
    }

    /// Reads a file. Unless the list says `loadOnlyInlinedPlugins`, the files `NAME/*.conf` beside it, where `NAME` is
    /// the network's, add plugins to its end.
    ///
    /// # Errors
    /// As [`Network::from_slice`], or code 5; the message names the file.
    pub fn from_file(file: &Path) -> Result<Network, Error> {
        let named = |error: Error| error.within(file.display());
        let bytes = fs::read(file).map_err(|error| cannot_read(file, &error))?;
        let (mut network, more) = read(&bytes).map_err(named)?;
        if more && let Some(folder) = file.parent() {
            for file in files(&folder.join(network.name.as_str()), &["conf"])? {
                let plugin = fs::read(&file).map_err(|error| cannot_read(&file, &error))?;
                let plugin =
                    object(&plugin).and_then(listed).map_err(|error| error.within(file.display()))?;
                network.plugins.push(plugin);
                network.bytes = network.inlined(&bytes).map_err(named)?;
            }
        }
        if network.plugins.is_empty() { Err(named(no_plugins(&network.name))) } else { Ok(network) }
    }

    /// The list as it was read, with all plugins in it.
    fn inlined(&self, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mut list = object(bytes)?;
        let plugins = self.plugins.iter().map(|plugin| Value::Object(plugin.object.clone())).collect();
        list.insert("plugins".to_owned(), Value::Array(plugins));
        Ok(serde_json::to_vec(&list).unwrap_or_default())
    }

    /// Finds a network by name in a folder: lists (`.conflist`) first, then single plugins (`.conf`, `.json`), each in
    /// the order of their file names.
    ///
    /// # Errors
    /// Code 7 when there is none of that name; the details name the files that could not be read.
    pub fn load(folder: &Path, name: &NetworkName) -> Result<Network, Error> {
        let mut found = files(folder, &["conflist"])?;
        found.extend(files(folder, &["conf", "json"])?);
        choose(found, |network| network.name == *name).map_err(|unread| {
            let message = format!("no network {name} in {}", folder.display());
            Error::new(Code::INVALID_CONFIG, message).with_details(unread)
        })
    }

    /// The first network in a folder, in the order of file names: the cluster's, as container runtimes see it. Files
    /// that cannot be read are passed over.
    ///
    /// # Errors
    /// Code 7 when there is none; the details name the files that could not be read.
    pub fn first(folder: &Path) -> Result<Network, Error> {
        let found = files(folder, &["conf", "conflist", "json"])?;
        choose(found, |_| true).map_err(|unread| {
            Error::new(Code::INVALID_CONFIG, format!("no network in {}", folder.display()))
                .with_details(unread)
        })
    }
}

/// The first network that is wanted, or what could not be read on the way.
fn choose(files: Vec<PathBuf>, wanted: impl Fn(&Network) -> bool) -> Result<Network, String> {
    let mut unread = Vec::new();
    for file in files {
        match Network::from_file(&file) {
            Ok(network) if wanted(&network) => return Ok(network),
            Ok(_) => {}
            Err(error) => unread.push(error.to_string()),
        }
    }
    Err(unread.join("; "))
}

/// A network, perhaps without plugins, and whether more plugins may come from a folder.
fn read(bytes: &[u8]) -> Result<(Network, bool), Error> {
    let list = object(bytes)?;
    let name = name_of(&list)?;
    let single = !list.contains_key("plugins") && list.contains_key("type");
    let network = Network {
        version: version(&list)?,
        disable_check: !single && flag(&list, "disableCheck")?,
        disable_gc: !single && flag(&list, "disableGC")?,
        plugins: if single { vec![listed(list.clone())?] } else { plugins(&list)? },
        bytes: bytes.to_vec(),
        name,
    };
    Ok((network, !single && !flag(&list, "loadOnlyInlinedPlugins")?))
}

fn object(bytes: &[u8]) -> Result<Object, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(Code::DECODE, "the network configuration is not a JSON object").caused_by(&error)
    })
}

fn plugins(list: &Object) -> Result<Vec<Listed>, Error> {
    let wrong = |what: String| Error::new(Code::INVALID_CONFIG, what);
    match list.get("plugins") {
        None => Ok(Vec::new()),
        Some(Value::Array(plugins)) => plugins
            .iter()
            .enumerate()
            .map(|(index, plugin)| match plugin {
                Value::Object(plugin) => {
                    listed(plugin.clone()).map_err(|error| error.within(format_args!("plugins[{index}]")))
                }
                _ => Err(wrong(format!("plugins[{index}] is not an object"))),
            })
            .collect(),
        Some(_) => Err(wrong("plugins is not a list".to_owned())),
    }
}

fn listed(object: Object) -> Result<Listed, Error> {
    Ok(Listed { kind: type_of(&object)?, object })
}

/// The newest version of `cniVersions` and `cniVersion` that is known here.
fn version(list: &Object) -> Result<Version, Error> {
    let wrong = |key| Error::new(Code::DECODE, format!("{key} does not hold versions"));
    let mut named: Vec<&str> = Vec::new();
    match list.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(versions)) => {
            for version in versions {
                named.push(version.as_str().ok_or_else(|| wrong("cniVersions"))?);
            }
        }
        Some(_) => return Err(wrong("cniVersions")),
    }
    match list.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(Value::String(version)) if version.is_empty() => {}
        Some(Value::String(version)) => named.push(version),
        Some(_) => return Err(wrong("cniVersion")),
    }
    if named.is_empty() {
        return Ok(Version::V0_1_0);
    }
    let known = named.iter().filter_map(|version| version.parse().ok()).max();
    known.ok_or_else(|| incompatible(format!("none of the versions {} is known here", named.join(", "))))
}

/// libcni takes the words `true` and `false`, too.
fn flag(list: &Object, key: &str) -> Result<bool, Error> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(Error::new(Code::INVALID_CONFIG, format!("{key} is neither true nor false"))),
    }
}

/// The files with one of these extensions, in the order of their names. A folder that is not there has none.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot_read(folder, &error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| cannot_read(folder, &error))?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if extension.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn cannot_read(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::IO, format!("{} cannot be read", path.display())).with_details(error.to_string())
}

fn no_plugins(name: &NetworkName) -> Error {
    Error::new(Code::INVALID_CONFIG, format!("network {name} has no plugins"))
}
