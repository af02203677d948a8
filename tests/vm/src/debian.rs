//! What the VM needs from outside of Rust, as `cargo xtask` found or unpacked it.
//!
//! Unpacked packages live in one folder that is laid over the host's root in the guest, so that there they are where their packages
//! would have installed them: `/usr/sbin/ethtool`, `/usr/lib/cni/bridge`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, file};

/// The variable with the path of the description that [`Debian::load`] reads.
pub const DEBIAN_VARIABLE: &str = "VIRTNET_DEBIAN";

/// QEMU, a kernel and tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debian {
    /// Folder with everything that was fetched; holds `root/` (unpacked packages) and what is made from it.
    pub folder: PathBuf,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// QEMU's firmware folders; empty where it is installed.
    pub firmware: Vec<PathBuf>,
    /// Folder with QEMU's loadable parts, where it is not installed.
    pub qemu_modules: Option<PathBuf>,
    /// Folders with shared libraries of unpacked programs.
    pub libraries: Vec<PathBuf>,
    /// The guest's kernel, as an ELF file.
    pub vmlinux: PathBuf,
    /// Its release, as `uname -r` says.
    pub release: String,
    /// Its modules.
    pub modules: PathBuf,
    /// Their index ([`crate::index_modules`]); in the guest it is in the folder of the modules.
    pub index: PathBuf,
    /// Where the containernetworking plugins are *in the guest*.
    pub cni_plugins: PathBuf,
}

impl Debian {
    /// What the environment variable [`DEBIAN_VARIABLE`] points to.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] when it is not set, [`Error::File`] or [`Error::Malformed`] when it points to nothing useful.
    pub fn load() -> Result<Self, Error> {
        let path = env::var_os(DEBIAN_VARIABLE).map(PathBuf::from).ok_or_else(|| Error::NotBuilt {
            what: "what the VM needs".to_owned(),
            variable: DEBIAN_VARIABLE,
        })?;
        Self::read(&path)
    }

    /// Reads a description from a file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Malformed`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(file("read", path))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::Malformed { path: path.to_owned(), why: error.to_string() })
    }

    /// The folder that is laid over the guest's root.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// `PATH` for programs on the host: what the caller has, then the unpacked tools.
    pub fn host_path(&self) -> String {
        let mut path = env::var("PATH").unwrap_or_default();
        for folder in ["usr/local/sbin", "usr/sbin", "sbin"] {
            path.push_str(&format!(":/{folder}"));
        }
        for folder in ["usr/bin", "usr/sbin"] {
            path.push_str(&format!(":{}", self.root().join(folder).display()));
        }
        path
    }

    /// Where the containernetworking plugins are on the host.
    pub fn host_cni_plugins(&self) -> PathBuf {
        let unpacked = self.root().join(self.cni_plugins.strip_prefix("/").unwrap_or(&self.cni_plugins));
        if unpacked.is_dir() { unpacked } else { self.cni_plugins.clone() }
    }

    /// `LD_LIBRARY_PATH` for unpacked programs on the host, or nothing where all is installed.
    pub fn host_libraries(&self) -> Option<String> {
        if self.libraries.is_empty() {
            return None;
        }
        let folders: Vec<String> = self.libraries.iter().map(|path| path.display().to_string()).collect();
        Some(folders.join(":"))
    }
}

/// `PATH` for commands in the guest: unpacked tools are at their usual places there.
pub const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
