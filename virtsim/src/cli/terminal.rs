//! The user's own terminal, while a command in a container has it.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::control::{InputSender, WindowSize};

/// Standard input as a raw terminal; as it was before, when dropped.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing restored.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The terminal's size.
pub(super) fn size() -> io::Result<WindowSize> {
    let size = tcgetwinsize(io::stdin())?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Tells the container whenever the terminal's size changes, until the connection is gone. Runs in a thread of its own.
pub(super) fn follow_size(input: &InputSender) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut changes = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
        while changes.recv().await.is_some() {
            input.resize(size()?)?;
        }
        Ok(())
    })
}
