//! One command of the host: a program with pipes or a terminal, or a file to write.
//!
//! A program's end is reported once its output is, but a background process that keeps the output open holds nothing up.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use vm_guest::boot::OWN_FOLDER;
use vm_guest::protocol::{CHUNK, Ended, Frame, Spawn, WindowSize, WriteFile};

use crate::agent::Host;

/// How long output may trail the end of the program that made it.
const TRAILING_OUTPUT: Duration = Duration::from_millis(300);

/// What the host sends to a command.
pub(crate) enum Input {
    Bytes(Vec<u8>),
    End,
    Signal(i32),
    Resize(WindowSize),
    /// Not from the host: the program has ended, nobody is left to take anything.
    Over,
}

/// Runs a program; the result goes to the host as frames.
pub(crate) fn run(command: u32, spawn: Spawn, host: Host) -> Sender<Input> {
    let (sender, inputs) = mpsc::channel();
    let over = sender.clone();
    thread::spawn(move || {
        if let Err(error) = run_to_end(command, &spawn, &host, inputs, &over) {
            let program = spawn.argv.first().cloned().unwrap_or_default();
            host.send(command, &Frame::Failed(format!("{program}: {error}")));
        }
    });
    sender
}

/// Writes a file; the result goes to the host as frames.
pub(crate) fn write_file(command: u32, file: WriteFile, host: Host) -> Sender<Input> {
    let (sender, inputs) = mpsc::channel();
    thread::spawn(move || {
        let frame = match receive_file(&file, &inputs) {
            Ok(()) => Frame::Exit(Ended::Code(0)),
            Err(error) => Frame::Failed(format!("{}: {error}", file.path.display())),
        };
        host.send(command, &frame);
    });
    sender
}

fn receive_file(file: &WriteFile, inputs: &Receiver<Input>) -> io::Result<()> {
    if let Some(folder) = file.path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut target = File::create(&file.path)?;
    target.set_permissions(Permissions::from_mode(file.mode))?;
    for input in inputs {
        match input {
            Input::Bytes(bytes) => target.write_all(&bytes)?,
            Input::End => return Ok(()),
            Input::Signal(_) | Input::Resize(_) | Input::Over => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the host stopped sending"))
}

fn run_to_end(
    command: u32,
    spawn: &Spawn,
    host: &Host,
    inputs: Receiver<Input>,
    over: &Sender<Input>,
) -> io::Result<()> {
    let (ended, drained) = match spawn.terminal {
        None => start_with_pipes(command, spawn, host, inputs)?,
        Some(size) => start_with_terminal(command, spawn, size, host, inputs)?,
    };
    let _ = over.send(Input::Over);
    // Readers drop their end of the channel when the output is closed by all who hold it.
    while drained.recv_timeout(TRAILING_OUTPUT).is_ok() {}
    let ended = match (ended.code(), ended.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::Code(-1),
    };
    host.send(command, &Frame::Exit(ended));
    Ok(())
}

fn program(argv: &[String], spawn: &Spawn) -> io::Result<Command> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program named"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&spawn.env).current_dir(&spawn.cwd);
    Ok(command)
}

fn start_with_pipes(
    number: u32,
    spawn: &Spawn,
    host: &Host,
    inputs: Receiver<Input>,
) -> io::Result<(ExitStatus, Receiver<()>)> {
    let mut command = program(&spawn.argv, spawn)?;
    command.stdin(if spawn.stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let (open, drained) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, number, host, open.clone(), Frame::Stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, number, host, open, Frame::Stderr);
    }
    let stdin = child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin)));
    take_input(&child, stdin, None, inputs);
    Ok((child.wait()?, drained))
}

fn start_with_terminal(
    number: u32,
    spawn: &Spawn,
    size: WindowSize,
    host: &Host,
    inputs: Receiver<Input>,
) -> io::Result<(ExitStatus, Receiver<()>)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    resize(&master, size)?;
    // Held open until the program is running, so that its end is the terminal's end, not its late start.
    let held = OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOCTTY).open(&path)?;

    let mut argv = vec![format!("{OWN_FOLDER}/vm-guest"), "terminal".to_owned(), path];
    argv.extend(spawn.argv.iter().cloned());
    let mut child = program(&argv, spawn)?.stdin(Stdio::null()).spawn()?;
    let (open, drained) = mpsc::channel();
    let master = File::from(master);
    forward(master.try_clone()?, number, host, open, Frame::Stdout);
    take_input(&child, Some(master.try_clone()?), Some(master), inputs);
    let status = child.wait()?;
    drop(held);
    Ok((status, drained))
}

/// `custom_flags` takes a plain integer; this keeps the cast in one place.
trait CustomFlags {
    fn custom_flags(&mut self, flags: OFlags) -> &mut Self;
}

impl CustomFlags for OpenOptions {
    fn custom_flags(&mut self, flags: OFlags) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, flags.bits().cast_signed())
    }
}

fn resize(terminal: impl std::os::fd::AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Sends output to the host until it ends. `open` is dropped then.
fn forward(
    mut from: impl Read + Send + 'static,
    number: u32,
    host: &Host,
    open: Sender<()>,
    frame: fn(Vec<u8>) -> Frame,
) {
    let host = host.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        // A terminal answers EIO when its last user is gone.
        while let Ok(length) = from.read(&mut buffer) {
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            host.send(number, &frame(bytes.to_vec()));
            // Output that still comes extends the wait for more.
            let _ = open.send(());
        }
    });
}

/// Feeds the host's input to the program, on a thread that ends with the program.
fn take_input(child: &Child, mut stdin: Option<File>, terminal: Option<File>, inputs: Receiver<Input>) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    thread::spawn(move || {
        for input in inputs {
            match input {
                Input::Bytes(bytes) => {
                    // A program that closed its input does not want the rest.
                    if stdin.as_mut().is_some_and(|stdin| stdin.write_all(&bytes).is_err()) {
                        stdin = None;
                    }
                }
                Input::End => stdin = None,
                // The process number may soon be another's.
                Input::Over => return,
                Input::Signal(number) => {
                    if let (Some(group), Some(signal)) = (group, Signal::from_named_raw(number)) {
                        let _ = kill_process_group(group, signal);
                    }
                }
                Input::Resize(size) => {
                    if let Some(terminal) = &terminal {
                        let _ = resize(terminal, size);
                    }
                }
            }
        }
    });
}
