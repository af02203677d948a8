//! Where the project's own programs are, as `cargo xtask` built them.

use std::env;
use std::path::PathBuf;

use crate::error::Error;

/// The variable with the folder that holds all of them.
pub const PROGRAMS_VARIABLE: &str = "VIRTNET_PROGRAMS";

/// The static programs; the paths are the same on the host and in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The folder that holds all of them.
    pub folder: PathBuf,
    /// The node agent.
    pub virtdp: PathBuf,
    /// The node simulator.
    pub virtsim: PathBuf,
    /// The CNI plugin.
    pub ehost_device: PathBuf,
    /// The meta CNI plugin.
    pub virt_meta: PathBuf,
    /// The guest's init and agent.
    pub vm_guest: PathBuf,
}

impl Programs {
    /// The programs in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self {
            virtdp: folder.join("virtdp"),
            virtsim: folder.join("virtsim"),
            ehost_device: folder.join("ehost-device"),
            virt_meta: folder.join("virt-meta"),
            vm_guest: folder.join("vm-guest"),
            folder,
        }
    }
}

/// The programs that `cargo xtask test` built for this run.
///
/// # Errors
/// [`Error::NotBuilt`] when the environment does not name them or one is missing.
pub fn programs() -> Result<Programs, Error> {
    let missing = |what: String| Error::NotBuilt { what, variable: PROGRAMS_VARIABLE };
    let folder =
        env::var_os(PROGRAMS_VARIABLE).ok_or_else(|| missing("the project's programs".to_owned()))?;
    let programs = Programs::at(folder);
    let Programs { virtdp, virtsim, ehost_device, virt_meta, vm_guest, .. } = &programs;
    let all = [virtdp, virtsim, ehost_device, virt_meta, vm_guest];
    let absent = all.into_iter().find(|path| !path.is_file()).map(|path| path.display().to_string());
    absent.map_or(Ok(programs), |path| Err(missing(path)))
}
