//! `cargo xtask suite`: our CNI plugin beside the one that others use, both seen as black boxes.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::progress::Progress;
use crate::{build, packages};

/// Check ehost-device, and containernetworking's host-device beside it, through the CNI interface alone
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write the table into docs/cni-suite.md, in place of printing a report
    #[arg(long)]
    write: bool,

    /// More options of cni-suite: --only, --kills, ...
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

const DOCUMENT: &str = "docs/cni-suite.md";
const BEGIN: &str = "<!-- cargo xtask suite --write -->\n";
const END: &str = "<!-- end -->\n";

pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let programs = build::cni_programs(progress)?;
    let debian = packages::ensure(progress)?;
    let step = progress.step("Build the suite");
    step.run(build::cargo()?.args(["build", "--package", "cni-suite"]))?;
    step.done("");
    let plugins = debian.host_cni_plugins();
    let mut command = Command::new(build::target_folder()?.join("debug/cni-suite"));
    command.arg(programs.join("ehost-device")).arg(plugins.join("host-device"));
    command.arg("--cni-path").arg(&plugins).args(&options.options);
    command.env("PATH", debian.host_path());
    if let Some(libraries) = debian.host_libraries() {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    if !options.write {
        let status = command.status().context("cannot run the suite")?;
        // What others' plugin does not do is no failure of ours.
        return Ok(if status.code() == Some(2) { ExitCode::from(2) } else { ExitCode::SUCCESS });
    }
    let step = progress.step("Run the suite");
    let output = command.arg("--markdown").output().context("cannot run the suite")?;
    let table = String::from_utf8(output.stdout).context("the suite's table")?;
    if table.is_empty() {
        bail!("the suite failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    step.done("");
    write(&build::workspace()?.join(DOCUMENT), &table)?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no place for the table", path.display()))?;
    fs::write(path, format!("{before}{BEGIN}\n{table}\n{END}{after}"))
        .with_context(|| format!("cannot write {}", path.display()))
}
