//! `exec`: a command in a container, between its streams or terminal and the client.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;

use crate::api::json::Json;
use crate::control::{Exec, Input, Output, Streams, WindowSize};
use crate::runtime::{self, Runtime};

/// What a terminal sends when a user types Ctrl-D.
const END_OF_TRANSMISSION: [u8; 1] = [4];

/// Runs the command to its end, or until this is dropped.
pub(super) async fn run(runtime: &Runtime, pod: &Value, exec: Exec, streams: Streams) -> Result<i32> {
    let container = container(pod, exec.container.as_deref())?.to_owned();
    if exec.command.is_empty() {
        bail!("you must specify at least one command for the container");
    }
    let not_running = |error| match error {
        runtime::Error::UnknownPod(_) | runtime::Error::NotRunning { .. } => {
            anyhow::anyhow!("container {container:?} of pod {:?} is not running", pod.name())
        }
        error => error.into(),
    };
    let Streams { input, output } = streams;
    match exec.terminal {
        None => {
            let running = runtime.exec(pod.uid(), &container, exec.command).await.map_err(not_running)?;
            between_pipes(running, input, output, exec.stdin).await
        }
        Some(size) => {
            let (ours, theirs) = terminal(size).context("no terminal can be had")?;
            let running = runtime.exec_on_terminal(pod.uid(), &container, exec.command, theirs).await;
            on_terminal(running.map_err(not_running)?, ours, input, output).await
        }
    }
}

/// The container that is meant: the pod's first where none is named.
fn container<'a>(pod: &'a Value, wanted: Option<&str>) -> Result<&'a str> {
    let apps = pod.items("/spec/containers").iter();
    let mut names = apps.chain(pod.items("/spec/initContainers")).map(|one| one.text("/name"));
    let found = match wanted {
        None => names.next(),
        Some(wanted) => names.find(|name| *name == wanted),
    };
    found.with_context(|| {
        format!("container {} is not valid for pod {}", wanted.unwrap_or_default(), pod.name())
    })
}

async fn between_pipes(
    running: runtime::Exec,
    input: mpsc::Receiver<Input>,
    output: Output,
    wants_input: bool,
) -> Result<i32> {
    let runtime::Exec { stdin, stdout, stderr, running } = running;
    let reading = async {
        if let Some(stdin) = stdin.filter(|_| wants_input) {
            feed(stdin, input).await;
        }
        std::future::pending::<Infallible>().await
    };
    let ending = async {
        // A client that is gone drops all of this.
        tokio::join!(pump(stdout, Stream::Stdout, &output), pump(stderr, Stream::Stderr, &output));
        running.wait().await
    };
    tokio::select! {
        code = ending => Ok(code?),
        never = reading => match never {},
    }
}

async fn feed(mut stdin: ChildStdin, mut input: mpsc::Receiver<Input>) {
    while let Some(input) = input.recv().await {
        match input {
            Input::Bytes(bytes) => {
                // A command that does not read any more still may write.
                if stdin.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Input::End => return,
            Input::Resize(_) => {}
        }
    }
}

/// Which of the client's streams.
#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// Copies until the command's end of it is closed, or the client is gone.
async fn pump(mut from: impl AsyncRead + Unpin, to: Stream, output: &Output) {
    let mut buffer = vec![0; 16 << 10];
    // A terminal whose last user is gone gives EIO.
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default();
        let sent = match to {
            Stream::Stdout => output.stdout(bytes).await,
            Stream::Stderr => output.stderr(bytes).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A pair of ends: ours, and the one for the command.
fn terminal(size: WindowSize) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    resize(&ours, size);
    Ok((ours, theirs))
}

fn resize(terminal: &OwnedFd, size: WindowSize) {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // A terminal of the wrong size works, too.
    let _ = tcsetwinsize(terminal, size);
}

async fn on_terminal(
    running: runtime::Running,
    ours: OwnedFd,
    mut input: mpsc::Receiver<Input>,
    output: Output,
) -> Result<i32> {
    let set_up = || -> std::io::Result<_> {
        let reader = pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?;
        Ok((reader, pipe::Sender::from_owned_fd_unchecked(ours.try_clone()?)?))
    };
    rustix::io::ioctl_fionbio(&ours, true).context("the terminal cannot be read")?;
    let (reader, mut writer) = set_up().context("the terminal cannot be read")?;
    let reading = async {
        while let Some(input) = input.recv().await {
            // A command that is gone is noticed by its exit code.
            let _ = match input {
                Input::Bytes(bytes) => writer.write_all(&bytes).await,
                Input::End => writer.write_all(&END_OF_TRANSMISSION).await,
                Input::Resize(size) => {
                    resize(&ours, size);
                    Ok(())
                }
            };
        }
        std::future::pending::<Infallible>().await
    };
    let ending = async {
        let ((), code) = tokio::join!(pump(reader, Stream::Stdout, &output), running.wait());
        code
    };
    tokio::select! {
        code = ending => Ok(code?),
        never = reading => match never {},
    }
}
