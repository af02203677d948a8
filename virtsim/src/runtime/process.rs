//! Starting the helper processes of a pod, and ending them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::init::{Role, Shape, arguments};
use super::types::Error;

/// A process that can be signalled without hitting another one that got its number.
pub(super) struct Handle {
    pidfd: OwnedFd,
    pub(super) pid: u32,
}

impl Handle {
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        Ok(Handle { pidfd: pidfd_open(number, PidfdFlags::empty())?, pid })
    }

    /// Sends a signal; a process that has ended needs none.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// The processes that hold a pod's namespaces.
pub(super) struct Holder {
    /// `Role::Sandbox`, our child.
    pub(super) child: Child,
    /// `Role::First`: when it ends, every process of the pod does.
    pub(super) first: Handle,
    /// Closed when we end, for whatever reason: then they end, too.
    _lifeline: Option<ChildStdin>,
    /// What the pod had to do without.
    pub(super) notes: Vec<String>,
}

impl Holder {
    /// Starts them and waits until the namespaces are ready.
    pub(super) async fn start(program: &Path, shape: Shape) -> Result<Self, Error> {
        let failed =
            |source| Error::Process { step: "start", what: "the pod's first process".to_owned(), source };
        let mut child = Command::new(program)
            .args(arguments(&Role::Sandbox(shape)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let lifeline = child.stdin.take();
        match ready(&mut child).await {
            Ok((first, notes)) => Ok(Holder { child, first, _lifeline: lifeline, notes }),
            Err(error) => {
                drop(lifeline);
                // It ends by itself, now that its lifeline has.
                let _ = child.wait().await;
                Err(failed(error))
            }
        }
    }

    /// Ends every process of the pod and waits for that.
    pub(super) async fn end(mut self) -> io::Result<()> {
        self.first.signal(Signal::KILL);
        self.child.wait().await.map(drop)
    }
}

async fn ready(child: &mut Child) -> io::Result<(Handle, Vec<String>)> {
    let (Some(stdout), Some(mut stderr)) = (child.stdout.as_mut(), child.stderr.take()) else {
        return Err(io::Error::other("it has no pipes"));
    };
    match report(BufReader::new(stdout)).await? {
        Some((pid, notes)) => Ok((Handle::open(pid)?, notes)),
        None => {
            let mut said = String::new();
            stderr.read_to_string(&mut said).await?;
            Err(io::Error::other(said.trim().to_owned()))
        }
    }
}

/// What `Sandbox` and `First` report, in whatever order: they write to one pipe, and the younger may be the faster. `None` if they end
/// before all is said.
async fn report(stdout: impl AsyncBufRead + Unpin) -> io::Result<Option<(u32, Vec<String>)>> {
    let mut lines = stdout.lines();
    let (mut number, mut is_ready, mut notes) = (None, false, Vec::new());
    while let Some(line) = lines.next_line().await? {
        let strange = || io::Error::other(format!("it says {line:?}"));
        match line.split_once(' ') {
            Some(("pid", pid)) => number = Some(pid.parse().map_err(|_| strange())?),
            Some(("note", note)) => notes.push(note.to_owned()),
            _ if line == "ready" => is_ready = true,
            _ => return Err(strange()),
        }
        if let (Some(number), true) = (number, is_ready) {
            return Ok(Some((number, notes)));
        }
    }
    Ok(None)
}

/// Where a command's output goes.
pub(super) enum Output {
    /// Both to a file.
    Log(File),
    /// To whoever asked.
    Pipes,
    /// To a terminal, from which the command also reads.
    Terminal(OwnedFd),
}

/// Runs a command in the pod's namespaces.
pub(super) fn enter(program: &Path, role: &Role, output: Output) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments(role));
    match output {
        Output::Log(file) => {
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        }
        Output::Pipes => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        Output::Terminal(terminal) => {
            command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        }
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_is_whole_in_whatever_order_its_lines_come() {
        let whole = Some((7, vec!["no /sys".to_owned()]));
        for said in
            ["pid 7\nnote no /sys\nready\n", "note no /sys\nready\npid 7\n", "note no /sys\npid 7\nready\n"]
        {
            assert_eq!(report(said.as_bytes()).await.unwrap(), whole, "{said}");
        }
        for half in ["", "pid 7\nnote x\n", "ready\n"] {
            assert_eq!(report(half.as_bytes()).await.unwrap(), None, "{half}");
        }
        for strange in ["pid x\n", "hello\n"] {
            assert!(report(strange.as_bytes()).await.is_err(), "{strange}");
        }
    }
}
