//! What was attached, on disk, in libcni's format: `results/<network>-<container>-<interface>`, kind `cniCacheV1`.
//!
//! The same files serve libcni and us, so that one runtime can take over from another.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nic::IfName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attachment, Network};
use crate::{Args, Code, ContainerId, Error, NetworkName, Object, Success, ValidAttachment};

/// The folder of results: libcni's is `/var/lib/cni/results`.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// One remembered attachment.
#[derive(Clone, Debug)]
pub struct Cached {
    /// The network that it is attached to.
    pub network: NetworkName,
    /// Who is attached.
    pub attachment: Attachment,
    /// The network's configuration at the time of the ADD: see [`Network::from_slice`].
    pub config: Vec<u8>,
    /// What ADD returned, where it could be read.
    pub result: Option<Success>,
}

const KIND: &str = "cniCacheV1";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    kind: String,
    container_id: ContainerId,
    config: String,
    if_name: IfName,
    network_name: NetworkName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capability_args: Option<Object>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

impl Cache {
    /// A cache in this folder, made when something is first kept.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: folder.into() }
    }

    /// What is remembered of one attachment.
    ///
    /// # Errors
    /// Code 5 when the file cannot be read, 6 when it is none of ours. A DEL should go on without.
    pub fn read(&self, network: &NetworkName, attachment: &Attachment) -> Result<Option<Cached>, Error> {
        read(&self.file(network, &attachment.container_id, &attachment.if_name))
    }

    /// All that is remembered, in the order of file names. What cannot be read is passed over.
    ///
    /// # Errors
    /// Code 5 when the folder cannot be read; one that is not there is empty.
    pub fn attachments(&self) -> Result<Vec<Cached>, Error> {
        let failed = |error: io::Error| io_error("reading", &self.folder, &error);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // Names that begin with a dot are files on their way.
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files.iter().filter_map(|file| read(file).ok().flatten()).collect())
    }

    pub(super) fn keep(
        &self,
        network: &Network,
        attachment: &Attachment,
        result: &Success,
    ) -> Result<(), Error> {
        let args: Vec<_> =
            attachment.args.pairs().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let stored = Stored {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.clone(),
            config: BASE64_STANDARD.encode(network.bytes()),
            if_name: attachment.if_name.clone(),
            network_name: network.name().clone(),
            netns: attachment.netns.clone(),
            cni_args: Some(args).filter(|args| !args.is_empty()),
            capability_args: Some(attachment.capabilities.clone()).filter(|args| !args.is_empty()),
            result: Some(result.to_value(network.version())),
        };
        let file = self.file(network.name(), &attachment.container_id, &attachment.if_name);
        serde_json::to_vec(&stored)
            .map_err(io::Error::from)
            .and_then(|bytes| write_atomically(&self.folder, &file, &bytes))
            .map_err(|error| io_error("writing", &file, &error))
    }

    pub(super) fn forget(&self, network: &NetworkName, attachment: &Attachment) -> Result<(), Error> {
        let file = self.file(network, &attachment.container_id, &attachment.if_name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", &file, &error)),
            _ => Ok(()),
        }
    }

    fn file(&self, network: &NetworkName, container: &ContainerId, interface: &IfName) -> PathBuf {
        self.folder.join(format!("{network}-{container}-{interface}"))
    }
}

impl Cached {
    /// Which attachment this is, as GC names it.
    #[must_use]
    pub fn id(&self) -> ValidAttachment {
        ValidAttachment {
            container_id: self.attachment.container_id.clone(),
            if_name: self.attachment.if_name.clone(),
        }
    }
}

fn read(file: &Path) -> Result<Option<Cached>, Error> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", file, &error)),
    };
    let torn = |why: String| {
        Error::new(Code::DECODE, format!("{} is not a cached result", file.display())).with_details(why)
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| torn(error.to_string()))?;
    if stored.kind != KIND {
        return Err(torn(format!("its kind is {:?}", stored.kind)));
    }
    let config = BASE64_STANDARD.decode(&stored.config).map_err(|error| torn(error.to_string()))?;
    Ok(Some(Cached {
        network: stored.network_name,
        attachment: Attachment {
            container_id: stored.container_id,
            if_name: stored.if_name,
            netns: stored.netns,
            args: Args::from_pairs(stored.cni_args.unwrap_or_default()),
            capabilities: stored.capability_args.unwrap_or_default(),
        },
        config,
        result: stored.result.and_then(|result| Success::from_value(&result, None).ok()),
    }))
}

/// The whole file or none of it, also after a power failure.
fn write_atomically(folder: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut temporary = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

fn io_error(doing: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(Code::IO, format!("{doing} {} failed", path.display())).with_details(error.to_string())
}
