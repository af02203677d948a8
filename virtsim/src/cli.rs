//! The command line: what was typed, and which command it means. One module for each command.

mod api_resources;
mod apply;
mod delete;
mod describe;
mod down;
mod exec;
mod follow;
mod get;
mod logs;
mod path_template;
mod patience;
mod restart;
mod screen;
mod status;
mod target;
mod terminal;
mod up;
mod wait;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::client::{self, Client};

/// A Kubernetes node without Kubernetes: kubelet, API server and container runtime for device plugins and CNI plugins.
#[derive(Debug, Parser)]
#[command(name = "virtsim", version, propagate_version = true, max_term_width = 110)]
struct Arguments {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

/// Of the options that every command has.
const WHERE: &str = "Which node";

/// Which node, and where in it.
#[derive(Clone, Debug, clap::Args)]
struct Context {
    /// The node's folder: control socket, kubeconfig, log
    #[arg(long, global = true, help_heading = WHERE, env = "VIRTSIM_DIR", default_value = "/run/virtsim", value_name = "DIR")]
    dir: PathBuf,
    /// Talk to the server of this kubeconfig instead of DIR/kubeconfig
    #[arg(long, global = true, help_heading = WHERE, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace [default: default]
    #[arg(long, short, global = true, help_heading = WHERE, value_name = "NAME")]
    namespace: Option<String>,
}

impl Context {
    fn client(&self) -> Result<Client, client::Error> {
        Client::of_node(&self.dir, self.kubeconfig.as_deref())
    }

    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node: in the background, unless --foreground is given
    Up(up::Arguments),
    /// Create or change the objects of manifests, all or none of them
    #[command(visible_alias = "create")]
    Apply(apply::Arguments),
    /// Show objects
    Get(get::Arguments),
    /// Show one pod or node with everything that happened to it
    Describe(describe::Arguments),
    /// Delete objects, and wait until they are gone
    Delete(delete::Arguments),
    /// Wait until objects are as they should be
    Wait(wait::Arguments),
    /// Show what a container wrote
    Logs(logs::Arguments),
    /// Run a command in a container
    Exec(exec::Arguments),
    /// Restart a part of the node
    Restart(restart::Arguments),
    /// List the kinds that the node serves
    ApiResources,
    /// Show how the node is
    Status(status::Arguments),
    /// Stop the node and everything it made
    Down(down::Arguments),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { context, command } = Arguments::parse();
    let outcome = match command {
        Command::Up(arguments) => up::run(&context, &arguments),
        Command::Apply(arguments) => apply::run(&context, arguments),
        Command::Get(arguments) => get::run(&context, arguments),
        Command::Describe(arguments) => describe::run(&context, arguments),
        Command::Delete(arguments) => delete::run(&context, arguments),
        Command::Wait(arguments) => wait::run(&context, arguments),
        Command::Logs(arguments) => logs::run(&context, arguments),
        Command::Exec(arguments) => exec::run(&context, arguments),
        Command::Restart(arguments) => restart::run(&context, arguments),
        Command::ApiResources => api_resources::run(&context),
        Command::Status(arguments) => status::run(&context, arguments),
        Command::Down(arguments) => down::run(&context, &arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            screen::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whoever read our output has read enough: `virtsim logs | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_command() {
        let arguments =
            Arguments::try_parse_from(["virtsim", "exec", "-it", "a", "--", "ip", "-4", "addr"]).unwrap();
        let Command::Exec(exec) = arguments.command else { panic!("{arguments:?}") };
        assert_eq!(exec.command, ["ip", "-4", "addr"]);
        assert!(Arguments::try_parse_from(["virtsim", "exec", "a"]).is_err());
    }
}
