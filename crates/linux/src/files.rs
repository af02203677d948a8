//! Files that are whole or absent, and locks that are waited for, but not for ever.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Error;

/// How often a lock that somebody holds is tried again: flock(2) has no deadline of its own.
const RETRY_LOCK_AFTER: Duration = Duration::from_millis(5);

/// Writes `dir/name` so that after a crash, at any instant, either the old or the new content is there: temporary file
/// in the same folder, fsync, rename, fsync of the folder. The file is for its owner only (0600).
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn write_atomically(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let failed = |step, path: &Path, source| Error::File { step, path: path.to_owned(), source };
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(|source| failed("create a temporary file in", dir, source))?;
    file.write_all(bytes).map_err(|source| failed("write", &path, source))?;
    file.as_file().sync_all().map_err(|source| failed("sync", &path, source))?;
    file.persist(&path).map_err(|error| failed("replace", &path, error.error))?;
    sync_folder(dir)
}

/// How the names of temporary files begin: whoever lists a folder skips them.
pub const TEMPORARY: &str = ".tmp-";

/// Removes `dir/name` for good; says whether it was there.
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn remove_durably(dir: &Path, name: &str) -> Result<bool, Error> {
    let path = dir.join(name);
    match std::fs::remove_file(&path) {
        Ok(()) => sync_folder(dir).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File { step: "remove", path, source }),
    }
}

fn sync_folder(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(|source| Error::File {
        step: "sync",
        path: dir.to_owned(),
        source,
    })
}

/// An exclusive lock between processes (and threads), held until it is dropped or its process ends.
///
/// The lock file is never removed: a process that waits on a removed file and one that makes a new file would both
/// hold "the" lock.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock on `path`, which is created where it is absent, waiting no longer than `patience`.
    ///
    /// # Errors
    /// [`Error::Locked`] where somebody else has it all the time, [`Error::File`] where the file cannot be opened.
    pub fn acquire(path: &Path, patience: Duration) -> Result<Self, Error> {
        let failed = |step, source| Error::File { step, path: path.to_owned(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| failed("open", source))?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(Error::Locked { path: PathBuf::from(path), after: patience });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(RETRY_LOCK_AFTER),
                Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        write_atomically(folder.path(), "lease", b"one").unwrap();
        write_atomically(folder.path(), "lease", b"two").unwrap();
        assert_eq!(std::fs::read(folder.path().join("lease")).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(remove_durably(folder.path(), "lease").unwrap());
        assert!(!remove_durably(folder.path(), "lease").unwrap());
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lease")).unwrap();
        let error = write_atomically(folder.path(), "lease", b"one").unwrap_err();
        assert!(matches!(error, Error::File { step: "replace", .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file stayed");
    }

    #[test]
    fn a_lock_has_one_holder_and_a_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::acquire(&path, Duration::ZERO).unwrap();
        let error = Lock::acquire(&path, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::acquire(&path, Duration::from_secs(30)));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}
