//! `virtsim exec`: a command in a container, with the caller's streams, terminal and exit code.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::target::pod_name;
use super::{Context, terminal};
use crate::control::{Connection, Exec, InputSender, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The pod, as NAME or pod/NAME
    pod: String,
    /// The container [default: the pod's first]
    #[arg(long, short)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub(super) command: Vec<String>,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let is_terminal = std::io::stdin().is_terminal();
    if arguments.tty && arguments.stdin && !is_terminal {
        bail!("-t needs a terminal, but standard input is none: leave it out");
    }
    let size = match (arguments.tty, is_terminal) {
        (false, _) => None,
        (true, true) => Some(terminal::size().context("the terminal's size cannot be read")?),
        (true, false) => Some(crate::control::WindowSize { rows: 24, columns: 80 }),
    };
    let request = Request::Exec(Exec {
        namespace: context.namespace().to_owned(),
        pod: pod_name(&arguments.pod)?.to_owned(),
        container: arguments.container,
        command: arguments.command,
        stdin: arguments.stdin,
        terminal: size,
    });
    let connection = Connection::open(&context.dir, &request)?;
    let raw = (arguments.tty && arguments.stdin).then(terminal::Raw::enter).transpose();
    let raw = raw.context("the terminal cannot be put into raw mode")?;
    if arguments.stdin {
        let input = connection.input();
        spawn("stdin", move || pass_on(&input))?;
    }
    if raw.is_some() {
        let input = connection.input();
        // Ends with the process: there is nothing to be told when the command has ended.
        spawn("window-size", move || drop(terminal::follow_size(&input)))?;
    }
    let code = connection.run(&mut std::io::stdout().lock(), &mut std::io::stderr().lock());
    drop(raw);
    Ok(exit_code(code?))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).context("no thread can be started")?;
    Ok(())
}

/// Copies standard input until it ends, or the command has.
fn pass_on(input: &InputSender) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = [0; 16 << 10];
    loop {
        let sent = match stdin.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => {
                // The command may have ended meanwhile.
                let _ = input.end();
                return;
            }
            Ok(length) => input.send(buffer.get(..length).unwrap_or_default()),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A code beyond what a process can have is a failure all the same.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
