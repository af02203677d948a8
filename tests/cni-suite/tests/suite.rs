//! The suite as people run it: on our own plugin, of which all must hold, and on plugins that break one promise each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Our plugin: as it is installed, where that was built, else as cargo built it for tests.
fn ours() -> PathBuf {
    let beside = || Path::new(env!("CARGO_BIN_EXE_cni-suite")).parent().unwrap().to_owned();
    let path = std::env::var_os("VIRTNET_PROGRAMS").map_or_else(beside, PathBuf::from).join("ehost-device");
    assert!(path.is_file(), "{} is not built: cargo build -p ehost-device", path.display());
    path
}

fn suite(plugin: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-suite"));
    command.arg(plugin).args(arguments);
    // Where the containernetworking plugins were fetched.
    if let Ok(debian) = vm::Debian::load() {
        command.arg("--cni-path").arg(debian.host_cni_plugins());
    }
    command.output().unwrap()
}

/// Check and outcome, as the report for machines has them, and whether the program says that all holds.
fn outcomes(plugin: &Path, only: &[&str]) -> (BTreeMap<String, String>, bool) {
    let output = suite(plugin, &[&["--json"], only].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).expect(&error);
    let checks = report["plugins"][0]["checks"].as_array().unwrap();
    for check in checks.iter().filter(|check| check["outcome"] != "holds") {
        println!("{}: {}: {}", check["check"], check["outcome"], check["why"]);
    }
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let outcomes = checks.iter().map(|check| (text(check, "check"), text(check, "outcome"))).collect();
    (outcomes, output.status.success())
}

#[test]
fn every_check_holds_for_our_plugin_and_the_document_says_so() {
    let (outcomes, good) = outcomes(&ours(), &[]);
    assert!(good && outcomes.len() > 60, "{outcomes:?}");
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cni-suite.md");
    let document = std::fs::read_to_string(document).unwrap();
    let said: BTreeMap<&str, &str> = document
        .lines()
        .filter_map(|line| {
            let (name, cells) = line.strip_prefix("| [")?.split_once(']')?;
            // Check, what is expected, ours, others.
            Some((name, cells.split(" | ").nth(2)?))
        })
        .collect();
    let names: Vec<_> = outcomes.keys().map(String::as_str).collect();
    assert_eq!(
        said.keys().copied().collect::<Vec<_>>(),
        names,
        "cargo xtask suite --write makes the table anew"
    );
    // What plain `cargo test` does not fetch, and what not every kernel has.
    let optional = [
        "host-local",
        "in-a-bond",
        "in-a-vrf",
        "vlan-upon-it",
        "macvlan-upon-it",
        "ipvlan-upon-it",
        "macsec-upon-it",
        "xdp",
    ];
    for (name, outcome) in &outcomes {
        let said = said[name.as_str()];
        let unknown = [said, outcome].contains(&"not checked");
        assert!(
            if unknown { optional.contains(&name.as_str()) } else { said == outcome },
            "{name}: {outcome}"
        );
    }
}

/// A plugin that does what ours does, but for this.
fn breaking(folder: &Path, what: &str) -> PathBuf {
    let path = folder.join("breaking");
    let text = format!("#!/bin/sh\nours={}\n{what}\nexec \"$ours\"\n", ours().display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_plugin_that_breaks_a_promise_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = r#"{ echo '{"cniVersion":"1.0.0","code":4,"msg":"no"}'; exit 1; }"#;
    let cases = [
        ("netns-empty", format!("[ $CNI_COMMAND$CNI_NETNS != DEL ] || {error}")),
        ("not-json", r#""$ours" >&2; exit"#.to_owned()),
        ("add-del", r#"[ $CNI_COMMAND = DEL ] && { "$ours"; ip link set eth1 up; exit 0; }"#.to_owned()),
        ("ipam-fails", r#"[ $CNI_COMMAND = ADD ] && { "$ours" | sed s/,$/,,/; exit 0; }"#.to_owned()),
        ("late-del", r#"[ $CNI_COMMAND = DEL ] && { CNI_CONTAINERID=c2 "$ours"; exit 0; }"#.to_owned()),
        ("result-0.3.1", r#"[ $CNI_COMMAND = ADD ] && { "$ours" | sed s/0.3.1/1.0.0/; exit 0; }"#.to_owned()),
        ("check-misses-the-address", "[ $CNI_COMMAND = CHECK ] && exit 0".to_owned()),
        (
            "killed-add",
            format!(
                "[ $CNI_COMMAND = DEL ] && [ ! -e /var/lib/added ] && {error}; [ $CNI_COMMAND = ADD ] && {{ \"$ours\"; : >/var/lib/added; exit; }}"
            ),
        ),
        ("was-up", r#"[ $CNI_COMMAND = DEL ] && { "$ours"; ip link set eth1 down; exit 0; }"#.to_owned()),
        (
            "gc-of-another-network",
            r#"[ $CNI_COMMAND = GC ] && { sed s/another/suite/ | "$ours"; exit; }"#.to_owned(),
        ),
        ("one-nic", "[ $CNI_COMMAND = ADD ] && { \"$ours\"; exit 0; }".to_owned()),
    ];
    for (check, what) in cases {
        let plugin = breaking(folder.path(), &what);
        let (outcomes, good) = outcomes(&plugin, &["--only", check, "--kills", "4"]);
        assert!(
            !good && outcomes[check] == "fails",
            "{check} does not notice this plugin: {what}: {outcomes:?}"
        );
    }
}

#[test]
fn the_reports_name_plugins_checks_and_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = breaking(folder.path(), "[ $CNI_COMMAND = ADD ] && exit 3");
    let text = |arguments: &[&str]| {
        let output = suite(&plugin, arguments);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let readable = text(&["--only", "add-del"]);
    for part in [
        "breaking: add-del",
        "ADD for c1 ends with exit status: 3",
        "SPEC.md#del",
        "0 hold, 1 fail, 0 not checked",
    ] {
        assert!(readable.contains(part), "no {part:?} in\n{readable}");
    }
    assert!(!readable.contains('\u{1b}'), "colours, and no terminal");
    let markdown = text(&["--only", "add-del", "--markdown"]);
    assert!(markdown.starts_with("| check | expected | breaking |\n|---|---|---|\n"), "{markdown}");
    let nothing = suite(&plugin, &["--only", "no such check"]);
    assert_eq!(nothing.status.code(), Some(2));
    let broken = suite(&folder.path().join("absent"), &[]);
    assert_eq!(broken.status.code(), Some(2));
}
