//! One call of a plugin, and what it said.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde_json::Value;

use crate::check::{Stop, Verdict, hold};

/// What a plugin said.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The call, for messages: `ADD for c1`.
    what: String,
    /// None if it had to be ended.
    status: Option<ExitStatus>,
    pub(crate) stdout: String,
    stderr: String,
}

impl Answer {
    pub(crate) fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Whether it ended by itself.
    pub(crate) fn ended(&self) -> bool {
        self.status.is_some()
    }

    /// Its standard output as JSON.
    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// The result; a fault if the call failed.
    pub(crate) fn result(self) -> Verdict<Value> {
        hold!(self.succeeded(), "{self}");
        Ok(self.json().unwrap_or_default())
    }

    /// The code of an error as the specification has it: JSON on standard output, with a code and a message.
    pub(crate) fn error(&self) -> Verdict<u64> {
        hold!(self.ended(), "{self}");
        hold!(!self.succeeded(), "{} succeeds", self.what);
        let Some(json) = self.json() else {
            return Err(Stop::Fault(format!(
                "{} fails, and prints no JSON but {:?}",
                self.what, self.stdout
            )));
        };
        let code = json.get("code").and_then(Value::as_u64);
        let message = json.get("msg").and_then(Value::as_str).unwrap_or_default();
        hold!(!message.is_empty(), "{} fails with an error that has no msg: {json}", self.what);
        code.ok_or_else(|| Stop::Fault(format!("{} fails with an error that has no code: {json}", self.what)))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(status) = self.status else { return write!(f, "{} does not end", self.what) };
        write!(f, "{} ends with {status}", self.what)?;
        let json = self.json();
        let said = json.as_ref().and_then(|json| json.get("msg")).and_then(Value::as_str);
        match said.unwrap_or_else(|| self.stderr.trim()) {
            "" => Ok(()),
            said => write!(f, ": {said}"),
        }
    }
}

/// A plugin that runs.
pub(crate) struct Running {
    what: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts it as leader of a process group.
    pub(crate) fn start(mut command: Command, what: String, stdin: &[u8]) -> Result<Self> {
        let file = || tempfile::tempfile().context("cannot make a file");
        let (stdout, stderr) = (file()?, file()?);
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout.try_clone().context("cannot share a file")?)
            .stderr(stderr.try_clone().context("cannot share a file")?);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        if let Some(mut pipe) = child.stdin.take() {
            // It need not read all of it.
            let _ = pipe.write_all(stdin);
        }
        Ok(Running { what, child, stdout, stderr })
    }

    /// Waits for its end, and brings that about after `limit`.
    pub(crate) fn end(mut self, limit: Duration) -> Result<Answer> {
        let ended = self.wait(limit)?;
        let status = if ended {
            Some(self.child.wait().context("cannot wait for the plugin")?)
        } else {
            self.kill_group();
            self.child.wait().context("cannot wait for the plugin")?;
            None
        };
        let text = |mut file: File| -> Result<String> {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context("cannot read what it said")?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Answer { what: self.what, status, stdout: text(self.stdout)?, stderr: text(self.stderr)? })
    }

    /// Kills the plugin alone when it has run for `after`, as a machine short of memory would; whether that was before its end.
    /// What it started runs on; its end is waited for, for it may hold an address.
    pub(crate) fn kill(mut self, after: Duration, limit: Duration) -> Result<bool> {
        let began = Instant::now();
        // No sleep: the instants are finer than the scheduler's.
        while began.elapsed() < after {
            std::hint::spin_loop();
        }
        self.child.kill().context("cannot kill the plugin")?;
        let status = self.child.wait().context("cannot wait for the plugin")?;
        let deadline = Instant::now() + limit;
        // We are the parent of whatever lost its own.
        while rustix::process::wait(WaitOptions::NOHANG).is_ok() {
            if Instant::now() > deadline {
                self.kill_group();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(status.code().is_none())
    }

    fn wait(&self, limit: Duration) -> Result<bool> {
        let Some(pid) = self.pid() else { return Ok(true) };
        let pidfd =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the plugin")?;
        let limit = Timespec::try_from(limit).context("the time limit is too long")?;
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        let ready = rustix::event::poll(&mut watched, Some(&limit)).context("cannot wait for the plugin")?;
        Ok(ready > 0)
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    fn kill_group(&self) {
        if let Some(group) = self.pid() {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// Makes us the parent of processes whose own has died.
pub(crate) fn adopt_orphans() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("cannot adopt orphans")
}
