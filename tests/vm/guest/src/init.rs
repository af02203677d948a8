//! Process 1: loads the drivers, makes the host's root folder the guest's (9p, read-only, below a tmpfs overlay), starts the
//! agent and reaps orphans. When the agent ends, the machine ends: nobody could tell it anything any more.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_move, move_mount, open_tree};
use rustix::process::{WaitOptions, chdir, chroot, wait};
use rustix::system::{RebootCommand, reboot, sethostname};
use vm_guest::boot::{
    MODULE_FOLDER, OWN_FOLDER, PERSIST_FOLDER, PERSIST_TAG, READY_LINE, ROOT_TAG, TOOLS_TAG, Words,
};

use crate::{loopback, modprobe};

pub(crate) fn run() -> ExitCode {
    let done = set_up();
    match done {
        Ok(agent) => reap(agent),
        Err(error) => say(&format!("vm-guest: {error}")),
    }
    // Buffers of the persistent share are written before the machine goes.
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    ExitCode::FAILURE
}

/// The console may be gone with the old root: writing to it must never end process 1, which would be a panic.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Puts what was being done in front of an error; enough for a console line.
fn at<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn set_up() -> io::Result<u32> {
    mount_new("proc", "/proc", "proc", "")?;
    let words = Words::parse(&fs::read_to_string("/proc/cmdline")?);
    if words.probe {
        say(READY_LINE);
        reboot(RebootCommand::Restart)?;
    }
    mount_new("sysfs", "/sys", "sysfs", "")?;
    mount_new("devtmpfs", "/dev", "devtmpfs", "")?;
    for path in fs::read_to_string(format!("{MODULE_FOLDER}/order"))?.lines() {
        at(path, modprobe::load(Path::new(path)))?;
    }
    let own = fs::read("/init")?;
    enter_root(&words)?;
    mount_rest(&words)?;
    install(&own)?;
    at("hostname", sethostname(b"node").map_err(io::Error::from))?;
    at("loopback", loopback::up())?;
    let agent = Command::new(format!("{OWN_FOLDER}/vm-guest")).arg("agent").spawn();
    Ok(at("agent", agent)?.id())
}

fn mount_new(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let options = CString::new(options)?;
    let mounted = mount(source, target, kind, MountFlags::empty(), options.as_c_str());
    at(&format!("mount {kind} at {target}"), mounted.map_err(io::Error::from))
}

fn mount_share(tag: &str, target: &str, options: &str) -> io::Result<()> {
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,access=any,{options}");
    mount_new(tag, target, "9p", &options)
}

/// Overlay of the shares, then `switch_root`.
fn enter_root(words: &Words) -> io::Result<()> {
    mount_share(ROOT_TAG, "/lower/root", "cache=loose,ro")?;
    let mut lower = "/lower/root".to_owned();
    if words.tools {
        mount_share(TOOLS_TAG, "/lower/tools", "cache=loose,ro")?;
        lower = format!("/lower/tools:{lower}");
    }
    mount_new("tmpfs", "/upper", "tmpfs", "mode=755")?;
    fs::create_dir_all("/upper/data")?;
    fs::create_dir_all("/upper/work")?;
    mount_new(
        "overlay",
        "/new",
        "overlay",
        &format!("lowerdir={lower},upperdir=/upper/data,workdir=/upper/work"),
    )?;
    for folder in ["proc", "sys", "dev"] {
        fs::create_dir_all(format!("/new/{folder}"))?;
        mount_move(format!("/{folder}"), format!("/new/{folder}"))?;
    }
    chdir("/new")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn mount_rest(words: &Words) -> io::Result<()> {
    // Handles on the folders that the file systems below would hide.
    let kept = words.keep.iter().map(|path| {
        let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        at(&path.display().to_string(), tree.map_err(io::Error::from)).map(|tree| (path, tree))
    });
    let kept: Vec<_> = kept.collect::<io::Result<_>>()?;
    mount_new("tmpfs", "/run", "tmpfs", "mode=755")?;
    mount_new("tmpfs", "/tmp", "tmpfs", "mode=1777")?;
    mount_new("tmpfs", "/dev/shm", "tmpfs", "mode=1777")?;
    mount_new("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666")?;
    mount_new("cgroup2", "/sys/fs/cgroup", "cgroup2", "")?;
    for (path, tree) in kept {
        fs::create_dir_all(path)?;
        at(
            &path.display().to_string(),
            move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(io::Error::from),
        )?;
    }
    if words.persist {
        mount_share(PERSIST_TAG, PERSIST_FOLDER, "cache=none,rw")?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let _ = symlink(target, format!("/dev/{link}"));
    }
    Ok(())
}

/// Keeps our own program where the new root can run it, and makes it the kernel's `modprobe`.
fn install(own: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(OWN_FOLDER)?;
    let program = format!("{OWN_FOLDER}/vm-guest");
    fs::write(&program, own)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let modprobe = format!("{OWN_FOLDER}/modprobe");
    symlink("vm-guest", &modprobe)?;
    fs::write("/proc/sys/kernel/modprobe", &modprobe)?;
    Ok(())
}

/// Waits for every child, our own and adopted ones, until the agent ends.
fn reap(agent: u32) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if u32::try_from(pid.as_raw_pid()) == Ok(agent) => {
                if !status.exited() || status.exit_status() != Some(0) {
                    say(&format!("vm-guest: the agent ended: {status:?}"));
                }
                return;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                say(&format!("vm-guest: wait: {error}"));
                return;
            }
        }
    }
}
