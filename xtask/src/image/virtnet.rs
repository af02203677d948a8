//! The project's own image: the static programs and the licence, nothing else.

use anyhow::Result;
use vm::Programs;

use super::{Image, Layer};
use crate::build;

/// Its name, as `image: virtnet:0.1.0` in a manifest means it.
pub(crate) const NAME: &str = concat!("docker.io/library/virtnet:", env!("CARGO_PKG_VERSION"));

/// The image with these programs. It works on a read-only root and needs no folder of its own.
///
/// # Errors
/// When a program or the licence cannot be read.
pub(crate) fn image(programs: &Programs) -> Result<Image> {
    let mut layer = Layer::default();
    let Programs { virtdp, ehost_device, virt_meta, .. } = programs;
    for (name, path) in [("virtdp", virtdp), ("ehost-device", ehost_device), ("virt-meta", virt_meta)] {
        layer.copy(format!("/usr/bin/{name}"), 0o755, path)?;
    }
    layer.copy("/usr/share/licenses/virtnet/LICENSE", 0o644, &build::workspace()?.join("LICENSE"))?;
    let labels = [
        ("org.opencontainers.image.title", "virtnet"),
        ("org.opencontainers.image.description", "Whole virtual NICs for Kubernetes pods"),
        ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
    ];
    Ok(Image {
        name: NAME.to_owned(),
        layers: vec![layer],
        entrypoint: vec!["/usr/bin/virtdp".to_owned()],
        environment: vec!["PATH=/usr/bin".to_owned()],
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    })
}
