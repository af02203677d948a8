//! The node agent: discovers virtual NICs, advertises them to the kubelet, answers its allocations.
//!
//! The folders are in the order of the flow: [`configure`] says what is wanted, [`discover`] reads what the node has, [`advertise`]
//! tells the kubelet, [`allocate`] answers what it asks; [`repatriate`] brings home what nobody else does; [`observe`] shows all of
//! it to whoever looks. One task owns the configuration, one what was discovered, one what is offered, one the registrations; each
//! hands its state on through a `watch` channel.

mod advertise;
mod agent;
mod allocate;
mod cli;
mod configure;
mod discover;
mod install;
mod log;
mod observe;
mod probe;
mod readable;
mod repatriate;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse_from(cli::with_two_dashes(std::env::args_os()));
    let settings = arguments.settings();
    let outcome = match arguments.command {
        Some(cli::Command::Discover { json }) => discover::print::run(&settings, json),
        Some(cli::Command::Accept { device }) => discover::accept::run(&settings, &device),
        Some(cli::Command::Explain { name, json }) => discover::explain::run(&settings, &name, json),
        Some(cli::Command::Validate { file, json }) => configure::validate::run(&file, json),
        Some(cli::Command::Install(options)) => install::install(&options, settings.kubelet.root()),
        Some(cli::Command::Uninstall(removal)) => install::uninstall(&removal, &settings.state),
        Some(cli::Command::Probe { ready }) => probe::run(&settings, ready),
        None => {
            log::start(arguments.logging());
            agent::main(settings)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtdp: {error:#}");
            ExitCode::FAILURE
        }
    }
}
