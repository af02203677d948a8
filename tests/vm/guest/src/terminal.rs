//! Runs a command on a terminal: `vm-guest terminal /dev/pts/N PROGRAM ARGUMENT...`.
//!
//! A process gets a controlling terminal when a session's leader opens it. That must happen in the new process, between fork and
//! exec; this program is that step.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// What shells answer when a program cannot be started.
const NOT_FOUND: u8 = 127;

pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(path), Some(program)) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    if let Err(error) = enter(&path) {
        eprintln!("vm-guest: terminal {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("{}: {error}", program.display());
    ExitCode::from(NOT_FOUND)
}

fn enter(path: &OsString) -> io::Result<()> {
    setsid()?;
    let terminal = OpenOptions::new().read(true).write(true).open(path)?;
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    Ok(())
}
