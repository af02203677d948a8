//! How the walkthrough shows itself: numbered steps, each command with its real output, each check with its outcome.

use std::io::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

const COMMAND: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const FAINT: Style = Style::new().dimmed();

/// Lines of one command's output that are shown; the checks see all of it.
const SHOWN_LINES: usize = 30;

/// The screen and the tally of what was as it should be.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    step: u32,
    good: u32,
    bad: Vec<String>,
}

impl Screen {
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        line(&format!("\n{COMMAND}{}. {title}{COMMAND:#}", self.step));
    }

    /// A command as a person would type it.
    pub(crate) fn command(&self, command: &str) {
        line(&format!("   {COMMAND}$ {command}{COMMAND:#}"));
    }

    pub(crate) fn output(&self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for shown in lines.iter().take(SHOWN_LINES) {
            line(&format!("     {shown}"));
        }
        if let Some(hidden) = lines.len().checked_sub(SHOWN_LINES).filter(|hidden| *hidden > 0) {
            line(&format!("     {FAINT}... {hidden} more lines{FAINT:#}"));
        }
    }

    pub(crate) fn note(&self, text: &str) {
        line(&format!("   {FAINT}{text}{FAINT:#}"));
    }

    /// Says whether something is as it should be. `found` is what was found instead, or the very thing.
    pub(crate) fn check(&mut self, what: &str, outcome: Result<String, String>) {
        match outcome {
            Ok(found) => {
                self.good += 1;
                let found = if found.is_empty() { found } else { format!(": {found}") };
                line(&format!("   {GOOD}✔ {what}{GOOD:#}{FAINT}{found}{FAINT:#}"));
            }
            Err(found) => {
                line(&format!("   {BAD}✘ {what}: {found}{BAD:#}"));
                self.bad.push(format!("step {}: {what}: {found}", self.step));
            }
        }
    }

    pub(crate) fn all_good(&self) -> bool {
        self.bad.is_empty() && self.good > 0
    }

    /// The last words of the walkthrough.
    pub(crate) fn finish(&self, took: Duration) {
        self.finish_with("both NICs went out and came home", took);
    }

    /// The last words: what it means that all checks hold.
    pub(crate) fn finish_with(&self, meaning: &str, took: Duration) {
        let all = self.good + u32::try_from(self.bad.len()).unwrap_or(u32::MAX);
        let seconds = took.as_secs();
        if self.all_good() {
            line(&format!("\n{GOOD}All {all} checks hold: {meaning}.{GOOD:#} {FAINT}{seconds} s{FAINT:#}"));
        } else {
            line(&format!("\n{BAD}{} of {all} checks do not hold:{BAD:#}", self.bad.len()));
            for bad in &self.bad {
                line(&format!("   {bad}"));
            }
        }
    }
}

/// One line to standard output; colours go where there is a terminal that wants them.
fn line(text: &str) {
    // Somebody who closed the pipe has seen enough; the exit code still tells the outcome.
    let _ = writeln!(anstream::stdout(), "{text}");
}
