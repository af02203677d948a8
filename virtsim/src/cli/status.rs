//! `virtsim status`: how the node is, and where its things are.

use std::process::ExitCode;

use anyhow::Result;

use super::Context;
use super::screen;
use crate::control::{Connection, Request, Status};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let status: Status = Connection::open(&context.dir, &Request::Status)?.answer()?;
    if arguments.json {
        screen::print(&format!("{}\n", serde_json::to_string_pretty(&status)?))?;
    } else {
        screen::print(&text(&status))?;
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The status for people.
pub(super) fn text(status: &Status) -> String {
    let word = if status.ready { "Ready" } else { "NotReady" };
    let style = screen::style(word);
    let kubelet = if status.kubelet_running { "running" } else { "stopped" };
    let log = match status.log.as_os_str().is_empty() {
        true => "the terminal it was started from".to_owned(),
        false => status.log.display().to_string(),
    };
    format!(
        "Node:         {} {style}{word}{style:#}\n\
         Process:      {}\n\
         API server:   {}\n\
         Kubeconfig:   {}\n\
         Kubelet:      {kubelet}, in {}\n\
         CNI:          {}\n\
         Log:          {log}\n\
         Pods:         {}\n",
        status.node_name,
        status.pid,
        status.server,
        status.kubeconfig.display(),
        status.kubelet_dir.display(),
        status.cni_conf_dir.display(),
        status.pods,
    )
}
