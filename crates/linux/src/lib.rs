//! Linux as we use it: sysfs, netlink, network namespaces, atomic files, locks.
//!
//! Everything here is synchronous and bounded in time. Nothing here decides: facts leave as the plain types of the
//! `nic` crate, and changes are asked for by whoever decided.

pub mod announce;
pub mod bpf;
mod device;
mod error;
pub mod fault;
pub mod files;
mod netns;
mod orphan;
pub mod process;
pub mod route;
mod sysctl;
mod sysfs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod uevent;
mod wire;

pub use device::Devices;
pub use error::{Error, Refusal, chain};
pub use netns::Netns;
pub use sysctl::{NewInterfaces, ParseSysctlError, Sysctl};
pub use sysfs::{Found, Sysfs, Unreadable, VfioGroup};

/// The kernel's version, as far as it tells what the kernel can do: 6 and 1 of `6.1.0-28-amd64`.
///
/// # Errors
/// The file cannot be read: /proc is not mounted. Or it is not how a version is written.
pub fn kernel_version() -> Result<(u32, u32), Error> {
    let path = std::path::Path::new("/proc/sys/kernel/osrelease");
    let failed = |source| Error::File { step: "read", path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(failed(std::io::ErrorKind::InvalidData.into())),
    }
}

/// The kernel's random identity of this boot (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// The file cannot be read: /proc is not mounted.
pub fn boot_id() -> Result<String, Error> {
    let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::File { step: "read", path: path.to_owned(), source }),
    }
}
