//! Images for a node that reaches no registry: made here, put into containerd under the names that the manifests and containerd ask for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use vm::Programs;

use crate::image::{Image, Layer, virtnet};

/// The sandbox's image: a program that does nothing.
pub(super) const PAUSE: &str = "localhost/pause:1";

/// What the example pods name. Ours has ethtool besides, which shows what a NIC is.
const BUSYBOX: &str = "docker.io/library/busybox:stable";

/// Writes all images as archives into `folder`, made from the unpacked packages in `root` and our own programs.
pub(super) fn write(folder: &Path, root: &Path, programs: &Programs) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let images = [
        ("pause.tar", pause(root)?),
        ("busybox.tar", busybox(root)?),
        ("virtnet.tar", virtnet::image(programs)?),
    ];
    let mut paths = Vec::new();
    for (file, image) in images {
        let path = folder.join(file);
        image.write(&path)?;
        paths.push(path);
    }
    Ok(paths)
}

fn pause(root: &Path) -> Result<Image> {
    let mut layer = Layer::default();
    layer.copy("/bin/busybox", 0o755, &root.join("bin/busybox"))?;
    // As long as 32 bits can say.
    let entrypoint = ["/bin/busybox", "sleep", "2147483647"].map(str::to_owned).to_vec();
    Ok(Image { name: PAUSE.to_owned(), layers: vec![layer], entrypoint, ..Image::default() })
}

fn busybox(root: &Path) -> Result<Image> {
    let program = root.join("bin/busybox");
    let mut layer = Layer::default();
    layer.copy("/bin/busybox", 0o755, &program)?;
    let output = Command::new(&program).arg("--list-full").output().context("cannot run busybox")?;
    for applet in String::from_utf8_lossy(&output.stdout).lines().filter(|path| *path != "bin/busybox") {
        layer.symlink(applet, "/bin/busybox");
    }
    let ethtool = root.join("usr/sbin/ethtool");
    layer.copy("/usr/sbin/ethtool", 0o755, &ethtool)?;
    for (path, source) in libraries(root, &ethtool)? {
        layer.copy(path, 0o755, &source)?;
    }
    layer.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    layer.file("/etc/group", 0o644, b"root:x:0:\n").folder("/tmp", 0o1777).folder("/root", 0o700);
    Ok(Image {
        name: BUSYBOX.to_owned(),
        layers: vec![layer],
        environment: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        ..Image::default()
    })
}

/// The shared libraries that a program loads: where it looks for them, and where they are here.
fn libraries(root: &Path, program: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let own = root.join("usr/lib/x86_64-linux-gnu");
    let output = Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", &own).output();
    let output = output.context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = loaded(&text);
    if !output.status.success() || found.is_empty() || text.contains("not found") {
        bail!("{} does not find its libraries:\n{text}", program.display());
    }
    let places = found.into_iter().map(|path| match path.strip_prefix(&own) {
        Ok(name) => (Path::new("/usr/lib/x86_64-linux-gnu").join(name), path),
        Err(_) => (path.clone(), path),
    });
    Ok(places.collect())
}

/// The paths in ldd's output: `name => /path (address)`, or `/path (address)` for the loader.
fn loaded(text: &str) -> Vec<PathBuf> {
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = [
            PathBuf::from("/lib/x86_64-linux-gnu/libmnl.so.0"),
            PathBuf::from("/lib64/ld-linux-x86-64.so.2"),
        ];
        assert_eq!(loaded(text), paths);
    }
}
