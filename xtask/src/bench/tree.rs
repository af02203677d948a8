//! The agent on generated sysfs trees, see `virtdp/benches/agent.rs`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use vm::Programs;

use crate::build;
use crate::progress::Step;

pub(super) fn run(programs: &Programs, step: &Step) -> Result<()> {
    step.note("build the bench");
    // What is measured is virtdp as it is installed; what measures need not be optimized.
    let mut command = build::cargo()?;
    command.args(["bench", "--profile", "dev", "--package", "virtdp", "--bench", "agent", "--no-run"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = step.run(&mut command)?;
    let bench = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some("agent"))
        .find_map(|message| message.get("executable")?.as_str().map(str::to_owned))
        .context("cargo built no bench")?;
    step.note("run it");
    let mut command = std::process::Command::new(std::env::current_exe().context("our own program")?);
    command.args(["in-namespace", "--", &bench]).env("VIRTDP", &programs.virtdp);
    // As sysfs is, the tree is in memory.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        command.env("TMPDIR", memory);
    }
    let output = command.output().context("cannot run the bench")?;
    if !output.status.success() {
        bail!("the bench failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
