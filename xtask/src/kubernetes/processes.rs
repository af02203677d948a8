//! Programs that run beside us: each with a log of its own, none outliving us.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a program may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);
/// How much of a log goes into an error.
const TAIL_LINES: usize = 15;

/// Ctrl-C and the like: what must end is ended, so that whoever waits for it fails, and everything is cleaned up on the way out.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt {
    came: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<Pid>>>,
}

impl Interrupt {
    /// Signals that end a program do this from now on. A second one ends us at once.
    pub(super) fn watch() -> Result<Self> {
        let own = Self::default();
        let (came, ends) = (Arc::clone(&own.came), Arc::clone(&own.ends));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if came.swap(true, Ordering::SeqCst) {
                        std::process::exit(128 + signal);
                    }
                    for pid in ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                        // It may have ended already.
                        let _ = kill_process(pid, Signal::KILL);
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(own)
    }

    pub(super) fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }

    /// Fails once a signal has come.
    pub(super) fn check(&self) -> Result<()> {
        if self.came() { bail!("interrupted") } else { Ok(()) }
    }

    /// This process is ended when a signal comes, or at once if it has come.
    pub(super) fn ends(&self, pid: u32) {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.push(pid);
        if self.came() {
            for pid in ends.drain(..) {
                // It may have ended already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    fn forget(&self, pid: u32) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.retain(|known| u32::try_from(known.as_raw_pid()) != Ok(pid));
    }
}

/// A running program. Dropping it ends the program.
#[derive(Debug)]
pub(super) struct Running {
    name: String,
    log: PathBuf,
    child: Child,
    interrupt: Interrupt,
}

impl Running {
    /// Starts `command`, whose output goes to `<logs>/<name>.log`. Must be called by the main thread: the kernel ends the program with the
    /// thread that started it.
    pub(super) fn start(name: &str, command: &Command, logs: &Path, interrupt: &Interrupt) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        // A program that is started again goes on where it ended.
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().context("cannot share a log")?;
        // setpriv, because asking the kernel ourselves would be unsafe code.
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        let child = wrapped.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child.with_context(|| format!("cannot start {name}"))?;
        interrupt.ends(child.id());
        Ok(Self { name: name.to_owned(), log, child, interrupt: interrupt.clone() })
    }

    /// Asks `ready` again and again until it is, the program has ended, or `limit` is over.
    pub(super) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            self.interrupt.check()?;
            if let Some(status) = self.child.try_wait().context("cannot wait for a program")? {
                bail!("{} ended ({status}):\n{}", self.name, tail(&self.log));
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {} s:\n{}", self.name, limit.as_secs(), tail(&self.log));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.interrupt.forget(self.child.id());
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // The only error is that it has ended.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + FAREWELL;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The last lines of a file.
pub(super) fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).copied().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_ends_early_is_an_error_with_its_last_words() {
        let logs = tempfile::tempdir().unwrap();
        let command = shell("echo no such port; exit 3");
        let mut running = Running::start("server", &command, logs.path(), &Interrupt::default()).unwrap();
        let error = running.wait_until(Duration::from_secs(20), || false).unwrap_err().to_string();
        assert!(error.contains("server ended") && error.contains("no such port"), "{error}");
    }

    #[test]
    fn a_program_that_is_dropped_is_gone() {
        let logs = tempfile::tempdir().unwrap();
        let command = shell("trap '' TERM; echo here; while :; do sleep 1; done");
        let mut running = Running::start("server", &command, logs.path(), &Interrupt::default()).unwrap();
        let log = logs.path().join("server.log");
        running.wait_until(Duration::from_secs(20), || tail(&log) == "here").unwrap();
        let pid = running.child.id();
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
