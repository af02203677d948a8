//! What the documents tell people to type is there: files, folders, commands, links; and their YAML is YAML.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;

use crate::{Arguments, build};

/// Every document that people read, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let workspace = build::workspace().unwrap();
    let mut paths = Vec::new();
    for folder in ["", "docs", "virtdp", "virt-meta", "ehost-device", "virtsim", "deployments"] {
        let entries = fs::read_dir(workspace.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    assert!(paths.len() > 8, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The lines that are typed: in indented and fenced blocks, without a prompt.
fn typed(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(|line| line.trim_start().trim_start_matches("$ ").trim_start_matches("# "))
}

/// The anchors that a document's headings make, as they are made for the web.
fn anchors(text: &str) -> Vec<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
    headings
        .map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_to_a_heading_in_it() {
    for (path, text) in documents() {
        let folder = path.parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(target.exists(), "{}: the link {link} leads nowhere", path.display());
            if !anchor.is_empty() {
                let headings = anchors(&fs::read_to_string(&target).unwrap());
                assert!(
                    headings.iter().any(|heading| heading == anchor),
                    "{}: no heading for {link}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_path_of_this_project_is_there() {
    let workspace = build::workspace().unwrap();
    let mut seen = 0;
    for (path, text) in documents() {
        let words = text.split(|char: char| char.is_whitespace() || "`(),;:|\"'<>[]=".contains(char));
        let ours = |word: &&str| {
            ["deployments/", "docs/", "tests/", "crates/"].iter().any(|begin| word.starts_with(begin))
        };
        for word in words.filter(ours) {
            let word = word.split('#').next().unwrap_or(word).trim_end_matches(['.', '/']);
            let found =
                [workspace.as_path(), path.parent().unwrap()].iter().any(|folder| folder.join(word).exists());
            assert!(found, "{}: there is no {word}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} paths were looked at");
}

#[test]
fn every_command_of_xtask_is_understood() {
    let mut seen = 0;
    for (path, text) in documents() {
        let inline = text.split('`').skip(1).step_by(2).filter(|code| !code.contains('\n'));
        for line in typed(&text).chain(inline) {
            let Some(rest) = line.strip_prefix("cargo xtask ") else { continue };
            // The program's name stands for `cargo xtask`; a comment ends the command.
            let words = rest.split_whitespace().take_while(|word| *word != "#");
            let outcome = Arguments::try_parse_from(std::iter::once("xtask").chain(words));
            assert!(outcome.is_ok(), "{}: `{line}`: {}", path.display(), outcome.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen > 8, "only {seen} commands were looked at");
}

#[test]
fn every_block_of_yaml_is_yaml() {
    let mut seen = 0;
    for (path, text) in documents() {
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let parsed: Result<Vec<serde_json::Value>, _> = serde_saphyr::from_multiple(block);
            assert!(parsed.is_ok(), "{}: {}\n{block}", path.display(), parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen > 4, "only {seen} blocks were looked at");
}

#[test]
fn the_versions_of_the_compatibility_page_are_those_of_the_modules() {
    let workspace = build::workspace().unwrap();
    let read = |path: &str| fs::read_to_string(workspace.join(Path::new(path))).unwrap();
    let page = read("docs/compatibility.md");
    for (file, module) in [
        ("tests/kubernetes/go.mod", "k8s.io/kubernetes v"),
        ("tests/kubernetes/multus/go.mod", "gopkg.in/k8snetworkplumbingwg/multus-cni.v4 v"),
        ("tests/kubernetes/containerd/go.mod", "github.com/containerd/containerd/v2 v"),
        ("tests/kubernetes/helm/go.mod", "helm.sh/helm/v3 v"),
    ] {
        let text = read(file);
        let version = text.split(module).nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(page.contains(&format!("| {version} | tested")), "{module}{version} is not on the page");
    }
}
