//! `cargo xtask bench`: the figures that anybody can take again.

mod cni;
mod many;
mod report;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use vm::{Bed, Vm};

use crate::progress::Progress;
use crate::{build, packages};

/// Measure what plumbing a NIC costs, and what the agent costs on a node with many of them
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The parts; all if none is named
    #[arg(value_enum)]
    parts: Vec<Part>,

    /// cni: how often a NIC goes out and comes home by each program
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(3..=1000))]
    rounds: u32,

    /// many: the program of sriov-network-device-plugin (static), to be measured beside virtdp
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,

    /// cni: a second host-device (static), to be measured beside Debian's
    #[arg(long, value_name = "FILE")]
    host_device: Option<PathBuf>,

    /// cni: put the table and the plot into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// ADD and DEL beside host-device and the bare kernel operations, on veth and on virtio NICs in a VM
    Cni,
    /// The agent in a VM with 200 virtio NICs
    Many,
    /// The agent on generated sysfs trees: 10,000 NICs, Allocate, memory, CPU while nothing happens
    Tree,
}

pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    // ADD and DEL need no agent, which takes the longest to build.
    let build = if wanted(Part::Many) || wanted(Part::Tree) {
        build::programs
    } else {
        build::cni_programs_and_guest
    };
    let programs = build(progress)?;
    let debian = packages::ensure(progress)?;
    let bed = Bed::new(debian, &programs.vm_guest)?;
    println!("load of this machine at the start: {}", load()?);
    if wanted(Part::Cni) {
        cni::run(&bed, &programs, options, progress)?;
    }
    if wanted(Part::Many) {
        let step = progress.step("Measure the agent in a VM with many NICs");
        many::run(&bed, &programs, options.beside.as_deref(), &step)?;
        step.done(&bed.accelerator().to_string());
    }
    if wanted(Part::Tree) {
        let step = progress.step("Measure the agent on generated trees");
        tree::run(&programs, &step)?;
        step.done("");
    }
    println!("load of this machine at the end: {}", load()?);
    Ok(ExitCode::SUCCESS)
}

/// What says whether the figures are worth anything: the averages of one, five and fifteen minutes, on how many processors.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let averages: Vec<&str> = text.split(' ').take(3).collect();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!("{}, {processors} processors", averages.join(" ")))
}

/// How long one script may take, also on a machine that has other work.
const LIMIT: Duration = Duration::from_secs(900);

fn bash(vm: &Vm, script: &str, environment: &[(&str, &str)]) -> Result<String> {
    let command = vm.command("bash").args(["-euc", script]).limit(LIMIT);
    let command = environment.iter().fold(command, |command, (name, value)| command.env(*name, *value));
    Ok(command.run()?.text())
}

fn median<T: Ord + Copy>(values: &mut [T]) -> Result<T> {
    values.sort_unstable();
    values.get(values.len() / 2).copied().context("nothing was measured")
}
