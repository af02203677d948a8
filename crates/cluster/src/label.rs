//! Names of namespaces and objects, as far as networks have them.

use std::fmt;
use std::str::FromStr;

/// A namespace or the name of an object: `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, at most 253 characters. It can stand in a
/// path of a URL or of a file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// Why a text is not such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a name (lower-case letters, digits and '-', a letter or digit at both ends)")]
pub struct LabelError {
    text: String,
}

impl Label {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = |b: Option<u8>| b.is_some_and(plain);
        let fits = text.len() <= 253
            && ends(text.bytes().next())
            && ends(text.bytes().last())
            && text.bytes().all(|b| plain(b) || b == b'-');
        if fits {
            Ok(Label(text.to_owned()))
        } else {
            Err(LabelError { text: text.chars().take(80).collect() })
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl serde::Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "0", "virt-net1", "a--b", &"x".repeat(253)] {
            assert!(good.parse::<Label>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", "a b", &"x".repeat(254)] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?} was taken");
        }
    }
}
