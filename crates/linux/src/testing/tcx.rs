//! TCX programs that let all pass, for those who take them off.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::tcx::bpf;

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const LINK_CREATE: i32 = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Whether TCX programs can be had here: the kernel is Linux 6.6 or newer, and the caller is root of no user namespace.
///
/// # Panics
/// Where /proc is not mounted.
#[must_use]
pub fn can_attach() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let words: Vec<&str> = map.split_whitespace().collect();
    words == ["0", "0", "4294967295"]
        && rustix::process::geteuid().is_root()
        && crate::kernel_version().unwrap() >= (6, 6)
}

/// Puts a program on the way into an interface of the calling thread's network namespace. It stays when this process ends.
///
/// # Errors
/// The kernel's.
pub fn attach(index: u32) -> io::Result<()> {
    let program = load()?;
    bpf(PROG_ATTACH, &mut [index, number(&program), TCX_INGRESS, 0, 0, 0, 0, 0])?;
    Ok(())
}

/// Puts a program on the way out, held there by a BPF link as long as the descriptor is open.
///
/// # Errors
/// The kernel's.
pub fn link(index: u32) -> io::Result<OwnedFd> {
    let program = load()?;
    let descriptor = bpf(LINK_CREATE, &mut [number(&program), index, TCX_EGRESS, 0, 0, 0, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn number(file: &OwnedFd) -> u32 {
    u32::try_from(file.as_raw_fd()).unwrap()
}

/// `struct bpf_insn`: r0 = TCX_NEXT (-1); exit.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

fn load() -> rustix::io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 2],
        log_buffer: u64,
    }
    let address = |pointer: *const u8| u64::try_from(pointer.addr()).unwrap();
    let mut attributes = Load {
        kind: SCHED_CLS,
        count: u32::try_from(INSTRUCTIONS.len()).unwrap(),
        instructions: address(INSTRUCTIONS.as_ptr().cast()),
        license: address(c"Apache-2.0".as_ptr().cast()),
        log: [0; 2],
        log_buffer: 0,
    };
    let descriptor = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: as above.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
