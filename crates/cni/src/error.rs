//! What a plugin says when it fails: a code that the runtime acts upon, and words for people.
//!
//! <https://www.cni.dev/docs/spec/#error>

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Version;

/// An error code of the specification, or a plugin's own (100 and up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub u32);

impl Code {
    /// 1: the plugin does not speak the configuration's version.
    pub const INCOMPATIBLE_VERSION: Code = Code(1);
    /// 2: a field of the configuration is not supported; the message names it.
    pub const UNSUPPORTED_FIELD: Code = Code(2);
    /// 3: the container is unknown or does not exist; DEL is not needed.
    pub const UNKNOWN_CONTAINER: Code = Code(3);
    /// 4: environment variables are missing or wrong; the message names all of them.
    pub const INVALID_ENVIRONMENT: Code = Code(4);
    /// 5: reading or writing failed.
    pub const IO: Code = Code(5);
    /// 6: JSON could not be read.
    pub const DECODE: Code = Code(6);
    /// 7: the network configuration is wrong.
    pub const INVALID_CONFIG: Code = Code(7);
    /// 8: the network namespace is wrong.
    pub const INVALID_NETNS: Code = Code(8);
    /// 11: a passing condition; the runtime should try again.
    pub const TRY_AGAIN: Code = Code(11);
    /// 50 (STATUS): no ADD can succeed now.
    pub const UNAVAILABLE: Code = Code(50);
    /// 51 (STATUS): no ADD can succeed now, and existing containers may have limited connectivity.
    pub const LIMITED: Code = Code(51);
    /// 100: the first code of a plugin's own.
    pub const PLUGIN: Code = Code(100);
    /// 999: a fault in the plugin itself.
    pub const INTERNAL: Code = Code(999);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An error as it travels between plugin and runtime.
///
/// `message` is one sentence: what was done, to what. `details` has what is behind it: the chain of causes, the
/// kernel's words, a delegate's stderr.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{details} (code {code})", if details.is_empty() { "" } else { ": " })]
pub struct Error {
    /// What the runtime acts upon.
    pub code: Code,
    /// What failed, in one sentence.
    pub message: String,
    /// Why, as far as known.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), details: String::new() }
    }

    /// An error whose message is the outermost error and whose details are the chain of sources below it.
    pub fn from_chain(code: Code, error: &(dyn std::error::Error + 'static)) -> Self {
        Error::new(code, error.to_string()).caused_by_chain(error.source())
    }

    /// The same with what is behind it.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same with `cause` and its sources as details.
    #[must_use]
    pub fn caused_by(self, cause: &(dyn std::error::Error + 'static)) -> Self {
        self.caused_by_chain(Some(cause))
    }

    /// The same error, its message preceded by where it happened: `network default/virt-net1: ...`.
    #[must_use]
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The same with a further error in its details: the first cause stays the one that is told.
    #[must_use]
    pub fn and_also(mut self, what: &str, further: &Error) -> Self {
        let separator = if self.details.is_empty() { "" } else { "; " };
        self.details.push_str(&format!("{separator}{what}: {further}"));
        self
    }

    /// All that went wrong, under the code of the first. Goes through to the end of `outcomes`.
    ///
    /// # Errors
    /// The first error, with the others in its details.
    pub fn all(outcomes: impl IntoIterator<Item = Result<(), Error>>) -> Result<(), Error> {
        let mut errors = outcomes.into_iter().filter_map(Result::err).collect::<Vec<_>>().into_iter();
        match errors.next() {
            None => Ok(()),
            Some(first) => Err(errors.fold(first, |first, next| first.and_also("also", &next))),
        }
    }

    /// The error as it stands on stdout, spoken in `version`.
    #[must_use]
    pub fn to_json(&self, version: Version) -> String {
        let wire = Wire {
            cni_version: version.as_str().into(),
            code: self.code,
            msg: self.message.clone(),
            details: self.details.clone(),
        };
        serde_json::to_string_pretty(&wire).unwrap_or_default()
    }

    /// Reads an error that a plugin wrote, if it is one: it has a code other than 0, or a message.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Error> {
        let wire: Wire = serde_json::from_slice(bytes).ok()?;
        (wire.code.0 != 0 || !wire.msg.is_empty()).then_some(Error {
            code: wire.code,
            message: wire.msg,
            details: wire.details,
        })
    }

    fn caused_by_chain(mut self, mut cause: Option<&(dyn std::error::Error + 'static)>) -> Self {
        while let Some(error) = cause {
            if !self.details.is_empty() {
                self.details.push_str(": ");
            }
            self.details.push_str(&error.to_string());
            cause = error.source();
        }
        self
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "cniVersion", default)]
    cni_version: String,
    #[serde(default)]
    code: Code,
    #[serde(default)]
    msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    details: String,
}

impl Default for Code {
    /// 0, which stands for no error.
    fn default() -> Self {
        Code(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_that_of_the_specification() {
        let error = Error::new(Code::TRY_AGAIN, "the device is busy").with_details("held by 1234");
        insta::assert_snapshot!(error.to_json(Version::V1_0_0), @r#"
        {
          "cniVersion": "1.0.0",
          "code": 11,
          "msg": "the device is busy",
          "details": "held by 1234"
        }
        "#);
        assert_eq!(Error::from_json(error.to_json(Version::V1_0_0).as_bytes()), Some(error));
        assert_eq!(Error::from_json(br#"{"cniVersion":"1.0.0","ips":[]}"#), None);
        assert_eq!(Error::from_json(b"panic: runtime error"), None);
    }

    #[test]
    fn a_chain_of_sources_becomes_the_details() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the ledger")]
        struct Outer(#[source] std::io::Error);
        let outer = Outer(std::io::Error::other("disk full"));
        let error = Error::from_chain(Code::IO, &outer).within("network a");
        assert_eq!(error.to_string(), "network a: cannot open the ledger: disk full (code 5)");
    }
}
