//! The rules of the workspace that no compiler checks: who may depend on whom, and who inherits the lints.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .exec()
        .unwrap()
}

/// What each package of ours links from ours, tests aside.
fn inner_dependencies(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let ours: BTreeSet<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    metadata
        .workspace_packages()
        .iter()
        .map(|package| {
            let inner = package
                .dependencies
                .iter()
                .filter(|d| d.kind == DependencyKind::Normal && ours.contains(d.name.as_str()))
                .map(|d| d.name.clone())
                .collect();
            (package.name.to_string(), inner)
        })
        .collect()
}

#[test]
fn each_crate_depends_only_on_those_below_it() {
    let found = inner_dependencies(&metadata());
    let allowed: &[(&str, &[&str])] = &[
        ("nic", &[]),
        ("located", &[]),
        ("config", &["nic", "located"]),
        ("linux", &["nic"]),
        ("cni", &["nic"]),
        ("kubelet-api", &["nic"]),
        ("cluster", &["nic"]),
        ("ledger", &["nic", "linux"]),
        // cni: `virtdp install` must see the node's network configurations as the runtime does.
        ("virtdp", &["nic", "located", "config", "linux", "ledger", "kubelet-api", "cluster", "cni"]),
        ("virt-meta", &["nic", "linux", "cni", "kubelet-api", "cluster"]),
        ("ehost-device", &["nic", "linux", "cni", "ledger", "kubelet-api"]),
        // The simulator has no private knowledge of the other programs, not even of their ledger.
        ("virtsim", &["nic", "located", "linux", "cni", "kubelet-api", "cluster"]),
        ("fuzz", &["nic", "config", "linux", "cni", "cluster", "ledger", "kubelet-api"]),
        // It knows of a plugin what the specification says, and no more: namespaces are all that it shares with ours.
        ("cni-suite", &["linux"]),
        ("vm", &["nic", "vm-guest"]),
        ("vm-guest", &[]),
        ("xtask", &["vm", "nic"]),
        // What kills a program in the guest is built with the tests.
        ("system-tests", &["vm", "linux"]),
    ];
    for (package, allowed) in allowed {
        let inner = found.get(*package).unwrap_or_else(|| panic!("{package} is gone: update this list"));
        for dependency in inner {
            assert!(allowed.contains(&dependency.as_str()), "{package} must not depend on {dependency}");
        }
    }
    let listed: BTreeSet<_> = allowed.iter().map(|(package, _)| (*package).to_owned()).collect();
    let all: BTreeSet<_> = found.keys().cloned().collect();
    assert_eq!(all, listed, "a package is missing from the list above");
}

#[test]
fn only_linux_knows_netlink() {
    for package in metadata().workspace_packages() {
        let netlink: Vec<_> = package.dependencies.iter().filter(|d| d.name.starts_with("netlink")).collect();
        assert!(
            package.name.as_str() == "linux" || netlink.is_empty(),
            "{} uses netlink itself",
            package.name
        );
    }
}

#[test]
fn every_crate_inherits_the_lints() {
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not inherit the lints",
            package.name
        );
    }
}

#[test]
fn only_linux_lifts_the_ban_on_unsafe_code() {
    for package in metadata().workspace_packages() {
        if package.name.as_str() == "linux" {
            continue;
        }
        let mut folders = vec![package.manifest_path.parent().unwrap().as_std_path().join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(!text.contains("allow(unsafe_code)"), "{} lifts the ban", path.display());
                }
            }
        }
    }
}
