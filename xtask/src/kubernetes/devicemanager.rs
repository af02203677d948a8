//! `cargo xtask kubernetes --only devicemanager`: `tests/kubernetes/devicemanager`, Go tests with the kubelet's own device manager, run in
//! namespaces of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use super::go;
use crate::progress::{self, Progress};
use crate::{build, packages};

const PACKAGE: &str = "./devicemanager";
/// Lines of each failed test that are shown; the log has all of them.
const SHOWN: usize = 60;

/// Builds and runs the tests; `cache` is the folder for what is built. Ends with how many passed.
pub(super) fn run(progress: &Progress, cache: &Path) -> Result<ExitCode> {
    let module = build::workspace()?.join("tests/kubernetes");
    // Now, since the file may be replaced by another build while ours takes its time.
    let own = std::env::current_exe().context("our own program")?;
    // First, since it may end here.
    go::go_version(&module)?;
    let programs = build::programs(progress)?;
    let debian = packages::ensure(progress)?;
    let test = compiled(progress, &module, cache)?;

    let mut command = Command::new(own);
    command.args(["in-namespace", "--"]).arg(test).args(["-test.v", "-test.timeout=30m"]);
    command.env("VIRTDP", &programs.virtdp).env("VIRTSIM", &programs.virtsim).env("PATH", debian.host_path());
    if let Some(libraries) = debian.host_libraries() {
        command.env("VIRTNET_LIBRARIES", libraries);
    }
    let log = cache.join("devicemanager.log");
    let verdict = watched(progress, command, &log)?;
    for (name, said) in &verdict.failures {
        eprintln!("\n---- {name} ----");
        said.iter().skip(said.len().saturating_sub(SHOWN)).for_each(|line| eprintln!("{line}"));
    }
    if verdict.is_good() {
        println!("{}", verdict.text());
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}; everything they said is in {}", verdict.text(), log.display());
    Ok(ExitCode::FAILURE)
}

fn compiled(progress: &Progress, module: &Path, cache: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let test = cache.join("devicemanager.test");
    let step = progress.step("Build the kubelet's device manager and its tests");
    let mut command = Command::new("go");
    // -v names each package as it is compiled: that is the progress.
    command.args(["test", "-c", "-v", "-mod=readonly", "-o"]).arg(&test).arg(PACKAGE).current_dir(module);
    step.run(&mut command).context("building the tests failed")?;
    step.done("");
    Ok(test)
}

/// Runs the test program and reads along.
fn watched(progress: &Progress, mut command: Command, log: &Path) -> Result<Verdict> {
    let step = progress.step("Test virtdp and virtsim against the kubelet's device manager");
    let mut record = BufWriter::new(File::create(log).context("cannot make the log file")?);
    let stderr = record.get_ref().try_clone().context("cannot share the log file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .context("cannot start the tests")?;
    let mut verdict = Verdict::default();
    for line in progress::lines(child.stdout.take()) {
        writeln!(record, "{line}").context("cannot write the log")?;
        verdict.read(&line);
        step.note(&verdict.current);
    }
    record.flush().context("cannot write the log")?;
    let status = child.wait().context("cannot wait for the tests")?;
    verdict.finish();
    if !status.success() && verdict.is_good() {
        // It did not even begin, or died.
        let said = std::fs::read_to_string(log).unwrap_or_default();
        let name = format!("the test program ended with {status}");
        verdict.failures.insert(name, said.lines().map(str::to_owned).collect());
    }
    if verdict.is_good() {
        step.done(&verdict.text());
    }
    Ok(verdict)
}

/// What `-test.v` said.
#[derive(Debug, Default)]
struct Verdict {
    current: String,
    said: BTreeMap<String, Vec<String>>,
    /// Whether each test passed. A test that skips itself has not.
    outcomes: BTreeMap<String, bool>,
    failures: BTreeMap<String, Vec<String>>,
    passed: usize,
}

impl Verdict {
    fn read(&mut self, line: &str) {
        let trimmed = line.trim_start();
        let runs = ["=== RUN ", "=== NAME ", "=== CONT "];
        if let Some(name) = runs.iter().find_map(|mark| line.strip_prefix(mark)) {
            name.trim().clone_into(&mut self.current);
        } else if let Some(outcome) = trimmed.strip_prefix("--- ") {
            let mut words = outcome.split(' ');
            if let (Some(word), Some(name)) = (words.next(), words.next()) {
                self.outcomes.insert(name.to_owned(), word == "PASS:");
            }
        } else {
            self.said.entry(self.current.clone()).or_default().push(line.to_owned());
        }
    }

    /// Tests with parts count by their parts, unless they failed by themselves.
    fn finish(&mut self) {
        let parts_of = |name: &str| {
            let within = format!("{name}/");
            self.outcomes
                .iter()
                .filter(move |(other, _)| other.starts_with(&within))
                .map(|(_, passed)| *passed)
        };
        let mut failed = BTreeSet::new();
        for (name, passed) in &self.outcomes {
            if *passed {
                self.passed += usize::from(parts_of(name).next().is_none());
            } else if parts_of(name).all(|passed| passed) {
                failed.insert(name.clone());
            }
        }
        // What began and never ended: the program died in it.
        failed.extend(
            self.said.keys().filter(|name| !name.is_empty() && !self.outcomes.contains_key(*name)).cloned(),
        );
        self.failures = failed
            .into_iter()
            .map(|name| (name.clone(), self.said.remove(&name).unwrap_or_default()))
            .collect();
    }

    fn is_good(&self) -> bool {
        self.failures.is_empty()
    }

    fn text(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failures.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Verdict {
        let mut verdict = Verdict::default();
        text.lines().for_each(|line| verdict.read(line));
        verdict.finish();
        verdict
    }

    #[test]
    fn tests_with_parts_count_by_their_parts() {
        let verdict = verdict(
            "=== RUN   TestA\n=== RUN   TestA/kubelet\n    a.go:1: x\n=== RUN   TestA/virtsim\n    a.go:1: y\n\
             --- FAIL: TestA (0.10s)\n    --- PASS: TestA/kubelet (0.05s)\n    --- FAIL: TestA/virtsim (0.05s)\n\
             === RUN   TestB\n--- PASS: TestB (0.00s)\nFAIL",
        );
        assert_eq!(verdict.text(), "2 passed, 1 failed");
        assert_eq!(verdict.failures["TestA/virtsim"], ["    a.go:1: y"]);
    }

    #[test]
    fn a_difference_counts_although_both_parts_passed_and_a_skipped_test_has_failed() {
        let verdict = verdict(
            "=== RUN   TestA\n=== RUN   TestA/kubelet\n=== NAME  TestA\n    a.go:1: differs\n\
             --- FAIL: TestA (0.10s)\n    --- PASS: TestA/kubelet (0.05s)\n=== RUN   TestB\n--- SKIP: TestB (0.00s)\n",
        );
        assert_eq!(verdict.text(), "1 passed, 2 failed");
        assert_eq!(verdict.failures["TestA"], ["    a.go:1: differs"]);
    }

    #[test]
    fn a_test_in_which_the_program_dies_has_failed() {
        let verdict = verdict("=== RUN   TestA\n--- PASS: TestA (0.10s)\n=== RUN   TestB\npanic: boom\n");
        assert_eq!(verdict.text(), "1 passed, 1 failed");
        assert_eq!(verdict.failures["TestB"], ["panic: boom"]);
    }
}
