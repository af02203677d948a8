//! BPF programs on interfaces, as far as netlink does not reach: TCX programs, on the way in and out (Linux 6.6 and newer), which as XDP programs go with
//! an interface into other network namespaces; and XDP programs that a BPF link holds. All of it is for the network namespace of the calling thread.
//!
//! Source: `union bpf_attr` and `struct bpf_link_info` in include/uapi/linux/bpf.h; kernel/bpf/tcx.c, kernel/bpf/mprog.c, net/core/dev.c.

use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nic::Xdp;
use rustix::io::Errno;

use crate::{Error, fault, process};

/// Commands of bpf(2).
mod command {
    pub(super) const PROG_DETACH: i32 = 9;
    pub(super) const PROG_GET_FD_BY_ID: i32 = 13;
    pub(super) const OBJ_GET_INFO_BY_FD: i32 = 15;
    pub(super) const PROG_QUERY: i32 = 16;
    pub(super) const LINK_GET_FD_BY_ID: i32 = 30;
    pub(super) const LINK_GET_NEXT_ID: i32 = 31;
    pub(super) const LINK_DETACH: i32 = 34;
}

/// BPF_TCX_INGRESS and BPF_TCX_EGRESS.
const WAYS: [u32; 2] = [46, 47];
/// BPF_MPROG_MAX: how many there can be each way.
const MOST: usize = 64;
/// BPF_LINK_TYPE_XDP.
const XDP_LINK: u32 = 6;

/// A TCX program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcx {
    /// The number of the program. Whoever holds a BPF link may put another one in its place.
    pub id: u32,
    /// The number of the BPF link that holds it there; 0 where none does.
    pub link: u32,
    way: u32,
}

/// The TCX programs on an interface; `None` where the kernel has no TCX, or this process may not take such programs off.
///
/// # Errors
/// The kernel refuses for another reason: there is no such interface.
pub fn tcx(index: u32) -> Result<Option<Vec<Tcx>>, Error> {
    if !process::may_administer()? {
        return Ok(None);
    }
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

/// Takes a TCX program off an interface, also where a process or a file holds it there by a BPF link.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn remove_tcx(index: u32, program: Tcx) -> Result<(), Error> {
    let what = || format!("take {program} off link {index}");
    let detach = || match program.link {
        0 => {
            let file = open(command::PROG_GET_FD_BY_ID, program.id)?;
            let mut attributes =
                Detach { index, program: number(&file), way: program.way, ..Detach::default() };
            bpf(command::PROG_DETACH, &mut attributes).map(drop)
        }
        link => unlink(&open(command::LINK_GET_FD_BY_ID, link)?),
    };
    match fault::step(what, |errno| errno, detach) {
        // Whoever had it has taken it off meanwhile.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(what(), errno)),
    }
}

/// Takes an XDP program off an interface that a process or a file holds there by a BPF link. False where there is not exactly one link that it can
/// be: the kernel tells a link's program and the interface's number, and the same program can be on one of the same number in another network namespace.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn unlink_xdp(index: u32, program: Xdp) -> Result<bool, Error> {
    let what = || format!("take the BPF link of XDP program {} off link {index}", program.id);
    let detach = || match xdp_links(index, program.id)?.as_slice() {
        [link] => unlink(link).map(|()| true),
        _ => Ok(false),
    };
    fault::step(what, |errno| errno, detach).map_err(|errno| failed(what(), errno))
}

impl fmt::Display for Tcx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TCX program {}", self.id)
    }
}

fn failed(what: String, errno: Errno) -> Error {
    Error::Transport { what, source: errno.into() }
}

fn of_one_way(index: u32, way: u32) -> rustix::io::Result<Vec<Tcx>> {
    let (mut ids, mut links) = ([0_u32; MOST], [0_u32; MOST]);
    let mut attributes = Query {
        index,
        way,
        ids: address(&mut ids),
        count: u32::try_from(MOST).unwrap_or_default(),
        links: address(&mut links),
        ..Query::default()
    };
    match bpf(command::PROG_QUERY, &mut attributes) {
        // As the first kernels with TCX say that there is none.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        answer => answer?,
    };
    let count = usize::try_from(attributes.count).unwrap_or_default();
    Ok(ids.into_iter().zip(links).take(count).map(|(id, link)| Tcx { id, link, way }).collect())
}

/// The BPF links of the machine that can be the one that holds a program on an interface.
fn xdp_links(index: u32, program: u32) -> rustix::io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    let mut next = [0_u32; 3];
    loop {
        match bpf(command::LINK_GET_NEXT_ID, &mut next) {
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(found),
            Err(errno) => return Err(errno),
        }
        let [_, id, _] = next;
        next = [id, 0, 0];
        // It may have ended meanwhile.
        let Ok(file) = open(command::LINK_GET_FD_BY_ID, id) else { continue };
        let mut info = LinkInfo::default();
        let mut attributes = GetInfo {
            file: number(&file),
            length: u32::try_from(size_of::<LinkInfo>()).unwrap_or_default(),
            info: address(&mut info),
        };
        let told = bpf(command::OBJ_GET_INFO_BY_FD, &mut attributes);
        if told.is_ok() && (info.kind, info.program, info.index) == (XDP_LINK, program, index) {
            found.push(file);
        }
    }
}

fn unlink(link: &OwnedFd) -> rustix::io::Result<()> {
    bpf(command::LINK_DETACH, &mut [number(link)]).map(drop)
}

fn address<T>(of: &mut T) -> u64 {
    u64::try_from(std::ptr::from_mut(of).expose_provenance()).unwrap_or_default()
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
    // structures of integers, whose addresses are those of arrays and structures that outlive the call.
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

/// What BPF_OBJ_GET_INFO_BY_FD takes.
#[repr(C)]
struct GetInfo {
    file: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`; what comes next is another thing for each kind, of XDP the interface's index.
#[derive(Default)]
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    index: u32,
    rest: u32,
}
