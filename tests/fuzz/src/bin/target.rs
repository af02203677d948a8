//! One target under libFuzzer; `FUZZ_TARGET` names it. With `FUZZ_PLANT` instead it writes the seeds of all targets into that folder, and ends.
#![no_main]

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

use fuzz::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        if let Some(corpus) = std::env::var_os("FUZZ_PLANT") {
            match fuzz::plant(Path::new(&corpus)) {
                Ok(()) => exit(0),
                Err(error) => {
                    eprintln!("cannot write seeds below {}: {error}", Path::new(&corpus).display());
                    exit(1);
                }
            }
        }
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let Some(target) = fuzz::target(&name) else {
            eprintln!("FUZZ_TARGET={name} is no target");
            exit(2);
        };
        // Nobody was here before.
        let _ = TARGET.set(target);
    },
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(bytes);
        }
    }
);
