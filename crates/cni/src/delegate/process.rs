//! One run of one program: feed it, read it, and kill it with all its children when its time is over.
//!
//! A single thread waits for all of it with `poll(2)`, the end of the process through a pidfd (Linux 5.3).

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::{Code, Environment, Error, PluginType, Verb};

/// The largest answer that is taken. The largest honest one is a result with some hundred routes.
const LARGEST_ANSWER: usize = 4 << 20;
/// How much of what a delegate says on stderr is kept: its end.
const KEPT_STDERR: usize = 8 << 10;

/// Why a run has no answer.
pub(super) enum Failure {
    /// It could not be started, fed or read.
    Io { what: &'static str, source: io::Error },
    /// It did not end in time.
    Deadline { after: Duration, stderr: String },
    /// It said more than anybody would want to read.
    Flood,
    /// It ended and said that it had failed.
    Exit { status: ExitStatus, stdout: Vec<u8>, stderr: String },
}

impl Failure {
    pub(super) fn into_error(self, plugin: &PluginType, verb: Verb) -> Error {
        let with =
            |error: Error, stderr: String| if stderr.is_empty() { error } else { error.with_details(stderr) };
        match self {
            Failure::Io { what, source } => {
                Error::new(Code::IO, format!("plugin {plugin}: {what} failed for {verb}")).caused_by(&source)
            }
            Failure::Deadline { after, stderr } => {
                let message =
                    format!("plugin {plugin} did not finish {verb} within {} s", after.as_secs_f32());
                with(Error::new(Code::TRY_AGAIN, message), stderr)
            }
            Failure::Flood => {
                let message =
                    format!("plugin {plugin} answered {verb} with more than {LARGEST_ANSWER} bytes");
                Error::new(Code::DECODE, message)
            }
            Failure::Exit { status, stdout, stderr } => match Error::from_json(&stdout) {
                Some(mut error) => {
                    if !stderr.is_empty() {
                        let separator = if error.details.is_empty() { "" } else { "; " };
                        error.details.push_str(&format!("{separator}stderr: {stderr}"));
                    }
                    error.within(format_args!("plugin {plugin}"))
                }
                None => {
                    let end = match (status.code(), status.signal()) {
                        (Some(code), _) => format!("ended with exit code {code}"),
                        (None, Some(signal)) => format!("was killed by signal {signal}"),
                        (None, None) => "ended".to_owned(),
                    };
                    let message = format!("plugin {plugin} {end} on {verb} and gave no reason");
                    with(Error::new(Code::INTERNAL, message), stderr)
                }
            },
        }
    }
}

/// Runs a program to its end and returns its stdout.
pub(super) fn run(
    program: &Path,
    environment: &Environment,
    stdin: &[u8],
    deadline: Duration,
) -> Result<Vec<u8>, Failure> {
    let end = Instant::now() + deadline;
    let mut child = start(program, environment, end)?;
    let outcome = converse(&mut child, stdin, end);
    if outcome.is_err() {
        kill(&mut child);
    }
    let said = match outcome {
        Ok(said) => said,
        Err(Stop::Io(what, source)) => return Err(Failure::Io { what, source }),
        Err(Stop::Deadline(stderr)) => return Err(Failure::Deadline { after: deadline, stderr }),
        Err(Stop::Flood) => return Err(Failure::Flood),
    };
    let status = child.wait().map_err(|source| Failure::Io { what: "waiting", source })?;
    if status.success() {
        Ok(said.stdout)
    } else {
        Err(Failure::Exit { status, stdout: said.stdout, stderr: text(&said.stderr) })
    }
}

fn start(program: &Path, environment: &Environment, end: Instant) -> Result<Child, Failure> {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    for (name, value) in environment.variables() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    loop {
        match command.spawn() {
            Ok(child) => return Ok(child),
            // The program is being written just now: an installer at work. It is soon over.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(source) => return Err(Failure::Io { what: "starting it", source }),
        }
    }
}

struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum Stop {
    Io(&'static str, io::Error),
    Deadline(String),
    Flood,
}

/// Feeds and reads the child until it has ended. What a grandchild still holds open is not waited for.
fn converse(child: &mut Child, input: &[u8], end: Instant) -> Result<Said, Stop> {
    let io = |what| move |source: io::Error| Stop::Io(what, source);
    let pid = Pid::from_child(child);
    let pidfd =
        pidfd_open(pid, PidfdFlags::empty()).map_err(|error| Stop::Io("watching it", error.into()))?;
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    do_not_block(&stdin)
        .and(do_not_block(&stdout))
        .and(do_not_block(&stderr))
        .map_err(io("opening its pipes"))?;
    let mut input = input;
    let mut said = Said { stdout: Vec::new(), stderr: Vec::new() };
    loop {
        let ended = wait(&pidfd, &stdin, &stdout, &stderr, end)
            .map_err(io("waiting"))?
            .ok_or_else(|| Stop::Deadline(text(&said.stderr)))?;
        feed(&mut stdin, &mut input).map_err(io("writing to it"))?;
        drain(&mut stdout, &mut said.stdout, LARGEST_ANSWER + 1).map_err(io("reading its answer"))?;
        if said.stdout.len() > LARGEST_ANSWER {
            return Err(Stop::Flood);
        }
        drain(&mut stderr, &mut said.stderr, usize::MAX).map_err(io("reading its stderr"))?;
        let surplus = said.stderr.len().saturating_sub(KEPT_STDERR);
        said.stderr.drain(..surplus);
        if ended {
            return Ok(said);
        }
    }
}

/// Waits until something can be done. `Some(true)`: the child has ended; `None`: the time is over.
fn wait(
    pidfd: &impl AsFd,
    stdin: &Option<impl AsFd>,
    stdout: &Option<impl AsFd>,
    stderr: &Option<impl AsFd>,
    end: Instant,
) -> io::Result<Option<bool>> {
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    fds.extend(stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
    fds.extend(stdout.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
    fds.extend(stderr.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        return match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(fds.first().is_some_and(|pidfd| !pidfd.revents().is_empty()))),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

/// Writes what can be written; closes stdin when all is written or the child has closed its end.
fn feed(stdin: &mut Option<impl Write>, input: &mut &[u8]) -> io::Result<()> {
    let Some(pipe) = stdin else { return Ok(()) };
    while !input.is_empty() {
        match pipe.write(input) {
            Ok(written) => *input = input.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It need not read its configuration, for VERSION say.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(error),
        }
    }
    *stdin = None;
    Ok(())
}

/// Reads what is there, up to `most` bytes in all; closes the pipe at its end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
    let Some(reader) = pipe else { return Ok(()) };
    let mut chunk = [0; 4096];
    // A writer that never pauses must not keep us from looking at the clock.
    for _ in 0..64 {
        if into.len() >= most {
            return Ok(());
        }
        match reader.read(&mut chunk) {
            Ok(0) => {
                *pipe = None;
                return Ok(());
            }
            Ok(length) => into.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn do_not_block(pipe: &Option<impl AsFd>) -> io::Result<()> {
    match pipe {
        Some(pipe) => Ok(rustix::io::ioctl_fionbio(pipe, true)?),
        None => Ok(()),
    }
}

/// The whole group: a shell script's `sleep` would otherwise live on. The child is not reaped yet, so that its process ID
/// is still its own.
fn kill(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

fn text(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().to_owned()
}
