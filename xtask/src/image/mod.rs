//! OCI images written directly: no daemon, no root, and the same input always gives the same bytes.
//!
//! The format: <https://github.com/opencontainers/image-spec> (image layout, manifest, configuration). The result is one tar archive that
//! `ctr images import`, `podman load` and `skopeo copy oci-archive:` take.

pub(crate) mod command;
mod crates;
mod layer;
mod licences;
mod spdx;
mod toolchain;
pub(crate) mod virtnet;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) use self::layer::Layer;
use crate::build::Architecture;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What `created` says: a real time would make every build another image.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image for Linux.
#[derive(Debug, Default, Clone)]
pub(crate) struct Image {
    /// Full name with registry and tag, as a container runtime knows it: `docker.io/library/virtnet:0.1.0`.
    pub(crate) name: String,
    pub(crate) architecture: Architecture,
    pub(crate) layers: Vec<Layer>,
    /// The program and first arguments when a pod names none.
    pub(crate) entrypoint: Vec<String>,
    pub(crate) environment: Vec<String>,
    /// `org.opencontainers.image.*` and the like.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Image {
    /// Writes the archive.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        self.write_to(file).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_to(self, target: impl Write) -> Result<()> {
        let mut archive = Archive::new(target);
        let name = self.name.clone();
        let image = archive.add_image(self)?;
        archive.finish(image, &name)
    }

    /// Writes one archive with all of them under the name of the first: a runtime takes the one for its machine.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_all(images: Vec<Self>, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Self::write_all_to(images, file).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_all_to(images: Vec<Self>, target: impl Write) -> Result<()> {
        let name = images.first().map(|image| image.name.clone()).unwrap_or_default();
        let mut archive = Archive::new(target);
        let manifests =
            images.into_iter().map(|image| archive.add_image(image)).collect::<Result<Vec<_>>>()?;
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let index = archive.add_json(INDEX, &index)?;
        archive.finish(index, &name)
    }
}

/// An image layout in a tar archive.
struct Archive<W: Write> {
    tar: tar::Builder<W>,
    /// Two images may share content.
    digests: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    fn new(target: W) -> Self {
        Self { tar: layer::archive(target), digests: BTreeSet::new() }
    }

    /// Adds all of an image; gives the descriptor of its manifest, with the platform.
    fn add_image(&mut self, image: Image) -> Result<Value> {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in image.layers {
            let (compressed, diff_id) = layer.finish()?;
            diff_ids.push(format!("sha256:{diff_id}"));
            layers.push(self.add(LAYER, &compressed)?);
        }
        let config = json!({
            "architecture": image.architecture.name(),
            "os": "linux",
            "created": CREATED,
            "config": { "Entrypoint": image.entrypoint, "Env": image.environment, "Labels": image.labels },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.add_json(CONFIG, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": image.labels,
        });
        let mut manifest = self.add_json(MANIFEST, &manifest)?;
        if let Some(manifest) = manifest.as_object_mut() {
            let platform = json!({ "architecture": image.architecture.name(), "os": "linux" });
            manifest.insert("platform".to_owned(), platform);
        }
        Ok(manifest)
    }

    /// Names what the archive is about, and ends it.
    fn finish(mut self, mut descriptor: Value, name: &str) -> Result<()> {
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        // The first is containerd's, which wants the whole name; the second is the specification's.
        let names = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
        if let Some(descriptor) = descriptor.as_object_mut() {
            descriptor.insert("annotations".to_owned(), names);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] });
        layer::add_file(&mut self.tar, "index.json", 0o644, index.to_string().as_bytes())?;
        layer::add_file(&mut self.tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.tar.into_inner()?.flush()?;
        Ok(())
    }

    /// Adds content under its digest; gives the descriptor that names it.
    fn add(&mut self, kind: &str, bytes: &[u8]) -> io::Result<Value> {
        let digest = sha256(bytes);
        if self.digests.insert(digest.clone()) {
            layer::add_file(&mut self.tar, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
        }
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    }

    fn add_json(&mut self, kind: &str, value: &Value) -> io::Result<Value> {
        self.add(kind, value.to_string().as_bytes())
    }
}

/// SHA-256 as lower-case hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Image {
        let mut layer = Layer::default();
        layer.file("/bin/tool", 0o755, b"#!x").symlink("/bin/alias", "tool");
        Image {
            name: "localhost/tool:1".to_owned(),
            layers: vec![layer],
            entrypoint: vec!["/bin/tool".to_owned()],
            ..Image::default()
        }
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    #[test]
    fn every_descriptor_leads_to_content_with_its_digest_and_size() {
        let mut bytes = Vec::new();
        image().write_to(&mut bytes).unwrap();
        let files = files(&bytes);
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let blob = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(sha256(blob), digest);
            assert_eq!(descriptor["size"], blob.len());
            blob.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/tool:1");
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1");
        let manifest: Value = serde_json::from_slice(&follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/tool");
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(follow(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
    }

    #[test]
    fn an_archive_of_two_platforms_has_one_name_and_a_manifest_for_each() {
        let mut bytes = Vec::new();
        let arm = Image { architecture: Architecture::Arm64, ..image() };
        Image::write_all_to(vec![image(), arm], &mut bytes).unwrap();
        let files = files(&bytes);
        let follow = |descriptor: &Value| -> Value {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            serde_json::from_slice(&files[&format!("blobs/sha256/{digest}")]).unwrap()
        };
        let outer: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(outer["manifests"].as_array().unwrap().len(), 1);
        assert_eq!(outer["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/tool:1");
        let inner = follow(&outer["manifests"][0]);
        for (at, architecture) in ["amd64", "arm64"].iter().enumerate() {
            assert_eq!(inner["manifests"][at]["platform"]["architecture"], *architecture);
            assert_eq!(follow(&follow(&inner["manifests"][at])["config"])["architecture"], *architecture);
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        image().write_to(&mut first).unwrap();
        image().write_to(&mut second).unwrap();
        assert_eq!(first, second);
    }
}
