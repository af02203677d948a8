//! `virtsim logs`: what a container wrote.

use std::process::ExitCode;

use anyhow::Result;

use super::Context;
use super::target::pod_name;
use crate::control::{Connection, Logs, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The pod, as NAME or pod/NAME
    pod: String,
    /// The container; needed where the pod has several
    #[arg(long, short)]
    container: Option<String>,
    /// Go on as the container writes
    #[arg(long, short)]
    follow: bool,
    /// Only the last so many lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let request = Request::Logs(Logs {
        namespace: context.namespace().to_owned(),
        pod: pod_name(&arguments.pod)?.to_owned(),
        container: arguments.container,
        follow: arguments.follow,
        tail: arguments.tail,
    });
    let connection = Connection::open(&context.dir, &request)?;
    connection.run(&mut std::io::stdout().lock(), &mut std::io::stderr().lock())?;
    Ok(ExitCode::SUCCESS)
}
