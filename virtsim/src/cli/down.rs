//! `virtsim down`: the end of the node and of everything it made.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::patience::Patience;
use super::{Context, screen};
use crate::control::{Connection, Error, Request, Status};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Longest time to wait for the node's process after it has undone everything
    #[arg(long, default_value = "30s", value_name = "TIME")]
    timeout: Patience,
}

const LOOK: Duration = Duration::from_millis(20);

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<ExitCode> {
    let status = Connection::open(&context.dir, &Request::Status).and_then(Connection::answer::<Status>);
    let status = match status {
        Ok(status) => status,
        Err(Error::NoNode { dir }) => {
            screen::print(&format!("no node runs in {}\n", dir.display()))?;
            if crate::options::control_socket(&dir).exists() {
                screen::note(
                    "One that was killed left its things there: the next `virtsim up` undoes what it did.",
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error.into()),
    };
    let connection = Connection::open(&context.dir, &Request::Shutdown)?;
    connection
        .answer::<()>()
        .with_context(|| format!("the node did not end cleanly: see {}", status.log.display()))?;
    let process = Path::new("/proc").join(status.pid.to_string());
    let deadline = arguments.timeout.deadline();
    while is_virtsim(&process) {
        if Instant::now() >= deadline {
            bail!(
                "the node has stopped, but its process {} has not ended after {}",
                status.pid,
                arguments.timeout
            );
        }
        std::thread::sleep(LOOK);
    }
    screen::print("node stopped\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the process still runs: not another one with its number, and not one that only waits to be collected.
fn is_virtsim(process: &Path) -> bool {
    let ours = std::fs::read_link("/proc/self/exe");
    match (std::fs::read_link(process.join("exe")), ours) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}
