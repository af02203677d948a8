//! What this machine has already, and what to tell its owner to install.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::Need;

/// Folders of programs that are not in everybody's `PATH`.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A kernel for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

/// A program in `PATH` or a system folder.
pub(crate) fn finds(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Whether a need is met by what is installed.
pub(super) fn has(need: &Need) -> bool {
    let Some(path) = need.files.iter().find_map(|name| finds(name)) else { return false };
    let Some(oldest) = need.version else { return true };
    let output = Command::new(path).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    version(&text).is_some_and(|found| found >= oldest)
}

/// The first `N.N` in a text.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    text.split(|char: char| !char.is_ascii_digit() && char != '.').find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        let minor = rest.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// The kernel that is installed and running here, if the guest can use it.
pub(super) fn kernel() -> Option<Kernel> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?.trim().to_owned();
    let modules = PathBuf::from("/usr/lib/modules").join(&release);
    let images = [modules.join("vmlinuz"), PathBuf::from(format!("/boot/vmlinuz-{release}"))];
    let image = images.into_iter().find(|path| fs::File::open(path).is_ok())?;
    modules.join("kernel/fs/9p").is_dir().then_some(Kernel { release, image, modules })
}

/// The kernel that was unpacked below `root`.
pub(super) fn kernel_below(root: &Path) -> Option<Kernel> {
    let boot = root.join("boot");
    fs::read_dir(&boot).ok()?.flatten().find_map(|entry| {
        let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = root.join("usr/lib/modules").join(&release);
        modules.is_dir().then(|| Kernel { release, image: entry.path(), modules })
    })
}

/// Where the guest has the CNI plugins: from the packages below `root`, or where they are installed.
pub(super) fn cni_plugins(root: &Path) -> PathBuf {
    let places = ["/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from);
    let [usual, _] = &places;
    let unpacked = root.join("usr/lib/cni/host-local").is_file();
    let installed = places.iter().find(|folder| folder.join("host-local").is_file());
    if unpacked { usual.clone() } else { installed.unwrap_or(usual).clone() }
}

/// What to type on a distribution whose packages we do not unpack.
pub(super) fn what_to_install(missing: &[&Need], kernel: bool) -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let families: Vec<&str> = release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|list| list.trim_matches('"').split(' '))
        .collect();
    instructions(&families, missing, kernel)
}

fn instructions(families: &[&str], missing: &[&Need], kernel: bool) -> String {
    let known = [
        (&["fedora", "rhel", "centos"][..], "dnf install", "kernel-core kernel-modules"),
        (&["arch"][..], "pacman -S", "linux"),
        (&["suse", "opensuse"][..], "zypper install", "kernel-default"),
    ];
    let family = known.iter().position(|(names, ..)| names.iter().any(|name| families.contains(name)));
    let (command, linux, names): (&str, &str, Vec<&str>) = match family
        .and_then(|at| known.get(at).map(|row| (at, row)))
    {
        Some((at, (_, command, linux))) => {
            (command, linux, missing.iter().filter_map(|need| need.others.get(at).copied()).collect())
        }
        None => {
            ("install (names as in Debian):", "linux-image", missing.iter().map(|need| need.debian).collect())
        }
    };
    let mut text =
        "some programs are missing, and this is not Debian, where they would be fetched.\n".to_owned();
    if !names.is_empty() {
        text.push_str(&format!("  type: {command} {}\n", names.join(" ")));
    }
    if kernel {
        text.push_str(&format!(
            "  a kernel for the VM: {command} {linux}, and run it: the kernel that runs is used, with its modules \
             (9p, overlay, virtio) in /usr/lib/modules; its image must be readable\n"
        ));
    }
    text.push_str("  then try again");
    text
}

#[cfg(test)]
mod tests {
    use super::super::NEEDS;
    use super::*;

    #[test]
    fn versions_as_programs_print_them() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version("no number"), None);
    }

    #[test]
    fn each_family_is_told_its_own_command_and_names() {
        let missing: Vec<&Need> = NEEDS.iter().take(2).collect();
        let fedora = instructions(&["fedora"], &missing, true);
        assert!(fedora.contains("dnf install qemu-system-x86-core iproute\n"), "{fedora}");
        assert!(fedora.contains("dnf install kernel-core"), "{fedora}");
        let other = instructions(&["gentoo"], &missing, false);
        assert!(other.contains("qemu-system-x86 iproute2\n"), "{other}");
        assert!(!other.contains("kernel"), "{other}");
    }

    #[test]
    fn a_program_outside_of_everybodys_path_is_found() {
        assert!(finds("sh").is_some());
        assert!(finds("no-such-program-anywhere").is_none());
    }
}
