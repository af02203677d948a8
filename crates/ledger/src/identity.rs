//! The journal of identities on disk: `<state>/identities.json`, which NIC sat at which device ID. Its rule is
//! [`nic::identity`].
//!
//! The node agent keeps it; ehost-device reads it before it moves a NIC. Without it nothing is known and nobody is refused.

use std::path::PathBuf;
use std::time::Duration;

use linux::files::{self, Lock};
use nic::identity::Journal;
use serde::{Deserialize, Serialize};

use crate::{Error, notes};

const FILE: &str = "identities.json";
const LOCK: &str = "identities.lock";

/// Where the journal is.
#[derive(Clone, Debug)]
pub struct Identities {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Devices<J> {
    devices: J,
}

impl Identities {
    /// The journal in a state folder (`/var/lib/virtnet`), which need not exist yet.
    #[must_use]
    pub fn at(state: impl Into<PathBuf>) -> Self {
        Identities { folder: state.into() }
    }

    /// What is known. Nothing where there is no journal.
    ///
    /// # Errors
    /// [`Error::Journal`].
    pub fn read(&self) -> Result<Journal, Error> {
        let journal: Option<Devices<Journal>> = notes::read(&self.folder.join(FILE))?;
        Ok(journal.map(|journal| journal.devices).unwrap_or_default())
    }

    /// Writes `new` in place of `old`, durably, unless somebody has written meanwhile; says whether it did.
    ///
    /// # Errors
    /// [`Error::Journal`] where it cannot be read, [`Error::WriteJournal`] where it cannot be written, or somebody else is at it
    /// for longer than `patience`.
    pub fn replace(&self, old: &Journal, new: &Journal, patience: Duration) -> Result<bool, Error> {
        let failed = |source| Error::WriteJournal { path: self.folder.join(FILE), source };
        files::make_folder(&self.folder).map_err(failed)?;
        let _lock = Lock::acquire(&self.folder.join(LOCK), patience).map_err(failed)?;
        if self.read()? != *old {
            return Ok(false);
        }
        notes::write(&self.folder, FILE, &Devices { devices: new })?;
        Ok(true)
    }

    /// Keeps a journal that is of no use under another name (`identities.json.unusable`), so that a new one can be written.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn set_aside(&self) -> Result<(), Error> {
        crate::set_aside(&self.folder.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fault;
    use nic::MacAddr;
    use nic::identity::Known;

    const PATIENCE: Duration = Duration::from_millis(10);

    fn journal(last: u8) -> Journal {
        let known = Known { permanent_mac: MacAddr([0x52, 0x54, 0, 0, 0, last]), boot_id: "6a1b".to_owned() };
        Journal::from([("0000:00:0a.0".parse().unwrap(), known)])
    }

    #[test]
    fn a_journal_is_written_whole_and_only_in_place_of_what_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let identities = Identities::at(folder.path().join("state"));
        assert_eq!(identities.read().unwrap(), Journal::new());
        assert!(identities.replace(&Journal::new(), &journal(1), PATIENCE).unwrap());
        assert_eq!(identities.read().unwrap(), journal(1));
        // Another one has read the empty journal, too, and comes later.
        assert!(!identities.replace(&Journal::new(), &journal(2), PATIENCE).unwrap());
        assert_eq!(identities.read().unwrap(), journal(1));
        assert!(identities.replace(&journal(1), &journal(2), PATIENCE).unwrap());
        let text = std::fs::read_to_string(folder.path().join("state").join(FILE)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["devices"]["0000:00:0a.0"]["permanent_mac"], "52:54:00:00:00:02");
    }

    #[test]
    fn a_journal_that_is_torn_or_of_a_newer_release_is_an_error_and_can_be_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let identities = Identities::at(folder.path());
        identities.replace(&Journal::new(), &journal(1), PATIENCE).unwrap();
        let path = folder.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for torn in
            [&whole[..whole.len() / 2], b"", b"[]", b"\0\0", br#"{"version": 1, "devices": {"../x": {}}}"#]
        {
            std::fs::write(&path, torn).unwrap();
            let error = identities.read().unwrap_err();
            assert!(matches!(error, Error::Journal { source: Fault::Torn(_), .. }), "{error:?}");
            assert!(identities.replace(&Journal::new(), &journal(2), PATIENCE).is_err());
        }
        std::fs::write(&path, r#"{"version": 2, "others": []}"#).unwrap();
        let error = identities.read().unwrap_err();
        assert!(matches!(error, Error::Journal { source: Fault::Newer { found: 2, .. }, .. }), "{error:?}");
        identities.set_aside().unwrap();
        identities.set_aside().unwrap();
        assert!(identities.replace(&Journal::new(), &journal(2), PATIENCE).unwrap());
        assert!(folder.path().join("identities.json.unusable").exists());
    }
}
