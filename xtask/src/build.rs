//! Builds the project's programs as they are installed: static, and each kind with its own profile.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use vm::Programs;

use crate::progress::{Progress, Step};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// One cargo call each: cargo unifies the features of everything that it builds at once, and the CNI programs must stay small.
const CALLS: [(&str, &str, &[&str]); 2] = [
    ("Build the CNI programs", "cni", &["ehost-device", "virt-meta"]),
    ("Build the agent, the simulator and the VM's init", "release", &["virtdp", "virtsim", "vm-guest"]),
];

/// What people have to install when a build fails like this.
const REMEDIES: [(&str, &str); 4] = [
    ("can't find crate for `std`", "type: rustup target add x86_64-unknown-linux-gnu"),
    ("linker `cc` not found", "install a C compiler (Debian: apt-get install gcc libc6-dev)"),
    ("cannot find -lc", "install the static C library (Debian: libc6-dev; Fedora: glibc-static)"),
    ("cannot find -lm", "install the static C library (Debian: libc6-dev; Fedora: glibc-static)"),
];

/// The workspace's root folder.
pub(crate) fn workspace() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask has no parent folder")?.to_owned())
}

/// Cargo, in the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    Ok(command)
}

/// The build folder.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let output = cargo()?.args(["metadata", "--no-deps", "--format-version", "1"]).output();
    let output = output.context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let folder = metadata.get("target_directory").and_then(Value::as_str);
    Ok(folder.context("cargo metadata names no target folder")?.into())
}

/// Builds all programs and puts them into one folder.
pub(crate) fn programs(progress: &Progress) -> Result<Programs> {
    let folder = target_folder()?.join("programs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (title, profile, packages) in CALLS {
        let step = progress.step(title);
        let built = call(&step, profile, packages)?;
        let mut sizes = Vec::new();
        for (name, path) in &built {
            let size = install(path, &folder.join(name))?;
            sizes.push(format!("{name} {}.{} MB", size / 1_000_000, size / 100_000 % 10));
        }
        step.done(&sizes.join(", "));
    }
    Ok(Programs::at(folder))
}

fn call(step: &Step, profile: &str, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo()?;
    command.args(["build", "--profile", profile, "--target", TARGET]);
    command.args(["--message-format", "json-render-diagnostics"]);
    packages.iter().for_each(|package| {
        command.args(["--package", package]);
    });
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    command.env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim());
    let output = step.run(&mut command).map_err(|error| match remedy(&error.to_string()) {
        Some(remedy) => error.context(remedy),
        None => error,
    })?;
    let mut built = Vec::new();
    for message in output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let executable = message.get("executable").and_then(Value::as_str);
        let name = message.pointer("/target/name").and_then(Value::as_str);
        if let (Some(path), Some(name)) = (executable, name) {
            built.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    match packages.iter().find(|package| !built.iter().any(|(name, _)| name == *package)) {
        Some(package) => bail!("cargo built no program {package}"),
        None => Ok(built),
    }
}

fn remedy(error: &str) -> Option<anyhow::Error> {
    let found = REMEDIES.iter().find(|(symptom, _)| error.contains(symptom));
    found.map(|(_, remedy)| anyhow!("{remedy}"))
}

/// Copies a program if it is new, and gives its size. The copy is complete under its name at once: a VM may be running the old one.
fn install(from: &Path, to: &Path) -> Result<u64> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let contents = read(from)?;
    if !to.exists() || read(to)? != contents {
        let staged = to.with_extension("new");
        fs::copy(from, &staged).with_context(|| format!("cannot write {}", staged.display()))?;
        fs::rename(&staged, to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(u64::try_from(contents.len())?)
}
