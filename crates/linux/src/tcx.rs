//! TCX programs: BPF on the way into and out of an interface (Linux 6.6 and newer). As with XDP they go with it into other network namespaces;
//! netlink does not know them, bpf(2) does, for the network namespace of the calling thread.
//!
//! Source: `union bpf_attr` in include/uapi/linux/bpf.h, kernel/bpf/tcx.c, kernel/bpf/mprog.c.

use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{Error, fault};

/// Commands of bpf(2).
mod command {
    pub(super) const PROG_DETACH: i32 = 9;
    pub(super) const PROG_GET_FD_BY_ID: i32 = 13;
    pub(super) const PROG_QUERY: i32 = 16;
    pub(super) const LINK_GET_FD_BY_ID: i32 = 30;
    pub(super) const LINK_DETACH: i32 = 34;
}

/// BPF_TCX_INGRESS and BPF_TCX_EGRESS.
const WAYS: [u32; 2] = [46, 47];
/// BPF_MPROG_MAX: how many there can be each way.
const MOST: usize = 64;

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its number in the kernel.
    pub id: u32,
    way: u32,
    /// The BPF link that holds it there; 0 where none does.
    link: u32,
}

/// The programs on an interface; `None` where they cannot be seen: the kernel has no TCX, or this process may not ask.
///
/// # Errors
/// The kernel refuses for another reason: there is no such interface.
pub fn programs(index: u32) -> Result<Option<Vec<Program>>, Error> {
    let what = || format!("read the TCX programs of link {index}");
    let all = || {
        let mut all = Vec::new();
        for way in WAYS {
            all.extend(of_one_way(index, way)?);
        }
        Ok(all)
    };
    match fault::step(what, |errno| errno, all) {
        Ok(all) => Ok(Some(all)),
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(failed(what(), errno)),
    }
}

/// Takes a program off an interface, also where a process or a file holds it there by a BPF link.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn remove(index: u32, program: Program) -> Result<(), Error> {
    let what = || format!("take TCX {program} off link {index}");
    let detach = || match program.link {
        0 => {
            let file = open(command::PROG_GET_FD_BY_ID, program.id)?;
            let mut attributes =
                Detach { index, program: number(&file), way: program.way, ..Detach::default() };
            bpf(command::PROG_DETACH, &mut attributes).map(drop)
        }
        link => {
            let file = open(command::LINK_GET_FD_BY_ID, link)?;
            bpf(command::LINK_DETACH, &mut [number(&file)]).map(drop)
        }
    };
    match fault::step(what, |errno| errno, detach) {
        // Whoever had it has taken it off meanwhile.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(what(), errno)),
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program {}", self.id)
    }
}

fn failed(what: String, errno: Errno) -> Error {
    Error::Transport { what, source: errno.into() }
}

fn of_one_way(index: u32, way: u32) -> rustix::io::Result<Vec<Program>> {
    let (mut ids, mut links) = ([0_u32; MOST], [0_u32; MOST]);
    let mut attributes = Query {
        index,
        way,
        ids: address(&mut ids),
        count: u32::try_from(MOST).unwrap_or_default(),
        links: address(&mut links),
        ..Query::default()
    };
    bpf(command::PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count).unwrap_or_default();
    Ok(ids.into_iter().zip(links).take(count).map(|(id, link)| Program { id, way, link }).collect())
}

fn address<T>(of: &mut T) -> u64 {
    u64::try_from(std::ptr::from_mut(of).addr()).unwrap_or_default()
}

fn number(file: &OwnedFd) -> u32 {
    u32::try_from(file.as_raw_fd()).unwrap_or_default()
}

/// A descriptor of the program or link with this ID.
fn open(command: i32, id: u32) -> rustix::io::Result<OwnedFd> {
    let descriptor = bpf(command, &mut [id, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// One call with the part of `union bpf_attr` that is the command's; the kernel takes what is beyond it for zero.
pub(crate) fn bpf<T>(command: i32, attributes: &mut T) -> rustix::io::Result<i32> {
    // SAFETY: bpf(2) reads and writes no more than the size that it is told at the pointer, and where its members lead to; callers hand in
    // structures of integers, whose addresses are those of arrays that outlive the call.
    #[allow(unsafe_code)]
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// What BPF_PROG_QUERY takes.
#[derive(Default)]
#[repr(C)]
struct Query {
    index: u32,
    way: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// What BPF_PROG_DETACH takes.
#[derive(Default)]
#[repr(C)]
struct Detach {
    index: u32,
    program: u32,
    way: u32,
    flags: u32,
    replaced: u32,
    relative: u32,
    revision: u64,
}
