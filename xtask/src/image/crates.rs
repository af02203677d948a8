//! Which crates the image's programs link: asked of cargo, for the very calls that build them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::virtnet::PROGRAMS;
use crate::build::{self, Architecture};

/// Name and version: nothing that is linked comes from two places in the same version.
pub(super) type Id = (String, String);

/// A crate as its own manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crate {
    pub(super) id: Id,
    /// An SPDX expression.
    pub(super) licence: String,
    pub(super) repository: Option<String>,
    /// Of the archive at the registry; ours have none.
    pub(super) sha256: Option<String>,
    pub(super) folder: PathBuf,
}

/// What is linked.
#[derive(Debug)]
pub(super) struct Linked {
    pub(super) crates: BTreeMap<Id, Crate>,
    /// By program, without the program itself.
    pub(super) by_program: BTreeMap<&'static str, BTreeSet<Id>>,
}

/// Asks cargo.
///
/// # Errors
/// When cargo does not answer, or a crate names no licence.
pub(super) fn linked(architecture: Architecture) -> Result<Linked> {
    let mut by_program = BTreeMap::new();
    for call in build::calls(architecture) {
        let mut command = build::cargo()?;
        // Macros run at build time; none of their code is in the programs.
        command.args(["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "depth"]);
        command.args(["--target", architecture.target()]);
        call.packages.iter().for_each(|package| {
            command.args(["--package", package]);
        });
        let graph = Graph::read(&output(command)?);
        for (program, _) in PROGRAMS.iter().filter(|(program, _)| call.packages.contains(program)) {
            by_program.insert(*program, graph.below(program));
        }
    }
    let wanted: BTreeSet<&Id> = by_program.values().flatten().collect();
    let mut command = build::cargo()?;
    command.args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        architecture.target(),
    ]);
    let metadata: Value = serde_json::from_str(&output(command)?).context("cargo metadata")?;
    let lock = build::workspace()?.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let checksums = checksums(&lock);
    let mut crates = BTreeMap::new();
    for package in metadata.get("packages").and_then(Value::as_array).into_iter().flatten() {
        let found = read(package, &checksums)?;
        if wanted.contains(&found.id) {
            crates.insert(found.id.clone(), found);
        }
    }
    if let Some((name, version)) = wanted.into_iter().find(|id| !crates.contains_key(*id)) {
        bail!("cargo metadata does not know {name} {version}");
    }
    Ok(Linked { crates, by_program })
}

fn output(mut command: std::process::Command) -> Result<String> {
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("cargo")
}

fn read(package: &Value, checksums: &BTreeMap<Id, String>) -> Result<Crate> {
    let text = |key: &str| package.get(key).and_then(Value::as_str).map(str::to_owned);
    let name = text("name").context("cargo metadata names no package")?;
    let id = (name.clone(), text("version").unwrap_or_default());
    let manifest = PathBuf::from(text("manifest_path").unwrap_or_default());
    Ok(Crate {
        // The way it was written before there were expressions.
        licence: text("license")
            .with_context(|| format!("{name} names no licence"))?
            .replace(" / ", "/")
            .replace('/', " OR "),
        repository: text("repository"),
        sha256: checksums.get(&id).cloned(),
        folder: manifest.parent().context("a manifest has no folder")?.to_owned(),
        id,
    })
}

/// Of each crate in Cargo.lock, which cargo writes one key a line.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let sections = lock.split("[[package]]").filter_map(|section| {
        let key = |key: &str| {
            let line = section.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
            line.and_then(|rest| rest.strip_suffix('"')).map(str::to_owned)
        };
        Some(((key("name")?, key("version")?), key("checksum")?))
    });
    sections.collect()
}

/// Who links whom.
struct Graph(BTreeMap<Id, BTreeSet<Id>>);

impl Graph {
    /// Reads `cargo tree --prefix depth`: `2clap_lex v1.1.2 (*)`. What a crate depends on is listed once; `(*)` stands for it elsewhere.
    fn read(tree: &str) -> Self {
        let mut edges: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
        let mut above: Vec<Id> = Vec::new();
        for line in tree.lines() {
            let name_at = line.find(|char: char| !char.is_ascii_digit()).unwrap_or(line.len());
            let (depth, rest) = line.split_at(name_at);
            let mut words = rest.split(' ');
            let (Ok(depth), Some(name), Some(version)) = (depth.parse(), words.next(), words.next()) else {
                continue;
            };
            let id = (name.to_owned(), version.trim_start_matches('v').to_owned());
            above.truncate(depth);
            if let Some(parent) = above.last() {
                edges.entry(parent.clone()).or_default().insert(id.clone());
            }
            edges.entry(id.clone()).or_default();
            above.push(id);
        }
        Self(edges)
    }

    /// All that a program links.
    fn below(&self, program: &str) -> BTreeSet<Id> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&Id> = self.0.keys().filter(|(name, _)| name == program).collect();
        while let Some(id) = open.pop() {
            for next in self.0.get(id).into_iter().flatten() {
                if found.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ids: &BTreeSet<Id>) -> Vec<&str> {
        ids.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn each_program_has_what_it_links_also_where_that_is_listed_under_another() {
        let tree = "0agent v0.1.0 (/x)\n1a v1.0.0\n2b v2.0.0\n1c v3.0.0\n\n0sim v0.1.0 (/y)\n1a v1.0.0 (*)\n1d v4.0.0\n";
        let graph = Graph::read(tree);
        assert_eq!(names(&graph.below("agent")), ["a", "b", "c"]);
        assert_eq!(names(&graph.below("sim")), ["a", "b", "d"]);
    }

    #[test]
    fn checksums_are_those_of_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"00ff\"\n\
                    dependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n";
        let found = checksums(lock);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [(("a".to_owned(), "1.0.0".to_owned()), "00ff".to_owned())]
        );
    }

    #[test]
    fn the_cni_programs_link_no_more_than_they_should() {
        let linked = linked(Architecture::Amd64).unwrap();
        let plugin = names(&linked.by_program["ehost-device"]);
        assert!(plugin.contains(&"rustix"), "{plugin:?}");
        // No TLS, no command line parser, no macros.
        for unwanted in ["rustls", "clap", "serde_derive", "axum", "proptest"] {
            assert!(!plugin.contains(&unwanted), "ehost-device links {unwanted}");
        }
        let unknown = linked
            .crates
            .values()
            .find(|each| each.sha256.is_none() && !each.folder.starts_with(build::workspace().unwrap()));
        assert_eq!(unknown, None, "a crate from elsewhere without a checksum");
    }
}
