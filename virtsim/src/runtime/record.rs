//! What must be known after a crash in order to undo what a pod has on the node: one file for each sandbox.

use std::io;
use std::path::{Path, PathBuf};

use linux::Netns;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::network::PodNetwork;
use super::types::{Error, Options, SandboxConfig};

/// A sandbox on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) netns: Option<PathBuf>,
    pub(super) config: SandboxConfig,
}

impl Record {
    fn folder(options: &Options) -> PathBuf {
        options.dir.join("sandboxes")
    }

    fn file(&self) -> String {
        format!("{}.json", self.id)
    }

    /// Written before anything is made.
    pub(super) fn write(&self, options: &Options) -> Result<(), Error> {
        let folder = Self::folder(options);
        let failed = |source| Error::File { step: "make", path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(failed)?;
        linux::files::write_atomically(&folder, &self.file(), &bytes).map_err(Error::Record)
    }

    /// Removed after everything is undone.
    pub(super) fn remove(&self, options: &Options) -> Result<(), Error> {
        linux::files::remove_durably(&Self::folder(options), &self.file()).map(drop).map_err(Error::Record)
    }

    /// Undoes what the pod has on the node: CNI DEL, then the network namespace, then this record. Can be repeated.
    pub(super) fn undo(&self, options: &Options) -> Result<(), Error> {
        if let Some(netns) = &self.netns {
            let failed = |reason| Error::TearDownNetwork {
                uid: self.config.pod.uid.clone(),
                id: self.id.clone(),
                reason,
            };
            let there = Netns::open(netns).is_ok();
            let network = PodNetwork::new(options, &self.id, netns, &self.config).map_err(failed)?;
            network.tear_down(there).map_err(failed)?;
            Netns::unpin(netns).map_err(|source| Error::Netns { step: "remove", source })?;
        }
        self.remove(options)
    }
}

/// Undoes what pods of an earlier process left. What cannot be undone is kept and reported.
pub(super) fn undo_all(options: &Options) {
    // Logs are for people, and a folder that stays hurts nobody.
    let _ = std::fs::remove_dir_all(options.dir.join("logs"));
    let folder = Record::folder(options);
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read(&path).map(|record| (record.undo(options), record)) {
            Ok((Ok(()), record)) => info!(pod = %record.config.pod, "undid what an earlier run left"),
            Ok((Err(error), record)) => {
                warn!(pod = %record.config.pod, error = crate::chain(&error), "something of an earlier run stays");
            }
            Err(error) => warn!(path = %path.display(), %error, "not a record of a pod"),
        }
    }
}

fn read(path: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Where the logs of a pod's containers are.
pub(super) fn log_folder(options: &Options, config: &SandboxConfig) -> PathBuf {
    let pod = &config.pod;
    options.dir.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}
