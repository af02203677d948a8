//! Manifests: YAML or JSON documents, each value of them with its place in the file, so that whatever is wrong with it can be
//! said where it stands.

mod check;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use located::{Content, Node};
pub use located::{Fault, Place};
use serde_json::{Map, Value, json};

pub use self::check::{Checks, Cluster, check};
use crate::api::json::{Json, escape};

/// Larger than anything that somebody writes by hand, and larger than what an API server takes.
const LARGEST: u64 = 16 << 20;

/// One object, as it stands in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The object.
    pub object: Value,
    file: String,
    places: BTreeMap<String, (u64, u64)>,
}

impl Manifest {
    /// Where the value at a JSON pointer stands; where it is missing, that in which it should be.
    #[must_use]
    pub fn place(&self, pointer: &str) -> Place {
        let mut pointer = pointer;
        loop {
            if let Some((line, column)) = self.places.get(pointer) {
                return Place { file: self.file.clone(), line: *line, column: *column };
            }
            match pointer.rsplit_once('/') {
                Some((parent, _)) => pointer = parent,
                None => return Place { file: self.file.clone(), line: 0, column: 0 },
            }
        }
    }

    pub(crate) fn fault(&self, pointer: &str, what: impl Into<String>) -> Fault {
        Fault { place: self.place(pointer), what: what.into() }
    }
}

/// Reads what was named on the command line: a file, a folder (its `.yaml`, `.yml` and `.json` files, by name), or `-`.
///
/// # Errors
/// Everything that is wrong with any of it.
pub fn read(names: &[PathBuf]) -> Result<Vec<Manifest>, Vec<Fault>> {
    let mut manifests = Vec::new();
    let mut faults = Vec::new();
    for name in names {
        let files = match files(name) {
            Ok(files) => files,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        for file in files {
            match text(&file).and_then(|text| parse(&file.display().to_string(), &text)) {
                Ok(read) => manifests.extend(read),
                Err(fault) => faults.push(fault),
            }
        }
    }
    if faults.is_empty() { Ok(manifests) } else { Err(faults) }
}

fn unreadable(path: &Path, what: impl Into<String>) -> Fault {
    Fault::of_file(path.display().to_string(), what)
}

fn files(name: &Path) -> Result<Vec<PathBuf>, Fault> {
    if name == Path::new("-") || !name.is_dir() {
        return Ok(vec![name.to_owned()]);
    }
    let failed = |error: std::io::Error| unreadable(name, format!("cannot be listed: {error}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(name).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if ["yaml", "yml", "json"].contains(&extension) && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(unreadable(name, "no .yaml, .yml or .json file is in it"));
    }
    files.sort();
    Ok(files)
}

fn text(path: &Path) -> Result<String, Fault> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| unreadable(path, format!("cannot be read: {error}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LARGEST {
        return Err(unreadable(path, format!("is larger than {} MiB: is it a manifest?", LARGEST >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| unreadable(path, "is not UTF-8 text: is it a manifest?"))
}

/// Reads the documents of one file.
///
/// # Errors
/// It is neither YAML nor JSON, holds no object, or something in it is no object.
pub fn parse(file: &str, text: &str) -> Result<Vec<Manifest>, Fault> {
    let documents = located::documents(file, text).map_err(|fault| Fault {
        what: format!("{} (this is not well-formed YAML: nothing was sent)", fault.what),
        ..fault
    })?;
    let mut manifests = Vec::new();
    for document in documents {
        let manifest = manifest(file, document);
        if !manifest.object.is_object() {
            return Err(manifest.fault("", "expected an object with apiVersion, kind and metadata"));
        }
        if manifest.object.text("/kind") == "List"
            && manifest.object.get("items").is_some_and(Value::is_array)
        {
            manifests.extend(items(&manifest));
        } else {
            manifests.push(manifest);
        }
    }
    if manifests.is_empty() {
        return Err(Fault::of_file(file, "no object is in it"));
    }
    Ok(manifests)
}

fn manifest(file: &str, document: Node) -> Manifest {
    let mut places = BTreeMap::new();
    let object = take_apart(document, "", &mut places);
    Manifest { object, file: file.to_owned(), places }
}

/// The bare value; the places go to `places` by JSON pointer.
fn take_apart(node: Node, pointer: &str, places: &mut BTreeMap<String, (u64, u64)>) -> Value {
    places.insert(pointer.to_owned(), (node.line, node.column));
    match node.content {
        Content::Plain(value) => value,
        Content::List(items) => {
            let item = |(index, item): (usize, Node)| take_apart(item, &format!("{pointer}/{index}"), places);
            Value::Array(items.into_iter().enumerate().map(item).collect())
        }
        Content::Map(entries) => {
            let entry = |(key, value): (String, Node)| {
                let value = take_apart(value, &format!("{pointer}/{}", escape(&key)), places);
                (key, value)
            };
            Value::Object(entries.into_iter().map(entry).collect::<Map<_, _>>())
        }
    }
}

/// The objects of a `List`.
fn items(list: &Manifest) -> Vec<Manifest> {
    let item = |(index, object): (usize, &Value)| {
        let root = format!("/items/{index}");
        let below = |(pointer, place): (&String, &(u64, u64))| {
            let rest = pointer.strip_prefix(&root)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| (rest.to_owned(), *place))
        };
        let places = list.places.iter().filter_map(below).collect();
        Manifest { object: object.clone(), file: list.file.clone(), places }
    };
    list.object.items("/items").iter().enumerate().map(item).collect()
}

/// A list of objects, as the API writes it.
pub(crate) fn list_of(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests;
