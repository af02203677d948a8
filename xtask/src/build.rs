//! Builds the project's programs as they are installed: static, and each kind with its own profile. The same source gives the same bytes,
//! wherever its folder and cargo's are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use vm::Programs;

use crate::packages;
use crate::progress::{Progress, Step};

/// What the programs are built for. Tests and the VM are for amd64 alone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Architecture {
    #[default]
    Amd64,
    Arm64,
}

impl Architecture {
    /// As Go and OCI images call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust calls it.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As GNU calls it, and Debian's packages of the cross-compiler.
    fn gnu(self) -> [&'static str; 2] {
        match self {
            Self::Amd64 => ["x86_64-linux-gnu", "x86-64-linux-gnu"],
            Self::Arm64 => ["aarch64-linux-gnu", "aarch64-linux-gnu"],
        }
    }

    fn is_native(self) -> bool {
        self.target().split('-').next() == Some(env::consts::ARCH)
    }

    /// The C compiler that links for it.
    pub(crate) fn compiler(self) -> String {
        let [gnu, _] = self.gnu();
        if self.is_native() { "cc".to_owned() } else { format!("{gnu}-gcc") }
    }

    /// Fails where the compiler is missing, with what to type.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_native() || packages::finds(&self.compiler()).is_some() {
            return Ok(());
        }
        let [_, package] = self.gnu();
        bail!(
            "the C compiler for {name}, {compiler}, is missing. On Debian and its children type:\n  \
             apt-get install gcc-{package} libc6-dev-{name}-cross && rustup target add {target}",
            name = self.name(),
            compiler = self.compiler(),
            target = self.target(),
        )
    }

    fn tell(self, command: &mut Command) {
        if self.is_native() {
            return;
        }
        let [gnu, _] = self.gnu();
        let target = self.target().replace('-', "_");
        command.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()), self.compiler());
        command.env(format!("CC_{target}"), self.compiler());
        command.env(format!("AR_{target}"), format!("{gnu}-ar"));
    }
}

/// What one cargo call builds: cargo unifies the features of everything that it builds at once, and the CNI programs must stay small.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    title: &'static str,
    profile: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// What of the packages, as cargo takes it; their programs where nothing is named.
    targets: &'static [&'static str],
    /// The programs that must come out.
    programs: &'static [&'static str],
}

const fn whole(title: &'static str, profile: &'static str, packages: &'static [&'static str]) -> Call {
    Call { title, profile, packages, targets: &[], programs: packages }
}

const CNI: Call = whole("Build the CNI programs", "cni", &["ehost-device", "virt-meta"]);
const NODE: Call =
    whole("Build the agent, the simulator and the VM's init", "release", &["virtdp", "virtsim", "vm-guest"]);
/// Enough to boot a VM in which the CNI programs run.
const GUEST: Call = whole("Build the VM's init", "release", &["vm-guest"]);
const AGENT: Call = whole("Build the agent", "release", &["virtdp"]);
/// What measures ADD and DEL, built as what is measured.
const MEASURE: Call = Call {
    title: "Build what measures ADD and DEL",
    profile: "cni",
    packages: &["cni-suite"],
    targets: &["--example=measure", "--example=bare"],
    programs: &["measure", "bare"],
};

/// What people have to install when a build fails like this.
const REMEDIES: [(&str, &str); 4] = [
    ("can't find crate for `std`", "type: rustup target add TARGET"),
    ("linker `cc` not found", "install a C compiler (Debian: apt-get install gcc libc6-dev)"),
    ("cannot find -lc", "install the static C library (Debian: libc6-dev; Fedora: glibc-static)"),
    ("cannot find -lm", "install the static C library (Debian: libc6-dev; Fedora: glibc-static)"),
];

/// The workspace's root folder.
pub(crate) fn workspace() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask has no parent folder")?.to_owned())
}

/// Cargo, in the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    Ok(command)
}

/// The build folder.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let output = cargo()?.args(["metadata", "--no-deps", "--format-version", "1"]).output();
    let output = output.context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let folder = metadata.get("target_directory").and_then(Value::as_str);
    Ok(folder.context("cargo metadata names no target folder")?.into())
}

/// Builds all programs and puts them into one folder.
pub(crate) fn programs(progress: &Progress) -> Result<Programs> {
    let folder = target_folder()?.join("programs");
    build(progress, Architecture::Amd64, &[CNI, NODE], &folder)?;
    Ok(Programs::at(folder))
}

/// Builds the CNI programs alone, into the same folder.
pub(crate) fn cni_programs(progress: &Progress) -> Result<PathBuf> {
    let folder = target_folder()?.join("programs");
    build(progress, Architecture::Amd64, &[CNI], &folder)?;
    Ok(folder)
}

/// Builds the CNI programs and the VM's init, into the same folder.
pub(crate) fn cni_programs_and_guest(progress: &Progress) -> Result<Programs> {
    let folder = target_folder()?.join("programs");
    build(progress, Architecture::Amd64, &[CNI, GUEST], &folder)?;
    Ok(Programs::at(folder))
}

/// Builds `measure`, which measures ADD and DEL, and `bare`, which it measures beside them, into a folder.
pub(crate) fn measure(progress: &Progress, folder: &Path) -> Result<()> {
    build(progress, Architecture::Amd64, &[MEASURE], folder)
}

/// Builds what goes into the image: the folder with the programs.
pub(crate) fn for_image(progress: &Progress, architecture: Architecture) -> Result<PathBuf> {
    if architecture == Architecture::Amd64 {
        return Ok(programs(progress)?.folder);
    }
    let folder = target_folder()?.join("programs").join(architecture.name());
    build(progress, architecture, &calls(architecture), &folder)?;
    Ok(folder)
}

/// The calls that build what goes into the image.
pub(crate) fn calls(architecture: Architecture) -> [Call; 2] {
    match architecture {
        // The same as for the tests: they try what is shipped.
        Architecture::Amd64 => [CNI, NODE],
        Architecture::Arm64 => [CNI, AGENT],
    }
}

fn build(progress: &Progress, architecture: Architecture, calls: &[Call], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for call in calls {
        let step = match architecture {
            Architecture::Amd64 => progress.step(call.title),
            Architecture::Arm64 => progress.step(&format!("{} for arm64", call.title)),
        };
        let built = run(&step, architecture, call)?;
        let mut sizes = Vec::new();
        for (name, path) in &built {
            if call.targets.is_empty() && has_faults(path)? {
                bail!("{name} was built with the feature faults of crates/linux, which is for tests alone");
            }
            let size = install(path, &folder.join(name))?;
            sizes.push(format!("{name} {}.{} MB", size / 1_000_000, size / 100_000 % 10));
        }
        step.done(&sizes.join(", "));
    }
    Ok(())
}

fn run(step: &Step, architecture: Architecture, call: &Call) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo()?;
    command.args(["build", "--profile", call.profile, "--target", architecture.target()]);
    command.args(["--message-format", "json-render-diagnostics"]).args(call.targets);
    call.packages.iter().for_each(|package| {
        command.args(["--package", package]);
    });
    architecture.tell(&mut command);
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags(architecture, call)?.join("\u{1f}"));
    let output = step.run(&mut command).map_err(|error| match remedy(&error.to_string(), architecture) {
        Some(remedy) => error.context(remedy),
        None => error,
    })?;
    let mut built = Vec::new();
    for message in output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let executable = message.get("executable").and_then(Value::as_str);
        let name = message.pointer("/target/name").and_then(Value::as_str);
        if let (Some(path), Some(name)) = (executable, name) {
            built.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    match call.programs.iter().find(|program| !built.iter().any(|(name, _)| name == *program)) {
        Some(program) => bail!("cargo built no program {program}"),
        None => Ok(built),
    }
}

/// The caller's flags, static linking, and no path of this machine in what panics say.
fn flags(architecture: Architecture, call: &Call) -> Result<Vec<String>> {
    let own = env::var("RUSTFLAGS").unwrap_or_default();
    let mut flags: Vec<String> = own.split_whitespace().map(str::to_owned).collect();
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    // What lives for milliseconds is at a fixed place, as Go's static programs are. At a random one addresses have to be written all over it
    // before main: a fifth of the time that VERSION takes, and four fifths where an emulated VM translates all code anew at each place.
    if call.profile == CNI.profile {
        flags.push("-Crelocation-model=static".to_owned());
    } else if architecture == Architecture::Amd64 && libc_unpacks_relocations() {
        // The agent stays where nobody can guess. Its list of what is to be relocated is read once, and would be resident for ever: 0.6 MB.
        flags.push("-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned());
    }
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    if let Some(cargo) = cargo {
        flags.push(format!("--remap-path-prefix={}=/cargo", cargo.display()));
    }
    flags.push(format!("--remap-path-prefix={}=/virtnet", workspace()?.display()));
    Ok(flags)
}

/// Whether static programs relocate themselves by a packed list (DT_RELR): the C library that is linked into them does so from glibc 2.36 on.
fn libc_unpacks_relocations() -> bool {
    let Ok(output) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    is_glibc_2_36(&String::from_utf8_lossy(&output.stdout))
}

/// Whether `glibc 2.36`, as getconf(1) says it, is that or later.
fn is_glibc_2_36(text: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    let version = text.trim().strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    version
        .and_then(|(major, minor)| Some((number(major)?, number(minor)?)))
        .is_some_and(|version| version >= (2, 36))
}

/// Whether a program's steps can be made to fail from outside: it has the name of the variable that asks for it.
fn has_faults(program: &Path) -> Result<bool> {
    let contents = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // What comes behind each V.
    Ok(contents.split(|byte| *byte == b'V').any(|rest| rest.starts_with(b"IRTNET_FAULT")))
}

fn remedy(error: &str, architecture: Architecture) -> Option<anyhow::Error> {
    let found = REMEDIES.iter().find(|(symptom, _)| error.contains(symptom));
    found.map(|(_, remedy)| anyhow!("{}", remedy.replace("TARGET", architecture.target())))
}

/// Copies a program if it is new, and gives its size. The copy is complete under its name at once: a VM may be running the old one.
fn install(from: &Path, to: &Path) -> Result<u64> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let contents = read(from)?;
    if !to.exists() || read(to)? != contents {
        // Of our own, since another xtask may be at the same.
        let staged = to.with_extension(format!("{}.new", std::process::id()));
        fs::copy(from, &staged).with_context(|| format!("cannot write {}", staged.display()))?;
        fs::rename(&staged, to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(u64::try_from(contents.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relocations_are_packed_where_the_c_library_is_known_to_unpack_them() {
        for (text, known) in [
            ("glibc 2.36\n", true),
            ("glibc 2.41\n", true),
            ("glibc 2.35\n", false),
            ("undefined\n", false),
            ("", false),
        ] {
            assert_eq!(is_glibc_2_36(text), known, "{text}");
        }
    }

    #[test]
    fn a_program_whose_steps_can_be_made_to_fail_is_known_by_the_variable() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        for (contents, faults) in
            [(&b"\x7fELF\0VVIRTNET_FAULT\0"[..], true), (b"\x7fELF VIRTNET_LIBRARIES V", false), (b"", false)]
        {
            fs::write(&program, contents).unwrap();
            assert_eq!(has_faults(&program).unwrap(), faults);
        }
    }
}
