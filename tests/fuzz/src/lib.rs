//! What comes from outside is fed to what reads it: each [`Target`] takes any bytes and panics where a promise is broken.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, which looks for bytes that reach new code. The ordinary tests run each target on its seeds
//! and on some random bytes, so that a target cannot rot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;
use std::{fs, io};

mod cni_input;
mod configuration;
mod devices;
mod kubelet;
mod leases;

/// One thing that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// What `cargo xtask fuzz NAME` calls it.
    pub name: &'static str,
    /// Reads the bytes, and panics if what comes out breaks a promise.
    pub run: fn(&[u8]),
    /// Input that is good, or nearly so: where the fuzzer starts.
    pub seeds: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    configuration::CONFIGURATION,
    devices::UEVENT,
    devices::SYSFS,
    kubelet::CHECKPOINT,
    kubelet::POD_RESOURCES,
    cni_input::NETWORK,
    cni_input::ENVIRONMENT,
    cni_input::ANSWER,
    cni_input::SELECTION,
    leases::LEASE,
    leases::JOURNAL,
];

/// The target with this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// Writes the seeds of each target into a folder of its own below `corpus`.
///
/// # Errors
/// A file cannot be written.
pub fn plant(corpus: &Path) -> io::Result<()> {
    for target in TARGETS {
        let folder = corpus.join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in target.seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_target_takes_its_seeds_and_pieces_of_them() {
        for target in TARGETS {
            assert!(!target.seeds.is_empty(), "{}", target.name);
            for seed in target.seeds {
                // Some write files: a few dozen beginnings of each are enough to tell that the target works.
                for length in (0..seed.len()).step_by(seed.len() / 24 + 1).chain([seed.len()]) {
                    (target.run)(&seed.as_bytes()[..length]);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn every_target_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for target in TARGETS {
                (target.run)(&bytes);
            }
        }
    }
}
