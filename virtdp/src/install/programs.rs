//! The CNI programs in the runtime's folder, and what stood there before them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use linux::files;
use serde::{Deserialize, Serialize};

/// What we put there, so that we know it again: written before the program itself.
const RECORD: &str = ".virtnet.json";
/// What stood at a program's name before us.
const KEPT: &str = ".before-virtnet";
/// Releases of one program that are known again. The oldest are forgotten.
const KNOWN: usize = 32;
const PROGRAM_MODE: u32 = 0o755;

/// The programs to install, read whole.
pub(super) struct Programs(BTreeMap<String, Vec<u8>>);

/// By program: fingerprints of all that we have put there.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record(BTreeMap<String, Vec<String>>);

impl Programs {
    pub(super) fn read(from: &Path, names: &[&str]) -> Result<Programs> {
        let read = |name: &&str| -> Result<(String, Vec<u8>)> {
            let path = from.join(name);
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read the program {}", path.display()))?;
            Ok(((*name).to_owned(), bytes))
        };
        names.iter().map(read).collect::<Result<_>>().map(Programs)
    }

    /// Puts each program in its place; says what was done.
    pub(super) fn install(&self, bin_dir: &Path) -> Result<Vec<String>> {
        fs::create_dir_all(bin_dir)
            .with_context(|| format!("cannot make the folder {}", bin_dir.display()))?;
        let mut record = Record::load(bin_dir)?;
        let mut done = Vec::new();
        for (name, bytes) in &self.0 {
            let path = bin_dir.join(name);
            let there = read(&path)?;
            if there.as_ref() == Some(bytes) && record.knows(name, bytes) {
                done.push(format!("{} is up to date", path.display()));
                continue;
            }
            let foreign = there.is_some_and(|there| !record.knows(name, &there));
            if foreign {
                keep(&path)?;
            }
            record.learn(name, bytes);
            record.store(bin_dir)?;
            files::replace(bin_dir, name, bytes, PROGRAM_MODE)?;
            done.push(match foreign {
                true => format!(
                    "{} installed; what was there is kept as {}",
                    path.display(),
                    kept(&path).display()
                ),
                false => format!("{} installed", path.display()),
            });
        }
        Ok(done)
    }
}

/// Takes away what is ours, and puts back what was kept; says what was done.
pub(super) fn uninstall(bin_dir: &Path) -> Result<Vec<String>> {
    let mut record = Record::load(bin_dir)?;
    let names: Vec<String> = record.0.keys().cloned().collect();
    let mut done = Vec::new();
    for name in names {
        let path = bin_dir.join(&name);
        match read(&path)? {
            Some(there) if !record.knows(&name, &there) => {
                done.push(format!("{} is not ours any more and stays", path.display()));
            }
            there => match fs::rename(kept(&path), &path) {
                Ok(()) => done.push(format!("{} is again what it was before", path.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if there.is_some() {
                        files::remove_durably(bin_dir, &name)?;
                        done.push(format!("{} removed", path.display()));
                    }
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot put {} back", kept(&path).display()));
                }
            },
        }
        record.0.remove(&name);
        record.store(bin_dir)?;
    }
    if bin_dir.is_dir() {
        files::remove_durably(bin_dir, RECORD)?;
    }
    Ok(done)
}

/// A second name for what is there: the first one is never without a program.
fn keep(path: &Path) -> Result<()> {
    let kept = kept(path);
    let linked = match fs::remove_file(&kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::hard_link(path, &kept),
    };
    linked.with_context(|| format!("cannot keep {} as {}", path.display(), kept.display()))
}

fn kept(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(KEPT);
    PathBuf::from(name)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Record {
    fn load(bin_dir: &Path) -> Result<Record> {
        let path = bin_dir.join(RECORD);
        let Some(bytes) = read(&path)? else { return Ok(Record::default()) };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(record),
            // Guessing would keep our own program as somebody else's, or remove somebody else's as ours.
            Err(error) => bail!(
                "{} is damaged ({error}): remove it, and the program it was about if that is virtnet's",
                path.display()
            ),
        }
    }

    fn store(&self, bin_dir: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).context("cannot encode the record of what was installed")?;
        files::replace(bin_dir, RECORD, &bytes, 0o644)?;
        Ok(())
    }

    fn knows(&self, name: &str, bytes: &[u8]) -> bool {
        self.0.get(name).is_some_and(|known| known.contains(&fingerprint(bytes)))
    }

    fn learn(&mut self, name: &str, bytes: &[u8]) {
        let known = self.0.entry(name.to_owned()).or_default();
        let fingerprint = fingerprint(bytes);
        known.retain(|other| *other != fingerprint);
        known.push(fingerprint);
        known.drain(..known.len().saturating_sub(KNOWN));
    }
}

/// Tells files apart; nobody is kept out by it, so it need not resist an attacker, who is root here anyway.
fn fingerprint(bytes: &[u8]) -> String {
    // FNV-1a, 64 bits, and the length.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}-{}", bytes.len())
}
