//! The plugin's side: a program implements [`Plugin`] and hands itself to [`main`].
//!
//! What is checked here a plugin need not check: the environment, the configuration's JSON, name and version, which verb
//! came with which version, and that the container's network namespace is not the plugin's own.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::OnceLock;

use nic::IfName;
use serde_json::json;

use crate::config::incompatible;
use crate::version::list;
use crate::{Code, Config, ContainerId, Environment, Error, Object, Success, ValidAttachment, Verb, Version};

/// What a plugin does for each verb. `plugin::main` calls one of these, once.
pub trait Plugin {
    /// Attaches the container, or leaves nothing behind. Where the configuration has a `prevResult`, the result is that
    /// one, amended.
    ///
    /// # Errors
    /// Whatever the runtime should hear.
    fn add(&self, add: &Add) -> Result<Success, Error>;

    /// Detaches the container. There being nothing to detach is no error.
    ///
    /// # Errors
    /// Whatever the runtime should hear; it will try again.
    fn del(&self, del: &Del) -> Result<(), Error>;

    /// Compares what is there with `prevResult`.
    ///
    /// # Errors
    /// When something that ADD has made is missing or different.
    fn check(&self, check: &Check) -> Result<(), Error>;

    /// Removes what belongs to this network but to none of the valid attachments.
    ///
    /// # Errors
    /// What could not be removed, after the rest has been.
    fn gc(&self, gc: &Gc) -> Result<(), Error>;

    /// Says whether an ADD could succeed.
    ///
    /// # Errors
    /// Code 50 or 51 when it could not.
    fn status(&self, status: &Status) -> Result<(), Error>;
}

/// What a program is, for people who run it by hand and for VERSION.
#[derive(Clone, Copy, Debug)]
pub struct About {
    name: &'static str,
    version: &'static str,
    versions: &'static [Version],
}

impl About {
    /// A plugin of this name and release that speaks all versions known here.
    #[must_use]
    pub const fn new(name: &'static str, version: &'static str) -> Self {
        About { name, version, versions: &Version::ALL }
    }

    /// The same that speaks only these versions.
    #[must_use]
    pub const fn speaking(self, versions: &'static [Version]) -> Self {
        About { versions, ..self }
    }
}

/// An ADD.
#[derive(Clone, Debug)]
pub struct Add {
    /// The network's configuration.
    pub config: Config,
    /// The container.
    pub container_id: ContainerId,
    /// What the interface is to be called in it.
    pub if_name: IfName,
    /// The container's network namespace; not our own unless the environment says that it may be.
    pub netns: PathBuf,
    /// All of the environment, for delegates.
    pub environment: Environment,
}

/// A CHECK: the same as for ADD, and `prevResult` is ADD's.
pub type Check = Add;

/// A DEL.
#[derive(Clone, Debug)]
pub struct Del {
    /// The network's configuration, perhaps not the one that ADD had.
    pub config: Config,
    /// The container.
    pub container_id: ContainerId,
    /// What the interface was called in it.
    pub if_name: IfName,
    /// The container's network namespace, which may be gone.
    pub netns: Option<PathBuf>,
    /// All of the environment, for delegates.
    pub environment: Environment,
}

/// A GC that has a list of valid attachments. Without one nothing may be removed, so no plugin is asked.
#[derive(Clone, Debug)]
pub struct Gc {
    /// The network's configuration, with the list in it.
    pub config: Config,
    /// The attachments that are to stay.
    pub valid: Vec<ValidAttachment>,
    /// All of the environment, for delegates.
    pub environment: Environment,
}

/// A STATUS.
#[derive(Clone, Debug)]
pub struct Status {
    /// The network's configuration.
    pub config: Config,
    /// All of the environment, for delegates.
    pub environment: Environment,
}

/// The largest configuration that is read. A GC list with 10,000 attachments has about 1 MB.
const LARGEST_CONFIG: u64 = 8 << 20;

/// Runs a plugin: reads the environment and stdin, calls the plugin, writes the answer.
///
/// Only the answer gets to stdout. For the time of the call file descriptor 1 leads to stderr, so that neither a stray
/// `println!` nor a child process can spoil it. A panic is answered with code 999.
pub fn main(plugin: &impl Plugin, about: &About) -> ExitCode {
    if env::vars_os().all(|(name, _)| !name.as_encoded_bytes().starts_with(b"CNI_")) {
        // Somebody runs the program by hand to see what it is.
        eprintln!("{} {}, a CNI plugin for versions {}", about.name, about.version, list(about.versions));
        return ExitCode::SUCCESS;
    }
    let mut stdout = match take_stdout() {
        Ok(stdout) => stdout,
        Err(error) => {
            let error = Error::new(Code::IO, "stdout cannot be used").caused_by(&error);
            println!("{}", error.to_json(Version::LATEST));
            return ExitCode::FAILURE;
        }
    };
    panic::set_hook(Box::new(answer_panic));
    let answer = answer(plugin, about, |name| env::var_os(name), io::stdin().lock());
    let version = SPOKEN.get().copied().unwrap_or(Version::LATEST);
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(version), ExitCode::FAILURE),
    };
    match stdout.write_all(text.as_bytes()) {
        Ok(()) => code,
        // Nobody listens any more; the exit code is all that is left to say.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes a line for people to stderr, as `eprintln!` does. That nobody reads it any more is no fault: a runtime that dies leaves the other
/// end of the pipe closed, and `eprintln!` would panic, in the middle of an ADD.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => { $crate::plugin::write_line(::std::format_args!($($words)*)) };
}

/// What [`tell!`] does.
#[doc(hidden)]
pub fn write_line(words: fmt::Arguments<'_>) {
    let _ = io::stderr().write_all(format!("{words}\n").as_bytes());
}

/// The version that errors are spoken in, once it is known.
static SPOKEN: OnceLock<Version> = OnceLock::new();
/// The real stdout, for the panic hook.
static STDOUT: OnceLock<File> = OnceLock::new();

fn take_stdout() -> io::Result<&'static File> {
    let real = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(STDOUT.get_or_init(|| real.into()))
}

/// A hook rather than `catch_unwind`: it also works where a panic aborts, and in every thread.
fn answer_panic(panic: &PanicHookInfo<'_>) {
    let version = SPOKEN.get().copied().unwrap_or(Version::LATEST);
    let error = Error::new(Code::INTERNAL, "the plugin failed, by a fault of its own")
        .with_details(panic.to_string());
    if let Some(mut stdout) = STDOUT.get() {
        // If this fails there is no one left to tell.
        let _ = stdout.write_all(error.to_json(version).as_bytes());
    }
    process::exit(1);
}

/// The answer to one call, without touching the process: what is written to stdout.
fn answer(
    plugin: &impl Plugin,
    about: &About,
    variable: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
) -> Result<String, Error> {
    let environment = Environment::parse(variable)?;
    if environment.verb == Verb::Version {
        return Ok(versions(about, &read(stdin)?));
    }
    let config = Config::from_slice(&read(stdin)?)?;
    let version = config.version();
    let _ = SPOKEN.set(version);
    check_version(environment.verb, version, about)?;
    call(plugin, config, environment).map(|result| match result {
        Some(success) => format!("{:#}\n", success.to_value(version)),
        None => String::new(),
    })
}

fn call(plugin: &impl Plugin, config: Config, environment: Environment) -> Result<Option<Success>, Error> {
    match environment.verb {
        Verb::Add => plugin.add(&attachment(config, environment)?).map(Some),
        Verb::Check => plugin.check(&attachment(config, environment)?).map(|()| None),
        Verb::Del => {
            let (Some(container_id), Some(if_name)) =
                (environment.container_id.clone(), environment.if_name.clone())
            else {
                return Err(incomplete());
            };
            let netns = environment.netns.clone();
            if let Some(netns) = &netns
                && !environment.netns_override
                && is_own(netns).unwrap_or(false)
            {
                return Err(own_netns(netns));
            }
            plugin.del(&Del { config, container_id, if_name, netns, environment }).map(|()| None)
        }
        Verb::Gc => match config.valid_attachments()? {
            Some(valid) => plugin.gc(&Gc { config, valid, environment }).map(|()| None),
            None => Ok(None),
        },
        Verb::Status => plugin.status(&Status { config, environment }).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn attachment(config: Config, environment: Environment) -> Result<Add, Error> {
    let (Some(container_id), Some(if_name), Some(netns)) =
        (environment.container_id.clone(), environment.if_name.clone(), environment.netns.clone())
    else {
        return Err(incomplete());
    };
    let own = is_own(&netns).map_err(|error| {
        Error::new(Code::INVALID_NETNS, format!("network namespace {} cannot be read", netns.display()))
            .caused_by(&error)
    })?;
    if own && !environment.netns_override {
        return Err(own_netns(&netns));
    }
    Ok(Add { config, container_id, if_name, netns, environment })
}

/// `Environment::parse` has seen to it that this does not happen.
fn incomplete() -> Error {
    Error::new(Code::INVALID_ENVIRONMENT, "CNI_CONTAINERID, CNI_IFNAME or CNI_NETNS is missing")
}

fn is_own(netns: &Path) -> io::Result<bool> {
    let theirs = fs::metadata(netns)?;
    let ours = fs::metadata("/proc/thread-self/ns/net")?;
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

fn own_netns(netns: &Path) -> Error {
    let message = format!("CNI_NETNS {} is the plugin's own network namespace", netns.display());
    Error::new(Code::INVALID_NETNS, message)
}

fn read(stdin: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    stdin
        .take(LARGEST_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new(Code::IO, "stdin cannot be read").caused_by(&error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_CONFIG) {
        let message = format!("the network configuration has more than {LARGEST_CONFIG} bytes");
        return Err(Error::new(Code::DECODE, message));
    }
    Ok(bytes)
}

fn check_version(verb: Verb, version: Version, about: &About) -> Result<(), Error> {
    if !about.versions.contains(&version) {
        return Err(incompatible(format!(
            "the configuration is in version {version}, the plugin speaks {}",
            list(about.versions)
        )));
    }
    if version < verb.since() {
        return Err(incompatible(format!(
            "{verb} came with version {}, the configuration is in version {version}",
            verb.since()
        )));
    }
    Ok(())
}

/// Answers in the version that was asked in, where it is known; stdin may be empty.
fn versions(about: &About, stdin: &[u8]) -> String {
    let asked = serde_json::from_slice::<Object>(stdin)
        .ok()
        .and_then(|object| object.get("cniVersion")?.as_str()?.parse::<Version>().ok())
        .filter(|version| about.versions.contains(version));
    let version = asked.or(about.versions.iter().copied().max()).unwrap_or(Version::LATEST);
    let supported: Vec<_> = about.versions.iter().map(|version| version.as_str()).collect();
    format!("{}\n", json!({ "cniVersion": version.as_str(), "supportedVersions": supported }))
}

#[cfg(test)]
mod tests;
