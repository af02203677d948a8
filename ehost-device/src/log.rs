//! What is told of a call: in its error the device and the pod that it is about, and, where the configuration asks for it (`log`), one
//! line of JSON.
//!
//! A line that cannot be written is told on stderr and fails nothing: the log is about the call, not part of it.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cni::{Config, Environment, Error};
use linux::files;
use nic::DeviceId;
use serde_json::{Value, json};

use crate::config::{text, wrong};

/// The value of `log` that means no file.
const STDERR: &str = "stderr";

/// What is written down of a call while it goes on: the device that it is about, and how long each step took.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Known as soon as it was found.
    pub(crate) device: Option<DeviceId>,
    /// What the configuration calls it, known before that.
    pub(crate) asked_for: Option<String>,
    done: Vec<(&'static str, Duration)>,
    current: &'static str,
    since: Instant,
}

impl Steps {
    fn first(name: &'static str) -> Steps {
        Steps { device: None, asked_for: None, done: Vec::new(), current: name, since: Instant::now() }
    }

    /// The device, as far as it is known.
    fn name(&self) -> Option<&str> {
        self.device.as_ref().map(DeviceId::as_str).or(self.asked_for.as_deref())
    }

    /// Ends a step and begins the next. The last one of a call that failed is the one that failed, or `undo`.
    pub(crate) fn begin(&mut self, name: &'static str) {
        let now = Instant::now();
        self.done.push((self.current, now.duration_since(self.since)));
        (self.current, self.since) = (name, now);
    }
}

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    Stderr,
    File(PathBuf),
}

impl Sink {
    /// The configuration's `log`.
    ///
    /// # Errors
    /// Code 7 when it is neither `stderr` nor an absolute path.
    pub(crate) fn read(config: &Config) -> Result<Option<Sink>, Error> {
        match text(config, "log")? {
            None => Ok(None),
            Some(STDERR) => Ok(Some(Sink::Stderr)),
            Some(path) if path.starts_with('/') => Ok(Some(Sink::File(path.into()))),
            Some(other) => Err(wrong(format!("log {other:?} is neither stderr nor an absolute path"))),
        }
    }

    fn write(&self, line: &Value) {
        let line = ascii(&line.to_string());
        match self {
            Sink::Stderr => cni::tell!("{line}"),
            Sink::File(path) => {
                if let Err(error) = files::append(path, format!("{line}\n").as_bytes()) {
                    cni::tell!("ehost-device: {}", error.chain());
                }
            }
        }
    }
}

/// The same JSON without what a terminal or a reader of lines might take for a command: JSON itself escapes line feeds and the like,
/// but neither DEL nor the controls and line ends beyond ASCII. All of them can only stand in strings.
fn ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\x7f' {
            ascii.push(c);
        } else {
            ascii.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    ascii
}

/// Does a call, completes its error, and writes its line.
pub(crate) fn logged<T>(
    config: &Config,
    environment: &Environment,
    work: impl FnOnce(&mut Steps) -> Result<T, Error>,
) -> Result<T, Error> {
    let began = Instant::now();
    let mut steps = Steps::first("prepare");
    let pod = pod(environment);
    let outcome = work(&mut steps).map_err(|error| named(error, steps.name(), pod.as_deref()));
    match Sink::read(config) {
        Ok(None) => {}
        Ok(Some(sink)) => {
            steps.begin("log");
            sink.write(&line(
                config,
                environment,
                pod.as_deref(),
                &steps,
                outcome.as_ref().err(),
                began.elapsed(),
            ));
        }
        // An ADD was refused for it; what is only told here is a DEL, and the like.
        Err(error) => cni::tell!("ehost-device: {error}: nothing is logged"),
    }
    outcome
}

/// The pod as people know it: `default/testpod1`.
fn pod(environment: &Environment) -> Option<String> {
    let args = |key| environment.args.value(key).filter(|value| !value.is_empty());
    Some(format!("{}/{}", args("K8S_POD_NAMESPACE")?, args("K8S_POD_NAME")?))
}

/// The error with the device and the pod that it is about, as far as they are known and it does not name them itself.
fn named(mut error: Error, device: Option<&str>, pod: Option<&str>) -> Error {
    let known = [("device", device), ("pod", pod)];
    for (kind, name) in known.into_iter().filter_map(|(kind, name)| Some((kind, name?))) {
        if !error.message.contains(name) && !error.details.contains(name) {
            let separator = if error.details.is_empty() { "" } else { "; " };
            error.details.push_str(&format!("{separator}{kind} {name}"));
        }
    }
    error
}

fn line(
    config: &Config,
    environment: &Environment,
    pod: Option<&str>,
    steps: &Steps,
    error: Option<&Error>,
    took: Duration,
) -> Value {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let done = steps.done.iter().map(|(step, time)| json!({"step": step, "us": micros(*time)}));
    let mut line = json!({
        "time": SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        "command": environment.verb.as_str(),
        "network": config.name().as_str(),
        "container": environment.container_id.as_ref().map(|id| id.as_str()),
        "ifname": environment.if_name.as_ref().map(|name| name.as_str()),
        "netns": environment.netns.as_ref().map(|path| path.display().to_string()),
        "pod": pod,
        "device": steps.device.as_ref().map(DeviceId::as_str),
        "outcome": if error.is_some() { "error" } else { "ok" },
        "us": micros(took),
        "steps": done.collect::<Vec<_>>(),
    });
    if let (Some(error), Some(line)) = (error, line.as_object_mut()) {
        line.insert("code".to_owned(), json!(error.code));
        line.insert("message".to_owned(), json!(error.message));
        line.insert("details".to_owned(), json!(error.details));
    }
    line
}
