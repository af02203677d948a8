//! Files that are whole or absent, and locks that are waited for, but not for ever.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::{Error, fault};

/// How often a lock that somebody holds is tried again: flock(2) has no deadline of its own.
const RETRY_LOCK_AFTER: Duration = Duration::from_millis(5);

/// Writes `dir/name` so that after a crash, at any instant, either the old or the new content is there: temporary file
/// in the same folder, fsync, rename, fsync of the folder. The file is for its owner only (0600).
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn write_atomically(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    replace(dir, name, bytes, 0o600)
}

/// As [`write_atomically`], with these permissions.
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn replace(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let file = beside(dir, name, bytes, mode)?;
    // Before the rename: on some file systems (xfs) the name would else stand for an empty file after a loss of power.
    step("sync", &dir.join(name), || file.as_file().sync_all())?;
    persist(file, &dir.join(name))?;
    sync_folder(dir)
}

/// As [`replace`], but not synced: whole or absent for whoever looks, and for what is made anew after a crash anyway.
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn replace_unsynced(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
    persist(beside(dir, name, bytes, mode)?, &dir.join(name))
}

fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<(), Error> {
    step("replace", path, || file.persist(path).map(drop).map_err(io::Error::from))
}

/// A step on a file or folder.
pub(crate) fn step<T>(
    step: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<T, Error> {
    fault::step(|| format!("{step} {}", path.display()), io::Error::from, work)
        .map_err(|source| Error::File { step, path: path.to_owned(), source })
}

/// A temporary file with this content, to become `dir/name`.
fn beside(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<tempfile::NamedTempFile, Error> {
    let path = dir.join(name);
    let prefix = format!("{TEMPORARY}{name}-");
    let create = || tempfile::Builder::new().prefix(&prefix).tempfile_in(dir);
    let mut file = step("create a temporary file in", dir, create)?;
    step("write", &path, || file.write_all(bytes))?;
    // Not at creation, where the process's umask would have its say.
    let permissions = std::fs::Permissions::from_mode(mode);
    step("set the permissions of", &path, || file.as_file().set_permissions(permissions))?;
    Ok(file)
}

/// Appends to a file, in one write, so that lines of several processes stay whole. A file that is absent is made, for its owner only
/// (0600). Nothing is waited for: not for the disk, and not for the reader of a pipe.
///
/// # Errors
/// [`Error::File`]: it cannot be opened, or not all was written.
pub fn append(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    append_with(OFlags::CREATE, path, bytes)
}

/// As [`append`], to a file that is there.
///
/// # Errors
/// [`Error::File`]: it is absent or cannot be opened, or not all was written.
pub fn append_to_present(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    append_with(OFlags::empty(), path, bytes)
}

fn append_with(flags: OFlags, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let flags = flags | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = || Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let file = step("open", path, open)?;
    if step("write", path, || Ok(rustix::io::write(&file, bytes)?))? == bytes.len() {
        return Ok(());
    }
    let source = io::ErrorKind::WriteZero.into();
    Err(Error::File { step: "write all of a line to", path: path.to_owned(), source })
}

/// Makes a folder, and those above it that are absent, for their owner only (0700). A folder that is there stays as it
/// is. When this returns the new folders survive a loss of power, as the files that are written into them should.
///
/// # Errors
/// [`Error::File`] with the folder that could not be made.
pub fn make_folder(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folder(parent)?;
    }
    match step("create folder", path, || DirBuilder::new().mode(0o700).create(path)) {
        Ok(()) => parent.map_or(Ok(()), sync_folder),
        // Somebody else was quicker.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// How the names of temporary files begin: whoever lists a folder skips them.
pub const TEMPORARY: &str = ".tmp-";

/// Removes what writers of `dir/name` that were killed have left. The caller sees to it that nobody is writing it.
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn remove_leftovers(dir: &Path, name: &str) -> Result<(), Error> {
    let prefix = format!("{TEMPORARY}{name}-");
    for file in step("list", dir, || std::fs::read_dir(dir))? {
        let file = file.map_err(|source| Error::File { step: "list", path: dir.to_owned(), source })?;
        if file.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let path = file.path();
            step("remove", &path, || std::fs::remove_file(&path))?;
        }
    }
    Ok(())
}

/// Removes `dir/name` for good; says whether it was there.
///
/// # Errors
/// [`Error::File`] with the step that failed.
pub fn remove_durably(dir: &Path, name: &str) -> Result<bool, Error> {
    let path = dir.join(name);
    match step("remove", &path, || std::fs::remove_file(&path)) {
        Ok(()) => sync_folder(dir).map(|()| true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_folder(dir: &Path) -> Result<(), Error> {
    step("sync", dir, || File::open(dir).and_then(|folder| folder.sync_all()))
}

/// An exclusive lock between processes (and threads), held until it is dropped or its process ends.
///
/// The lock file is never removed: a process that waits on a removed file and one that makes a new file would both
/// hold "the" lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it is not enough where a child has the descriptor, too.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Takes the lock on `path`, which is created where it is absent, waiting no longer than `patience`.
    ///
    /// # Errors
    /// [`Error::Locked`] where somebody else has it all the time, [`Error::File`] where the file cannot be opened.
    pub fn acquire(path: &Path, patience: Duration) -> Result<Self, Error> {
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = step("open", path, open)?;
        let deadline = Instant::now() + patience;
        let lock = || loop {
            match file.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
                Err(TryLockError::WouldBlock) => std::thread::sleep(RETRY_LOCK_AFTER),
                Err(TryLockError::Error(source)) => return Err(source),
            }
        };
        if step("lock", path, lock)? {
            Ok(Lock { file, path: path.to_owned() })
        } else {
            Err(Error::Locked { path: PathBuf::from(path), after: patience })
        }
    }

    /// Lets the programs that this process starts from now on hold the lock together with it: where it is killed, the lock is free when
    /// they, too, have ended. When the value is dropped it is free whatever they do.
    ///
    /// # Errors
    /// [`Error::File`], for which no kernel has a reason.
    pub fn share_with_children(&self) -> Result<(), Error> {
        let share = || Ok(rustix::io::fcntl_setfd(&self.file, rustix::io::FdFlags::empty())?);
        step("share with children the lock", &self.path, share)
    }

    /// Keeps others from taking the lock on `path` by [`Lock::acquire`] for as long as the value lives; needs only to read the file.
    /// `None` where there is no such file: nobody has ever locked it.
    ///
    /// # Errors
    /// [`Error::Locked`] where somebody has the lock now, [`Error::File`] where the file cannot be opened.
    pub fn share(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |step, source| Error::File { step, path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("open", source)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Lock { file, path: path.to_owned() })),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Locked { path: path.to_owned(), after: Duration::ZERO })
            }
            Err(TryLockError::Error(source)) => Err(failed("lock", source)),
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
        replace_unsynced(folder.path(), "lease", b"three", 0o644).unwrap();
        write_atomically(folder.path(), "lease", b"two").unwrap();
        assert_eq!(std::fs::read(folder.path().join("lease")).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(remove_durably(folder.path(), "lease").unwrap());
        assert!(!remove_durably(folder.path(), "lease").unwrap());
    }

    #[test]
    fn what_a_killed_writer_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lease", "lease-2"] {
            // Kept, as when the process ends here.
            beside(folder.path(), name, b"half", 0o600).unwrap().into_temp_path().keep().unwrap();
            write_atomically(folder.path(), name, b"whole").unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
        remove_leftovers(folder.path(), "lease-2").unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert!(names[0].starts_with(".tmp-lease-") && names[1..] == ["lease", "lease-2"], "{names:?}");
    }

    #[test]
    fn lines_are_appended_and_what_cannot_take_them_is_an_error() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, b"one\n").unwrap();
        append(&path, b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for bad in [folder.path(), &folder.path().join("absent/log"), Path::new("/dev/full"), &pipe] {
            assert!(matches!(append(bad, b"x\n"), Err(Error::File { .. })), "{}", bad.display());
        }
        append_to_present(&path, b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\n");
        let absent = folder.path().join("absent");
        assert!(append_to_present(&absent, b"x\n").unwrap_err().is_absent());
        assert!(!absent.exists());
    }

    #[test]
    fn permissions_are_those_asked_for_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o755, 0o644, 0o666, 0o600] {
            replace(folder.path(), "program", b"", mode).unwrap();
            let metadata = std::fs::metadata(folder.path().join("program")).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        }
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
    fn folders_are_made_for_their_owner_and_twice_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        make_folder(&folder).unwrap();
        make_folder(&folder).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&root.path().join("a")), mode(&folder)), (0o700, 0o700));
        std::fs::write(root.path().join("file"), "").unwrap();
        for bad in [root.path().join("file/x"), root.path().join("file"), "/proc/no-such-folder/x".into()] {
            assert!(matches!(make_folder(&bad), Err(Error::File { .. })), "{}", bad.display());
        }
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

    #[test]
    fn a_lock_that_is_shared_has_many_holders_and_keeps_out_who_wants_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(Lock::share(&path).unwrap().is_none());
        assert!(!path.exists(), "to look has made the file");
        let alone = Lock::acquire(&path, Duration::ZERO).unwrap();
        assert!(matches!(Lock::share(&path), Err(Error::Locked { .. })));
        drop(alone);
        let shared = [Lock::share(&path).unwrap(), Lock::share(&path).unwrap()];
        assert!(shared.iter().all(Option::is_some));
        assert!(matches!(Lock::acquire(&path, Duration::ZERO), Err(Error::Locked { .. })));
        drop(shared);
        Lock::acquire(&path, Duration::ZERO).unwrap();
    }
}
