//! Programs that hold a lock for a process that has died ([`Lock::share_with_children`]).

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Error;
use crate::files::Lock;

/// A process with the lock's file open.
struct Holder {
    pid: i32,
    handle: OwnedFd,
    /// Who took the lock that this one holds. The kernel goes on naming a process that has ended.
    taker: Option<i32>,
}

impl Lock {
    /// Ends the programs that hold the lock on `path` although the process that took it, and would have ended them in time, is dead.
    /// Returns how many there were.
    ///
    /// # Errors
    /// [`Error::File`]: there is no such file, or /proc cannot be read.
    pub fn end_orphans(path: &Path) -> Result<usize, Error> {
        let failed = |source| Error::File { step: "find out who holds", path: path.to_owned(), source };
        let holders = fs::metadata(path).and_then(|file| holders(&file)).map_err(failed)?;
        let is_orphan = |holder: &&Holder| {
            holder.taker.is_some_and(|taker| holders.iter().all(|other| other.pid != taker))
        };
        let orphans = holders.iter().filter(is_orphan);
        // One that has ended by itself meanwhile is as good, and is not counted.
        Ok(orphans.filter(|orphan| pidfd_send_signal(&orphan.handle, Signal::KILL).is_ok()).count())
    }
}

fn holders(file: &Metadata) -> io::Result<Vec<Holder>> {
    let mut holders = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = number(&process) else { continue };
        // Opened first: what is read then is of the process that it stands for.
        let handle = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let Some(handle) = handle else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let same = |other: Metadata| (other.dev(), other.ino()) == (file.dev(), file.ino());
            if fs::metadata(descriptor.path()).is_ok_and(same) {
                let facts = process.path().join("fdinfo").join(descriptor.file_name());
                let taker = fs::read_to_string(facts).ok().and_then(|facts| taker(&facts));
                holders.push(Holder { pid, handle, taker });
                break;
            }
        }
    }
    Ok(holders)
}

fn number(process: &DirEntry) -> Option<i32> {
    process.file_name().to_str()?.parse().ok()
}

/// `lock:\t1: FLOCK  ADVISORY  WRITE 3714 fe:00:9977978 0 EOF` of proc_pid_fdinfo(5).
fn taker(facts: &str) -> Option<i32> {
    let mut words = facts.lines().find_map(|line| line.strip_prefix("lock:"))?.split_whitespace();
    words.nth(4)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lock_that_is_shared_with_a_child_is_free_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::acquire(&path, Duration::ZERO).unwrap();
        lock.share_with_children().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(Lock::end_orphans(&path).unwrap(), 0, "who took it lives");
        drop(lock);
        Lock::acquire(&path, Duration::ZERO).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the child has ended");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_child_that_outlives_who_took_the_lock_holds_it_until_it_ends_or_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        // flock(1) is killed while the program that it has started goes on with the lock.
        let mut taker = Command::new("flock").arg(&path).args(["sleep", "1000"]).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", taker.id());
        while fs::read_to_string(&children).unwrap().trim().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let child = fs::read_to_string(&children).unwrap();
        assert_eq!(Lock::end_orphans(&path).unwrap(), 0, "who took it lives");
        taker.kill().unwrap();
        taker.wait().unwrap();
        assert!(matches!(Lock::acquire(&path, Duration::ZERO), Err(Error::Locked { .. })));
        assert_eq!(Lock::end_orphans(&path).unwrap(), 1, "{child}");
        Lock::acquire(&path, Duration::from_secs(30)).unwrap();
    }
}
