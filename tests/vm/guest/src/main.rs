//! What runs first inside the test VM. One static program in four roles: init (process 1), the command agent that the host talks to,
//! `modprobe` for the kernel, and the small step that gives a command its terminal.

mod agent;
mod init;
mod loopback;
mod modprobe;
mod session;
mod terminal;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or(OsStr::new("")).to_owned();
    if std::process::id() == 1 {
        return init::run();
    }
    let role = if name == "modprobe" { Some(name) } else { arguments.next() };
    match role.as_deref().and_then(OsStr::to_str) {
        Some("modprobe") => modprobe::run(arguments),
        Some("agent") => agent::run(),
        Some("terminal") => terminal::run(arguments),
        _ => {
            eprintln!("vm-guest: runs as process 1 of a test VM; other roles: agent, modprobe, terminal");
            ExitCode::from(2)
        }
    }
}
