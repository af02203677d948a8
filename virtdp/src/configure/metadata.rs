//! Reading the VM's metadata: from a config drive, or from one JSON file.

use std::path::Path;

use anyhow::{Result, anyhow};
use nic::Metadata;

use super::file;

/// Reads a file, or what a folder has: a config drive, or its `openstack/latest`.
///
/// # Errors
/// Nothing of it is there, or something cannot be understood.
pub(crate) fn read(path: &Path) -> Result<Metadata> {
    let understood = |read: std::result::Result<Metadata, String>| {
        read.map_err(|error| anyhow!("{}: {error}", path.display()))
    };
    if !path.is_dir() {
        return understood(config::metadata(&file::read(path)?));
    }
    let latest = path.join("openstack/latest");
    let folder = if latest.is_dir() { latest.as_path() } else { path };
    let mut texts = Vec::new();
    for name in ["network_data.json", "meta_data.json"] {
        let path = folder.join(name);
        if path.exists() {
            texts.push(file::read(&path)?);
        }
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    understood(config::metadata_of_drive(&texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: &str = r#"{"links": [{"id": "a", "ethernet_mac_address": "fa:16:3e:00:00:01"}],
        "networks": [{"link": "a", "network_id": "net-a"}]}"#;

    #[test]
    fn a_config_drive_and_a_file_say_the_same_and_nothing_is_an_error() {
        let drive = tempfile::tempdir().unwrap();
        assert!(read(drive.path()).is_err());
        assert!(read(&drive.path().join("absent.json")).is_err());
        let latest = drive.path().join("openstack/latest");
        std::fs::create_dir_all(&latest).unwrap();
        std::fs::write(latest.join("network_data.json"), LINKS).unwrap();
        let of_drive = read(drive.path()).unwrap();
        assert_eq!(of_drive.0.len(), 1);
        assert_eq!(read(&latest).unwrap(), of_drive);
        assert_eq!(read(&latest.join("network_data.json")).unwrap(), of_drive);
        std::fs::write(latest.join("meta_data.json"), "{").unwrap();
        let torn = read(drive.path()).unwrap_err().to_string();
        assert!(torn.contains("EOF"), "{torn}");
    }
}
