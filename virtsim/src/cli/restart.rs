//! `virtsim restart kubelet`: what a node's operator does with `systemctl restart kubelet`.

use std::process::ExitCode;

use anyhow::Result;

use super::Context;
use super::screen;
use crate::control::{Connection, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What to restart
    part: Part,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Part {
    /// Removes all plugins' sockets, serves its own anew; pods go on running
    Kubelet,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    match arguments.part {
        Part::Kubelet => Connection::open(&context.dir, &Request::RestartKubelet)?.answer::<()>()?,
    }
    screen::print("kubelet restarted\n")?;
    Ok(ExitCode::SUCCESS)
}
