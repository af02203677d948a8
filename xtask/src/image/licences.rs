//! The licence texts of everything that is linked, each text once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::crates::{Crate, Linked};
use super::toolchain::Part;
use crate::build;

/// How the files begin in which crates keep them.
const NAMES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "authors"];
const LGPL: &str = include_str!("LGPL-2.1.txt");
const RULE: &str = "================================================================================";

/// One text with all of them.
///
/// # Errors
/// When a crate has none: it must not be shipped then.
pub(super) fn texts(linked: &Linked, parts: &[Part]) -> Result<String> {
    let own = build::workspace()?;
    let foreign: Vec<&Crate> = linked.crates.values().filter(|each| !each.folder.starts_with(&own)).collect();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for each in &foreign {
        let title = title(each);
        list.push_str(&format!("{title:36} {}\n", each.licence));
        for text in of_crate(each, &foreign)? {
            texts.entry(text).or_default().push(title.clone());
        }
    }
    let apache = own.join("LICENSE");
    let apache = fs::read_to_string(&apache).with_context(|| format!("cannot read {}", apache.display()))?;
    for part in parts {
        let title = format!("{} {}", part.name, part.version);
        list.push_str(&format!("{title:36} {}\n", part.licence));
        match part.name {
            "glibc" => texts.entry(tidy(LGPL)).or_default().push(title),
            "rust-std" => texts.entry(tidy(&apache)).or_default().push(title),
            // Its exception asks for no copy of the licence in programs that a compiler made.
            _ => {}
        }
    }
    let mut all = format!(
        "The programs of this image are virtnet's own, under the licence in LICENSE beside this file. They are linked with what is listed\n\
         here; the texts follow. To link them with another GNU C library, build them anew from virtnet's source: cargo xtask image.\n\n{list}"
    );
    // In the order of the list, not of what the texts begin with.
    let mut texts: Vec<(String, Vec<String>)> = texts.into_iter().collect();
    texts.sort_by(|(_, one), (_, other)| one.cmp(other));
    for (text, titles) in texts {
        all.push_str(&format!("\n{RULE}\n{}\n{RULE}\n\n{text}\n", titles.join("\n")));
    }
    Ok(all)
}

fn title(each: &Crate) -> String {
    let (name, version) = &each.id;
    format!("{name} {version}")
}

/// A crate without a text has that of another crate of the same repository.
fn of_crate(each: &Crate, all: &[&Crate]) -> Result<Vec<String>> {
    let own = in_folder(&each.folder)?;
    if !own.is_empty() {
        return Ok(own);
    }
    let same = |other: &&&Crate| {
        other.repository.is_some() && other.repository == each.repository && other.licence == each.licence
    };
    for sibling in all.iter().filter(same) {
        let texts = in_folder(&sibling.folder)?;
        if !texts.is_empty() {
            return Ok(texts);
        }
    }
    bail!("{} comes without the text of its licence ({}), so it cannot be shipped", title(each), each.licence)
}

fn in_folder(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files: Vec<_> = entries.flatten().filter(|entry| entry.path().is_file()).collect();
    files.retain(|entry| {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        NAMES.iter().any(|begin| name.starts_with(begin))
    });
    files.sort_by_key(std::fs::DirEntry::file_name);
    let read = |entry: std::fs::DirEntry| {
        let path = entry.path();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(tidy(&String::from_utf8_lossy(&bytes)))
    };
    files.into_iter().map(read).collect()
}

/// So that the same text is the same: line ends, and spaces at them, differ from crate to crate.
fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_crate(name: &str, folder: &Path, repository: &str) -> Crate {
        Crate {
            id: (name.to_owned(), "1.0.0".to_owned()),
            licence: "MIT".to_owned(),
            repository: Some(repository.to_owned()),
            sha256: None,
            folder: folder.to_owned(),
        }
    }

    #[test]
    fn a_crate_without_a_text_has_its_siblings_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (with, without) = (folder.path().join("with"), folder.path().join("without"));
        fs::create_dir_all(&with).unwrap();
        fs::create_dir_all(&without).unwrap();
        fs::write(with.join("LICENSE-MIT"), "Permission is granted\r\n").unwrap();
        let (one, two) = (a_crate("one", &with, "here"), a_crate("two", &without, "here"));
        let three = a_crate("three", &without, "elsewhere");
        let all = [&one, &two, &three];
        assert_eq!(of_crate(&two, &all).unwrap(), ["Permission is granted"]);
        let error = of_crate(&three, &all).unwrap_err().to_string();
        assert!(error.contains("three 1.0.0 comes without the text of its licence (MIT)"), "{error}");
    }
}
