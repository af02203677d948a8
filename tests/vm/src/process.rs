//! The QEMU process: started so that it cannot outlive us, its console kept, its end known.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

use crate::error::{Console, Error};

/// How many lines of console are kept, and how many go into an error.
const KEPT_LINES: usize = 400;
const SHOWN_LINES: usize = 25;
/// How the kernel begins the last thing that it says.
const PANIC: &str = "Kernel panic - not syncing";
const LINE_LENGTH: u64 = 2000;

/// How long the console may trail QEMU's end.
const TRAILING_CONSOLE: Duration = Duration::from_secs(1);

/// A lock whose data stay usable when a thread that held it panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running QEMU. Dropping it kills the process and waits for its end.
#[derive(Debug)]
pub(crate) struct Qemu {
    process: OwnedFd,
    pid: u32,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    console: Mutex<VecDeque<String>>,
    end: Mutex<End>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct End {
    process_over: bool,
    readers_over: u32,
}

impl Qemu {
    /// Starts `command` (QEMU with all its arguments).
    pub(crate) fn start(command: Command) -> Result<Self, Error> {
        let command = dies_with_its_parent(command);
        let program = format!("{command:?}").split_whitespace().take(6).collect::<Vec<_>>().join(" ");
        let failed = |why: String| Error::Host { program: program.clone(), why };
        let state = Arc::new(State::default());
        let (sender, started) = mpsc::channel();
        let own = Arc::clone(&state);
        // The death signal comes when the *thread* that started the process ends, so that thread lives as long as the process.
        let spawned =
            thread::Builder::new().name("qemu".to_owned()).spawn(move || run(command, &own, &sender));
        spawned.map_err(|error| failed(error.to_string()))?;
        let started = started.recv().map_err(|_| failed("it did not start".to_owned()))?;
        let (pid, process) = started.map_err(|error| failed(error.to_string()))?;
        Ok(Self { process, pid, state })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The last `count` lines of the console.
    pub(crate) fn console(&self, count: usize) -> Console {
        let console = lock(&self.state.console);
        Console(console.iter().skip(console.len().saturating_sub(count)).cloned().collect())
    }

    /// The lines for an error message. When QEMU has ended, its last words are waited for.
    pub(crate) fn last_words(&self) -> Console {
        if self.has_ended() {
            self.wait(TRAILING_CONSOLE, |end| end.readers_over == 2);
        }
        let mut shown = self.console(SHOWN_LINES);
        // A panic says why before it says where, and where is longer than what is shown.
        let reason = lock(&self.state.console).iter().find(|line| line.contains(PANIC)).cloned();
        if let Some(reason) = reason.filter(|reason| !shown.0.contains(reason)) {
            shown.0.insert(0, reason);
        }
        shown
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.state.end).process_over
    }

    /// Waits until QEMU has ended; false if it has not within `limit`.
    pub(crate) fn wait_end(&self, limit: Duration) -> bool {
        self.wait(limit, |end| end.process_over)
    }

    fn wait(&self, limit: Duration, done: impl Fn(&End) -> bool) -> bool {
        let end = lock(&self.state.end);
        let waited = self.state.changed.wait_timeout_while(end, limit, |end| !done(end));
        done(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn kill(&self) {
        // The only error is that it has ended.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Waits until `socket` is readable. False when `deadline` has come or QEMU has ended.
    pub(crate) fn wait_readable(&self, socket: impl AsFd, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut waiting =
                [PollFd::new(&socket, PollFlags::IN), PollFd::new(&self.process, PollFlags::IN)];
            match poll(&mut waiting, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return waiting.first().is_some_and(|socket| !socket.revents().is_empty()),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
        self.wait_end(Duration::from_secs(10));
    }
}

/// Puts `setpriv --pdeathsig` (util-linux) before a command: the kernel then kills QEMU when we are gone, however we went. QEMU has
/// no such option before version 10.2 (`-run-with exit-with-parent=on`).
fn dies_with_its_parent(command: Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

type Started = io::Result<(u32, OwnedFd)>;

fn run(mut command: Command, state: &Arc<State>, started: &mpsc::Sender<Started>) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = child.id();
    let process =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("process number"));
    let process = process.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
    if let Some(stdout) = child.stdout.take() {
        keep(stdout, "", Arc::clone(state));
    }
    if let Some(stderr) = child.stderr.take() {
        keep(stderr, "qemu: ", Arc::clone(state));
    }
    let _ = started.send(process.map(|process| (pid, process)));
    let _ = child.wait();
    lock(&state.end).process_over = true;
    state.changed.notify_all();
}

/// Keeps the lines of a stream until it ends.
fn keep(stream: impl Read + Send + 'static, prefix: &'static str, state: Arc<State>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match reader.by_ref().take(LINE_LENGTH).read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&bytes);
            let text: String = text.chars().filter(|char| !char.is_control()).collect();
            if !text.is_empty() {
                let mut console = lock(&state.console);
                console.push_back(format!("{prefix}{text}"));
                if console.len() > KEPT_LINES {
                    console.pop_front();
                }
            }
        }
        lock(&state.end).readers_over += 1;
        state.changed.notify_all();
    });
}
