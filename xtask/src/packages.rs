//! What the project needs from outside of Rust: QEMU, a kernel and a few tools.
//!
//! What is installed and new enough is used. On Debian and its children the rest is fetched as packages and unpacked into the
//! build folder, without root and without installing anything; elsewhere the error says what to install.

mod apt;
mod host;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use vm::Debian;

use crate::build;
use crate::progress::{Progress, Step};

pub(crate) use self::host::finds;

/// Raised when what is made from packages changes.
const FORMAT: u32 = 1;

/// A need, and the package that has it.
pub(crate) struct Need {
    /// Any of these files, below one of the folders where programs are; or an absolute path.
    files: &'static [&'static str],
    /// Oldest version that will do, as `--version` says it.
    version: Option<(u32, u32)>,
    /// Package of Debian, and of others: Fedora, Arch, openSUSE.
    pub(crate) debian: &'static str,
    pub(crate) others: [&'static str; 3],
}

const QEMU: &str = "qemu-system-x86_64";

/// Everything that we need besides the kernel.
pub(crate) const NEEDS: [Need; 6] = [
    Need {
        files: &[QEMU],
        version: Some((7, 2)),
        debian: "qemu-system-x86",
        others: ["qemu-system-x86-core", "qemu-system-x86", "qemu-x86"],
    },
    Need { files: &["ip"], version: None, debian: "iproute2", others: ["iproute", "iproute2", "iproute2"] },
    Need { files: &["ethtool"], version: None, debian: "ethtool", others: ["ethtool"; 3] },
    Need { files: &["ping"], version: None, debian: "iputils-ping", others: ["iputils"; 3] },
    Need { files: &["xz"], version: None, debian: "xz-utils", others: ["xz"; 3] },
    Need {
        files: &["/usr/lib/cni/host-local", "/usr/libexec/cni/host-local"],
        version: None,
        debian: "containernetworking-plugins",
        others: ["containernetworking-plugins", "cni-plugins", "cni-plugins"],
    },
];

/// The description that [`vm::Debian::load`] reads, for `folder` as [`ensure`] filled it.
pub(crate) fn description(folder: &Path) -> PathBuf {
    folder.join("debian.json")
}

/// Finds or fetches everything; quick when that was done before.
pub(crate) fn ensure(progress: &Progress) -> Result<Debian> {
    let folder = build::target_folder()?.join("debian");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context("cannot make the lock file")?;
    lock.lock().context("cannot wait for another xtask")?;

    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !host::has(need)).collect();
    let kernel = host::kernel();
    let apt = host::finds("apt-get").is_some() && host::finds("dpkg-deb").is_some();
    if !apt && (!missing.is_empty() || kernel.is_none()) {
        bail!("{}", host::what_to_install(&missing, kernel.is_none()));
    }

    let names: Vec<&str> = missing.iter().map(|need| need.debian).collect();
    let stamp =
        json!({ "format": FORMAT, "packages": names, "kernel": if apt { None } else { kernel.clone() } });
    if let Some(debian) = made_before(&folder, &stamp) {
        return Ok(debian);
    }
    let root = folder.join("root");
    if apt {
        apt::unpack(progress, &folder, &names, apt::Kernel::Wanted)?;
    } else {
        fs::create_dir_all(&root).context("cannot make a folder")?;
    }
    let step = progress.step("Prepare QEMU and the kernel");
    let debian = describe(&step, &folder, &missing, kernel)?;
    let check = check_qemu(&debian)?;
    write_json(&description(&folder), &serde_json::to_value(&debian)?)?;
    write_json(&folder.join("stamp.json"), &stamp)?;
    step.done(&format!("{check}, Linux {}", debian.release));
    Ok(debian)
}

/// What the real node runs besides Kubernetes: program and package. Always the packages, installed or not: what is installed belongs to
/// the machine's own node.
const CONTAINERS: [(&str, &str); 4] = [
    ("usr/bin/containerd", "containerd"),
    ("usr/sbin/runc", "runc"),
    ("bin/busybox", "busybox-static"),
    ("usr/sbin/ethtool", "ethtool"),
];

/// Finds or fetches containerd, runc and what the pods' images are made of; gives the folder in which they are as if installed.
pub(crate) fn containers(progress: &Progress, folder: &Path) -> Result<PathBuf> {
    let (root, stamp) = (folder.join("root"), folder.join("stamp.json"));
    let names = CONTAINERS.map(|(_, package)| package);
    let wanted = json!({ "format": FORMAT, "packages": names });
    let made = fs::read(&stamp).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if made.as_ref() == Some(&wanted) && CONTAINERS.iter().all(|(program, _)| root.join(program).is_file()) {
        return Ok(root);
    }
    if host::finds("apt-get").is_none() || host::finds("dpkg-deb").is_none() {
        bail!(
            "containerd and runc are taken from Debian's packages, and this is no Debian: apt-get and dpkg-deb are missing"
        );
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    apt::unpack(progress, folder, &names, apt::Kernel::NotWanted)?;
    write_json(&stamp, &wanted)?;
    Ok(root)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

fn made_before(folder: &Path, stamp: &Value) -> Option<Debian> {
    let made: Value = serde_json::from_slice(&fs::read(folder.join("stamp.json")).ok()?).ok()?;
    let debian = Debian::read(&description(folder)).ok()?;
    let complete = debian.vmlinux.is_file() && debian.qemu.is_file() && debian.index.is_file();
    // The build folder may have been moved.
    (made == *stamp && complete && debian.folder == folder).then_some(debian)
}

/// Where everything is, after making the ELF kernel and the index of its modules.
fn describe(step: &Step, folder: &Path, missing: &[&Need], kernel: Option<host::Kernel>) -> Result<Debian> {
    let root = folder.join("root");
    let unpacked = |program: &str| root.join("usr/bin").join(program);
    let lacks = |debian: &str| missing.iter().any(|need| need.debian == debian);
    let library = root.join("usr/lib/x86_64-linux-gnu");
    let own_qemu = lacks("qemu-system-x86");
    let kernel = match host::kernel_below(&root) {
        Some(kernel) => kernel,
        None => kernel.context("the packages hold no kernel")?,
    };
    let installed = host::finds(QEMU);
    let index = root.join("usr/lib/modules").join(&kernel.release);
    fs::create_dir_all(&index).with_context(|| format!("cannot make {}", index.display()))?;
    let debian = Debian {
        qemu: if own_qemu { unpacked(QEMU) } else { installed.context("QEMU has gone")? },
        firmware: if own_qemu {
            ["usr/share/qemu", "usr/share/seabios"].iter().map(|path| root.join(path)).collect()
        } else {
            Vec::new()
        },
        qemu_modules: own_qemu.then(|| library.join("qemu")),
        libraries: if library.is_dir() { vec![library] } else { Vec::new() },
        vmlinux: folder.join("vmlinux"),
        release: kernel.release,
        // The index lies where the guest finds it: below the folder that is laid over its root.
        index: index.join(vm::INDEX_FILE),
        modules: kernel.modules,
        cni_plugins: host::cni_plugins(&root),
        folder: folder.to_owned(),
    };
    step.note("kernel");
    vm::extract_kernel(&kernel.image, &debian.vmlinux, &debian.host_path())?;
    step.note("index of its modules");
    vm::index_modules(&debian.modules, &debian.index, &debian.host_path())?;
    Ok(debian)
}

/// Runs QEMU once: a shared library that is missing shows here, with its name, and not as a VM that does not boot.
fn check_qemu(debian: &Debian) -> Result<String> {
    let mut command = Command::new(&debian.qemu);
    command.arg("--version");
    if let Some(libraries) = debian.host_libraries() {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command.output().with_context(|| format!("cannot run {}", debian.qemu.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match host::version(&text) {
        Some(found) if found >= (7, 2) => Ok(format!("QEMU {}.{}", found.0, found.1)),
        Some(found) => {
            bail!("QEMU {}.{} is too old: 7.2 or newer is needed (Debian 12 or newer)", found.0, found.1)
        }
        None => bail!("{} does not run: {}", debian.qemu.display(), String::from_utf8_lossy(&output.stderr)),
    }
}
