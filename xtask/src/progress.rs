//! What is being done right now: one line per step, with a spinner and the time on a terminal. Elsewhere a plain line at the
//! beginning, one now and then while it lasts, and one at the end.
//!
//! Programs that a step runs are silent unless they fail; then the end of what they said is shown.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result, bail};

const SPINNER: [char; 4] = ['|', '/', '-', '\\'];
const TURN: Duration = Duration::from_millis(120);
/// How often a long step says so where there is no terminal.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of a failed program's output is shown.
const TAIL_LINES: usize = 60;
/// Longer lines are cut: one that wraps cannot be redrawn.
const LINE_LENGTH: usize = 78;

const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default();
const DIM: Style = Style::new().dimmed();

/// Where steps are shown: standard error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    live: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { live: std::io::stderr().is_terminal() && !dumb }
    }

    /// Begins a step. It has failed unless [`Step::done`] is called.
    pub(crate) fn step(&self, title: &str) -> Step {
        let shown = Arc::new(Mutex::new(Shown {
            title: title.to_owned(),
            note: String::new(),
            begun: Instant::now(),
        }));
        let mut step = Step { shown: Arc::clone(&shown), live: self.live, drawing: None, over: false };
        if !self.live {
            say(&format!("  .. {title}"));
        }
        let live = self.live;
        let (stop, stopped) = mpsc::channel();
        let drawing = thread::spawn(move || {
            let pause = if live { TURN } else { PATIENCE };
            for turn in SPINNER.iter().cycle() {
                if live {
                    draw(*turn, &lock(&shown));
                }
                if stopped.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
                if !live {
                    say(&format!("  .. {}", lock(&shown).text()));
                }
            }
        });
        step.drawing = Some((stop, drawing));
        step
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(line: &str) {
    // Nobody is left to tell that standard error is closed.
    let _ = writeln!(anstream::stderr(), "{line}");
}

#[derive(Debug)]
struct Shown {
    title: String,
    note: String,
    begun: Instant,
}

impl Shown {
    fn text(&self) -> String {
        let seconds = self.begun.elapsed().as_secs();
        let room = LINE_LENGTH.saturating_sub(self.title.chars().count() + 14);
        let note: String = self.note.trim().chars().filter(|char| !char.is_control()).take(room).collect();
        format!("{} {DIM}{seconds} s  {note}{DIM:#}", self.title)
    }
}

fn draw(turn: char, shown: &Shown) {
    let mut stderr = anstream::stderr();
    let _ = write!(stderr, "\r\x1b[K  {turn}  {}", shown.text()).and_then(|()| stderr.flush());
}

/// One step that is being done.
#[derive(Debug)]
pub(crate) struct Step {
    shown: Arc<Mutex<Shown>>,
    live: bool,
    drawing: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    over: bool,
}

impl Step {
    /// What exactly is going on, beside the title; only seen on a terminal.
    pub(crate) fn note(&self, note: &str) {
        note.clone_into(&mut lock(&self.shown).note);
    }

    /// The step is done; `result` in a few words, or nothing.
    pub(crate) fn done(mut self, result: &str) {
        self.finish(GREEN, "ok", result);
    }

    /// The step did not work out, but something else will be tried.
    pub(crate) fn gave_up(mut self, why: &str) {
        self.finish(DIM, "--", why);
    }

    fn finish(&mut self, style: Style, word: &str, result: &str) {
        self.over = true;
        if let Some((stop, drawing)) = self.drawing.take() {
            drop(stop);
            let _ = drawing.join();
        }
        let shown = lock(&self.shown);
        let clear = if self.live { "\r\x1b[K" } else { "" };
        let time = shown.begun.elapsed().as_secs_f64();
        let result = if result.is_empty() { String::new() } else { format!("{result}, ") };
        say(&format!("{clear}  {style}{word:2}{style:#} {} {DIM}{result}{time:.1} s{DIM:#}", shown.title));
    }

    /// Runs a program to its end, which must be code 0, and gives its standard output. Each line it writes is the step's note.
    pub(crate) fn run(&self, command: &mut Command) -> Result<String> {
        self.run_with(command, |line| self.note(line))
    }

    /// The same, and `see` is called with each line of standard error.
    pub(crate) fn run_with(&self, command: &mut Command, see: impl FnMut(&str)) -> Result<String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (code, stdout, tail) = run(command, see)?;
        if code == Some(0) {
            return Ok(stdout);
        }
        let how = code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with code {code}"));
        let tail: Vec<String> = tail.into_iter().collect();
        bail!("{name} {how}:\n{}", tail.join("\n"))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.over {
            self.finish(RED, "!!", "failed");
        }
    }
}

type Ran = (Option<i32>, String, VecDeque<String>);

fn run(command: &mut Command, mut see: impl FnMut(&str)) -> Result<Ran> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.map(|mut stdout| stdout.read_to_end(&mut text)).transpose();
        read.map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let mut tail = VecDeque::new();
    for line in lines(child.stderr.take()) {
        see(&line);
        tail.push_back(line);
        if tail.len() > TAIL_LINES {
            tail.pop_front();
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
    let stdout = reader.join().unwrap_or_else(|_| Ok(String::new()));
    Ok((status.code(), stdout.with_context(|| format!("cannot read from {name}"))?, tail))
}

/// Lines of a program's output, whatever bytes they have.
pub(crate) fn lines(stream: Option<impl Read>) -> impl Iterator<Item = String> {
    let bytes = stream.into_iter().flat_map(|stream| BufReader::new(stream).split(b'\n'));
    bytes.map_while(Result::ok).map(|line| String::from_utf8_lossy(&line).into_owned())
}
