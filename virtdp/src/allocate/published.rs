//! Files that others on the node look up: no secrets, made anew at each start, and so written whole but not fsynced.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use linux::files::replace_unsynced;

/// Writes a file, making the folder where it is absent. A file that says the same already is left alone.
///
/// # Errors
/// The folder cannot be made, or the file not be written.
pub(super) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    if std::fs::read(folder.join(name)).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .with_context(|| format!("make {}", folder.display()))?;
    Ok(replace_unsynced(folder, name, bytes, 0o644)?)
}

/// Removes a file, which may be gone already.
///
/// # Errors
/// It is there, and cannot be removed.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error).context(format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// The names in a folder; none where it is absent.
///
/// # Errors
/// It cannot be listed.
pub(super) fn names(folder: &Path) -> Result<Vec<OsString>> {
    let listed = std::fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
    });
    match listed {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        listed => listed.with_context(|| format!("list {}", folder.display())),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
