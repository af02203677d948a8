//! KVM where it works, emulation (TCG) elsewhere.
//!
//! That /dev/kvm exists says little: in nested set-ups it may accept everything and then never run a guest. So a guest is booted
//! to its first line, once for each boot of the host; the answer is kept in a file.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A working KVM boots to init in half a second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "with KVM",
            Accelerator::Tcg => "without KVM",
        })
    }
}

impl Accelerator {
    /// QEMU's arguments.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        // What Debian and its children expect of a processor, and the x86-64-v2 that others ask for; more only slows emulation down.
        let cpu = "qemu64,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2";
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", cpu],
            Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", cpu],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// The accelerator for this host: what an earlier probe found, or what `works` (boot with KVM until this time) says now.
pub(crate) fn choose(memory: &Path, works: impl FnOnce(Instant) -> bool) -> Accelerator {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Accelerator::Tcg;
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot_id = boot_id.trim();
    let known = fs::read_to_string(memory).unwrap_or_default();
    let known = known.trim().split_once(' ').filter(|(boot, _)| *boot == boot_id).map(|(_, name)| name);
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        if known == Some(accelerator.name()) {
            return accelerator;
        }
    }
    let found = if works(Instant::now() + PROBE_LIMIT) { Accelerator::Kvm } else { Accelerator::Tcg };
    // Without the file the next run probes again, no more.
    let _ = fs::write(memory, format!("{boot_id} {}\n", found.name()));
    found
}
