//! One layer: a tar archive in which nothing depends on the machine that made it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};

use super::sha256;

/// Files, links and folders by path, so that their order is always the same.
#[derive(Debug, Default, Clone)]
pub(crate) struct Layer {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Folder { mode: u32 },
    File { mode: u32, contents: Vec<u8> },
    Symlink { target: PathBuf },
}

impl Layer {
    /// A file that belongs to root; the folders above it come with it.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, mode: u32, contents: &[u8]) -> &mut Self {
        self.add(path.as_ref(), Entry::File { mode, contents: contents.to_vec() })
    }

    /// A copy of a file of this machine.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn copy(&mut self, path: impl AsRef<Path>, mode: u32, source: &Path) -> Result<&mut Self> {
        let contents = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        Ok(self.file(path, mode, &contents))
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) -> &mut Self {
        self.add(path.as_ref(), Entry::Symlink { target: target.into() })
    }

    /// A folder with other permissions than 0755, or an empty one.
    pub(crate) fn folder(&mut self, path: impl AsRef<Path>, mode: u32) -> &mut Self {
        self.add(path.as_ref(), Entry::Folder { mode })
    }

    /// Writes the files and links into a folder, as they lie in the image.
    ///
    /// # Errors
    /// When one cannot be written.
    pub(super) fn unpack(&self, folder: &Path) -> Result<()> {
        for (path, entry) in &self.entries {
            let path = folder.join(path);
            match entry {
                Entry::Folder { mode } => fs::create_dir_all(&path).and_then(|()| permit(&path, *mode)),
                Entry::File { mode, contents } => {
                    fs::write(&path, contents).and_then(|()| permit(&path, *mode))
                }
                Entry::Symlink { target } => symlink(target, &path),
            }
            .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The paths of all files and links, absolute.
    #[cfg(test)]
    pub(crate) fn paths(&self) -> Vec<String> {
        let files = self.entries.iter().filter(|(_, entry)| !matches!(entry, Entry::Folder { .. }));
        files.map(|(path, _)| format!("/{}", path.display())).collect()
    }

    fn add(&mut self, path: &Path, entry: Entry) -> &mut Self {
        let path: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            self.entries.entry(above.to_owned()).or_insert(Entry::Folder { mode: 0o755 });
        }
        self.entries.insert(path, entry);
        self
    }

    /// The compressed archive, and the digest of the archive itself, which the specification calls DiffID.
    pub(super) fn finish(self) -> Result<(Vec<u8>, String)> {
        let mut archive = archive(Vec::new());
        for (path, entry) in self.entries {
            let path = path.display().to_string();
            match entry {
                Entry::Folder { mode } => add(&mut archive, tar::EntryType::Directory, &path, mode, &[]),
                Entry::File { mode, contents } => add_file(&mut archive, &path, mode, &contents),
                Entry::Symlink { target } => {
                    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                    archive.append_link(&mut header, &path, &target)
                }
            }
            .with_context(|| format!("cannot add {path} to a layer"))?;
        }
        let bytes = archive.into_inner()?;
        // No file name and no time in gzip's header.
        let mut compressed = GzBuilder::new().write(Vec::new(), Compression::best());
        compressed.write_all(&bytes)?;
        Ok((compressed.finish()?, sha256(&bytes)))
    }
}

fn permit(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

pub(super) fn archive<W: Write>(target: W) -> tar::Builder<W> {
    let mut archive = tar::Builder::new(target);
    archive.mode(tar::HeaderMode::Deterministic);
    archive
}

pub(super) fn add_file(
    archive: &mut tar::Builder<impl Write>,
    path: &str,
    mode: u32,
    contents: &[u8],
) -> io::Result<()> {
    add(archive, tar::EntryType::Regular, path, mode, contents)
}

fn add(
    archive: &mut tar::Builder<impl Write>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    contents: &[u8],
) -> io::Result<()> {
    let size = u64::try_from(contents.len()).map_err(io::Error::other)?;
    archive.append_data(&mut header(kind, mode, size), path, contents)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
