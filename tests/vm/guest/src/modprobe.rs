//! Loads kernel modules by name or alias, as the kernel and people ask for them: `modprobe [-q] [--] NAME...`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;
use rustix::system::{finit_module, uname};
use vm_guest::modules::{INDEX_FILE, Index};

/// include/uapi/linux/module.h: the file is compressed, the kernel unpacks it.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let quiet = arguments.iter().any(|word| word == "-q");
    let names = arguments.iter().filter(|word| !word.starts_with('-'));
    let folder = format!("/usr/lib/modules/{}", uname().release().to_string_lossy());
    let index = match fs::read_to_string(format!("{folder}/{INDEX_FILE}")) {
        Ok(text) => Index::parse(&text),
        Err(error) => {
            eprintln!("modprobe: {folder}/{INDEX_FILE}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let order = index.load_order(name);
        if order.is_empty() {
            // Built into the kernel, or unknown.
            if !Path::new("/sys/module").join(name.replace('-', "_")).exists() {
                if !quiet {
                    eprintln!("modprobe: no module {name}");
                }
                code = ExitCode::FAILURE;
            }
        }
        for module in order {
            let path = format!("{folder}/{}", module.path);
            if let Err(error) = load(Path::new(&path)) {
                eprintln!("modprobe: {path}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Loads one module whose dependencies are there. One that is loaded already is fine.
pub(crate) fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = if path.extension().is_some_and(|extension| extension == "ko") {
        0
    } else {
        MODULE_INIT_COMPRESSED_FILE
    };
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
