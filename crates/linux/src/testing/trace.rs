//! A program under ptrace(2), stopped before and after each system call that changes something, and killed at one of them.
//!
//! A call is a point unless it is known to change nothing that outlives the process, so that none is forgotten. Processes that the
//! program starts are followed, too: their calls are points, at which the program is killed and they are not; they go on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_int, c_void, pid_t};

use super::call::{Call, Process};

/// On which side of a system call a program is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The call is not made.
    Before,
    /// The call was made, and the program does not hear what came of it.
    After,
}

/// A system call that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The name of the program that makes it, where a program that was started does.
    pub child: Option<String>,
    /// What it changes, in words.
    pub what: String,
}

/// What a program did.
#[derive(Debug)]
pub struct Traced {
    /// Its calls that change something, up to the one at which it was killed.
    pub points: Vec<Point>,
    /// Its exit code; none where it was killed.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs a program with this standard input, and kills it on one side of the call at `kill`, which counts from 0. It starts in the network
/// namespace of the calling thread. Returns when it has ended; programs that it has started may be at work still.
///
/// # Panics
/// Where the kernel does not let us trace, or the program cannot be started.
pub fn run(command: &mut Command, stdin: &[u8], kill: Option<(usize, Side)>) -> Traced {
    let [input, mut output, mut errors] = [(); 3].map(|()| tempfile::tempfile().unwrap());
    (&input).write_all(stdin).unwrap();
    (&input).rewind().unwrap();
    command.stdin(input).stdout(output.try_clone().unwrap()).stderr(errors.try_clone().unwrap());
    // SAFETY: ptrace(2) is one system call: it allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0, 0).map(drop));
    }
    // A tracer is a thread: with its end whatever is still traced goes on by itself.
    let (points, code, at_work) = std::thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            let program = pid_t::try_from(command.spawn().unwrap().id()).unwrap();
            let tracees = BTreeMap::new();
            let mut tracer =
                Tracer { program, kill, ended: None, killed: false, points: Vec::new(), tracees };
            tracer.follow();
            (tracer.points, tracer.ended.unwrap(), tracer.tracees)
        });
        tracer.join().unwrap()
    });
    // A thread that such a program was starting when its tracer ended has a SIGSTOP to come, which nobody keeps from it any more.
    for pid in at_work.into_keys() {
        // SAFETY: kill(2) takes two numbers.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(pid, libc::SIGCONT)
        };
    }
    Traced { points, code, stdout: text(&mut output), stderr: text(&mut errors) }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Tracer {
    program: pid_t,
    kill: Option<(usize, Side)>,
    /// Set when the program has ended: its exit code, if it has one.
    ended: Option<Option<i32>>,
    killed: bool,
    points: Vec<Point>,
    /// Threads of the program and of the processes that it has started.
    tracees: BTreeMap<pid_t, Tracee>,
}

#[derive(Default)]
struct Tracee {
    /// The point at which it is.
    point: Option<usize>,
    /// The kernel makes it call again: it did nothing, since a lock was taken (rtnl, by sysctls), or a signal came.
    again: bool,
}

impl Tracer {
    /// Follows all tracees until the program has ended.
    fn follow(&mut self) {
        // The first stop is that after its own execve(2).
        let status = wait(self.program).map(|(_, status)| status);
        assert!(
            status.is_some_and(|status| libc::WIFSTOPPED(status)),
            "the program has not stopped at its start: {status:?}"
        );
        let options = libc::PTRACE_O_TRACESYSGOOD
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACEEXEC;
        ptrace(libc::PTRACE_SETOPTIONS, self.program, 0, options.into()).unwrap();
        self.tracees.insert(self.program, Tracee::default());
        go_on(self.program, 0);
        while self.ended.is_none() {
            let (pid, status) = wait(-1).unwrap();
            if libc::WIFSTOPPED(status) {
                self.stopped(pid, status);
                continue;
            }
            self.tracees.remove(&pid);
            if pid == self.program {
                self.ended = Some(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)));
            }
        }
    }

    fn stopped(&mut self, pid: pid_t, status: c_int) {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let is_new = !self.tracees.contains_key(&pid);
        self.tracees.entry(pid).or_default();
        let is_call = signal == libc::SIGTRAP | 0x80;
        // What others do between the kill and the end is no point of this run.
        if is_call && !self.killed {
            self.call(pid);
        }
        // What the tracing itself makes is not for the tracee to hear.
        let ours = is_call || event != 0 || (is_new && signal == libc::SIGSTOP);
        go_on(pid, if ours { 0 } else { signal });
    }

    /// A tracee is about to make a system call, or has made it.
    fn call(&mut self, pid: pid_t) {
        let Some(tracee) = self.tracees.get_mut(&pid) else { return };
        let point = match what(pid) {
            Some(Stop::Entry(_)) if mem::take(&mut tracee.again) => None,
            Some(Stop::Entry(call)) => {
                tracee.point = call.changes(Process(pid)).map(|what| {
                    let child = Process(pid).group().filter(|group| *group != self.program);
                    self.points.push(Point { child: child.and_then(|child| Process(child).name()), what });
                    self.points.len() - 1
                });
                tracee.point.map(|number| (number, Side::Before))
            }
            Some(Stop::Exit { again }) => {
                tracee.again = again;
                tracee.point.filter(|_| !again).map(|number| (number, Side::After))
            }
            None => None,
        };
        if point.is_some() && point == self.kill {
            self.killed = true;
            // SAFETY: kill(2) takes two numbers. The program is not reaped yet, so the number is still its own.
            #[allow(unsafe_code)]
            let killed = unsafe { libc::kill(self.program, libc::SIGKILL) };
            assert_eq!(killed, 0, "{}", std::io::Error::last_os_error());
        }
    }
}

/// The next stop or end of a tracee of this thread; none where there is none left.
fn wait(pid: pid_t) -> Option<(pid_t, c_int)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::waitpid(pid, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    (pid > 0).then_some((pid, status))
}

/// Lets a tracee run up to its next system call. One that has been killed meanwhile is gone, and its end is told by [`wait`].
fn go_on(pid: pid_t, signal: c_int) {
    let _ = ptrace(libc::PTRACE_SYSCALL, pid, 0, signal.into());
}

/// ERESTARTSYS and those after it, which only a tracer sees (include/linux/errno.h).
const RESTARTS: [i64; 4] = [-512, -513, -514, -516];

enum Stop {
    Entry(Call),
    Exit { again: bool },
}

/// At which side of which call a tracee has stopped.
fn what(pid: pid_t) -> Option<Stop> {
    let size = mem::size_of::<libc::ptrace_syscall_info>();
    // SAFETY: all bytes zero are a value of this type, which holds only numbers.
    #[allow(unsafe_code)]
    let mut info: libc::ptrace_syscall_info = unsafe { mem::zeroed() };
    let place = std::ptr::from_mut(&mut info).expose_provenance();
    ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, i64::try_from(place).unwrap()).ok()?;
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: the kernel says that it has filled in this member of the union.
            #[allow(unsafe_code)]
            let entry = unsafe { info.u.entry };
            Some(Stop::Entry(Call { number: i64::try_from(entry.nr).unwrap(), arguments: entry.args }))
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            let exit = unsafe { info.u.exit };
            Some(Stop::Exit { again: RESTARTS.contains(&exit.sval) })
        }
        _ => None,
    }
}

fn ptrace(request: libc::c_uint, pid: pid_t, address: usize, data: i64) -> std::io::Result<i64> {
    // SAFETY: of the requests here only PTRACE_GET_SYSCALL_INFO writes, to a place and of a size that its caller vouches for.
    #[allow(unsafe_code)]
    let answer =
        unsafe { libc::ptrace(request, pid, std::ptr::without_provenance_mut::<c_void>(address), data) };
    if answer == -1 { Err(std::io::Error::last_os_error()) } else { Ok(answer) }
}
