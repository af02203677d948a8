//! Connects a command in the guest with this process's terminal, or with its plain input and output.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use vm_guest::protocol::Ended;

use crate::command::{Child, Command, Event, Stream};
use crate::error::Error;

/// How often input and a new window size are looked for while the command says nothing.
const TURN: Duration = Duration::from_millis(20);

impl Command {
    /// Runs it with this process's standard input, output and error, until it ends. Where they are a terminal, it gets one too.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::Died`], [`Error::Hung`], [`Error::Terminal`].
    pub fn attach(self) -> Result<Ended, Error> {
        let failed = |source: io::Error| Error::Terminal { source };
        let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !interactive {
            return connect(self.stdin_open().spawn()?, None);
        }
        let size = tcgetwinsize(io::stdout()).map_err(|error| failed(error.into()))?;
        let name = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
        let child = self.terminal(size.ws_row, size.ws_col).stdin_open().env("TERM", name).spawn()?;
        let _raw = Raw::enter().map_err(failed)?;
        connect(child, Some((size.ws_row, size.ws_col)))
    }
}

/// The terminal passes every key on, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn connect(mut child: Child, mut size: Option<(u16, u16)>) -> Result<Ended, Error> {
    let failed = |source: io::Error| Error::Terminal { source };
    let (sender, input) = mpsc::channel();
    // Ends with the process: a read from a terminal cannot be called off.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if sender.send(buffer.get(..length).unwrap_or_default().to_vec()).is_err() {
                return;
            }
        }
    });
    let mut input_open = true;
    loop {
        match child.next_event(Some(Instant::now() + TURN))? {
            Some(Event::Output(Stream::Stdout, bytes)) => {
                io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()).map_err(failed)?;
            }
            Some(Event::Output(Stream::Stderr, bytes)) => io::stderr().write_all(&bytes).map_err(failed)?,
            Some(Event::Ended(ended)) => return Ok(ended),
            None => {}
        }
        while input_open {
            match input.recv_timeout(Duration::ZERO) {
                Ok(bytes) => child.write(&bytes)?,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    child.end_of_input()?;
                    input_open = false;
                }
            }
        }
        if let (Some(known), Ok(now)) = (&mut size, tcgetwinsize(io::stdout())) {
            let now = (now.ws_row, now.ws_col);
            if *known != now {
                child.resize(now.0, now.1)?;
                *known = now;
            }
        }
    }
}
