//! TCX and XDP programs that let all pass, for those who take them off.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::bpf::bpf;

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const LINK_CREATE: i32 = 28;
/// BPF_PROG_TYPE_*, BPF_*, and what lets a packet pass: TCX_NEXT, XDP_PASS.
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const TCX_NEXT: i32 = -1;
const PROG_TYPE_XDP: u32 = 6;
const XDP: u32 = 37;
const XDP_PASS: i32 = 2;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;

/// Whether TCX programs can be had here: the kernel is Linux 6.6 or newer, and the caller is root of no user namespace. Says so where not.
///
/// # Panics
/// Where /proc is not mounted.
#[must_use]
pub fn can_attach() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let words: Vec<&str> = map.split_whitespace().collect();
    let can = words == ["0", "0", "4294967295"]
        && rustix::process::geteuid().is_root()
        && crate::kernel_version().unwrap() >= (6, 6);
    if !can {
        println!("not tested: this takes Linux 6.6 or newer, and root outside of user namespaces");
    }
    can
}

/// Puts a TCX program on the way into an interface of the calling thread's network namespace. It stays when this process ends.
///
/// # Errors
/// The kernel's.
pub fn attach_tcx(index: u32) -> io::Result<()> {
    let program = load(SCHED_CLS, TCX_NEXT)?;
    bpf(PROG_ATTACH, &mut [index, number(&program), TCX_INGRESS, 0, 0, 0, 0, 0])?;
    Ok(())
}

/// Puts a TCX program on the way out, held there by a BPF link as long as the descriptor is open.
///
/// # Errors
/// The kernel's.
pub fn link_tcx(index: u32) -> io::Result<OwnedFd> {
    link(&load(SCHED_CLS, TCX_NEXT)?, index, TCX_EGRESS, 0)
}

/// Puts a generic XDP program on an interface, held there by a BPF link as long as the descriptor is open.
///
/// # Errors
/// The kernel's.
pub fn link_xdp(index: u32) -> io::Result<OwnedFd> {
    link(&load(PROG_TYPE_XDP, XDP_PASS)?, index, XDP, XDP_FLAGS_SKB_MODE)
}

fn link(program: &OwnedFd, index: u32, place: u32, flags: u32) -> io::Result<OwnedFd> {
    let descriptor = bpf(LINK_CREATE, &mut [number(program), index, place, flags, 0, 0, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn number(file: &OwnedFd) -> u32 {
    u32::try_from(file.as_raw_fd()).unwrap()
}

/// Loads a program that gives the same answer for each packet.
fn load(kind: u32, answer: i32) -> rustix::io::Result<OwnedFd> {
    // `struct bpf_insn`: r0 = answer; exit.
    let instructions = [0xb7 | u64::from(answer.cast_unsigned()) << 32, 0x95];
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 2],
        log_buffer: u64,
    }
    let address = |pointer: *const u8| u64::try_from(pointer.expose_provenance()).unwrap();
    let mut attributes = Load {
        kind,
        count: u32::try_from(instructions.len()).unwrap(),
        instructions: address(instructions.as_ptr().cast()),
        license: address(c"Apache-2.0".as_ptr().cast()),
        log: [0; 2],
        log_buffer: 0,
    };
    let descriptor = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: as above.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
