//! What a system call changes, in words that are the same on every machine and in every run.

use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use libc::pid_t;

use crate::wire;

/// A system call that a process is about to make.
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
}

/// A process, or one of its threads, that has stopped.
#[derive(Clone, Copy)]
pub(super) struct Process(pub(super) pid_t);

/// Calls that change nothing which outlives the process: what they do to memory, descriptors, threads and signals ends with it. What is not
/// here is taken to change something.
const HARMLESS: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setitimer,
    libc::SYS_setns,
    libc::SYS_setpgid,
    libc::SYS_setsockopt,
    libc::SYS_sigaltstack,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Those of them that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const HARMLESS_LEGACY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
];
#[cfg(not(target_arch = "x86_64"))]
const HARMLESS_LEGACY: &[i64] = &[];

/// Commands of ethtool(8) that read: what a driver is, its queues, rings and offloads, its permanent MAC.
const READING_ETHTOOL: [u32; 9] = [0x03, 0x10, 0x14, 0x1b, 0x20, 0x25, 0x37, 0x3a, 0x3c];

/// Commands of bpf(2) that read: programs and links found, opened and described.
const READING_BPF: [u64; 5] = [13, 15, 16, 30, 31];

impl Process {
    /// The process to which a thread belongs.
    pub(super) fn group(self) -> Option<pid_t> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
    }

    /// The name of its program, as `comm` of proc(5) has it: 15 bytes at most.
    pub(super) fn name(self) -> Option<String> {
        std::fs::read_to_string(format!("/proc/{}/comm", self.0)).ok().map(|name| name.trim().to_owned())
    }

    fn bytes(self, address: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let read = std::fs::File::open(format!("/proc/{}/mem", self.0))
            .and_then(|memory| memory.read_at(&mut bytes, address));
        bytes.truncate(read.unwrap_or(0));
        bytes
    }

    /// The file name at an address, shortened.
    fn path(self, address: u64) -> String {
        // Not beyond the end of a page: the next need not be there.
        let mut path = Vec::new();
        while path.len() < 4096 && !path.contains(&0) {
            let at = address + u64::try_from(path.len()).unwrap();
            let piece = self.bytes(at, 256 - at % 256);
            if piece.is_empty() {
                break;
            }
            path.extend(piece);
        }
        short(Path::new(&wire::text(&path)))
    }

    /// An ioctl(2) that sets something; of those that the programs here make only SIOCETHTOOL can.
    fn ioctl(self, operation: u64, argument: u64) -> Option<String> {
        const SIOCETHTOOL: u64 = 0x8946;
        if operation != SIOCETHTOOL {
            return None;
        }
        // `struct ifreq`: a name of 16 bytes, a pointer to the command.
        let pointer =
            self.bytes(argument + 16, 8).first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let command = wire::u32_at(&self.bytes(pointer, 4), 0).unwrap_or_default();
        (!READING_ETHTOOL.contains(&command)).then(|| format!("ethtool command {command:#x}"))
    }

    /// What a descriptor leads to: a path, or `pipe:[7]`.
    fn file(self, descriptor: u64) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.0)).unwrap_or_default()
    }
}

/// The last two parts of a path, without what is random in them.
fn short(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let random = |part: &str| part.starts_with(crate::files::TEMPORARY) || part.starts_with(".tmp");
    let shown = |part: &str| if random(part) { ".tmp".to_owned() } else { part.to_owned() };
    let from = parts.len().saturating_sub(2);
    parts.iter().skip(from).map(|part| shown(part)).collect::<Vec<_>>().join("/")
}

impl Call {
    /// What the call is about to change, in words; none where it changes nothing.
    pub(super) fn changes(&self, process: Process) -> Option<String> {
        let [a, b, c, d, ..] = self.arguments;
        let path = |address| process.path(address);
        let file = |descriptor| short(&process.file(descriptor));
        if HARMLESS.contains(&self.number) || HARMLESS_LEGACY.contains(&self.number) {
            return None;
        }
        #[cfg(target_arch = "x86_64")]
        match self.number {
            libc::SYS_open => return creates(b).then(|| format!("create {}", path(a))),
            libc::SYS_mkdir => return Some(format!("mkdir {}", path(a))),
            libc::SYS_unlink => return Some(format!("unlink {}", path(a))),
            libc::SYS_rename => return Some(format!("rename {} to {}", path(a), path(b))),
            libc::SYS_chmod => return Some(format!("chmod {}", path(a))),
            libc::SYS_fork | libc::SYS_vfork => return Some("start a process".to_owned()),
            _ => {}
        }
        match self.number {
            libc::SYS_openat => creates(c).then(|| format!("create {}", path(b))),
            libc::SYS_mkdirat => Some(format!("mkdir {}", path(b))),
            libc::SYS_unlinkat => Some(format!("unlink {}", path(b))),
            libc::SYS_renameat | libc::SYS_renameat2 => Some(format!("rename {} to {}", path(b), path(d))),
            libc::SYS_fchmod => Some(format!("chmod {}", file(a))),
            libc::SYS_ftruncate => Some(format!("truncate {}", file(a))),
            libc::SYS_fsync | libc::SYS_fdatasync => Some(format!("fsync {}", file(a))),
            libc::SYS_execve => Some(format!("exec {}", path(a))),
            libc::SYS_clone => starts_process(a).then(|| "start a process".to_owned()),
            libc::SYS_clone3 => {
                let flags = process.bytes(a, 8).first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                starts_process(flags).then(|| "start a process".to_owned())
            }
            libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => written(&process.file(a), a),
            libc::SYS_sendto => sent(&process.bytes(b, c)),
            libc::SYS_ioctl => process.ioctl(b, c),
            libc::SYS_bpf => (!READING_BPF.contains(&a)).then(|| format!("bpf command {a}")),
            other => Some(format!("system call {other}")),
        }
    }
}

fn creates(flags: u64) -> bool {
    let creating = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    flags & u64::try_from(creating).unwrap() != 0
}

fn starts_process(flags: u64) -> bool {
    flags & u64::try_from(libc::CLONE_THREAD).unwrap() == 0
}

/// A write to a file, or to a pipe.
fn written(file: &Path, descriptor: u64) -> Option<String> {
    let name = file.to_string_lossy();
    if name.starts_with("pipe:") {
        Some("write to a pipe".to_owned())
    } else if name.starts_with("anon_inode:") || descriptor == 2 {
        // What is logged is for people.
        None
    } else if name.contains(" (deleted)") {
        Some("write the answer".to_owned())
    } else {
        Some(format!("write {}", short(file)))
    }
}

/// A message on a socket: netlink, or a packet to the neighbours.
fn sent(bytes: &[u8]) -> Option<String> {
    let message =
        wire::messages(bytes).next().filter(|_| wire::u32_at(bytes, 0) == u32::try_from(bytes.len()).ok());
    let Some(message) = message else { return Some("send a packet to the neighbours".to_owned()) };
    let family = message.kind.checked_sub(16)?;
    let verb = ["NEW", "DEL", "GET", "SET"].get(usize::from(family % 4))?;
    let object = ["LINK", "ADDR", "ROUTE"].get(usize::from(family / 4)).copied();
    let object = object.or((family / 4 == 23).then_some("LINKPROP"));
    let words = match (*verb, object) {
        ("GET", _) => return None,
        (_, Some("LINK")) => link(message.payload),
        (_, Some("ADDR")) => attribute(message.payload, 8, &[IFA_LOCAL, IFA_ADDRESS]),
        (_, Some("ROUTE")) => attribute(message.payload, 12, &[RTA_DST]),
        _ => String::new(),
    };
    let object = object.map_or_else(|| (family / 4).to_string(), str::to_owned);
    Some(format!("RTM_{verb}{object} {words}").trim_end().to_owned())
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;

/// The address in the first of these attributes that is there, behind a body of so many bytes.
fn attribute(payload: &[u8], body: usize, kinds: &[u16]) -> String {
    let payload = payload.get(body..).unwrap_or_default();
    let value = |kind: &u16| {
        wire::attributes(payload).find(|(found, _)| found == kind).and_then(|(_, value)| wire::ip(value))
    };
    kinds.iter().find_map(value).as_ref().map_or_else(|| "default".to_owned(), IpAddr::to_string)
}

/// What is changed about a link.
fn link(payload: &[u8]) -> String {
    const NAMES: [(u16, &str); 7] =
        [(28, "netns"), (3, "name"), (1, "MAC"), (4, "MTU"), (13, "txqlen"), (20, "alias"), (10, "master")];
    let mask = wire::u32_at(payload, 12).unwrap_or(0);
    let flags = wire::u32_at(payload, 8).unwrap_or(0);
    let mut words = Vec::new();
    for (kind, value) in wire::attributes(payload.get(16..).unwrap_or_default()) {
        let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == kind) else {
            words.push(format!("attribute {kind}"));
            continue;
        };
        words.push(if *name == "name" { format!("name {}", wire::text(value)) } else { (*name).to_owned() });
    }
    if mask & 1 != 0 {
        words.push(if flags & 1 != 0 { "up" } else { "down" }.to_owned());
    }
    if mask & !1 != 0 {
        words.push("flags".to_owned());
    }
    words.join(", ")
}
