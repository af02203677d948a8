//! `cargo xtask test`: builds what the tests need, runs them all, and sums up.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::build;
use crate::packages;
use crate::progress::{self, Progress};

/// Run every test: unit, property, namespaces, whole systems in the VM
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only one part
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Only tests whose name contains this
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What runs on this machine, in namespaces of its own
    Workspace,
    /// What runs in VMs
    System,
}

/// Run a program in fresh namespaces
#[derive(Debug, Args)]
pub(crate) struct InNamespace {
    /// Set once the namespaces are there
    #[arg(long)]
    inside: bool,

    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Package of the tests that boot VMs. They run on the host itself: QEMU needs no namespace, and its devices would not be in one.
const SYSTEM: &str = "system-tests";

/// What the parts said, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u32,
    failed: u32,
    skipped: u32,
    names: Vec<String>,
}

pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let programs = build::programs(progress)?;
    let debian = packages::ensure(progress)?;
    // The tests run where there is no network, and some ask cargo about crates that building for this machine did not need.
    let step = progress.step("Fetch crates");
    step.run(build::cargo()?.args(["fetch", "--locked"]))?;
    step.done("");
    let mut sum = Sum::default();
    for part in [Part::Workspace, Part::System] {
        if options.only.is_some_and(|only| only != part) {
            continue;
        }
        let mut command = build::cargo()?;
        command.args(["test", "--no-fail-fast"]);
        let title = match part {
            Part::Workspace => {
                command.args(["--workspace", "--exclude", SYSTEM]);
                let own = std::env::current_exe().context("our own program")?;
                let runner = format!("{} in-namespace", own.display());
                command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner);
                "Test the parts"
            }
            Part::System => {
                command.args(["--package", SYSTEM]);
                "Test whole systems in the VM"
            }
        };
        command.env(vm::PROGRAMS_VARIABLE, &programs.folder);
        command.env(vm::DEBIAN_VARIABLE, packages::description(&debian.folder));
        command.env("PATH", debian.host_path());
        if let Some(libraries) = debian.host_libraries() {
            command.env("VIRTNET_LIBRARIES", libraries);
        }
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = match part {
            // They wait more than they work: for the kernel's move of a NIC, and for time to pass.
            Part::Workspace => processors * 2,
            // Most guests have one: a machine that boots more of them than it has processors is too slow for every time limit.
            Part::System => processors,
        };
        command.args(["--", "--test-threads", &threads.to_string()]);
        let hung = part_of(&mut sum, title, &mut command, &options.filter, progress)?;
        if !hung.is_empty() {
            // Emulation of several processors lets that happen now and then, whatever runs in the guest; twice in a row it counts.
            eprintln!(
                "Guests whose kernel stands still say nothing of what ran in them; once more: {}",
                hung.join(" ")
            );
            sum.forget(&hung);
            command.arg("--exact");
            part_of(&mut sum, title, &mut command, &hung, progress)?;
        }
    }
    for name in &sum.names {
        println!("failed: {name}");
    }
    println!("{}", sum.text());
    Ok(if sum.failed == 0 && sum.names.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one `cargo test` and adds what it says. Cargo's messages and what the programs print come through one pipe: only so is it known
/// which program said what. Gives the tests whose VM stood still.
fn part_of(
    sum: &mut Sum,
    title: &str,
    command: &mut Command,
    filters: impl IntoIterator<Item = impl AsRef<OsStr>>,
    progress: &Progress,
) -> Result<Vec<String>> {
    let step = progress.step(title);
    let (output, input) = std::io::pipe().context("cannot make a pipe")?;
    let errors = input.try_clone().context("cannot make a pipe")?;
    command.args(filters).stdin(Stdio::null()).stdout(input).stderr(errors);
    let mut child = command.spawn().context("cannot start cargo test")?;
    // It holds the writing ends, which would keep the pipe open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut lines = Vec::new();
    for line in progress::lines(Some(output)) {
        step.note(line.trim());
        lines.push(line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    let before = sum.failed;
    sum.add(&lines);
    let details = details(&lines);
    details.iter().for_each(|line| eprintln!("{line}"));
    if !status.success() && sum.failed == before {
        // It did not compile: that is in cargo's messages only.
        lines.iter().rev().take(80).rev().for_each(|line| eprintln!("{line}"));
        sum.failed += 1;
        sum.names.push(format!("{title}: cargo test {status}"));
    }
    if sum.failed == before {
        step.done(&sum.text());
    }
    Ok(stood_still(&details))
}

/// Tests in whose VM the kernel itself stopped: what `vm::Error::Hung` and `vm::Error::Boot` say.
const STANDS_STILL: [&str; 2] = ["the guest hangs: no answer for ", "the guest did not boot within "];

/// The names of failed tests that say so.
fn stood_still(details: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut name = None;
    for line in details {
        if let Some(next) = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----")) {
            name = Some(next);
        } else if STANDS_STILL.iter().any(|text| line.contains(text)) {
            names.extend(name.take().map(str::to_owned));
        }
    }
    names
}

/// What one test program, or the tests in one crate's documentation, said.
#[derive(Debug, Default)]
struct Said<'a> {
    /// Cargo's line before it; empty for what comes before the first.
    program: &'a str,
    results: Vec<&'a str>,
}

impl<'a> Said<'a> {
    fn all(lines: &'a [String]) -> Vec<Self> {
        let mut all = vec![Said::default()];
        for line in lines.iter().map(|line| line.trim()) {
            if line.starts_with("Running ") || line.starts_with("Doc-tests ") {
                all.push(Said { program: line, results: Vec::new() });
            } else if let (Some(result), Some(last)) = (line.strip_prefix("test result: "), all.last_mut()) {
                last.results.push(result);
            }
        }
        all
    }

    /// A program may have run itself as another process; its own result is the last. Documentation has one result for each way in which
    /// its tests are compiled.
    fn own_results(&self) -> &[&'a str] {
        let count = if self.program.starts_with("Running ") { 1 } else { self.results.len() };
        self.results.get(self.results.len().saturating_sub(count)..).unwrap_or_default()
    }
}

impl Sum {
    /// Adds up libtest's lines: `test NAME ... FAILED` and `test result: ok. 1 passed; 0 failed; 2 ignored; ...`. A program without a result
    /// has died, or has left before its end.
    fn add(&mut self, lines: &[String]) {
        for said in Said::all(lines) {
            for result in said.own_results() {
                let counts = result.split_once(". ").map_or(*result, |(_, counts)| counts);
                let counts: BTreeMap<&str, u32> = counts
                    .split("; ")
                    .filter_map(|part| part.split_once(' '))
                    .filter_map(|(count, what)| Some((what, count.parse().ok()?)))
                    .collect();
                let count = |what| counts.get(what).copied().unwrap_or(0);
                self.passed += count("passed");
                self.failed += count("failed");
                self.skipped += count("ignored");
            }
            if said.results.is_empty() && !said.program.is_empty() {
                self.failed += 1;
                self.names.push(format!("{} ended without a result", said.program));
            }
        }
        let failed = lines.iter().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
        self.names.extend(failed.map(str::to_owned));
    }

    /// These failed and will run again.
    fn forget(&mut self, failed: &[String]) {
        for name in failed {
            if let Some(at) = self.names.iter().position(|known| known == name) {
                self.names.remove(at);
                self.failed = self.failed.saturating_sub(1);
            }
        }
    }

    fn text(&self) -> String {
        let skipped = if self.skipped == 0 { String::new() } else { format!(", {} skipped", self.skipped) };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

/// What the failed tests said: between libtest's first and second line `failures:`.
fn details(lines: &[String]) -> Vec<&str> {
    let mut inside = false;
    let mut details = Vec::new();
    for line in lines {
        match line.as_str() {
            "failures:" => inside = !inside,
            line if line.starts_with("test result: ") => inside = false,
            line if inside => details.push(line),
            _ => {}
        }
    }
    details
}

/// The runner of the test programs: a network and a mount namespace that nobody else is in, with loopback up; inside a user namespace where
/// the caller is not root.
pub(crate) fn in_namespace(options: &InNamespace) -> Result<ExitCode> {
    let own = std::env::current_exe().context("our own program")?;
    let [program, arguments @ ..] = options.command.as_slice() else { bail!("no program named") };
    let libraries = std::env::var_os("VIRTNET_LIBRARIES");
    if !options.inside {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount"]);
        if !is_root()? {
            command.arg("--map-root-user");
        }
        command.arg("--").arg(own).args(["in-namespace", "--inside", "--"]).args(&options.command);
        let error = command.exec();
        bail!("cannot run unshare (util-linux): {error}");
    }
    let mut loopback = Command::new("ip");
    loopback.args(["link", "set", "lo", "up"]);
    if let Some(libraries) = &libraries {
        loopback.env("LD_LIBRARY_PATH", libraries);
    }
    let up = loopback.status().context("cannot run ip")?;
    if !up.success() {
        bail!("cannot bring loopback up: ip {up}");
    }
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(libraries) = libraries {
        // Test programs start unpacked tools.
        let mut all = libraries;
        if let Some(before) = std::env::var_os("LD_LIBRARY_PATH") {
            all.push(":");
            all.push(before);
        }
        command.env("LD_LIBRARY_PATH", all);
    }
    let error = command.exec();
    bail!("cannot run {}: {error}", program.display());
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    Ok(uid == Some("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn results_of_many_programs_are_added_up() {
        let mut sum = Sum::default();
        sum.add(&lines(
            "     Running unittests a\nrunning 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ignored\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                Running unittests b\ntest result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        ));
        assert_eq!(sum, Sum { passed: 5, failed: 1, skipped: 1, names: vec!["a::c".to_owned()] });
        assert_eq!(sum.text(), "5 passed, 1 failed, 1 skipped");
        assert_eq!(Sum::default().text(), "0 passed, 0 failed");
    }

    #[test]
    fn a_program_that_dies_is_noticed() {
        let mut sum = Sum::default();
        sum.add(&lines(
            "   Compiling x\n     Running unittests a\n   Doc-tests x\ntest result: ok. 1 passed; 0 failed;",
        ));
        assert_eq!((sum.passed, sum.failed), (1, 1));
        assert_eq!(sum.names, ["Running unittests a ended without a result"]);
    }

    #[test]
    fn a_program_that_runs_itself_counts_once_and_documentation_as_often_as_it_is_compiled() {
        let results = "test result: ok. 1 passed; 0 failed;\ntest result: ok. 4 passed; 0 failed;";
        for (title, passed) in [("Running unittests a", 4), ("Doc-tests a", 5)] {
            let mut sum = Sum::default();
            sum.add(&lines(&format!("   {title}\n{results}")));
            assert_eq!((sum.passed, sum.failed), (passed, 0), "{title}");
        }
    }

    #[test]
    fn tests_whose_guest_stood_still_run_again_and_no_others() {
        let text = "test a::b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n---- a::b stdout ----\nthe guest hangs: no answer for 60s; \
                    [ 1.0] rcu\nthe guest hangs: no answer for 60s\n\n---- c stdout ----\nboom\n\nfailures:\n    a::b\n    c\n\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored;";
        let lines = lines(text);
        let hung = stood_still(&details(&lines));
        assert_eq!(hung, ["a::b"]);
        let mut sum = Sum::default();
        sum.add(&lines);
        sum.forget(&hung);
        assert_eq!(sum, Sum { passed: 1, failed: 1, skipped: 0, names: vec!["c".to_owned()] });
        let (limit, console) = (std::time::Duration::from_mins(1), vm::Console::default());
        let hung = vm::Error::Hung { silent: limit, console: console.clone() };
        for (error, text) in [hung, vm::Error::Boot { limit, console }].iter().zip(STANDS_STILL) {
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[test]
    fn what_failed_tests_said_is_kept() {
        let text = lines(
            "test x ... FAILED\n\nfailures:\n\n---- x stdout ----\nboom\n\nfailures:\n    x\n\ntest result: FAILED.",
        );
        assert_eq!(details(&text), ["", "---- x stdout ----", "boom", ""]);
    }
}
