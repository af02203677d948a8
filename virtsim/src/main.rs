//! The `virtsim` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: pods' processes are this program, too.
    virtsim::runtime::init::run_if_asked();
    virtsim::cli::main()
}
