//! The node's own folder: one node at a time, and the kubeconfig for its clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use linux::files::{Lock, remove_durably, write_atomically};

use crate::options::Options;

/// The folder, ours until this is dropped or the process ends.
pub(super) struct Folder {
    _lock: Lock,
    sockets: Vec<PathBuf>,
}

impl Folder {
    /// Makes the folder, takes its lock, and removes what a killed node left for clients to find.
    pub(super) fn take(options: &Options) -> Result<Self> {
        let dir = options.dir.display();
        std::fs::create_dir_all(&options.dir).with_context(|| format!("cannot make {dir}"))?;
        let lock = Lock::acquire(&options.lock(), Duration::ZERO).map_err(|error| match error {
            linux::Error::Locked { .. } => anyhow!("another virtsim runs in {dir}: `virtsim down` ends it"),
            error => error.into(),
        })?;
        let sockets = vec![options.control_socket(), options.kubeconfig()];
        let folder = Folder { _lock: lock, sockets };
        folder.clear();
        Ok(folder)
    }

    fn clear(&self) {
        for path in &self.sockets {
            if let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
            {
                // It may never have been made.
                let _ = remove_durably(dir, name);
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Tells clients of the API server where it is. It asks nobody who they are, so there are no secrets in it.
pub(super) fn write_kubeconfig(options: &Options, server: SocketAddr) -> Result<()> {
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: virtsim
clusters:
- name: virtsim
  cluster:
    server: http://{server}
contexts:
- name: virtsim
  context:
    cluster: virtsim
    namespace: default
    user: virtsim
users:
- name: virtsim
  user: {{}}
"
    );
    let path = options.kubeconfig();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("kubeconfig");
    write_atomically(&options.dir, name, text.as_bytes()).context("the kubeconfig cannot be written")
}
