//! `cargo xtask image`: what a cluster admin downloads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use super::virtnet::{self, Papers};
use super::{Image, sha256};
use crate::build::{self, Architecture};
use crate::progress::Progress;

/// What a node has to pull, at most. In bytes, of one architecture.
const LIMIT: usize = 12_000_000;

/// Make the container image, without a container runtime: an OCI archive for each architecture, with its bill of materials
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// For which machines; `all` also gives one archive with both [default: machines like this one]
    #[arg(long, value_enum)]
    arch: Option<Arch>,

    /// Where to put the archives [default: target/image]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Instead of archives, only the files of the image, as they lie in it: for a Dockerfile
    #[arg(long, conflicts_with = "arch")]
    files: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arch {
    Amd64,
    Arm64,
    All,
}

impl Arch {
    fn of_this_machine() -> Self {
        if std::env::consts::ARCH == "aarch64" { Self::Arm64 } else { Self::Amd64 }
    }

    fn architectures(self) -> &'static [Architecture] {
        match self {
            Self::Amd64 => &[Architecture::Amd64],
            Self::Arm64 => &[Architecture::Arm64],
            Self::All => &[Architecture::Amd64, Architecture::Arm64],
        }
    }
}

/// Builds and writes.
pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let output = match &options.output {
        Some(folder) => folder.clone(),
        None => build::target_folder()?.join("image"),
    };
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let arch = options.arch.unwrap_or_else(Arch::of_this_machine);
    // Before the first is built, which takes minutes.
    arch.architectures().iter().try_for_each(|architecture| architecture.check())?;
    let mut images = Vec::new();
    for architecture in arch.architectures() {
        let programs = build::for_image(progress, *architecture)?;
        let step = progress.step(&format!("Make the image for {}", architecture.name()));
        let papers = Papers::of(*architecture)?;
        let image = virtnet::of(*architecture, &programs, &papers)?;
        if options.files {
            image.layers.iter().try_for_each(|layer| layer.unpack(&output))?;
            step.done("");
            continue;
        }
        let name = format!("virtnet-{}-{}", env!("CARGO_PKG_VERSION"), architecture.name());
        let path = output.join(format!("{name}.tar"));
        image.clone().write(&path)?;
        let size = check_size(&path)?;
        let bill = output.join(format!("{name}.spdx.json"));
        write(&bill, papers.bill_text().as_bytes())?;
        let entries = papers.bill.get("packages").and_then(|list| list.as_array()).map_or(0, Vec::len);
        step.done(&format!(
            "{}.{} MB, {entries} packages in its bill",
            size / 1_000_000,
            size / 100_000 % 10
        ));
        tell(&path)?;
        tell(&bill)?;
        images.push(image);
    }
    if arch == Arch::All {
        let path = output.join(format!("virtnet-{}.tar", env!("CARGO_PKG_VERSION")));
        Image::write_all(images, &path)?;
        tell(&path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

/// Gives the archive's size in bytes.
fn check_size(path: &Path) -> Result<usize> {
    let size = read(path)?.len();
    if size > LIMIT {
        bail!(
            "{} has {size} bytes, more than the {LIMIT} that an image may have: find out what has grown",
            path.display()
        );
    }
    Ok(size)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// As `sha256sum` does.
fn tell(path: &Path) -> Result<()> {
    println!("{}  {}", sha256(&read(path)?), path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_has_grown_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("virtnet.tar");
        fs::write(&path, vec![0; LIMIT]).unwrap();
        assert_eq!(check_size(&path).unwrap(), LIMIT);
        fs::write(&path, vec![0; LIMIT + 1]).unwrap();
        let error = check_size(&path).unwrap_err().to_string();
        assert!(error.contains("more than the 12000000"), "{error}");
    }
}
