//! What the programs link besides crates, since they are static: the C library, the compiler's helpers, Rust's standard library.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Architecture};

/// Not a crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) version: String,
    /// An SPDX expression.
    pub(super) licence: &'static str,
    pub(super) home: &'static str,
}

/// What is linked, in the versions that this machine's compilers have.
///
/// # Errors
/// When a compiler does not say.
pub(super) fn parts(architecture: Architecture) -> Result<Vec<Part>> {
    let compiler = architecture.compiler();
    let glibc = run(
        Command::new(&compiler).args(["-E", "-P", "-"]),
        b"#include <features.h>\n__GLIBC__.__GLIBC_MINOR__\n",
    )?;
    let glibc = glibc.lines().last().unwrap_or_default().replace(' ', "");
    let gcc = run(Command::new(&compiler).arg("-dumpfullversion"), b"")?;
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let rust = run(rustc.arg("--version").current_dir(build::workspace()?), b"")?;
    let rust = rust.split(' ').nth(1).context("rustc does not say its version")?.to_owned();
    Ok(vec![
        Part {
            name: "glibc",
            version: glibc,
            licence: "LGPL-2.1-or-later",
            home: "https://www.gnu.org/software/libc/",
        },
        Part {
            name: "libgcc",
            version: gcc,
            licence: "GPL-3.0-or-later WITH GCC-exception-3.1",
            home: "https://gcc.gnu.org/",
        },
        Part {
            name: "rust-std",
            version: rust,
            licence: "MIT OR Apache-2.0",
            home: "https://www.rust-lang.org/",
        },
    ])
}

fn run(command: &mut Command, input: &[u8]) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads nothing has closed it.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || text.is_empty() {
        bail!("{name} does not say its version: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_version_that_looks_like_one() {
        for part in parts(Architecture::Amd64).unwrap() {
            assert!(part.version.starts_with(|char: char| char.is_ascii_digit()), "{part:?}");
            assert!(part.version.contains('.') && !part.version.contains(char::is_whitespace), "{part:?}");
        }
    }
}
