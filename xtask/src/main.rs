//! The project's commands, a module for each.

mod bench;
mod build;
mod demo;
#[cfg(test)]
mod documents;
mod fuzz;
mod image;
mod kubernetes;
mod packages;
mod progress;
mod suite;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::progress::Progress;

/// The project's commands
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Walk through the whole flow on real virtio NICs in a VM, and check every step
    Demo(demo::Options),
    /// Run every test: unit, property, namespaces, whole systems in the VM
    Test(test::Options),
    /// Check ehost-device, and containernetworking's host-device beside it, through the CNI interface alone
    Suite(suite::Options),
    /// Measure what plumbing a NIC costs, and what the agent costs on a node with many of them
    Bench(bench::Options),
    /// Feed bytes that nobody thought of to what reads input, under libFuzzer
    Fuzz(fuzz::Options),
    /// Check against the real Kubernetes: device manager, manifests, a node in a VM with each meta plugin
    Kubernetes(kubernetes::Options),
    /// Make the container image, with its bill of materials: an OCI archive for each architecture
    Image(image::command::Options),
    /// Make what is made in deployments/: the plain manifests, and copies of the definition of networks
    Manifests(kubernetes::manifests::Options),
    /// Boot a VM with real virtio NICs and run a command in it
    Vm(vm::Options),
    /// Build the programs as they are installed, and fetch what the VM needs
    Build,
    /// Fetch what the VM needs, nothing else
    Packages,
    /// Run a program in fresh namespaces; `test` runs the test programs by it
    #[command(hide = true)]
    InNamespace(test::InNamespace),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let progress = Progress::new();
    let result = match &arguments.command {
        Command::Demo(options) => demo::run(options, &progress),
        Command::Test(options) => test::run(options, &progress),
        Command::Suite(options) => suite::run(options, &progress),
        Command::Bench(options) => bench::run(options, &progress),
        Command::Fuzz(options) => fuzz::run(options, &progress),
        Command::Kubernetes(options) => kubernetes::run(options, &progress),
        Command::Image(options) => image::command::run(options, &progress),
        Command::Manifests(options) => kubernetes::manifests::make(options, &progress),
        Command::Vm(options) => vm::run(options, &progress),
        Command::Build => build::programs(&progress)
            .and_then(|programs| Ok((programs, packages::ensure(&progress)?)))
            .map(|(programs, debian)| {
                println!("{}={}", ::vm::PROGRAMS_VARIABLE, programs.folder.display());
                println!("{}={}", ::vm::DEBIAN_VARIABLE, packages::description(&debian.folder).display());
                ExitCode::SUCCESS
            }),
        Command::Packages => packages::ensure(&progress).map(|debian| {
            println!("{}={}", ::vm::DEBIAN_VARIABLE, packages::description(&debian.folder).display());
            ExitCode::SUCCESS
        }),
        Command::InNamespace(options) => test::in_namespace(options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
