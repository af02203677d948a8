//! Names with a grammar. Each of them ends up in a path, so each is parsed before it is used.

use std::fmt;
use std::str::FromStr;

use nic::NameError;

/// The name of a network: `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`, at most 200 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

/// The runtime's name for a container: `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`, at most 200 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// A plugin's `type`: the file name of its program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginType(String);

/// The specification sets no limit; a file name has 255 bytes, and both names may stand in one.
const LONGEST: usize = 200;

fn check(kind: &'static str, text: &str) -> Result<(), NameError> {
    let refuse = |why| Err(NameError::new(kind, text, why));
    let plain = |b: u8| b.is_ascii_alphanumeric();
    match text.bytes().next() {
        None => refuse("it is empty"),
        Some(_) if text.len() > LONGEST => refuse("it is longer than 200 bytes"),
        Some(first) if !plain(first) => refuse("it does not begin with a letter or digit"),
        Some(_) if !text.bytes().all(|b| plain(b) || b"_.-".contains(&b)) => {
            refuse("only letters, digits and _ . - may stand in it")
        }
        Some(_) => Ok(()),
    }
}

impl FromStr for NetworkName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check("a network name", text).map(|()| NetworkName(text.to_owned()))
    }
}

impl FromStr for ContainerId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check("a container ID", text).map(|()| ContainerId(text.to_owned()))
    }
}

impl FromStr for PluginType {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| Err(NameError::new("a plugin type", text, why));
        match text {
            "" => refuse("it is empty"),
            "." | ".." => refuse("it names a folder"),
            _ if text.len() > 255 => refuse("it is longer than a file name can be"),
            _ if text.chars().any(|c| c == '/' || c == '\\' || c.is_control()) => {
                refuse("it is a file name, without a path")
            }
            _ => Ok(PluginType(text.to_owned())),
        }
    }
}

macro_rules! text {
    ($($type:ty),*) => {$(
        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
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

text!(NetworkName, ContainerId, PluginType);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for good in ["a", "virt-net1", "0a_b.c-", "3f1e"] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "../a", "ä", &"x".repeat(201)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?} was taken");
            assert!(bad.parse::<NetworkName>().is_err(), "{bad:?} was taken");
        }
        for bad in ["", ".", "..", "a/b", "../a", "a\0"] {
            assert!(bad.parse::<PluginType>().is_err(), "{bad:?} was taken");
        }
        assert_eq!(
            "a/b".parse::<NetworkName>().unwrap_err().to_string(),
            "\"a/b\" is not a network name: only letters, digits and _ . - may stand in it"
        );
    }

    proptest! {
        #[test]
        fn a_name_never_holds_a_slash(text in ".{0,20}") {
            for name in [
                text.parse::<ContainerId>().ok().map(|n| n.to_string()),
                text.parse::<NetworkName>().ok().map(|n| n.to_string()),
                text.parse::<PluginType>().ok().map(|n| n.to_string()),
            ].into_iter().flatten() {
                prop_assert!(!name.contains('/') && name != "..");
            }
        }
    }
}
