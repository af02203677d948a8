//! A command in the guest, in the manner of `std::process::Command`.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use vm_guest::protocol::{CHUNK, Ended, Frame, Spawn, WindowSize};

use crate::agent::Agent;
use crate::debian::GUEST_PATH;
use crate::error::Error;

/// How long a killed command may take to be reported dead.
const KILL_LIMIT: Duration = Duration::from_secs(20);

const SIGKILL: i32 = 9;

/// A command to be run in the guest.
#[derive(Debug, Clone)]
pub struct Command {
    agent: Arc<Agent>,
    spawn: Spawn,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl Command {
    pub(crate) fn new(agent: Arc<Agent>, program: &str, limit: Duration) -> Self {
        let env = [("PATH", GUEST_PATH), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("USER", "root")];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let (argv, cwd) = (vec![program.to_owned()], PathBuf::from("/"));
        Self { agent, spawn: Spawn { argv, env, cwd, terminal: None, stdin: false }, input: None, limit }
    }

    /// With one argument more.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.spawn.argv.push(argument.into());
        self
    }

    /// With these arguments more.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.spawn.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With this variable. `PATH`, `HOME`, `LANG` and `USER` are set already.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spawn.env.insert(name.into(), value.into());
        self
    }

    /// In this folder instead of `/`.
    #[must_use]
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.spawn.cwd = folder.into();
        self
    }

    /// With this standard input, which then ends. Without, it is `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.spawn.stdin = true;
        self.input = Some(input.into());
        self
    }

    /// With a standard input that [`Child::write`] feeds.
    #[must_use]
    pub fn stdin_open(mut self) -> Self {
        self.spawn.stdin = true;
        self.input = None;
        self
    }

    /// On a terminal of this size; all output is then standard output.
    #[must_use]
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.spawn.terminal = Some(WindowSize { rows, columns });
        self
    }

    /// Killed after this time, by [`Command::output`] and [`Command::run`].
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The words of the command, as one would type them.
    pub fn text(&self) -> String {
        text(&self.spawn.argv)
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`]. That the program does not exist shows when waiting for it.
    pub fn spawn(self) -> Result<Child, Error> {
        let (number, frames) = self.agent.begin(&Frame::Spawn(self.spawn.clone()))?;
        let child = Child {
            agent: self.agent,
            number,
            frames,
            text: text(&self.spawn.argv),
            ended: None,
            lines: VecDeque::new(),
            partial: BTreeMap::new(),
        };
        if let Some(input) = &self.input {
            child.write(input)?;
            child.end_of_input()?;
        }
        Ok(child)
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// [`Error::Timeout`] above its limit; [`Error::Start`], [`Error::Died`], [`Error::Hung`].
    pub fn output(self) -> Result<Output, Error> {
        let limit = self.limit;
        self.spawn()?.output(limit)
    }

    /// Runs it to its end, which must be code 0.
    ///
    /// # Errors
    /// As [`Command::output`], and [`Error::Command`].
    pub fn run(self) -> Result<Output, Error> {
        self.output()?.success()
    }
}

fn text(argv: &[String]) -> String {
    let quote = |word: &String| {
        let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=@,+%".contains(char);
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// Which of a command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of output, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it came from.
    pub stream: Stream,
    /// What it says.
    pub text: String,
}

/// What a running command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It wrote this.
    Output(Stream, Vec<u8>),
    /// It ended.
    Ended(Ended),
}

/// A command that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The words of the command.
    pub command: String,
    /// How it ended.
    pub ended: Ended,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its standard output as text, without white space at the end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its standard error as text, without white space at the end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Its exit code, if it was not killed.
    pub fn code(&self) -> Option<i32> {
        match self.ended {
            Ended::Code(code) => Some(code),
            Ended::Signal(_) => None,
        }
    }

    /// Itself if the exit code is 0.
    ///
    /// # Errors
    /// [`Error::Command`] otherwise.
    pub fn success(self) -> Result<Self, Error> {
        if self.ended == Ended::Code(0) {
            return Ok(self);
        }
        let stderr = if self.stderr.is_empty() { self.text() } else { self.error_text() };
        Err(Error::Command { command: self.command, ended: self.ended, stderr })
    }
}

/// A command that runs. Dropping it kills the command.
#[derive(Debug)]
pub struct Child {
    pub(crate) agent: Arc<Agent>,
    number: u32,
    frames: Receiver<Frame>,
    text: String,
    ended: Option<Ended>,
    lines: VecDeque<Line>,
    partial: BTreeMap<Stream, Vec<u8>>,
}

impl Child {
    /// The words of the command.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Feeds its standard input or terminal.
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        bytes.chunks(CHUNK).try_for_each(|chunk| self.agent.send(self.number, &Frame::Stdin(chunk.to_vec())))
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`].
    pub fn end_of_input(&self) -> Result<(), Error> {
        self.agent.send(self.number, &Frame::EndOfStdin)
    }

    /// Sends a signal to it and what it started (its process group).
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`].
    pub fn signal(&self, number: i32) -> Result<(), Error> {
        self.agent.send(self.number, &Frame::Signal(number))
    }

    /// Tells it that its terminal has another size.
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`].
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        self.agent.send(self.number, &Frame::Resize(WindowSize { rows, columns }))
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`].
    pub fn kill(&mut self) -> Result<Ended, Error> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        self.signal(SIGKILL)?;
        self.wait(KILL_LIMIT)
    }

    /// Waits for its end; output that comes meanwhile is kept as lines.
    ///
    /// # Errors
    /// [`Error::Timeout`] (it runs on), [`Error::Start`], [`Error::Died`], [`Error::Hung`].
    pub fn wait(&mut self, limit: Duration) -> Result<Ended, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(ended) = self.ended {
                return Ok(ended);
            }
            match self.next_event(Some(deadline))? {
                Some(Event::Output(stream, bytes)) => self.keep(stream, &bytes),
                Some(Event::Ended(_)) => {}
                None => return Err(self.timeout(limit)),
            }
        }
    }

    /// What it does next, or nothing when `deadline` has come. Do not mix with lines.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::Died`], [`Error::Hung`].
    pub fn next_event(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, Error> {
        if let Some(ended) = self.ended {
            return Ok(Some(Event::Ended(ended)));
        }
        Ok(match self.agent.receive(&self.frames, deadline)? {
            None => None,
            Some(Frame::Stdout(bytes)) => Some(Event::Output(Stream::Stdout, bytes)),
            Some(Frame::Stderr(bytes)) => Some(Event::Output(Stream::Stderr, bytes)),
            Some(Frame::Exit(ended)) => {
                self.ended = Some(ended);
                Some(Event::Ended(ended))
            }
            Some(Frame::Failed(why)) => {
                self.ended = Some(Ended::Code(127));
                return Err(Error::Start(why));
            }
            Some(other) => return Err(Error::Start(format!("the agent answered {other:?}"))),
        })
    }

    /// Its next line of output; nothing once it has ended and all is read.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none comes within `limit`, [`Error::Start`], [`Error::Died`], [`Error::Hung`].
    pub fn next_line(&mut self, limit: Duration) -> Result<Option<Line>, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            if self.ended.is_some() {
                return Ok(self.last_line());
            }
            match self.next_event(Some(deadline))? {
                Some(Event::Output(stream, bytes)) => self.keep(stream, &bytes),
                Some(Event::Ended(_)) => {}
                None => return Err(self.timeout(limit)),
            }
        }
    }

    /// Reads lines until one contains `wanted`, and returns it.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::Command`] when it ends before, with the lines it wrote; [`Error::Start`], [`Error::Died`],
    /// [`Error::Hung`].
    pub fn wait_for(&mut self, wanted: &str, limit: Duration) -> Result<String, Error> {
        let deadline = Instant::now() + limit;
        let mut seen = Vec::new();
        while let Some(line) = self.next_line(deadline.saturating_duration_since(Instant::now())).map_err(
            |error| match error {
                Error::Timeout { command, .. } => {
                    Error::Timeout { command: format!("{command}, waiting for '{wanted}'"), limit }
                }
                other => other,
            },
        )? {
            if line.text.contains(wanted) {
                return Ok(line.text);
            }
            seen.push(line.text);
        }
        let ended = self.ended.unwrap_or(Ended::Code(-1));
        Err(Error::Command { command: self.text.clone(), ended, stderr: seen.join("\n") })
    }

    /// Waits for its end and gives all output that is not read yet. Kills it after `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Start`], [`Error::Died`], [`Error::Hung`].
    pub fn output(mut self, limit: Duration) -> Result<Output, Error> {
        let deadline = Instant::now() + limit;
        let mut output = Output {
            command: self.text.clone(),
            ended: Ended::Code(0),
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Output(Stream::Stdout, bytes)) => output.stdout.extend(bytes),
                Some(Event::Output(Stream::Stderr, bytes)) => output.stderr.extend(bytes),
                Some(Event::Ended(ended)) => {
                    output.ended = ended;
                    return Ok(output);
                }
                None => {
                    self.kill()?;
                    return Err(self.timeout(limit));
                }
            }
        }
    }

    fn timeout(&self, limit: Duration) -> Error {
        Error::Timeout { command: self.text.clone(), limit }
    }

    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        let partial = self.partial.entry(stream).or_default();
        partial.extend_from_slice(bytes);
        while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            self.lines.push_back(Line { stream, text });
        }
    }

    /// What was written without a line's end.
    fn last_line(&mut self) -> Option<Line> {
        let (stream, bytes) = self.partial.pop_first()?;
        if bytes.is_empty() {
            return self.last_line();
        }
        Some(Line { stream, text: String::from_utf8_lossy(&bytes).into_owned() })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // A guest that is gone has no command left to kill.
            let _ = self.signal(SIGKILL);
        }
        self.agent.forget(self.number);
    }
}
