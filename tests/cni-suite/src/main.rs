//! A black box's view of a CNI plugin that moves a NIC of the host into a pod: it is called as a runtime calls it, on veth links in
//! network namespaces that end with the program, and judged by the CNI specification and by what can be seen afterwards.

mod answer;
mod bed;
mod check;
mod checks;
mod picture;
mod report;
mod subject;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::check::Outcome;
use crate::report::Report;
use crate::subject::{Subject, Way};

/// Check CNI plugins that move a NIC of the host into a pod, side by side
///
/// Each plugin is called as a container runtime calls it, and judged by the CNI specification and by what can be seen afterwards: links,
/// addresses, routes, leased addresses. It runs on veth links, in network and mount namespaces that end with it: nothing of this machine is
/// touched. Where the caller is not root, that is inside a user namespace. It needs iproute2 and util-linux.
///
/// The exit code is 0 if every check holds for every plugin, 1 if one fails, 2 if the checks could not be made.
#[derive(Debug, Parser)]
#[command(
    name = "cni-suite",
    after_help = "Examples:
  cni-suite /opt/cni/bin/host-device
  cni-suite ./ehost-device /opt/cni/bin/host-device --cni-path /opt/cni/bin
  cni-suite ./my-plugin --config-key 'hwaddr={mac}' --config '{\"logFile\": \"/dev/null\"}' --only kill"
)]
struct Arguments {
    /// The plugins' programs; one column for each
    #[arg(value_name = "PLUGIN", required_unless_present = "list")]
    plugins: Vec<PathBuf>,

    /// How the configuration names the NIC: {name} and {mac} stand for the NIC's
    #[arg(long, value_name = "KEY[=TEMPLATE]", default_value = "device={name}")]
    config_key: Way,

    /// More keys for each network configuration
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = object)]
    config: serde_json::Map<String, serde_json::Value>,

    /// Folders with IPAM plugins (host-local) besides the plugins' own and the usual ones
    #[arg(long, value_name = "FOLDER", env = "CNI_PATH", value_delimiter = ':')]
    cni_path: Vec<PathBuf>,

    /// Folders in which plugins keep what they must remember; each is empty at the beginning of each check
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib")]
    state: Vec<PathBuf>,

    /// Only checks whose area or name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,

    /// At how many instants of a run a plugin is killed
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    kills: u32,

    /// Seconds that one call may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,

    /// Print the report as JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,

    /// Print the report as Markdown
    #[arg(long)]
    markdown: bool,

    /// List the checks, with what they expect
    #[arg(long)]
    list: bool,
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, serde_json::Error> {
    serde_json::from_str(text)
}

/// Set once the namespaces are there.
const INSIDE: &str = "CNI_SUITE_INSIDE";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cni-suite: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all holds.
fn run(arguments: &Arguments) -> Result<bool> {
    let areas = checks::chosen(arguments.only.as_deref());
    if areas.is_empty() {
        bail!(
            "no check has {:?} in its name; --list names all",
            arguments.only.as_deref().unwrap_or_default()
        );
    }
    if arguments.list {
        report::list(&areas);
        return Ok(true);
    }
    if std::env::var_os(INSIDE).is_none() {
        return Err(enter_namespaces());
    }
    let limits =
        subject::Limits { kills: arguments.kills.max(1), call: Duration::from_secs(arguments.timeout) };
    let mut subjects = Vec::new();
    for plugin in &arguments.plugins {
        let subject =
            Subject::prepare(plugin, &arguments.cni_path, &arguments.config_key, &arguments.config)?;
        subjects.push(subject.within(limits));
    }
    let mut report = Report::new(&areas, subjects.iter().map(Subject::title).collect());
    for area in &areas {
        for check in &area.checks {
            for subject in &subjects {
                report::tell_progress(&format!("{}: {}", subject.title(), check.name));
                let outcome = Outcome::of(check, subject, &arguments.state).with_context(|| {
                    format!("check {} of {} could not be made", check.name, subject.title())
                })?;
                report.note(check.name, outcome);
            }
        }
    }
    report::tell_progress("");
    if arguments.json {
        report.print_json();
    } else if arguments.markdown {
        report.print_markdown();
    } else {
        report.print();
    }
    Ok(report.all_hold())
}

/// Starts this program again in network and mount namespaces of its own; comes back only if that fails.
fn enter_namespaces() -> anyhow::Error {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return anyhow::Error::new(error).context("our own program"),
    };
    command.arg("--").arg(own).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    anyhow::Error::new(command.exec()).context("cannot run unshare (util-linux)")
}
