//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, each for a while. Stable Rust is enough: the compiler's coverage counters are there, only
//! the sanitizers need more, and memory is safe here anyway.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build;
use crate::packages;
use crate::progress::Progress;

/// Feed bytes that nobody thought of to what reads input
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The targets; all if none is named
    targets: Vec<String>,

    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// Where the fuzzer's choices begin: the same number, from the same folder of inputs, makes the same choices
    #[arg(long)]
    seed: Option<u32>,
}

/// What makes libFuzzer see which code the bytes reach; the same as cargo-fuzz sets.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// In seconds. Nothing that reads a few kilobytes may take longer.
const LONGEST_RUN: u32 = 10;

pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let folder = build::target_folder()?.join("fuzz");
    let (corpus, findings) = (folder.join("corpus"), folder.join("findings"));
    fs::create_dir_all(&findings).with_context(|| format!("cannot make {}", findings.display()))?;
    let program = build_targets(&folder, &corpus, progress)?;
    let mut known = Vec::new();
    for entry in fs::read_dir(&corpus).with_context(|| format!("cannot list {}", corpus.display()))? {
        known.push(entry?.file_name().to_string_lossy().into_owned());
    }
    known.sort();
    let chosen = if options.targets.is_empty() { known.clone() } else { options.targets.clone() };
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("{unknown} is no target; there are {}", known.join(", "));
    }
    let mut found = 0_u32;
    for target in &chosen {
        let step = progress.step(&format!("Fuzz {target}"));
        let mut last = String::new();
        let mut command = Command::new(&program);
        if Path::new(MEMORY).is_dir() {
            // Some targets write files, thousands a second; and fsync them.
            command.env("TMPDIR", MEMORY);
        }
        command.env("FUZZ_TARGET", target).env("RUST_BACKTRACE", "1").arg(corpus.join(target));
        command.arg(format!("-max_total_time={}", options.seconds));
        command.args(options.seed.map(|seed| format!("-seed={seed}")));
        command.arg(format!("-timeout={LONGEST_RUN}"));
        command.arg(format!("-artifact_prefix={}/{target}-", findings.display()));
        let outcome = step.run_with(&mut command, |line| {
            step.note(line);
            if line.contains("cov: ") {
                line.clone_into(&mut last);
            }
        });
        match outcome {
            Ok(_) => step.done(&summary(&last)),
            Err(finding) => {
                found += 1;
                drop(step);
                eprintln!("{finding:#}");
                let again = format!("FUZZ_TARGET={target} {}", program.display());
                eprintln!("to see it again: {again} {}/{target}-...", findings.display());
            }
        }
    }
    println!("{} targets fuzzed for {} s each, {found} with a finding", chosen.len(), options.seconds);
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the program that has all targets, and plants their seeds.
fn build_targets(folder: &Path, corpus: &Path, progress: &Progress) -> Result<PathBuf> {
    if packages::finds("c++").is_none() {
        bail!("libFuzzer needs a C++ compiler. On Debian and its children type:\n  apt-get install g++");
    }
    let step = progress.step("Build the fuzz targets");
    let target = build::Architecture::Amd64.target();
    let mut command = build::cargo()?;
    // With --target the flags are not for build scripts and macros, which have no use for them.
    command.args(["build", "--locked", "--package", "fuzz", "--features", "libfuzzer", "--profile", "fuzz"]);
    command.args(["--target", target, "--target-dir"]).arg(folder).env("RUSTFLAGS", COVERAGE);
    step.run(&mut command)?;
    let program = folder.join(target).join("fuzz/fuzz-target");
    if !program.is_file() {
        bail!("cargo built no {}", program.display());
    }
    step.run(Command::new(&program).env("FUZZ_PLANT", corpus))?;
    step.done("");
    Ok(program)
}

/// `#12345 DONE cov: 812 ft: 2310 corp: ...` in words.
fn summary(line: &str) -> String {
    let after = |word: &str| line.split_whitespace().skip_while(|each| *each != word).nth(1);
    let runs = line.trim_start_matches('#').split_whitespace().next().unwrap_or_default();
    format!("{runs} inputs, {} places reached", after("cov:").unwrap_or("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_how_much_was_tried() {
        let line = "#125391\tDONE   cov: 812 ft: 2310 corp: 233/23Kb lim: 174 exec/s: 5971 rss: 448Mb";
        assert_eq!(summary(line), "125391 inputs, 812 places reached");
    }
}
