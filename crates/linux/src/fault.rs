//! Steps that can be made to fail, each by itself: whatever this crate asks of the kernel and writes to disk passes through `step`.
//!
//! Only tests have the feature `faults`; without it a step is what it does and nothing else. With it, `VIRTNET_FAULT` says which steps fail,
//! with EIO: `7` is the seventh, which is not done; `7 done` the seventh, which is done all the same, as when the kernel cannot tell its answer,
//! or a disk takes a rename and then fails to sync; `7 on` the seventh and all after it. Each step's name is appended as a line to the file in
//! `VIRTNET_STEPS`.

use std::io;
use std::path::Path;

use rustix::io::Errno;

/// A step that this crate does not do itself: the start of a program.
///
/// # Errors
/// It is to fail.
pub fn before_program(program: &Path) -> io::Result<()> {
    let name = program.file_name().unwrap_or_default();
    step(|| format!("plugin {}: starting it", name.display()), io::Error::from, || Ok(()))
}

#[cfg(not(feature = "faults"))]
pub(crate) fn step<T, E>(
    _name: impl Fn() -> String,
    _error: impl FnOnce(Errno) -> E,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    work()
}

#[cfg(feature = "faults")]
pub(crate) use with_faults::step;

#[cfg(feature = "faults")]
mod with_faults {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Errno;

    static PLAN: LazyLock<Option<Plan>> = LazyLock::new(Plan::read);
    static STEPS: AtomicU32 = AtomicU32::new(0);

    struct Plan {
        number: u32,
        how: How,
    }

    enum How {
        NotDone,
        Done,
        AndAllAfter,
    }

    impl Plan {
        fn read() -> Option<Plan> {
            let text = std::env::var("VIRTNET_FAULT").ok()?;
            let (number, how) = text.split_once(' ').unwrap_or((&text, ""));
            let how = match how {
                "done" => How::Done,
                "on" => How::AndAllAfter,
                _ => How::NotDone,
            };
            Some(Plan { number: number.parse().ok()?, how })
        }
    }

    pub(crate) fn step<T, E>(
        name: impl Fn() -> String,
        error: impl FnOnce(Errno) -> E,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let number = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
        note(&name);
        match &*PLAN {
            Some(Plan { number: planned, how: How::NotDone }) if number == *planned => Err(error(Errno::IO)),
            Some(Plan { number: planned, how: How::AndAllAfter }) if number >= *planned => {
                Err(error(Errno::IO))
            }
            Some(Plan { number: planned, how: How::Done }) if number == *planned => {
                work().and_then(|_| Err(error(Errno::IO)))
            }
            _ => work(),
        }
    }

    fn note(name: &impl Fn() -> String) {
        use std::io::Write;
        let Some(path) = std::env::var_os("VIRTNET_STEPS") else { return };
        if let Ok(mut file) = std::fs::File::options().append(true).create(true).open(path) {
            let _ = writeln!(file, "{}", name());
        }
    }
}
