//! Plugins as shell scripts in a folder of their own, for the tests of this crate.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::SearchPath;

pub(crate) struct Scripts(tempfile::TempDir);

impl Scripts {
    pub(crate) fn new() -> Self {
        Scripts(tempfile::tempdir().unwrap())
    }

    /// Adds a plugin. The script is on `$0`, so `$0.log` is beside it.
    pub(crate) fn add(&self, name: &str, script: &str) {
        let file = self.file(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn path(&self) -> SearchPath {
        SearchPath::new(self.0.path())
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default()
    }
}
