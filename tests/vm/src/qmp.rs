//! QEMU's control socket (QMP): hot-plug, unplug, carrier, pause.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::Error;
use crate::process::lock;

/// QEMU answers at once, or is not well.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    partial: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Shakes hands on a new connection.
    pub(crate) fn new(stream: UnixStream) -> Result<Self, Error> {
        let connection =
            Connection { reader: BufReader::new(stream), partial: Vec::new(), events: VecDeque::new() };
        let qmp = Self { connection: Mutex::new(connection) };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs any QMP command.
    ///
    /// # Errors
    /// [`Error::Qmp`] with QEMU's words.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value, Error> {
        let refused = |why: String| Error::Qmp { command: command.to_owned(), why };
        let mut connection = lock(&self.connection);
        let request = json!({ "execute": command, "arguments": arguments });
        let written = writeln!(connection.reader.get_mut(), "{request}");
        written.map_err(|error| refused(error.to_string()))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let Some(message) = connection.read(deadline).map_err(|error| refused(error.to_string()))? else {
                return Err(refused("no answer".to_owned()));
            };
            if let Some(error) = message.get("error") {
                let text = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .map_or_else(|| error.to_string(), str::to_owned);
                return Err(refused(text));
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            connection.note(message);
        }
    }

    /// Plugs a device in: QEMU's `-device` as key and value pairs.
    ///
    /// # Errors
    /// [`Error::Qmp`].
    pub fn device_add(&self, arguments: Value) -> Result<(), Error> {
        self.execute("device_add", arguments).map(drop)
    }

    /// Asks the guest to let go of a device; [`Qmp::wait_event`] tells when it has (`DEVICE_DELETED`).
    ///
    /// # Errors
    /// [`Error::Qmp`].
    pub fn device_del(&self, id: &str) -> Result<(), Error> {
        self.execute("device_del", json!({ "id": id })).map(drop)
    }

    /// Plugs a NIC's cable in or pulls it.
    ///
    /// # Errors
    /// [`Error::Qmp`].
    pub fn set_link(&self, nic: &str, link: Link) -> Result<(), Error> {
        self.execute("set_link", json!({ "name": nic, "up": link == Link::Up })).map(drop)
    }

    /// Stops the machine's processors: a guest that hangs.
    ///
    /// # Errors
    /// [`Error::Qmp`].
    pub fn pause(&self) -> Result<(), Error> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// [`Error::Qmp`].
    pub fn resume(&self) -> Result<(), Error> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Waits for an event of this name whose data `wanted` likes; events that came before count.
    ///
    /// # Errors
    /// [`Error::NoEvent`] when it does not come in time.
    pub fn wait_event(
        &self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let deadline = Instant::now() + limit;
        let mut connection = lock(&self.connection);
        loop {
            let matches = |event: &Value| {
                event.get("event").and_then(Value::as_str) == Some(name)
                    && wanted(event.get("data").unwrap_or(&Value::Null))
            };
            if let Some(event) =
                connection.events.iter().position(matches).and_then(|at| connection.events.remove(at))
            {
                return Ok(event.get("data").cloned().unwrap_or(Value::Null));
            }
            match connection.read(deadline) {
                Ok(Some(message)) => connection.note(message),
                Ok(None) | Err(_) => return Err(Error::NoEvent { event: name.to_owned(), limit }),
            }
        }
    }
}

/// Whether a NIC has carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It has.
    Up,
    /// It has not.
    Down,
}

impl Connection {
    /// The next message, or nothing when `deadline` has come.
    fn read(&mut self, deadline: Instant) -> std::io::Result<Option<Value>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return Ok(Some(serde_json::from_slice(&line)?));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn note(&mut self, message: Value) {
        if message.get("event").is_some() {
            self.events.push_back(message);
        }
    }
}
