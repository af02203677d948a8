//! CDI specifications: files by which a container runtime adds a device to a container that names it.
//!
//! Source: Container Device Interface, SPEC.md. A runtime ignores a whole file for one fault in it, so it has only what the oldest
//! version knows that can name a PCI address, and is whole or absent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nic::ResourceName;
use serde::Serialize;

use super::Extras;
use super::grant::{DeviceNode, Grant};
use super::published;

/// How the names of our files begin, and of nobody else's.
const PREFIX: &str = "virtnet-";

/// The file of one resource.
#[derive(Clone, Debug)]
pub(crate) struct Cdi {
    folder: PathBuf,
    resource: ResourceName,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    cdi_version: &'static str,
    kind: &'a str,
    devices: Vec<Device>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Edits,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    /// Never empty: the specification wants one edit at least, and a NIC may need no device node.
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    device_nodes: Vec<Node>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_path: Option<String>,
    permissions: &'static str,
}

impl Cdi {
    /// The file of this resource. None if its name can be no kind of device: a resource's name may begin with a digit on either side
    /// of the slash, a kind may not.
    pub(crate) fn new(folder: &Path, resource: &ResourceName) -> Option<Self> {
        let (vendor, class) = resource.as_str().split_once('/')?;
        let begins = |text: &str| text.starts_with(|first: char| first.is_ascii_alphabetic());
        (begins(vendor) && begins(class))
            .then(|| Cdi { folder: folder.to_owned(), resource: resource.clone() })
    }

    /// What a runtime calls this device. None if CDI cannot name it: an ID may begin and end with more than letters and digits.
    pub(crate) fn name(&self, grant: &Grant) -> Option<String> {
        let id = grant.offer.id.as_str();
        let edge = |c: char| c.is_ascii_alphanumeric();
        (id.starts_with(edge) && id.ends_with(edge)).then(|| format!("{}={id}", self.resource))
    }

    pub(crate) fn is_there(&self) -> bool {
        self.folder.join(self.file_name()).exists()
    }

    /// Makes the file say what there is; without devices there is none. What says so already is left alone.
    ///
    /// # Errors
    /// The file cannot be written or removed.
    pub(crate) fn publish(&self, grants: &[Grant], extras: Extras) -> Result<()> {
        let name = self.file_name();
        let grants: Vec<&Grant> = grants.iter().filter(|grant| self.name(grant).is_some()).collect();
        if grants.is_empty() {
            return published::remove(&self.folder.join(&name));
        }
        published::write(&self.folder, &name, &serde_json::to_vec(&self.document(&grants, extras))?)
    }

    fn file_name(&self) -> String {
        // A prefix has no "_", so no two resources have one file.
        format!("{PREFIX}{}.json", self.resource.as_str().replace('/', "_"))
    }

    fn document(&self, grants: &[&Grant], extras: Extras) -> Document<'_> {
        let device = |grant: &&Grant| Device {
            name: grant.offer.id.to_string(),
            container_edits: Edits {
                env: vec![self.variable(grant)],
                device_nodes: grant.nodes(extras).into_iter().map(Node::from).collect(),
            },
        };
        let kind = self.resource.as_str();
        // From 0.5 on a device's name may begin with a digit, from 0.6 on there may be a dot in the class.
        let dotted = kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
        let cdi_version = if dotted { "0.6.0" } else { "0.5.0" };
        Document { cdi_version, kind, devices: grants.iter().map(device).collect() }
    }

    /// A variable of this device alone: of those with the same name, one would be left.
    fn variable(&self, grant: &Grant) -> String {
        let id = grant.offer.id.as_str();
        let stem: String = id
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        let [ids, _info] = self.resource.variables();
        format!("{ids}_{stem}={id}")
    }
}

impl From<DeviceNode> for Node {
    fn from(node: DeviceNode) -> Self {
        let host_path = (node.on_node != node.in_container).then_some(node.on_node);
        Node { path: node.in_container, host_path, permissions: DeviceNode::PERMISSIONS }
    }
}

/// Removes our files of resources that there are no more.
///
/// # Errors
/// The folder cannot be listed, or a file not be removed.
pub(crate) fn sweep(folder: &Path, resources: &[ResourceName]) -> Result<()> {
    let keep: BTreeSet<String> = resources
        .iter()
        .filter_map(|resource| Cdi::new(folder, resource))
        .map(|cdi| cdi.file_name())
        .collect();
    for name in published::names(folder)? {
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(".json"));
        if ours && !name.to_str().is_some_and(|name| keep.contains(name)) {
            published::remove(&folder.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use linux::Sysfs;
    use linux::testing::{ETHERNET, Tree};
    use serde::Deserialize;

    use super::super::tests::offer;
    use super::*;
    use crate::advertise::Offer;
    use nic::VFIO_PCI;

    /// The specification as its reference implementation reads it: an unknown key makes a file useless.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Read {
        cdi_version: String,
        kind: String,
        devices: Vec<ReadDevice>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct ReadDevice {
        name: String,
        container_edits: ReadEdits,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct ReadEdits {
        env: Vec<String>,
        #[serde(default)]
        device_nodes: Vec<ReadNode>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct ReadNode {
        path: String,
        host_path: Option<String>,
        permissions: String,
    }

    /// The rules of pkg/parser and pkg/cdi of the reference implementation (1.1.0).
    fn check(text: &str) {
        let read: Read = serde_json::from_str(text).unwrap();
        let edges = |text: &str, first: fn(&char) -> bool| {
            text.chars().next().is_some_and(|c| first(&c))
                && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        let (vendor, class) = read.kind.split_once('/').unwrap();
        for part in [vendor, class] {
            assert!(edges(part, char::is_ascii_alphabetic), "{part}");
            assert!(part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)), "{part}");
        }
        let mut version = "0.3.0";
        assert!(!read.devices.is_empty());
        let names: BTreeSet<&str> = read.devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names.len(), read.devices.len());
        for device in &read.devices {
            assert!(edges(&device.name, char::is_ascii_alphanumeric), "{}", device.name);
            assert!(device.name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c)));
            let edits = &device.container_edits;
            assert!(!edits.env.is_empty() || !edits.device_nodes.is_empty());
            assert!(edits.env.iter().all(|one| one.find('=').is_some_and(|at| at > 0)));
            for node in &edits.device_nodes {
                assert!(
                    node.path.starts_with("/dev/") && node.permissions.chars().all(|c| "rwm".contains(c))
                );
                assert!(node.host_path.as_ref().is_none_or(|path| path.starts_with("/dev/")));
            }
            let hosts = edits.device_nodes.iter().any(|node| node.host_path.is_some());
            if device.name.starts_with(|c: char| c.is_ascii_digit()) || hosts {
                version = "0.5.0";
            }
        }
        if class.contains('.') {
            version = "0.6.0";
        }
        assert!(read.cdi_version.as_str() >= version, "{} is below {version}", read.cdi_version);
    }

    fn cdi(folder: &Path, resource: &str) -> Cdi {
        Cdi::new(folder, &resource.parse().unwrap()).unwrap()
    }

    fn grant(id: &str) -> Grant {
        Grant::of(offer(id, None), &Sysfs::at("/nonexistent")).unwrap()
    }

    #[test]
    fn a_file_says_what_a_runtime_may_add_and_goes_with_the_last_device() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run/cdi");
        let tree = Tree::new();
        tree.pci("pci0000:00/0000:00:0b.0", ETHERNET, 0x1af4, 0x1041);
        tree.iommu_group("pci0000:00/0000:00:0b.0", 4, Some("vfio-noiommu"));
        let vfio = Offer { driver: Some(VFIO_PCI.into()), ..offer("0000:00:0b.0", None) };
        let grants = [grant("0000:00:0a.0"), Grant::of(vfio, &Sysfs::at(tree.path())).unwrap(), grant("vd0")];
        let cdi = cdi(&folder, "kernel.org/virt");
        let tun = Extras { tun: true, cdi: true, ..Extras::default() };
        let path = folder.join("virtnet-kernel.org_virt.json");
        for _ in 0..2 {
            cdi.publish(&grants, tun).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            check(&text);
            assert_eq!(
                text,
                concat!(
                    r#"{"cdiVersion":"0.5.0","kind":"kernel.org/virt","devices":["#,
                    r#"{"name":"0000:00:0a.0","containerEdits":{"env":["PCIDEVICE_KERNEL_ORG_VIRT_0000_00_0A_0=0000:00:0a.0"],"#,
                    r#""deviceNodes":[{"path":"/dev/net/tun","permissions":"rw"}]}},"#,
                    r#"{"name":"0000:00:0b.0","containerEdits":{"env":["PCIDEVICE_KERNEL_ORG_VIRT_0000_00_0B_0=0000:00:0b.0"],"#,
                    r#""deviceNodes":[{"path":"/dev/vfio/vfio","permissions":"rw"},"#,
                    r#"{"path":"/dev/vfio/4","hostPath":"/dev/vfio/noiommu-4","permissions":"rw"},"#,
                    r#"{"path":"/dev/net/tun","permissions":"rw"}]}},"#,
                    r#"{"name":"vd0","containerEdits":{"env":["PCIDEVICE_KERNEL_ORG_VIRT_VD0=vd0"],"#,
                    r#""deviceNodes":[{"path":"/dev/net/tun","permissions":"rw"}]}}]}"#
                )
            );
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
            // What somebody damaged is whole again.
            std::fs::write(&path, "{").unwrap();
        }
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        cdi.publish(&[], tun).unwrap();
        cdi.publish(&[], tun).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(cdi.name(&grants[0]).unwrap(), "kernel.org/virt=0000:00:0a.0");
    }

    #[test]
    fn a_file_that_says_the_same_is_left_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let cdi = cdi(folder.path(), "kernel.org/virt");
        let inode = || folder.path().join("virtnet-kernel.org_virt.json").metadata().unwrap().ino();
        cdi.publish(&[grant("0000:00:0a.0")], Extras::default()).unwrap();
        let before = inode();
        cdi.publish(&[grant("0000:00:0a.0")], Extras::default()).unwrap();
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_dot_in_the_class_asks_for_a_newer_version_and_a_digit_in_front_for_none_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let resources = ["example.com/fast.nics", "example.com/a_b-c", "a.b.c/D"];
        for resource in resources {
            cdi(folder.path(), resource).publish(&[grant("0000:00:0a.0")], Extras::default()).unwrap();
            let name = format!("virtnet-{}.json", resource.replace('/', "_"));
            check(&std::fs::read_to_string(folder.path().join(name)).unwrap());
        }
        for resource in ["example.com/10g", "3com.example/nic"] {
            assert!(Cdi::new(folder.path(), &resource.parse().unwrap()).is_none(), "{resource}");
        }
    }

    #[test]
    fn only_our_files_of_other_resources_are_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["virtnet-kernel.org_virt.json", "virtnet-old.org_nics.json", "nvidia.json", "virtnet.txt"]
        {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        sweep(folder.path(), &["kernel.org/virt".parse().unwrap()]).unwrap();
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: BTreeSet<_> = left.map(|name| name.into_string().unwrap()).collect();
        assert_eq!(
            left.into_iter().collect::<Vec<_>>(),
            ["nvidia.json", "virtnet-kernel.org_virt.json", "virtnet.txt"]
        );
        sweep(&folder.path().join("absent"), &[]).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "in the way").unwrap();
        let cdi = cdi(&file, "kernel.org/virt");
        let failed = cdi.publish(&[grant("0000:00:0a.0")], Extras::default()).unwrap_err();
        assert!(format!("{failed:#}").contains("/file"), "{failed:#}");
        cdi.publish(&[], Extras::default()).unwrap();
    }
}
