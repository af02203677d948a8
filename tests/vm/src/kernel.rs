//! From a distribution's kernel to what the VM boots: the ELF file inside a bzImage (booted by PVH, so that the guest does not
//! spend its first second unpacking itself), and an index of its modules.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use vm_guest::modules::{Index, Module};

use crate::error::{Error, file};

/// Compressed formats of kernels and modules: how they begin, and the program that unpacks them.
const FORMATS: [(&[u8], &[&str]); 4] = [
    (b"\xfd7zXZ\0", &["xz", "-dc", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
    (b"\x1f\x8b\x08", &["gzip", "-dcq"]),
    (b"\x02\x21\x4c\x18", &["lz4", "-dcq"]),
];

const ELF: &[u8] = b"\x7fELF";

/// Extracts the ELF kernel of `image` (a bzImage, or an ELF file already) into the file `target`. `xz` and the like are looked for
/// in `path`.
///
/// # Errors
/// [`Error::Malformed`] for what is not a kernel, [`Error::Host`] when the program that unpacks it is missing.
pub fn extract(image: &Path, target: &Path, path: &str) -> Result<(), Error> {
    let bytes = fs::read(image).map_err(file("read", image))?;
    let elf = if bytes.starts_with(ELF) {
        bytes
    } else {
        let malformed =
            || Error::Malformed { path: image.to_owned(), why: "not a bzImage kernel".to_owned() };
        decompress(payload(&bytes).ok_or_else(malformed)?, image, path)?
    };
    if !elf.starts_with(ELF) {
        let why = "its payload is not an ELF file".to_owned();
        return Err(Error::Malformed { path: image.to_owned(), why });
    }
    fs::write(target, elf).map_err(file("write", target))
}

/// The compressed kernel in a bzImage (Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`, `payload_length`).
fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the unpacked size, which is not part of the compressed stream.
    image.get(start..start + word(0x24c)?)
}

/// A module's contents, unpacked if it is compressed by a program in `search`.
pub(crate) fn unpacked(path: &Path, search: &str) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(file("read", path))?;
    if bytes.starts_with(ELF) { Ok(bytes) } else { decompress(&bytes, path, search) }
}

fn decompress(bytes: &[u8], path: &Path, search: &str) -> Result<Vec<u8>, Error> {
    let found = FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic));
    let Some((_, [program, arguments @ ..])) = found else {
        let why = "compressed in a way that is not known here".to_owned();
        return Err(Error::Malformed { path: path.to_owned(), why });
    };
    let failed = |why: String| Error::Host { program: (*program).to_owned(), why };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", search)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("{error}; it is needed to unpack {}", path.display())))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut output = Vec::new();
    thread::scope(|scope| {
        // The program ends at the end of the compressed stream and does not take what follows it: a write error means nothing.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(bytes)));
        stdout.map(|mut stdout| stdout.read_to_end(&mut output)).transpose()
    })
    .map_err(|error| failed(error.to_string()))?;
    // Its exit code says nothing: gzip and zstd complain about those four bytes after the stream.
    child.wait().map_err(|error| failed(error.to_string()))?;
    if output.is_empty() {
        return Err(failed(format!("it made nothing of {}", path.display())));
    }
    Ok(output)
}

/// Writes the index of all modules below `modules` to `target`; see [`vm_guest::modules`]. Compressed ones are
/// unpacked by programs in `path`.
///
/// # Errors
/// [`Error::File`] for what cannot be read, and the errors of unpacking modules.
pub fn index_modules(modules: &Path, target: &Path, path: &str) -> Result<(), Error> {
    let mut found = Vec::new();
    let mut folders = vec![modules.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(file("read", &folder))? {
            let entry = entry.map_err(file("read", &folder))?;
            let kind = entry.file_type().map_err(file("read", entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                found.push((name, entry.path()));
            }
        }
    }
    found.sort();
    let modules = found.into_iter().map(|(name, file)| describe(name, &file, modules, path));
    let index = Index::new(modules.collect::<Result<_, _>>()?);
    fs::write(target, index.to_text()).map_err(file("write", target))
}

fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn describe(name: String, path: &Path, base: &Path, search: &str) -> Result<Module, Error> {
    let image = unpacked(path, search)?;
    let info = section(&image, ".modinfo").unwrap_or_default();
    let relative = path.strip_prefix(base).unwrap_or(path).display().to_string();
    let mut module = Module { name, path: relative, depends: Vec::new(), aliases: Vec::new() };
    for entry in info.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        match entry.split_once('=') {
            Some(("depends", list)) => {
                module.depends.extend(list.split(',').filter(|item| !item.is_empty()).map(str::to_owned));
            }
            Some(("softdep", list)) => module.depends.extend(soft_dependencies(list)),
            Some(("alias", alias)) if !alias.contains(['*', '?', '[', ' ', ',']) => {
                module.aliases.push(alias.to_owned());
            }
            _ => {}
        }
    }
    Ok(module)
}

/// The names after `pre:` in `pre: a b post: c`.
fn soft_dependencies(list: &str) -> Vec<String> {
    let mut before = false;
    let mut names = Vec::new();
    for word in list.split_ascii_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" => before = false,
            name if before => names.push(name.to_owned()),
            _ => {}
        }
    }
    names
}

/// A section of an ELF64 little-endian file.
fn section<'a>(image: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| (value << 8) | usize::from(*byte)))
    };
    let (table, size) = (number(0x28, 8)?, number(0x3a, 2)?);
    let (count, names) = (number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let contents = |index: usize| {
        let (start, length) = (number(header(index)? + 0x18, 8)?, number(header(index)? + 0x20, 8)?);
        image.get(start..start.checked_add(length)?)
    };
    let names = contents(names)?;
    let found = (0..count).find(|index| {
        let name = header(*index).and_then(|at| number(at, 4)).and_then(|at| names.get(at..));
        name.and_then(|name| name.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    })?;
    contents(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_lies_after_the_setup_sectors() {
        let mut image = vec![0_u8; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&4_u32.to_le_bytes());
        image[1024 + 16..1024 + 20].copy_from_slice(b"DATA");
        assert_eq!(payload(&image), Some(&b"DATA"[..]));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"no kernel"), None);
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("vmlinuz");
        fs::write(&image, "hello").unwrap();
        let error = extract(&image, &folder.path().join("vmlinux"), "/usr/bin:/bin").unwrap_err();
        assert!(error.to_string().contains("vmlinuz: not a bzImage"), "{error}");
    }

    #[test]
    fn a_compressed_module_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ko.gz");
        let script = format!("printf '\\177ELFrest' | gzip > {}", path.display());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        assert_eq!(unpacked(&path, "/usr/bin:/bin").unwrap(), b"\x7fELFrest");
    }

    #[test]
    fn names_of_modules() {
        assert_eq!(module_name(Path::new("/a/vfio-pci.ko.zst")), Some("vfio_pci".to_owned()));
        assert_eq!(module_name(Path::new("/a/modules.order")), None);
        assert_eq!(soft_dependencies("pre: a-b c post: d"), ["a-b", "c"]);
    }
}
