//! The programs inside a pod: virtsim starts itself again as `virtsim __pod ...`, with one thread, which is what the kernel
//! wants of those who change their namespaces.
//!
//! * `Sandbox` makes the pod's namespace of processes and starts `First` as number 1 in it;
//! * `First` enters the pod's network namespace, gives the pod its own mounts and host name, and then does nothing but
//!   collect processes that nobody waits for; when it ends, the kernel ends every process of the pod;
//! * `Enter` joins the namespaces of `First` and runs a command there: a container, or an `exec`;
//! * `Idle` stands in for a container that has no command.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use linux::process::{Namespace, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

/// The subcommand that nobody types.
const SUBCOMMAND: &str = "__pod";

/// How [`Role::Enter`] reports that the command could not be run, as shells do: there is none, or it may not be executed.
pub(super) const NOT_RUN: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// What a helper process is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Role {
    Sandbox(Shape),
    First(Shape),
    Enter {
        /// The number of `First` as virtsim sees it.
        first: u32,
        /// The command; empty for `Idle`.
        argv: Vec<String>,
        env: BTreeMap<String, String>,
        working_dir: PathBuf,
        /// The standard input is a terminal, to be the command's own.
        on_terminal: bool,
    },
    Idle,
}

/// What a pod has for itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Shape {
    /// Its network namespace; absent when it is on the node's network.
    pub(super) netns: Option<PathBuf>,
    /// Its host name; absent when it has the node's.
    pub(super) hostname: Option<String>,
}

/// The arguments that make virtsim play `role`.
pub(super) fn arguments(role: &Role) -> [String; 2] {
    // Roles hold numbers and text, of which JSON can always be made.
    [SUBCOMMAND.to_owned(), serde_json::to_string(role).unwrap_or_default()]
}

/// To be called first in `main`, before there is a second thread: plays a pod's part and ends the process, where that is
/// what it was started for; else returns at once.
pub fn run_if_asked() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(SUBCOMMAND) {
        return;
    }
    let role = arguments.next().unwrap_or_default();
    let outcome = serde_json::from_str(&role).map_err(io::Error::from).and_then(play);
    let code = outcome.unwrap_or_else(|error| {
        eprintln!("virtsim: {error}");
        if error.kind() == io::ErrorKind::PermissionDenied { NOT_EXECUTABLE } else { NOT_RUN }
    });
    std::process::exit(code)
}

fn play(role: Role) -> io::Result<i32> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    match role {
        Role::Sandbox(shape) => sandbox(&shape),
        Role::First(shape) => first(&shape),
        Role::Enter { first, argv, env, working_dir, on_terminal } => {
            if on_terminal {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(io::stdin())?;
            }
            enter(first, argv, &env, &working_dir)
        }
        Role::Idle => loop {
            std::thread::park();
        },
    }
}

/// Reports `pid N` and then whatever `First` reports, on the standard output.
fn sandbox(shape: &Shape) -> io::Result<i32> {
    unshare(&[Namespace::ChildPid]).map_err(whole)?;
    single_threaded()?.block_on(async {
        let mut first = tokio::process::Command::new(std::env::current_exe()?)
            .args(arguments(&Role::First(shape.clone())))
            .env_clear()
            .stdin(Stdio::piped())
            .spawn()?;
        // Taken out of `first`, since waiting would close it, and `First` would take that for our end.
        let _lifeline = first.stdin.take();
        println!("pid {}", first.id().unwrap_or_default());
        io::stdout().flush()?;
        let mut end = Lifeline::of_this_process()?;
        tokio::select! {
            status = first.wait() => status.map(code),
            () = end.reached() => {
                first.kill().await?;
                Ok(0)
            }
        }
    })
}

/// The standard input, which ends when the process that holds its other end does, however it ends.
struct Lifeline(tokio::net::unix::pipe::Receiver);

impl Lifeline {
    fn of_this_process() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        tokio::net::unix::pipe::Receiver::from_owned_fd(stdin).map(Lifeline)
    }

    async fn reached(&mut self) {
        let mut byte = [0; 1];
        while let Ok(1) = self.0.read(&mut byte).await {}
    }
}

/// Reports `note TEXT` for what it had to do without, and `ready`.
fn first(shape: &Shape) -> io::Result<i32> {
    if let Some(netns) = &shape.netns {
        let netns = std::fs::File::open(netns)?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    unshare(&[Namespace::Mount, Namespace::Uts]).map_err(whole)?;
    if let Some(hostname) = &shape.hostname {
        rustix::system::sethostname(hostname.as_bytes())?;
    }
    // Unmounting on the node must reach the pod, or a dead pod's network namespace would live on in here; nothing that
    // the pod mounts may reach the node.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let mut notes = Vec::new();
    own_mount(&mut notes, "proc", Path::new("/proc"), MountFlags::empty());
    if shape.netns.is_some() {
        own_mount(&mut notes, "sysfs", Path::new("/sys"), MountFlags::RDONLY);
    }
    leave_network_namespaces();
    if let Some(folder) = shape.netns.as_deref().and_then(Path::parent) {
        // `ip` takes what is left there for namespaces, and complains.
        own_mount(&mut notes, "tmpfs", folder, MountFlags::RDONLY);
    }

    let mut out = io::stdout();
    for note in notes {
        writeln!(out, "note {note}")?;
    }
    writeln!(out, "ready")?;
    out.flush()?;
    single_threaded()?.block_on(async {
        let mut children = signal(SignalKind::child())?;
        let mut end = Lifeline::of_this_process()?;
        loop {
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
            tokio::select! {
                _ = children.recv() => {}
                () = end.reached() => return Ok(0),
            }
        }
    })
}

/// Mounts what shows this pod instead of the node. In a user namespace the kernel refuses it where parts of the old one are
/// covered (`mount_too_revealing()` in fs/namespace.c); then the pod goes without.
fn own_mount(notes: &mut Vec<String>, kind: &str, target: &Path, more: MountFlags) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | more;
    if let Err(error) = mount(kind, target, kind, flags, None) {
        let target = target.display();
        notes.push(format!("the pod sees the node's {target}: the kernel refuses its own: {error}"));
    }
}

/// Unmounts what keeps other pods' network namespaces alive: this mount namespace is a copy of the node's.
fn leave_network_namespaces() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let Some((fields, kind)) = line.split_once(" - ") else { continue };
        if kind.starts_with("nsfs ")
            && let Some(target) = fields.split(' ').nth(4)
        {
            // One that is covered by another mount cannot be reached, and goes with it.
            let _ = unmount(target, UnmountFlags::DETACH);
        }
    }
}

fn enter(first: u32, argv: Vec<String>, env: &BTreeMap<String, String>, folder: &Path) -> io::Result<i32> {
    let open = |kind: &str| std::fs::File::open(format!("/proc/{first}/ns/{kind}"));
    // All are opened before the first is entered: afterwards /proc is another one.
    let namespaces = [
        (open("net")?, LinkNameSpaceType::Network),
        (open("uts")?, LinkNameSpaceType::HostNameAndNISDomainName),
        (open("pid")?, LinkNameSpaceType::ProcessID),
        (open("mnt")?, LinkNameSpaceType::Mount),
    ];
    let idle = arguments(&Role::Idle);
    let itself = std::env::current_exe()?;
    for (namespace, kind) in namespaces {
        move_into_link_name_space(namespace.as_fd(), Some(kind))?;
    }
    let mut command = match argv.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            let mut command = Command::new(itself);
            command.arg0("pause").args(idle);
            command
        }
    };
    command.env_clear().envs(env).current_dir(if folder.is_dir() { folder } else { Path::new("/") });
    single_threaded()?.block_on(async {
        // From here on signals are for the command, and this process lives as long as it.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot run {argv:?}: {error}")))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        loop {
            tokio::select! {
                status = child.wait() => return status.map(code),
                _ = terminate.recv() => if let Some(pid) = pid {
                    // It may have ended meanwhile.
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                },
                // A terminal sends these to the command, too.
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
            }
        }
    })
}

fn single_threaded() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// As shells tell it: 128 and the signal's number where a signal ended it.
pub(super) fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(NOT_RUN)
}

fn whole(error: linux::Error) -> io::Error {
    io::Error::other(crate::chain(&error))
}
