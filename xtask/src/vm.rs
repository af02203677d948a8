//! `cargo xtask vm`: a guest with NICs of your choice, for one command or a shell.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use vm::{Bed, Chipset, Ended, Nic, Spec, Vm};

use crate::progress::Progress;
use crate::{build, packages};

/// Boot a VM with real virtio NICs and run a command in it
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A virtio NIC at this PCI address; all of them share one network
    #[arg(long, value_name = "ADDRESS[=MAC]")]
    nic: Vec<String>,

    /// An e1000 NIC at this PCI address
    #[arg(long, value_name = "ADDRESS[=MAC]")]
    e1000: Vec<String>,

    /// A management NIC at 0000:00:03.0 that carries the default route
    #[arg(long)]
    mgmt: bool,

    /// The pc machine (plain PCI) instead of q35
    #[arg(long)]
    pc: bool,

    /// Memory in MiB
    #[arg(long, default_value_t = 512)]
    memory: u32,

    /// A folder of the host at /persist in the VM, writable
    #[arg(long, value_name = "FOLDER")]
    persist: Option<PathBuf>,

    /// What to run; a shell if nothing
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// First address of the range that QEMU and KVM use for MAC addresses.
const MAC_PREFIX: &str = "52:54:00:00:00";

pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let spec = spec(options)?;
    let programs = build::programs(progress)?;
    let debian = packages::ensure(progress)?;
    let step = progress.step("Boot the VM");
    let bed = Bed::new(debian, programs.vm_guest)?;
    let vm = bed.boot(&spec)?;
    step.done(&bed.accelerator().to_string());
    attach(&vm, &options.command)
}

fn attach(vm: &Vm, command: &[String]) -> Result<ExitCode> {
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program.as_str(), arguments),
        None => ("sh", &[][..]),
    };
    let ended = vm.command(program).args(arguments).cwd(build::workspace()?).attach()?;
    Ok(match ended {
        Ended::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        // What a shell answers for a program that a signal ended.
        Ended::Signal(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
    })
}

fn spec(options: &Options) -> Result<Spec> {
    let mut spec = Spec::new().memory(options.memory);
    if options.pc {
        spec = spec.chipset(Chipset::Pc);
    }
    if let Some(folder) = &options.persist {
        spec = spec.persist(folder.canonicalize().with_context(|| folder.display().to_string())?);
    }
    if options.mgmt {
        let nic = Nic::virtio("0000:00:03.0".parse()?, format!("{MAC_PREFIX}:03").parse()?);
        spec = spec.nic(nic.management());
    }
    let virtio = options.nic.iter().map(|text| (text, false));
    for (number, (text, e1000)) in
        (0x10_u8..).zip(virtio.chain(options.e1000.iter().map(|text| (text, true))))
    {
        let (address, mac) = match text.split_once('=') {
            Some((address, mac)) => (address, mac.to_owned()),
            None => (text.as_str(), format!("{MAC_PREFIX}:{number:02x}")),
        };
        let nic = Nic::virtio(address.parse()?, mac.parse()?);
        spec = spec.nic(if e1000 { nic.e1000() } else { nic });
    }
    Ok(spec)
}
