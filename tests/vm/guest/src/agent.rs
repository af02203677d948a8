//! The command agent: reads requests from the host on a virtio-serial port and runs each command on threads of its own.
//!
//! Invariant: it ends when the host's end of the port closes, and the machine with it, so that a host program that was killed
//! leaves nothing running.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::sync;
use rustix::system::{RebootCommand, reboot};
use vm_guest::boot::AGENT_PORT;
use vm_guest::protocol::{Frame, Hello, read_frame, write_frame};

use crate::session::{self, Input};

/// The port appears a moment after its driver is there: the device announces its ports by messages.
const PORT_PATIENCE: Duration = Duration::from_secs(10);

/// The way back to the host, shared by all commands.
#[derive(Clone)]
pub(crate) struct Host(Arc<Mutex<File>>);

impl Host {
    /// Sends a frame. A host that is gone is noticed by the reading side, so nothing is reported here.
    pub(crate) fn send(&self, command: u32, frame: &Frame) {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write_frame(&mut *port, command, frame);
    }
}

pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-guest agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut port = OpenOptions::new().read(true).write(true).open(find_port()?)?;
    let host = Host(Arc::new(Mutex::new(port.try_clone()?)));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    host.send(0, &Frame::Hello(Hello { boot_id, kernel }));

    let mut inputs: HashMap<u32, Sender<Input>> = HashMap::new();
    loop {
        let (command, frame) = read_frame(&mut port)?;
        let input = match frame {
            Frame::Ping => {
                host.send(0, &Frame::Pong);
                continue;
            }
            Frame::Reboot => {
                sync();
                reboot(RebootCommand::Restart)?;
                continue;
            }
            Frame::Spawn(spawn) => {
                inputs.insert(command, session::run(command, spawn, host.clone()));
                continue;
            }
            Frame::WriteFile(file) => {
                inputs.insert(command, session::write_file(command, file, host.clone()));
                continue;
            }
            Frame::Stdin(bytes) => Input::Bytes(bytes),
            Frame::EndOfStdin => Input::End,
            Frame::Signal(number) => Input::Signal(number),
            Frame::Resize(size) => Input::Resize(size),
            other => return Err(io::Error::other(format!("the host sent {other:?}"))),
        };
        // A command that has ended no longer takes input: that is not an error, the two crossed.
        if inputs.get(&command).is_some_and(|sender| sender.send(input).is_err()) {
            inputs.remove(&command);
        }
    }
}

fn find_port() -> io::Result<PathBuf> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten() {
            let entry = entry?;
            let device = PathBuf::from("/dev").join(entry.file_name());
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == AGENT_PORT && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("no virtio-serial port {AGENT_PORT}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
