//! The node in the background: this program again, with no terminal, and a log instead of one.
//!
//! It keeps nothing open of what its starter had, so that `virtsim up | cat` ends when the node is ready.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::patience::Patience;
use crate::control::{Connection, Request, Status};
use crate::options::Options;

/// Between two looks at whether the node is ready.
const LOOK: Duration = Duration::from_millis(20);
/// How long a node that is not wanted any more may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// Of the log, when something went wrong.
const LAST_LINES: usize = 20;

/// Starts the node and waits until it is ready.
pub(super) fn start(options: &Options, patience: Patience, level: &str) -> Result<Status> {
    let dir = options.dir.display();
    std::fs::create_dir_all(&options.dir)
        .with_context(|| format!("the node's folder {dir} cannot be made"))?;
    let path = options.log();
    let mut log = File::options().create(true).append(true).open(&path);
    let log =
        log.as_mut().map_err(|error| anyhow!("the log {} cannot be written: {error}", path.display()))?;
    let begins = log.seek(SeekFrom::End(0)).unwrap_or_default();
    let mut child = spawn(options, log, level)?;
    let deadline = patience.deadline();
    let why = loop {
        if let Some(status) = child.try_wait().context("the node cannot be watched")? {
            break anyhow!("the node ended at once: {}", ending(status));
        }
        match Connection::open(&options.dir, &Request::Status).and_then(Connection::answer::<Status>) {
            Ok(status) if status.ready && status.pid == child.id() => return Ok(status),
            _ if Instant::now() >= deadline => {
                end(&mut child);
                break anyhow!("the node is not ready after {patience}, and was ended");
            }
            // It is on its way.
            _ => std::thread::sleep(LOOK),
        }
    };
    let said = last_lines(&path, begins);
    Err(why.context(format!("the node did not start; its log {} ends so:\n{said}", path.display())))
}

fn spawn(options: &Options, log: &File, level: &str) -> Result<Child> {
    let itself = std::env::current_exe().context("this program's file cannot be found")?;
    let output = || log.try_clone().map(Stdio::from).context("the log cannot be shared");
    let option = |name: &str, value: &Path| {
        let mut argument = std::ffi::OsString::from(format!("--{name}="));
        argument.push(value);
        argument
    };
    // Only the log, which it gets as its output: whoever reads the end of a pipe must not wait for the node.
    linux::process::inherit_only_standard_streams();
    let child = Command::new(itself)
        .arg("up")
        .arg(option("dir", &options.dir))
        .arg(option("kubelet-dir", &options.kubelet_dir))
        .arg(option("cni-conf-dir", &options.cni_conf_dir))
        .arg(option("cni-bin-dir", &options.cni_bin_dir))
        .arg(option("cni-cache-dir", &options.cni_cache_dir))
        .arg(option("daemon-log", &options.log()))
        .arg(format!("--node-name={}", options.node_name))
        .arg(format!("--listen={}", options.listen))
        .args(options.align_numa.then_some("--align-numa"))
        .arg(format!("--log={level}"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .spawn();
    child.context("the node's process cannot be started")
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}

/// Ends a node that did not become ready: it is asked first, so that it can undo what it did.
fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    let begun = Instant::now();
    while asked && begun.elapsed() < GRACE {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    // It may have ended this very moment.
    let _ = child.kill();
    let _ = child.wait();
}

/// The last lines that were written since `begins`.
fn last_lines(path: &Path, begins: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(begins))?;
        file.read_to_end(&mut text)
    });
    if let Err(error) = read {
        return format!("(it cannot be read: {error})");
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LAST_LINES);
    let lines: Vec<_> = lines.into_iter().skip(skipped).map(|line| format!("  {line}")).collect();
    if lines.is_empty() { "  (nothing was logged)".to_owned() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_from_this_start_on_and_only_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let old = "an older start\n";
        let new: String = (0..30).map(|n| format!("line {n}\n")).collect();
        std::fs::write(file.path(), format!("{old}{new}")).unwrap();
        let said = last_lines(file.path(), u64::try_from(old.len()).unwrap());
        assert!(said.starts_with("  line 10\n") && said.ends_with("  line 29"), "{said}");
        let end = std::fs::metadata(file.path()).unwrap().len();
        assert_eq!(last_lines(file.path(), end), "  (nothing was logged)");
    }
}
