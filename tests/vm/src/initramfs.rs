//! The initial RAM disk: our init and the modules that it needs before it can reach any other file, in the order to load them.

use std::fs;
use std::path::Path;

use vm_guest::boot::MODULE_FOLDER;
use vm_guest::modules::Index;

use crate::debian::Debian;
use crate::error::{Error, file};
use crate::kernel::unpacked;

/// Loaded before anything else; all others are loaded when somebody asks for them.
const BOOT_MODULES: [&str; 7] =
    ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_net", "e1000"];

/// Makes the RAM disk for the kernel of `debian`, with the program `init`.
pub(crate) fn build(init: &Path, debian: &Debian) -> Result<Vec<u8>, Error> {
    let Debian { modules, index, .. } = debian;
    let search = debian.host_path();
    let index = Index::parse(&fs::read_to_string(index).map_err(file("read", index))?);
    let mut archive = Archive::default();
    archive.add("init", 0o100_755, &fs::read(init).map_err(file("read", init))?);
    let folder = MODULE_FOLDER.trim_start_matches('/');
    archive.add(folder, 0o40_755, &[]);
    let mut order: Vec<String> = Vec::new();
    for name in BOOT_MODULES {
        // One that is not there is built into the kernel, or the guest's first steps will tell.
        for module in index.load_order(name) {
            let target = format!("{MODULE_FOLDER}/{}.ko", module.name);
            if order.contains(&target) {
                continue;
            }
            archive.add(
                target.trim_start_matches('/'),
                0o100_644,
                &unpacked(&modules.join(&module.path), &search)?,
            );
            order.push(target);
        }
    }
    archive.add(&format!("{folder}/order"), 0o100_644, order.join("\n").as_bytes());
    Ok(archive.finish())
}

/// A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            u32::try_from(contents.len()).unwrap_or(u32::MAX),
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"abcde");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081ed");
        // Header of 110 bytes, name of 5, one byte of padding.
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"abcde");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
