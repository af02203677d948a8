//! What the agent notes in the state folder for whoever comes after it: `<state>/resources.json` and `<state>/names.json` for the next
//! agent, `<state>/vital.json` for ehost-device. Small files, each written whole and durably; the last writer counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use linux::files;
use linux::route::Vital;
use nic::ResourceName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Fault};

const RESOURCES: &str = "resources.json";
const VITAL: &str = "vital.json";
const NAMES: &str = "names.json";
/// The form in which this release writes these files, and the newest that it reads.
const VERSION: u32 = 1;
/// The longest is the journal of identities, with about 130 bytes for each NIC.
const LARGEST: u64 = 4 * 1024 * 1024;

/// Where the notes are.
#[derive(Clone, Debug)]
pub struct Notes {
    folder: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Resources {
    resources: BTreeSet<ResourceName>,
}

#[derive(Default, Serialize, Deserialize)]
struct Named {
    addresses: Vec<IpAddr>,
    peers: Vec<IpAddr>,
}

#[derive(Default, Serialize, Deserialize)]
struct Names {
    names: BTreeMap<String, Vec<IpAddr>>,
}

impl Notes {
    /// The notes in a state folder (`/var/lib/virtnet`), which need not exist yet.
    #[must_use]
    pub fn at(state: impl Into<PathBuf>) -> Self {
        Notes { folder: state.into() }
    }

    /// The resources that an agent offered last, pods may have NICs of which. None where there is no note.
    ///
    /// # Errors
    /// [`Error::Journal`].
    pub fn resources(&self) -> Result<BTreeSet<ResourceName>, Error> {
        let noted: Option<Resources> = read(&self.folder.join(RESOURCES))?;
        Ok(noted.unwrap_or_default().resources)
    }

    /// Notes what is offered.
    ///
    /// # Errors
    /// [`Error::WriteJournal`].
    pub fn write_resources(&self, resources: &BTreeSet<ResourceName>) -> Result<(), Error> {
        write(&self.folder, RESOURCES, &Resources { resources: resources.clone() })
    }

    /// What was named to the agent as vital for the node. Nothing where there is no note.
    ///
    /// # Errors
    /// [`Error::Journal`].
    pub fn vital(&self) -> Result<Vital, Error> {
        let noted: Option<Named> = read(&self.folder.join(VITAL))?;
        let Named { addresses, peers } = noted.unwrap_or_default();
        Ok(Vital { addresses, peers })
    }

    /// Notes what was named.
    ///
    /// # Errors
    /// [`Error::WriteJournal`].
    pub fn write_vital(&self, vital: &Vital) -> Result<(), Error> {
        let Vital { addresses, peers } = vital.clone();
        write(&self.folder, VITAL, &Named { addresses, peers })
    }

    /// What the names of API servers stood for when an agent could ask last. None where there is no note.
    ///
    /// # Errors
    /// [`Error::Journal`].
    pub fn names(&self) -> Result<BTreeMap<String, Vec<IpAddr>>, Error> {
        let noted: Option<Names> = read(&self.folder.join(NAMES))?;
        Ok(noted.unwrap_or_default().names)
    }

    /// Notes what they stand for.
    ///
    /// # Errors
    /// [`Error::WriteJournal`].
    pub fn write_names(&self, names: &BTreeMap<String, Vec<IpAddr>>) -> Result<(), Error> {
        write(&self.folder, NAMES, &Names { names: names.clone() })
    }
}

#[derive(Serialize)]
struct Stored<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// Reads a file of the agent's, if it is there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let read = || {
        let Some(bytes) = crate::contents(path, LARGEST, VERSION)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(Fault::Torn)
    };
    read().map_err(|source| Error::Journal { path: path.to_owned(), source })
}

/// Writes one, making the folder where it is absent.
pub(crate) fn write<T: Serialize>(folder: &Path, name: &str, content: &T) -> Result<(), Error> {
    let failed = |source| Error::WriteJournal { path: folder.join(name), source };
    let stored = Stored { version: VERSION, content };
    let mut bytes = serde_json::to_vec_pretty(&stored).map_err(Error::EncodeJournal)?;
    bytes.push(b'\n');
    files::make_folder(folder).map_err(failed)?;
    files::write_atomically(folder, name, &bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again_and_nothing_is_noted_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::at(folder.path().join("state"));
        assert_eq!(notes.resources().unwrap(), BTreeSet::new());
        assert_eq!(notes.vital().unwrap(), Vital::default());
        let resources = BTreeSet::from(["kernel.org/virt".parse().unwrap()]);
        notes.write_resources(&resources).unwrap();
        assert_eq!(notes.resources().unwrap(), resources);
        let vital = Vital {
            addresses: vec!["192.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            peers: vec!["10.96.0.1".parse().unwrap()],
        };
        notes.write_vital(&vital).unwrap();
        assert_eq!(notes.vital().unwrap(), vital);
        assert!(notes.names().unwrap().is_empty());
        let names = BTreeMap::from([("api.example.org".to_owned(), vital.peers.clone())]);
        notes.write_names(&names).unwrap();
        assert_eq!(notes.names().unwrap(), names);
        let text = std::fs::read_to_string(folder.path().join("state").join(VITAL)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["version"], &value["peers"][0]), (&1.into(), &"10.96.0.1".into()));
    }

    #[test]
    fn notes_that_are_torn_or_of_a_newer_release_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::at(folder.path());
        for (text, newer) in [
            ("", false),
            (r#"{"version": 1}"#, false),
            (r#"{"version": 1, "resources": ["virt"], "addresses": ["eth0"], "peers": []}"#, false),
            (r#"{"version": 2}"#, true),
        ] {
            for name in [RESOURCES, VITAL, NAMES] {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            for error in
                [notes.resources().unwrap_err(), notes.vital().unwrap_err(), notes.names().unwrap_err()]
            {
                let is_newer = matches!(error, Error::Journal { source: Fault::Newer { found: 2, .. }, .. });
                let is_torn = matches!(error, Error::Journal { source: Fault::Torn(_), .. });
                assert_eq!((is_newer, is_torn), (newer, !newer), "{text}: {error:?}");
            }
        }
    }
}
