//! A QEMU guest with real virtio NICs, without root or KVM.
//!
//! The guest runs on a tmpfs overlay over the host's root folder (9p, read-only), so every program of the host, the project's folder
//! and its build folder are at the same paths inside. Unpacked packages are laid over it and so are where they would be installed.
//!
//! ```no_run
//! use vm::{Nic, Spec, Vm};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nic = Nic::virtio("0000:00:0a.0".parse()?, "52:54:00:00:00:0a".parse()?);
//! let vm = Vm::boot(&Spec::new().nic(nic))?;
//! assert!(vm.run(["ip", "link"])?.text().contains("52:54:00:00:00:0a"));
//! # Ok(())
//! # }
//! ```
//!
//! A guest that panics, dies or hangs is an error with its console's last lines, within a bounded time. Dropping [`Vm`] ends QEMU; if the
//! whole process is killed, the kernel ends QEMU with it.

mod accelerator;
mod agent;
mod command;
mod debian;
mod error;
mod initramfs;
mod kernel;
mod machine;
mod process;
mod programs;
mod qmp;
mod snapshot;
mod spec;
mod terminal;

pub use accelerator::Accelerator;
pub use command::{Child, Command, Event, Line, Output, Stream};
pub use debian::{DEBIAN_VARIABLE, Debian, GUEST_PATH};
pub use error::{Console, Error};
pub use kernel::{extract as extract_kernel, index_modules};
pub use machine::{Bed, Vm, process_exists};
pub use programs::{PROGRAMS_VARIABLE, Programs, programs};
pub use qmp::{Link, Qmp};
pub use snapshot::{differences, snapshot};
pub use spec::{Cable, Chipset, Model, Nic, Spec};
pub use vm_guest::modules::INDEX_FILE;
pub use vm_guest::protocol::Ended;
