//! Protocol versions and verbs, and which verb came with which version.

use std::fmt;
use std::str::FromStr;

/// A version of the CNI specification that this crate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: the first; also meant when a configuration names none.
    V0_1_0,
    /// 0.2.0: results and errors carry a version.
    V0_2_0,
    /// 0.3.0: results list interfaces and any number of addresses.
    V0_3_0,
    /// 0.3.1: plugin lists.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: `ips[].version` is gone.
    V1_0_0,
    /// 1.1.0: GC and STATUS; `mtu`, `socketPath`, `pciID`; more about routes.
    V1_1_0,
}

/// A version that is not known here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a version of the CNI specification known here ({})", list(&Version::ALL))]
pub struct UnknownVersion {
    text: String,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest version.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version as it stands in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// What a configuration means that says this: an absent or empty `cniVersion` is 0.1.0.
    ///
    /// # Errors
    /// When the version is not known here.
    pub fn of_config(text: Option<&str>) -> Result<Version, UnknownVersion> {
        match text {
            None | Some("") => Ok(Version::V0_1_0),
            Some(text) => text.parse(),
        }
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Version::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| UnknownVersion { text: text.chars().take(40).collect() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Versions as a person reads them: `0.1.0, 0.2.0`.
pub(crate) fn list(versions: &[Version]) -> String {
    versions.iter().map(|version| version.as_str()).collect::<Vec<_>>().join(", ")
}

/// What a plugin is asked to do: `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// Compare what is there with what ADD returned.
    Check,
    /// Remove what belongs to no attachment in the runtime's list.
    Gc,
    /// Say whether ADD could succeed.
    Status,
    /// Name the versions spoken.
    Version,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Verb; 6] = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status, Verb::Version];

    /// The verb as it stands in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }

    /// The first version of the specification that has this verb.
    #[must_use]
    pub fn since(self) -> Version {
        match self {
            Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
            Verb::Check => Version::V0_4_0,
            Verb::Gc | Verb::Status => Version::V1_1_0,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_survive_their_text() {
        assert!(Version::ALL.is_sorted());
        for version in Version::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
    }

    #[test]
    fn an_absent_version_is_the_first_one() {
        assert_eq!(Version::of_config(None), Ok(Version::V0_1_0));
        assert_eq!(Version::of_config(Some("")), Ok(Version::V0_1_0));
        assert_eq!(
            Version::of_config(Some("1.2.0")).unwrap_err().to_string(),
            "\"1.2.0\" is not a version of the CNI specification known here (0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0)"
        );
    }
}
