//! The leases on disk: which NIC went where, for whom, and what it was before.
//!
//! A lease is written and fsynced *before* the first change to a NIC and removed only after the NIC was seen at home
//! again: it is the undo information of a transaction that spans processes and reboots. `<state>/leases/<device>.json`
//! holds one lease, `<state>/locks/<device>` is its lock. Who changes a NIC or its lease holds the lock ([`Entry`]);
//! reading needs none: a lease is replaced whole, and of a line behind it that is half there nothing is taken.
//!
//! [`bring_home`] is the way back, the same for whoever walks it; [`put_right`] is its last part, for who may not look into pods.
//! [`Identities`] is the journal of which NIC sat at which ID; [`Notes`] are what else the agent leaves to others.
//!
//! A file that is torn, foreign or written by a newer release is reported, never deleted and never in the way of the
//! others.

mod homecoming;
mod identity;
mod lease;
mod node;
mod notes;
mod settle;
mod tuning;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use linux::files::{self, Lock};
use nic::DeviceId;
use serde::{Deserialize, Serialize};

pub use homecoming::{
    Addresses, Homecoming, ReturnError, Whereabouts, bring_home, is_hidden, put_right, whereabouts,
};
pub use identity::Identities;
pub use lease::{Home, Lease, Owner, Pod, Stage, Step, TcxProgram};
pub use node::{Node, look_into_pod};
pub use notes::Notes;
pub use settle::lost;

/// The form in which this release writes leases, and the newest that it reads. Since 2 lines may follow the lease: stages that it reached later.
const VERSION: u32 = 2;
/// A lease has about 1 KB; 127 alternative names of 127 bytes make 17, and each route that goes with the NIC some 100 bytes. What is larger
/// could not be read again.
const LARGEST: u64 = 4 * 1024 * 1024;
/// A lease may begin with so much: what comes to it on the way home has room.
const LARGEST_AT_FIRST: usize = 2 * 1024 * 1024;
const SUFFIX: &str = ".json";

/// All leases of a node.
#[derive(Clone, Debug)]
pub struct Ledger {
    leases: PathBuf,
    locks: PathBuf,
    identities: Identities,
    notes: Notes,
}

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ledger's folders cannot be made.
    #[error("make the ledger's folders")]
    Prepare(#[source] linux::Error),
    /// A folder cannot be listed, or a file in it renamed.
    #[error("{step} {}", path.display())]
    Folder {
        /// `list`, `set aside`.
        step: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process holds the device's lock, or it cannot be taken.
    #[error("lock device {device}")]
    Lock {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: linux::Error,
    },
    /// A lease cannot be written or removed.
    #[error("write the lease of device {device}")]
    Write {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: linux::Error,
    },
    /// A lease cannot be put into JSON; a fault of ours.
    #[error("encode the lease of device {device}")]
    Encode {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A lease's file is there and is of no use to us.
    #[error("the lease in {} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Fault,
    },
    /// What the agent keeps (the journal of identities, a note) is there and is of no use to us.
    #[error("what virtdp keeps in {} cannot be used", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Fault,
    },
    /// It cannot be written.
    #[error("write what virtdp keeps in {}", path.display())]
    WriteJournal {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: linux::Error,
    },
    /// It cannot be put into JSON; a fault of ours.
    #[error("encode what virtdp keeps")]
    EncodeJournal(#[source] serde_json::Error),
}

impl Error {
    /// Whether somebody else holds the lock, so that a later attempt may succeed.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::Lock { source: linux::Error::Locked { .. }, .. })
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    /// It is larger than any of its kind.
    #[error("it has more than {0} bytes")]
    Large(u64),
    /// It is torn, or something else altogether.
    #[error("it is torn, or something else altogether")]
    Torn(#[source] serde_json::Error),
    /// A newer release wrote it.
    #[error(
        "it has version {found}, this release reads up to {newest}; use the release that wrote it, or a newer one"
    )]
    Newer {
        /// Its version.
        found: u32,
        /// The newest that this release reads.
        newest: u32,
    },
    /// Its content is about another device than its name.
    #[error("it is about device {0}")]
    Foreign(DeviceId),
    /// Its name is no device ID.
    #[error("its name is not that of a device")]
    Name(#[source] nic::NameError),
}

/// What a listing found.
#[derive(Debug, Default)]
pub struct Listing {
    /// The leases, by device.
    pub leases: Vec<Lease>,
    /// One [`Error::Unusable`] for each file that is none.
    pub unusable: Vec<Error>,
}

impl Ledger {
    /// The ledger in a state folder (`/var/lib/virtnet`), which need not exist yet.
    #[must_use]
    pub fn at(state: impl AsRef<Path>) -> Self {
        let state = state.as_ref();
        Ledger {
            leases: state.join("leases"),
            locks: state.join("locks"),
            identities: Identities::at(state),
            notes: Notes::at(state),
        }
    }

    /// The agent's notes in the same state folder.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The journal in the same state folder.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Makes the folders, for their owner only.
    ///
    /// # Errors
    /// [`Error::Prepare`].
    pub fn prepare(&self) -> Result<(), Error> {
        [&self.leases, &self.locks]
            .into_iter()
            .try_for_each(|path| files::make_folder(path))
            .map_err(Error::Prepare)
    }

    /// Sees whether a lease could be written now: writes a file of no meaning beside them, and removes it.
    ///
    /// # Errors
    /// [`Error::Prepare`]: a file system that is full or read-only, say.
    pub fn probe(&self) -> Result<(), Error> {
        self.prepare()?;
        let name = format!("{}probe", files::TEMPORARY);
        files::write_atomically(&self.leases, &name, b"")
            .and_then(|()| files::remove_durably(&self.leases, &name))
            .map(drop)
            .map_err(Error::Prepare)
    }

    /// Takes the lock of a device, making the folders where they are absent.
    ///
    /// Programs that the caller starts while it has it hold it, too: an IPAM plugin that goes on when the caller is killed may still take
    /// an address, and whoever gives that back must come after it.
    ///
    /// # Errors
    /// [`Error::Lock`] when somebody else holds it longer than `patience`; [`Error::Prepare`].
    pub fn lock(&self, device: &DeviceId, patience: Duration) -> Result<Entry<'_>, Error> {
        self.prepare()?;
        let lock = Lock::acquire(&self.locks.join(device.as_str()), patience)
            .and_then(|lock| lock.share_with_children().map(|()| lock))
            .map_err(|source| Error::Lock { device: device.clone(), source })?;
        Ok(Entry { ledger: self, device: device.clone(), _lock: lock })
    }

    /// Ends the programs that hold a device's lock for a process that was killed; returns how many there were.
    ///
    /// # Errors
    /// [`Error::Lock`].
    pub fn end_orphans(&self, device: &DeviceId) -> Result<usize, Error> {
        Lock::end_orphans(&self.locks.join(device.as_str()))
            .map_err(|source| Error::Lock { device: device.clone(), source })
    }

    /// Keeps everybody from changing a device's NIC and lease for as long as the value lives, by reading alone: for whoever looks and
    /// changes nothing. `None` where nobody has ever locked it.
    ///
    /// # Errors
    /// [`Error::Lock`] when somebody is changing it now.
    pub fn hold(&self, device: &DeviceId) -> Result<Option<Lock>, Error> {
        Lock::share(&self.locks.join(device.as_str()))
            .map_err(|source| Error::Lock { device: device.clone(), source })
    }

    /// The lease of a device, if there is one.
    ///
    /// # Errors
    /// [`Error::Unusable`].
    pub fn read(&self, device: &DeviceId) -> Result<Option<Lease>, Error> {
        let path = self.leases.join(format!("{device}{SUFFIX}"));
        read(&path, device).map_err(|source| Error::Unusable { path, source })
    }

    /// All leases, in the order of their devices' IDs. Without a folder there are none.
    ///
    /// # Errors
    /// [`Error::Folder`] when the folder cannot be listed. Single files do not make it fail.
    pub fn list(&self) -> Result<Listing, Error> {
        let failed = |source| Error::Folder { step: "list", path: self.leases.clone(), source };
        let mut names = Vec::new();
        match std::fs::read_dir(&self.leases) {
            Ok(folder) => {
                for file in folder {
                    names.push(file.map_err(failed)?.file_name());
                }
            }
            Err(error) if is_nowhere(&error) => {}
            Err(source) => return Err(failed(source)),
        }
        names.sort();
        let mut listing = Listing::default();
        for name in names {
            let path = self.leases.join(&name);
            let name = name.to_string_lossy();
            // What a killed writer left, and what others put here.
            let Some(device) = name.strip_suffix(SUFFIX).filter(|_| !name.starts_with(files::TEMPORARY))
            else {
                continue;
            };
            let lease = device.parse().map_err(Fault::Name).and_then(|device| read(&path, &device));
            match lease {
                Ok(lease) => listing.leases.extend(lease),
                Err(source) => listing.unusable.push(Error::Unusable { path, source }),
            }
        }
        Ok(listing)
    }
}

/// The locked place of one device in the ledger. The lock ends with it.
#[derive(Debug)]
pub struct Entry<'a> {
    ledger: &'a Ledger,
    device: DeviceId,
    _lock: Lock,
}

impl Entry<'_> {
    /// The device.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The lease, if there is one.
    ///
    /// # Errors
    /// [`Error::Unusable`].
    pub fn read(&self) -> Result<Option<Lease>, Error> {
        self.ledger.read(&self.device)
    }

    /// Writes the lease, durably: when this returns it survives a loss of power.
    ///
    /// # Errors
    /// [`Error::Write`]; then the old content is still there.
    pub fn write(&self, lease: &Lease) -> Result<(), Error> {
        let stored = Stored { version: VERSION, lease };
        let mut bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|source| Error::Encode { device: self.device.clone(), source })?;
        bytes.push(b'\n');
        let name = self.name();
        let failed = |source| Error::Write { device: self.device.clone(), source };
        if matches!(lease.stage, Stage::Prepared) && bytes.len() > LARGEST_AT_FIRST {
            let why = format!("it has {} bytes, and {LARGEST_AT_FIRST} is the most", bytes.len());
            let source = io::Error::new(io::ErrorKind::FileTooLarge, why);
            return Err(failed(linux::Error::File {
                step: "write",
                path: self.ledger.leases.join(name),
                source,
            }));
        }
        files::write_atomically(&self.ledger.leases, &name, &bytes).map_err(failed)
    }

    /// Notes how far the lease that was written got, in a line behind it. A loss of power may take that back, and does no harm: in the
    /// boot after it every stage means the same, since the NIC's owner ended with the boot in which it left. So nothing waits for the disk.
    ///
    /// # Errors
    /// [`Error::Write`]; it may stand there all the same.
    pub fn advance(&self, lease: &Lease) -> Result<(), Error> {
        let later = Later { stage: lease.stage.clone() };
        let mut line = serde_json::to_vec(&later)
            .map_err(|source| Error::Encode { device: self.device.clone(), source })?;
        line.push(b'\n');
        files::append_to_present(&self.ledger.leases.join(self.name()), &line)
            .map_err(|source| Error::Write { device: self.device.clone(), source })
    }

    fn name(&self) -> String {
        format!("{}{SUFFIX}", self.device)
    }

    /// Removes the lease: the NIC is home. There being none is no error.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn close(&self) -> Result<(), Error> {
        let name = self.name();
        files::remove_leftovers(&self.ledger.leases, &name)
            .and_then(|()| files::remove_durably(&self.ledger.leases, &name))
            .map(|_| ())
            .map_err(|source| Error::Write { device: self.device.clone(), source })
    }

    /// Keeps a file that is of no use under another name (`<device>.json.unusable`), so that a new lease can be written.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn set_aside(&self) -> Result<(), Error> {
        set_aside(&self.ledger.leases.join(self.name()))
    }
}

#[derive(Serialize)]
struct Stored<'a> {
    version: u32,
    #[serde(flatten)]
    lease: &'a Lease,
}

/// A stage that was reached after the lease was written.
#[derive(Serialize, Deserialize)]
struct Later {
    stage: Stage,
}

#[derive(Deserialize)]
struct StoredVersion {
    version: u32,
}

fn read(path: &Path, device: &DeviceId) -> Result<Option<Lease>, Fault> {
    let Some(bytes) = contents(path, LARGEST, VERSION)? else { return Ok(None) };
    let mut documents = serde_json::Deserializer::from_slice(&bytes);
    let mut lease = Lease::deserialize(&mut documents).map_err(Fault::Torn)?;
    // A line that is torn was never written: the lease before it was synced.
    for later in documents.into_iter::<Later>().map_while(Result::ok) {
        lease.stage = later.stage;
    }
    if lease.device != *device {
        return Err(Fault::Foreign(lease.device));
    }
    Ok(Some(lease))
}

/// Whether there is no such file, and can be none: a state folder that is a file has no leases.
fn is_nowhere(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What is in a file of ours, if it is there, and this release reads its version.
fn contents(path: &Path, largest: u64, newest: u32) -> Result<Option<Vec<u8>>, Fault> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if is_nowhere(&error) => return Ok(None),
        Err(error) => return Err(Fault::Io(error)),
    };
    // Room for most leases, which are read in one piece then.
    let mut bytes = Vec::with_capacity(4096);
    file.take(largest + 1).read_to_end(&mut bytes).map_err(Fault::Io)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > largest) {
        return Err(Fault::Large(largest));
    }
    // The version first: what a newer release writes need not look like anything that we know.
    let mut first = serde_json::Deserializer::from_slice(&bytes);
    let StoredVersion { version } = StoredVersion::deserialize(&mut first).map_err(Fault::Torn)?;
    if version > newest {
        return Err(Fault::Newer { found: version, newest });
    }
    Ok(Some(bytes))
}

/// Keeps a file under another name (`<name>.unusable`); there being none is no error.
fn set_aside(path: &Path) -> Result<(), Error> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unusable");
    match std::fs::rename(path, aside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Folder { step: "set aside", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
