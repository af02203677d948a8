//! What was done for a container, on disk: enough for DEL, CHECK and GC to ask nobody.
//!
//! A step is written down as begun before its delegate runs. After a crash at any point the file names every delegate
//! that may have done something.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{Label, NetworkStatus};
use cni::runtime::{Attachment, Network};
use cni::{Args, Code, ContainerId, Error, Object, Success, Version};
use linux::files::{Lock, TEMPORARY, make_folder, remove_durably, write_atomically};
use nic::{DeviceId, IfName, ResourceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::{network_of, plugins_of};

/// How long a DEL waits for the ADD of the same container, or the other way round. Delegates have deadlines, so that an
/// ADD that undoes what it did ends before this in all but the worst case; then the runtime tries again.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many locks there are. A lock per container would leave a file per container for ever, because a lock file must
/// not be removed; containers that share a lock only wait for each other.
const LOCKS: u64 = 256;

/// All that was planned and done for one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) container_id: ContainerId,
    /// The pod's first interface.
    pub(crate) interface: IfName,
    pub(crate) netns: PathBuf,
    pub(crate) args: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pod: Option<PodId>,
    /// The cluster's network first.
    pub(crate) steps: Vec<Step>,
    /// What the pod's annotation is to say once all is done; the agent publishes it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) network_status: Vec<NetworkStatus>,
}

/// A pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodId {
    pub(crate) namespace: Label,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) uid: String,
}

/// One network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    /// `namespace/name`, or the name alone for the cluster's network.
    pub(crate) network: String,
    pub(crate) interface: IfName,
    /// The network's configuration, without what is only for this pod's device.
    pub(crate) config: Object,
    /// What each plugin is given that declares the capability.
    #[serde(skip_serializing_if = "Object::is_empty", default)]
    pub(crate) capabilities: Object,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) resource: Option<ResourceName>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) device: Option<DeviceId>,
    /// The gateways of the pod's default routes, if the pod chose this network for them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) default_route: Vec<IpAddr>,
    pub(crate) progress: Progress,
}

/// How far a step has got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Progress {
    /// Its delegate has not run.
    Planned,
    /// Its delegate may have run.
    Begun,
    /// Its delegate has returned this, in the newest version.
    Attached(Value),
}

impl Record {
    /// The form of the file. A file in another form is not ours to interpret.
    pub(crate) const FORMAT: u32 = 1;

    /// Whether a step is the cluster's network: it makes the pod's first interface, and no other may.
    pub(crate) fn is_cluster(&self, step: &Step) -> bool {
        step.interface == self.interface
    }

    /// A step as it is called in messages.
    pub(crate) fn place(&self, step: &Step) -> String {
        let kind = if self.is_cluster(step) { "cluster network" } else { "network" };
        format!("{kind} {} (interface {})", step.network, step.interface)
    }

    /// What a step's plugins are told; DEL says itself which namespace there is, if any.
    pub(crate) fn attachment(&self, step: &Step, netns: Option<&Path>) -> Attachment {
        let mut capabilities = step.capabilities.clone();
        if let Some(device) = &step.device {
            capabilities.insert("deviceID".to_owned(), device.as_str().into());
        }
        Attachment {
            container_id: self.container_id.clone(),
            if_name: step.interface.clone(),
            netns: netns.map(Path::to_owned),
            args: Args::new(self.args.clone()),
            capabilities,
        }
    }
}

impl Step {
    /// The network as it was found.
    pub(crate) fn network(&self) -> Result<Network, Error> {
        network_of(&self.config)
    }

    /// The network with this pod's device: at the top level of its first plugin's configuration, where plugins look that
    /// know nothing of capabilities.
    pub(crate) fn network_with_device(&self) -> Result<Network, Error> {
        let mut config = self.config.clone();
        if let (Some(device), Some(plugin)) = (&self.device, plugins_of(&mut config).into_iter().next()) {
            plugin.insert("deviceID".to_owned(), device.as_str().into());
            // A device without PCI has a bus name, which this key does not mean.
            match device.pci() {
                Some(pci) => plugin.insert("pciBusID".to_owned(), pci.to_string().into()),
                None => plugin.remove("pciBusID"),
            };
        }
        network_of(&config)
    }

    /// What its ADD returned.
    pub(crate) fn result(&self) -> Option<Success> {
        match &self.progress {
            Progress::Attached(value) => Success::from_value(value, Some(Version::LATEST)).ok(),
            Progress::Planned | Progress::Begun => None,
        }
    }
}

/// The folder of records.
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(crate) fn at(state_dir: &Path) -> Store {
        Store { folder: state_dir.join("attachments") }
    }

    /// Keeps ADD, DEL and CHECK of one container from running at once.
    pub(crate) fn lock(&self, container: &ContainerId) -> Result<Lock, Error> {
        let locks = self.folder.join(".locks");
        make_folder(&locks).map_err(|error| Error::from_chain(Code::IO, &error))?;
        let file = locks.join((hash(container.as_str()) % LOCKS).to_string());
        Lock::acquire(&file, PATIENCE).map_err(|error| match &error {
            linux::Error::Locked { .. } => Error::new(
                Code::TRY_AGAIN,
                format!("another call for container {container} is still at work"),
            )
            .caused_by(&error),
            _ => Error::from_chain(Code::IO, &error),
        })
    }

    /// Whether there is a record, readable or not.
    pub(crate) fn holds(&self, container: &ContainerId) -> Result<bool, Error> {
        let file = self.folder.join(name(container));
        file.try_exists().map_err(|error| io_error("read", &file, &error))
    }

    /// The record of a container. One that cannot be read is no help to anybody, and as good as none.
    pub(crate) fn read(&self, container: &ContainerId) -> Option<Record> {
        read(&self.folder.join(name(container))).filter(|record| record.container_id == *container)
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let file = name(&record.container_id);
        let bytes = serde_json::to_vec(record)
            .map_err(|error| Error::new(Code::INTERNAL, "the record cannot be written").caused_by(&error))?;
        write_atomically(&self.folder, &file, &bytes).map_err(|error| Error::from_chain(Code::IO, &error))
    }

    pub(crate) fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        let removed = remove_durably(&self.folder, &name(container));
        removed.map(drop).map_err(|error| Error::from_chain(Code::IO, &error))
    }

    /// Keeps a record that cannot be read (torn, or of a newer release) under another name, for whoever wants to know which
    /// networks the container had.
    pub(crate) fn set_aside(&self, container: &ContainerId) -> Result<(), Error> {
        let file = self.folder.join(name(container));
        match fs::rename(&file, self.folder.join(format!("{}.unusable", name(container)))) {
            Ok(()) => {
                cni::tell!("virt-meta: {} cannot be read and is kept as *.unusable", file.display());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("set aside", &file, &error)),
        }
    }

    /// All records that can be read.
    pub(crate) fn all(&self) -> Result<Vec<Record>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &self.folder, &error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let file = entry.map_err(|error| io_error("read", &self.folder, &error))?.path();
            let hidden =
                file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()));
            if !hidden && file.extension().is_some_and(|extension| extension == "json") {
                files.push(file);
            }
        }
        files.sort();
        Ok(files.iter().filter_map(|file| read(file)).collect())
    }
}

fn read(file: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (record.format == Record::FORMAT).then_some(record)
}

fn name(container: &ContainerId) -> String {
    format!("{container}.json")
}

fn io_error(doing: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(Code::IO, format!("cannot {doing} {}", path.display())).with_details(error.to_string())
}

/// FNV-1a: the same in every release of this program, which the standard library's hashers do not promise.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
