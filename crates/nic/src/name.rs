//! Names with a grammar: interfaces, devices, extended resources.

use std::fmt;
use std::str::FromStr;

use crate::PciAddress;

/// Why a text is not a name of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {kind}: {why}")]
pub struct NameError {
    kind: &'static str,
    text: String,
    why: &'static str,
}

impl NameError {
    /// For further kinds of names: `kind` with its article, and why `text` is none.
    #[must_use]
    pub fn new(kind: &'static str, text: &str, why: &'static str) -> Self {
        // What a hostile caller hands us must not fill the log.
        NameError { kind, text: text.chars().take(80).collect(), why }
    }
}

/// The name of a network interface: 1 to 15 bytes, no `/`, no `:`, no white space, neither `.` nor `..`
/// (`dev_valid_name()` in net/core/dev.c).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| Err(NameError::new("an interface name", text, why));
        match text {
            "" => refuse("it is empty"),
            "." | ".." => refuse("it names a folder"),
            _ if text.len() > 15 => refuse("it is longer than 15 bytes"),
            _ if text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) => {
                refuse("it contains '/', ':', white space or a control character")
            }
            _ if text.contains('%') => {
                refuse("it contains '%', by which the kernel makes up a name of its own")
            }
            _ => Ok(IfName(text.to_owned())),
        }
    }
}

/// A device as the kubelet knows it: the PCI address, or the bus name where there is no PCI device (`virtio3`,
/// `0.0.0001`). 1 to 63 characters, safe as part of a file name.
///
/// Source: `deviceplugin/v1beta1/api.proto`, `Device.ID`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(String);

impl DeviceId {
    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The PCI address, where the ID is one.
    #[must_use]
    pub fn pci(&self) -> Option<PciAddress> {
        self.0.parse().ok()
    }
}

impl From<PciAddress> for DeviceId {
    fn from(address: PciAddress) -> Self {
        DeviceId(address.to_string())
    }
}

impl FromStr for DeviceId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| Err(NameError::new("a device ID", text, why));
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > 63 {
            return refuse("it is longer than 63 characters");
        }
        if text.starts_with('.') || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:_-".contains(&b)) {
            return refuse("only letters, digits and . : _ - may stand in it, and no dot first");
        }
        Ok(DeviceId(text.to_owned()))
    }
}

/// The name of an extended resource, `kernel.org/virt`: a DNS prefix and a name.
///
/// Source: `IsExtendedResourceName` in the kubelet's apis/core/v1/helper, which the kubelet applies on Register.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(String);

impl ResourceName {
    /// The whole name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as it stands in file names: `/` becomes `-` (device-info specification 1.1.0, section 4).
    #[must_use]
    pub fn file_stem(&self) -> String {
        self.0.replace('/', "-")
    }

    /// The environment variables in which a container finds its devices: their IDs, and what is known of them. The name stands there in
    /// upper case, with `_` for all but letters and digits, as sriov-network-device-plugin has it.
    #[must_use]
    pub fn variables(&self) -> [String; 2] {
        let one = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let ids = format!("PCIDEVICE_{}", self.0.chars().map(one).collect::<String>());
        let info = format!("{ids}_INFO");
        [ids, info]
    }

    /// A variable that both resources would set: `a/b-c` and `a/b.c` have the same two. The kubelet passes on one of them, so a container
    /// with devices of both would miss some. Two whose files have the same name ([`ResourceName::file_stem`]) share one, too.
    #[must_use]
    pub fn shared_variable(&self, other: &ResourceName) -> Option<String> {
        let others = other.variables();
        self.variables().into_iter().find(|variable| others.contains(variable))
    }
}

impl FromStr for ResourceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| Err(NameError::new("an extended resource name", text, why));
        let Some((prefix, name)) = text.split_once('/') else {
            return refuse("it has no prefix (expected the form kernel.org/virt)");
        };
        if prefix == "kubernetes.io" || prefix.ends_with(".kubernetes.io") || text.contains("kubernetes.io/")
        {
            return refuse("kubernetes.io belongs to Kubernetes");
        }
        if text.starts_with("requests.") {
            return refuse("it begins with \"requests.\", which quotas use");
        }
        // The kubelet checks "requests." + name as a qualified name: 253 characters of prefix, 63 of name.
        if prefix.len() > 253 - "requests.".len() || !prefix.split('.').all(is_dns_label) {
            return refuse("what stands before the '/' is not a DNS name in lower case");
        }
        if !is_qualified_part(name) {
            return refuse(
                "what stands after the '/' must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
            );
        }
        Ok(ResourceName(text.to_owned()))
    }
}

fn is_dns_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_qualified_part(name: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (1..=63).contains(&name.len())
        && edge(name.bytes().next())
        && edge(name.bytes().last())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

macro_rules! display_as_inner {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}

/// Serialises as the text of `Display`, reads by `FromStr`.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_as_text;

display_as_inner!(IfName, DeviceId, ResourceName);
serde_as_text!(IfName, DeviceId, ResourceName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "net1", "enp0s10", "a.b", "fifteen-bytes-x"] {
            assert_eq!(good.parse::<IfName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx", "a\nb", "net%d"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn device_ids_can_stand_in_a_file_name() {
        for good in ["0000:00:0a.0", "virtio3", "0.0.0001", "10000:00:00.0"] {
            assert_eq!(good.parse::<DeviceId>().unwrap().as_str(), good);
        }
        for bad in ["", "..", ".x", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?} was taken");
        }
        assert!("0000:00:0a.0".parse::<DeviceId>().unwrap().pci().is_some());
        assert!("virtio3".parse::<DeviceId>().unwrap().pci().is_none());
    }

    #[test]
    fn resource_names_follow_the_kubelet() {
        let virt: ResourceName = "kernel.org/virt".parse().unwrap();
        assert_eq!(virt.file_stem(), "kernel.org-virt");
        assert_eq!(virt.variables(), ["PCIDEVICE_KERNEL_ORG_VIRT", "PCIDEVICE_KERNEL_ORG_VIRT_INFO"]);
        for bad in [
            "virt",
            "/virt",
            "kernel.org/",
            "kernel.org/a/b",
            "Kernel.org/virt",
            "kubernetes.io/virt",
            "node.kubernetes.io/virt",
            "requests.kernel.org/virt",
            "kernel.org/-virt",
        ] {
            assert!(bad.parse::<ResourceName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn resources_of_different_names_may_share_a_variable() {
        let shared = |one: &str, two: &str| {
            one.parse::<ResourceName>().unwrap().shared_variable(&two.parse().unwrap())
        };
        for (one, two, variable) in [
            ("a.org/b-c", "a.org/b.c", "PCIDEVICE_A_ORG_B_C"),
            ("a.org/b", "a.org/B", "PCIDEVICE_A_ORG_B"),
            ("a-b/c", "a/b-c", "PCIDEVICE_A_B_C"),
            ("a.org/b", "a.org/b_info", "PCIDEVICE_A_ORG_B_INFO"),
            ("a.org/b.Info", "a.org/b", "PCIDEVICE_A_ORG_B_INFO"),
        ] {
            assert_eq!(shared(one, two).as_deref(), Some(variable), "{one} {two}");
        }
        assert_eq!(shared("a.org/b", "a.org/bc"), None);
        assert_eq!(shared("a.org/info", "a.org/b"), None);
    }

    proptest! {
        #[test]
        fn resources_whose_files_have_the_same_name_share_a_variable(
            one in "[a.-]{1,4}/[a_.-]{1,4}", two in "[a.-]{1,4}/[a_.-]{1,4}"
        ) {
            let (Ok(one), Ok(two)) = (one.parse::<ResourceName>(), two.parse::<ResourceName>()) else { return Ok(()) };
            prop_assert!(one.file_stem() != two.file_stem() || one.shared_variable(&two).is_some());
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,80}") {
            let _ = text.parse::<IfName>();
            let _ = text.parse::<DeviceId>();
            let _ = text.parse::<ResourceName>();
        }
    }
}
