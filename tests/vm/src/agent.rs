//! The host's end of the command agent: one connection, many commands at a time.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vm_guest::protocol::{Frame, Hello, read_frame, write_frame};

use crate::error::Error;
use crate::process::{Qemu, lock};

/// A guest that says nothing for this long is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(3);

/// The connection to one guest's agent, shared by all its commands.
#[derive(Debug)]
pub(crate) struct Agent {
    qemu: Arc<Qemu>,
    writer: Mutex<UnixStream>,
    commands: Arc<Commands>,
    next: AtomicU32,
    silence_limit: Duration,
}

#[derive(Debug)]
struct Commands {
    /// Where each command's frames go. `None` once the connection is over.
    receivers: Mutex<Option<HashMap<u32, Sender<Frame>>>>,
    liveness: Mutex<Liveness>,
    heard: Condvar,
}

#[derive(Debug)]
struct Liveness {
    heard: Instant,
    asked: Option<Instant>,
    over: bool,
}

impl Agent {
    /// Takes over the connection and waits for the agent's first words.
    pub(crate) fn new(
        qemu: Arc<Qemu>,
        stream: UnixStream,
        deadline: Instant,
        silence_limit: Duration,
    ) -> Result<Option<(Arc<Self>, Hello)>, std::io::Error> {
        let mut reader = stream.try_clone()?;
        // A guest that takes nothing any more must not hold up the writer for ever.
        stream.set_write_timeout(Some(silence_limit))?;
        let (sender, hello) = mpsc::channel();
        let commands = Arc::new(Commands {
            receivers: Mutex::new(Some(HashMap::from([(0, sender)]))),
            liveness: Mutex::new(Liveness { heard: Instant::now(), asked: None, over: false }),
            heard: Condvar::new(),
        });
        let own = Arc::clone(&commands);
        thread::Builder::new().name("vm agent".to_owned()).spawn(move || {
            while let Ok((command, frame)) = read_frame(&mut reader) {
                own.deliver(command, frame);
            }
            *lock(&own.receivers) = None;
            lock(&own.liveness).over = true;
            own.heard.notify_all();
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(Frame::Hello(hello)) = hello.recv_timeout(left) else { return Ok(None) };
        let (writer, next) = (Mutex::new(stream), AtomicU32::new(1));
        Ok(Some((Arc::new(Self { qemu, writer, commands, next, silence_limit }), hello)))
    }

    /// Sends a request that begins a command; gives the command's number and where its frames will come.
    pub(crate) fn begin(&self, request: &Frame) -> Result<(u32, Receiver<Frame>), Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        match lock(&self.commands.receivers).as_mut() {
            Some(receivers) => receivers.insert(number, sender),
            None => return Err(self.gone()),
        };
        self.send(number, request)?;
        Ok((number, receiver))
    }

    pub(crate) fn send(&self, command: u32, frame: &Frame) -> Result<(), Error> {
        write_frame(&mut *lock(&self.writer), command, frame).map_err(|_| self.gone())
    }

    /// Nobody waits for this command's frames any more.
    pub(crate) fn forget(&self, command: u32) {
        if let Some(receivers) = lock(&self.commands.receivers).as_mut() {
            receivers.remove(&command);
        }
    }

    /// Waits for a frame until `deadline`. `Ok(None)` when that has come and the guest is alive.
    pub(crate) fn receive(
        &self,
        frames: &Receiver<Frame>,
        deadline: Option<Instant>,
    ) -> Result<Option<Frame>, Error> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let turn = left.unwrap_or(ASK_AFTER).min(ASK_AFTER);
            match frames.recv_timeout(turn) {
                Ok(frame) => return Ok(Some(frame)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.gone()),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            self.check_alive()?;
        }
    }

    /// Asks the guest whether it is there and waits for the answer.
    pub(crate) fn ping(&self, limit: Duration) -> Result<(), Error> {
        lock(&self.commands.liveness).asked = Some(Instant::now());
        self.send(0, &Frame::Ping)?;
        let liveness = lock(&self.commands.liveness);
        let waiting = |liveness: &mut Liveness| liveness.asked.is_some() && !liveness.over;
        let waited = self.commands.heard.wait_timeout_while(liveness, limit, waiting);
        let liveness = waited.unwrap_or_else(PoisonError::into_inner).0;
        match (liveness.over, liveness.asked) {
            (true, _) => {
                drop(liveness);
                Err(self.gone())
            }
            (false, None) => Ok(()),
            (false, Some(_)) => Err(Error::Hung { silent: limit, console: self.qemu.last_words() }),
        }
    }

    fn check_alive(&self) -> Result<(), Error> {
        let mut liveness = lock(&self.commands.liveness);
        match liveness.asked {
            Some(asked) if asked.elapsed() > self.silence_limit => {
                Err(Error::Hung { silent: liveness.heard.elapsed(), console: self.qemu.last_words() })
            }
            Some(_) => Ok(()),
            None if liveness.heard.elapsed() < ASK_AFTER => Ok(()),
            None => {
                liveness.asked = Some(Instant::now());
                drop(liveness);
                self.send(0, &Frame::Ping)
            }
        }
    }

    /// Why the connection is over: QEMU ended, or does not take what we send.
    pub(crate) fn gone(&self) -> Error {
        if self.qemu.wait_end(Duration::from_secs(5)) {
            Error::Died { console: self.qemu.last_words() }
        } else {
            let silent = lock(&self.commands.liveness).heard.elapsed();
            Error::Hung { silent, console: self.qemu.last_words() }
        }
    }
}

impl Commands {
    fn deliver(&self, command: u32, frame: Frame) {
        *lock(&self.liveness) = Liveness { heard: Instant::now(), asked: None, over: false };
        self.heard.notify_all();
        let last = matches!(frame, Frame::Exit(_) | Frame::Failed(_) | Frame::Hello(_));
        if let Some(receivers) = lock(&self.receivers).as_mut() {
            // A command that nobody waits for may still talk.
            if receivers.get(&command).is_some_and(|receiver| receiver.send(frame).is_err()) || last {
                receivers.remove(&command);
            }
        }
    }
}
