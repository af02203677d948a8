//! Debian packages without installing them: resolve, fetch, unpack. Works as any user.
//!
//! What a package needs is resolved as if nothing were installed, and what is installed is then left out. So it does not matter
//! what apt would have to remove or upgrade here. Package lists come from the machine; where they are missing or out of date, fresh
//! ones are fetched into a folder of our own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::progress::{Progress, Step};

/// Packages that bring a kernel: Debian's, Ubuntu's. Only they are unpacked, not what would boot them (initramfs-tools, ...).
const KERNELS: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];
const KERNEL_PARTS: [&str; 2] = ["linux-image-", "linux-modules-"];

/// Parts of packages that nothing here uses and that take most of the room.
const LEFT_OUT: [&str; 9] = [
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./boot/System.map-*",
    "./lib/modules/*/kernel/sound",
    "./lib/modules/*/kernel/drivers/gpu",
    "./lib/modules/*/kernel/drivers/media",
    "./usr/lib/modules/*/kernel/drivers/gpu",
    "./usr/lib/modules/*/kernel/sound",
];

/// apt with folders of our own, so that it needs no right to write anywhere else.
struct Apt {
    folder: PathBuf,
    own_lists: bool,
}

impl Apt {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        option("Dir::Cache", &self.folder.join("cache").display().to_string());
        option("Dir::State::status", &self.folder.join("status").display().to_string());
        // Root's apt would use another user for downloads, who may not enter the build folder.
        option("APT::Sandbox::User", "root");
        if self.own_lists {
            option("Dir::State::lists", &self.folder.join("lists").display().to_string());
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// Whether a kernel comes with the packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Wanted,
    NotWanted,
}

/// Unpacks `wanted`, a kernel if it is, and all that they need into `folder/root`, which is replaced as a whole.
pub(super) fn unpack(progress: &Progress, folder: &Path, wanted: &[&str], kernel: Kernel) -> Result<()> {
    let own = folder.join("apt");
    for part in ["cache/archives/partial", "lists/partial"] {
        fs::create_dir_all(own.join(part)).context("cannot make a folder for apt")?;
    }
    fs::write(own.join("status"), "").context("cannot write for apt")?;
    let mut apt = Apt { folder: own, own_lists: false };

    let debs = match fetch(progress, &apt, wanted, kernel) {
        Ok(debs) => debs,
        Err(first) => {
            apt.own_lists = true;
            let step = progress.step("Fetch fresh lists of packages");
            // Another source of this machine may be out of reach; what counts is whether the packages can be had.
            let update = step.run(apt.command("apt-get").arg("update"));
            if update.is_ok() {
                step.done("");
            }
            fetch(progress, &apt, wanted, kernel).map_err(|second| {
                let mut packages = wanted.to_vec();
                if kernel == Kernel::Wanted {
                    packages.extend(KERNELS.first());
                }
                let packages = packages.join(" ");
                let advice = format!(
                    "the packages cannot be fetched; check the network and /etc/apt, or type as root:\n  \
                     apt-get update && apt-get install --no-install-recommends {packages}"
                );
                let mut text = format!("{advice}\nwith this machine's lists: {}", first_lines(&first));
                if let Err(error) = &update {
                    text.push_str(&format!("\nfresh lists: {}", first_lines(error)));
                }
                second.context(text)
            })?
        }
    };
    let step = progress.step("Unpack packages");
    extract(&step, folder, &debs)?;
    fs::remove_dir_all(&apt.folder).context("cannot remove apt's folder")?;
    step.done(&format!("{} packages", debs.len()));
    Ok(())
}

/// The beginning of an error: apt repeats itself for every package.
fn first_lines(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().take(4).collect::<Vec<_>>().join("\n")
}

/// Downloads all packages and gives their files.
fn fetch(progress: &Progress, apt: &Apt, wanted: &[&str], kernel: Kernel) -> Result<Vec<PathBuf>> {
    let step = progress.step("Fetch packages");
    match fetch_in(&step, apt, wanted, kernel) {
        Ok(debs) => {
            let bytes: u64 = debs.iter().filter_map(|path| path.metadata().ok()).map(|data| data.len()).sum();
            step.done(&format!("{} packages, {} MB", debs.len(), bytes / 1_000_000));
            Ok(debs)
        }
        // There is a second try.
        Err(error) if !apt.own_lists => {
            step.gave_up("not with this machine's lists of packages");
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn fetch_in(step: &Step, apt: &Apt, wanted: &[&str], kernel: Kernel) -> Result<Vec<PathBuf>> {
    step.note("what is needed");
    let installed = installed(step)?;
    let mut packages: BTreeSet<String> = BTreeSet::new();
    if !wanted.is_empty() {
        let mut simulate = apt.command("apt-get");
        simulate.args(["install", "--simulate", "--no-install-recommends"]).args(wanted);
        packages.extend(
            to_install(&step.run(&mut simulate)?).into_iter().filter(|name| !installed.contains(name)),
        );
        // Wanted although installed: too old.
        packages.extend(wanted.iter().map(|name| (*name).to_owned()));
    }
    if kernel == Kernel::Wanted {
        packages.extend(kernel_packages(step, apt)?);
    }

    let folder = apt.folder.join("debs");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove an old download")?;
    }
    fs::create_dir_all(&folder).context("cannot make a folder for packages")?;
    step.note(&format!("{} packages", packages.len()));
    step.run(apt.command("apt-get").arg("download").args(&packages).current_dir(&folder))?;
    let entries = fs::read_dir(&folder).context("cannot read the download")?;
    let mut debs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    debs.sort();
    if debs.len() < packages.len() {
        bail!("apt-get download left {} of {} packages out", packages.len() - debs.len(), packages.len());
    }
    Ok(debs)
}

/// Names of installed packages.
fn installed(step: &Step) -> Result<BTreeSet<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Abbrev}${Package}\\n"]);
    let list = step.run(&mut query)?;
    Ok(list.lines().filter_map(|line| line.strip_prefix("ii ")).map(str::to_owned).collect())
}

/// Names in a simulation's lines `Inst NAME (VERSION ...`.
fn to_install(simulation: &str) -> Vec<String> {
    let names = simulation.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_owned).collect()
}

/// The packages of the newest kernel.
fn kernel_packages(step: &Step, apt: &Apt) -> Result<BTreeSet<String>> {
    let mut parts = BTreeSet::new();
    let mut open: Vec<String> = KERNELS.iter().map(|name| (*name).to_owned()).collect();
    while let Some(name) = open.pop() {
        // One of the two is unknown everywhere, which is an error of apt-cache.
        let Ok(list) = step.run(apt.command("apt-cache").arg("depends").arg(&name)) else { continue };
        let needed = kernel_parts(&list);
        open.extend(needed.iter().filter(|part| !parts.contains(*part)).cloned());
        parts.extend(needed);
    }
    if parts.is_empty() {
        bail!("no package called {}", KERNELS.join(" or "));
    }
    Ok(parts)
}

/// Names of kernel packages in `apt-cache depends`; alternatives (`|Depends`) are other flavours.
fn kernel_parts(list: &str) -> Vec<String> {
    let depends = list.lines().filter_map(|line| line.trim_start().strip_prefix("Depends: "));
    let parts = depends.filter(|name| KERNEL_PARTS.iter().any(|prefix| name.starts_with(prefix)));
    parts.map(str::to_owned).collect()
}

/// Unpacks into a new `root`, with /bin, /sbin and /lib as in an installed system: links into /usr. The guest has this folder laid over its
/// root, where a real /bin would hide the installed one.
fn extract(step: &Step, folder: &Path, debs: &[PathBuf]) -> Result<()> {
    let (root, staged) = (folder.join("root"), folder.join("root.new"));
    if staged.exists() {
        fs::remove_dir_all(&staged).context("cannot remove a half-unpacked folder")?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(staged.join("usr").join(name)).context("cannot make a folder")?;
        symlink(format!("usr/{name}"), staged.join(name)).context("cannot make a link")?;
    }
    for deb in debs {
        step.note(&deb.file_name().unwrap_or_default().to_string_lossy());
        // `dpkg-deb --extract` would put a folder in place of such a link.
        let mut command = Command::new("sh");
        command.args(["-c", "dpkg-deb --fsys-tarfile \"$1\" | { shift; exec tar \"$@\"; }", "sh"]).arg(deb);
        command
            .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"])
            .arg(&staged);
        command.args(LEFT_OUT.iter().map(|pattern| format!("--exclude={pattern}")));
        step.run(&mut command)?;
    }
    if root.exists() {
        fs::remove_dir_all(&root).context("cannot remove the old unpacked packages")?;
    }
    fs::rename(&staged, &root).context("cannot move the unpacked packages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_names_what_would_be_installed() {
        let text = "Reading package lists...\nInst libslirp0 (4.7.0-1 Debian:12 [amd64])\nConf libslirp0 (4.7.0-1)\n\
                    Inst qemu-system-x86 [1:7.1] (1:7.2 Debian:12 [amd64])\n";
        assert_eq!(to_install(text), ["libslirp0", "qemu-system-x86"]);
    }

    #[test]
    fn kernel_packages_are_those_with_the_image_and_the_modules() {
        let debian = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Recommends: firmware\n";
        assert_eq!(kernel_parts(debian), ["linux-image-6.1.0-56-amd64"]);
        let ubuntu =
            "linux-image-6.8.0-1\n  Depends: kmod\n  Depends: linux-modules-6.8.0-1\n |Depends: grub-pc\n";
        assert_eq!(kernel_parts(ubuntu), ["linux-modules-6.8.0-1"]);
    }
}
