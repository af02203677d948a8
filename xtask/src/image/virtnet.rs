//! The project's own image: the static programs, licences, bill of materials, nothing else.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use vm::Programs;

use super::{Image, Layer, crates, licences, spdx, toolchain};
use crate::build::{self, Architecture};

/// Its name, as `image: virtnet:0.1.0` in a manifest means it.
pub(crate) const NAME: &str = concat!("docker.io/library/virtnet:", env!("CARGO_PKG_VERSION"));

/// The programs, and where they are. `virtdp install` takes those that go to the node from the folder of the last two.
pub(super) const PROGRAMS: [(&str, &str); 3] = [
    ("virtdp", "/usr/bin/virtdp"),
    ("ehost-device", "/opt/virtnet/cni/ehost-device"),
    ("virt-meta", "/opt/virtnet/cni/virt-meta"),
];
const LICENCE: &str = "/usr/share/licenses/virtnet/LICENSE";
const THIRD_PARTY: &str = "/usr/share/licenses/virtnet/THIRD-PARTY.txt";
const BILL: &str = "/usr/share/doc/virtnet/virtnet.spdx.json";
const ENTRYPOINT: &str = "/usr/bin/virtdp";
const ENVIRONMENT: &str = "PATH=/usr/bin";

/// What `org.opencontainers.image.*` says of it.
const LABELS: [(&str, &str); 4] = [
    ("org.opencontainers.image.title", "virtnet"),
    ("org.opencontainers.image.description", "Whole virtual NICs of a VM for Kubernetes pods"),
    ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
    ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
];

/// What comes with the programs.
pub(super) struct Papers {
    pub(super) bill: Value,
    pub(super) third_party: String,
}

impl Papers {
    /// For the programs as they are built for this architecture.
    ///
    /// # Errors
    /// When cargo or a compiler does not say what is linked, or something may not be shipped.
    pub(super) fn of(architecture: Architecture) -> Result<Self> {
        let linked = crates::linked(architecture)?;
        let parts = toolchain::parts(architecture)?;
        let third_party = licences::texts(&linked, &parts)?;
        Ok(Self { bill: spdx::document(architecture, &linked, &parts), third_party })
    }

    /// The bill as it is written to files.
    pub(super) fn bill_text(&self) -> String {
        format!("{:#}\n", self.bill)
    }
}

/// The image with these programs, which are for amd64. It works on a read-only root and needs no folder of its own.
///
/// # Errors
/// When a program or a licence cannot be read.
pub(crate) fn image(programs: &Programs) -> Result<Image> {
    of(Architecture::Amd64, &programs.folder, &Papers::of(Architecture::Amd64)?)
}

/// The image with the programs in a folder.
pub(super) fn of(architecture: Architecture, folder: &Path, papers: &Papers) -> Result<Image> {
    let mut layer = Layer::default();
    for (name, path) in PROGRAMS {
        layer.copy(path, 0o755, &folder.join(name))?;
    }
    layer.copy(LICENCE, 0o644, &build::workspace()?.join("LICENSE"))?;
    layer.file(THIRD_PARTY, 0o644, papers.third_party.as_bytes());
    layer.file(BILL, 0o644, papers.bill_text().as_bytes());
    Ok(Image {
        name: NAME.to_owned(),
        architecture,
        layers: vec![layer],
        entrypoint: vec![ENTRYPOINT.to_owned()],
        environment: vec![ENVIRONMENT.to_owned()],
        labels: LABELS.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CONTENTS: [&str; 6] = [
        "/opt/virtnet/cni/ehost-device",
        "/opt/virtnet/cni/virt-meta",
        "/usr/bin/virtdp",
        "/usr/share/doc/virtnet/virtnet.spdx.json",
        "/usr/share/licenses/virtnet/LICENSE",
        "/usr/share/licenses/virtnet/THIRD-PARTY.txt",
    ];

    /// Made anew from the source, but for the programs.
    fn made(folder: &Path) -> Image {
        for (name, _) in PROGRAMS {
            fs::write(folder.join(name), name).unwrap();
        }
        of(Architecture::Amd64, folder, &Papers::of(Architecture::Amd64).unwrap()).unwrap()
    }

    #[test]
    fn the_image_holds_what_is_listed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let image = made(folder.path());
        assert_eq!(image.layers[0].paths(), CONTENTS);
    }

    #[test]
    fn as_files_it_is_the_same() {
        let (programs, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        made(programs.path()).layers[0].unpack(folder.path()).unwrap();
        let output =
            std::process::Command::new("find").arg(folder.path()).args(["-type", "f"]).output().unwrap();
        let mut found: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|path| path.strip_prefix(folder.path().to_str().unwrap()).unwrap().to_owned())
            .collect();
        found.sort();
        assert_eq!(found, CONTENTS);
        let mode = fs::metadata(folder.path().join("usr/bin/virtdp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn made_twice_it_is_the_same_to_the_byte() {
        let archive = || {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("virtnet.tar");
            made(folder.path()).write(&path).unwrap();
            fs::read(path).unwrap()
        };
        assert!(archive() == archive(), "two images from the same source differ");
    }

    #[test]
    fn the_dockerfile_gives_the_same_image() {
        let path = build::workspace().unwrap().join("deployments/Dockerfile");
        let text = fs::read_to_string(path).unwrap().replace("\\\n", " ");
        let last = text.rsplit("FROM scratch").next().unwrap();
        // Whatever `--files` writes is in the image, and nothing else.
        assert!(text.contains("RUN cargo xtask image --files --output /image\n"), "{text}");
        let copies: Vec<&str> = last.lines().filter(|line| line.starts_with("COPY ")).collect();
        assert_eq!(copies, ["COPY --from=build /image /"]);
        assert!(last.contains(&format!("ENTRYPOINT [\"{ENTRYPOINT}\"]")), "{last}");
        assert!(last.contains(&format!("ENV {ENVIRONMENT}")), "{last}");
        for (key, value) in LABELS {
            assert!(last.contains(&format!("{key}=\"{value}\"")), "the label {key} is missing or different");
        }
    }
}
