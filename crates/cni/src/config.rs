//! The network configuration of one plugin, as it comes on stdin.
//!
//! What this crate does not know it keeps: a plugin's own keys, and those of specifications to come.
//! <https://www.cni.dev/docs/spec/#plugin-configuration-objects>

use nic::IfName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Code, ContainerId, Error, NetworkName, PluginType, Success, Version};

/// A JSON object.
pub type Object = Map<String, Value>;

/// The configuration of one plugin for one network: a name and a version that have been checked, and all keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    version: Version,
    name: NetworkName,
    object: Object,
}

/// One attachment in a runtime's list for GC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// The interface in it.
    #[serde(rename = "ifname")]
    pub if_name: IfName,
}

/// The keys under which a runtime may send its list for GC: the specification's, and the one of its first printing,
/// which libcni sends besides.
const GC_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Code 6 when this is not a JSON object, 7 when the name is missing or bad, 1 when the version is unknown.
    pub fn from_slice(bytes: &[u8]) -> Result<Config, Error> {
        let object: Object = serde_json::from_slice(bytes).map_err(|error| {
            Error::new(Code::DECODE, "the network configuration is not a JSON object").caused_by(&error)
        })?;
        Config::from_object(object)
    }

    /// Takes an object as configuration.
    ///
    /// # Errors
    /// As [`Config::from_slice`].
    pub fn from_object(object: Object) -> Result<Config, Error> {
        let name = name_of(&object)?;
        let version = version_of(&object)?;
        Ok(Config { version, name, object })
    }

    /// One plugin of a list: under the list's name, in the list's version.
    pub(crate) fn assemble(version: Version, name: NetworkName, mut object: Object) -> Config {
        object.insert("name".to_owned(), name.as_str().into());
        object.insert("cniVersion".to_owned(), version.as_str().into());
        Config { version, name, object }
    }

    /// The version of the specification that the configuration is written in.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// The plugin's type.
    ///
    /// # Errors
    /// Code 7 when it is missing or is no file name.
    pub fn plugin_type(&self) -> Result<PluginType, Error> {
        type_of(&self.object)
    }

    /// All keys.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Reads a plugin's own keys.
    ///
    /// # Errors
    /// Code 7, with what does not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(&self.object).map_err(|error| {
            Error::new(Code::INVALID_CONFIG, format!("the configuration of network {} is wrong", self.name))
                .caused_by(&error)
        })
    }

    /// What the runtime passes for a capability: `runtimeConfig.<capability>`.
    #[must_use]
    pub fn runtime(&self, capability: &str) -> Option<&Value> {
        self.object.get("runtimeConfig")?.get(capability)
    }

    /// The IPAM plugin to delegate to; none when there is no `ipam` or it names no type.
    ///
    /// # Errors
    /// Code 7 when its type is no file name.
    pub fn ipam_type(&self) -> Result<Option<PluginType>, Error> {
        match self.object.get("ipam") {
            Some(Value::Object(ipam)) if ipam.get("type").is_some_and(|text| text != "") => {
                type_of(ipam).map(Some).map_err(|error| error.within("ipam"))
            }
            Some(Value::Object(_) | Value::Null) | None => Ok(None),
            Some(_) => Err(Error::new(Code::INVALID_CONFIG, "ipam is not a JSON object")),
        }
    }

    /// The result of the plugins before this one (ADD), or of the whole ADD (DEL, CHECK).
    ///
    /// # Errors
    /// Code 6 when it cannot be read. A DEL should not fail for that.
    pub fn prev_result(&self) -> Result<Option<Success>, Error> {
        match self.object.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Success::from_value(value, Some(self.version))
                .map(Some)
                .map_err(|error| Error::new(Code::DECODE, "prevResult cannot be read").caused_by(&error)),
        }
    }

    /// The attachments that a runtime calls valid in a GC; `None` when it sends no list, in which case nothing may be
    /// removed.
    ///
    /// # Errors
    /// Code 7 when there is a list that cannot be read.
    pub fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>, Error> {
        for key in GC_KEYS {
            match self.object.get(key) {
                None | Some(Value::Null) => {}
                Some(list) => {
                    return Deserialize::deserialize(list).map(Some).map_err(|error: serde_json::Error| {
                        Error::new(Code::INVALID_CONFIG, format!("{key} cannot be read")).caused_by(&error)
                    });
                }
            }
        }
        Ok(None)
    }

    /// The same with a list of valid attachments, under both of its names.
    #[must_use]
    pub fn with_valid_attachments(mut self, valid: &[ValidAttachment]) -> Config {
        let list = serde_json::to_value(valid).unwrap_or_default();
        for key in GC_KEYS {
            self.object.insert(key.to_owned(), list.clone());
        }
        self
    }

    /// The same in another version; `prevResult` is converted with it.
    #[must_use]
    pub fn with_version(mut self, version: Version) -> Config {
        if let Ok(Some(previous)) = self.prev_result() {
            self.object.insert("prevResult".to_owned(), previous.to_value(version));
        }
        self.object.insert("cniVersion".to_owned(), version.as_str().into());
        self.version = version;
        self
    }

    /// The same with a previous result, written in the configuration's version.
    #[must_use]
    pub fn with_prev_result(mut self, result: Option<&Success>) -> Config {
        match result {
            Some(result) => self.object.insert("prevResult".to_owned(), result.to_value(self.version)),
            None => self.object.remove("prevResult"),
        };
        self
    }

    /// The same with one more key. `name` and `cniVersion` have methods of their own and stay as they are.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Config {
        if key != "name" && key != "cniVersion" {
            self.object.insert(key.to_owned(), value.into());
        }
        self
    }

    /// The same with what the runtime passes for those capabilities that the configuration declares, and nothing else
    /// under that key: what a network's author writes there must not pass for the runtime's word.
    #[must_use]
    pub fn with_runtime(mut self, offered: &Object) -> Config {
        let declared = self.object.get("capabilities").and_then(Value::as_object);
        let passed: Object = offered
            .iter()
            .filter(|(name, _)| {
                declared.is_some_and(|declared| declared.get(*name) == Some(&Value::Bool(true)))
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if passed.is_empty() {
            self.object.remove("runtimeConfig");
        } else {
            self.object.insert("runtimeConfig".to_owned(), Value::Object(passed));
        }
        self
    }

    /// The configuration as a plugin reads it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Keys are text and values were JSON before, so there is nothing here that could fail.
        serde_json::to_vec(&self.object).unwrap_or_default()
    }
}

/// The `name` of a configuration or a list of them.
pub(crate) fn name_of(object: &Object) -> Result<NetworkName, Error> {
    match object.get("name") {
        None | Some(Value::Null) => {
            Err(Error::new(Code::INVALID_CONFIG, "the network configuration has no name"))
        }
        Some(Value::String(name)) => name
            .parse()
            .map_err(|error: crate::NameError| Error::new(Code::INVALID_CONFIG, error.to_string())),
        Some(_) => {
            Err(Error::new(Code::INVALID_CONFIG, "the name in the network configuration is not a string"))
        }
    }
}

fn version_of(object: &Object) -> Result<Version, Error> {
    let text = match object.get("cniVersion") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(Error::new(Code::DECODE, "cniVersion is not a string")),
    };
    Version::of_config(text).map_err(|error| incompatible(error.to_string()))
}

/// The `type` of a plugin's configuration or of its `ipam`.
pub(crate) fn type_of(object: &Object) -> Result<PluginType, Error> {
    match object.get("type") {
        Some(Value::String(text)) => text
            .parse()
            .map_err(|error: crate::NameError| Error::new(Code::INVALID_CONFIG, error.to_string())),
        _ => Err(Error::new(Code::INVALID_CONFIG, "the plugin configuration has no type")),
    }
}

/// Code 1, in the words by which runtimes and people know it.
pub(crate) fn incompatible(details: String) -> Error {
    Error::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI versions").with_details(details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn config(value: Value) -> Config {
        Config::from_slice(&serde_json::to_vec(&value).unwrap()).unwrap()
    }

    fn fault(bytes: &[u8]) -> Error {
        Config::from_slice(bytes).unwrap_err()
    }

    #[test]
    fn each_fault_has_its_code() {
        assert_eq!(fault(b"{").code, Code::DECODE);
        assert_eq!(fault(b"[]").code, Code::DECODE);
        assert_eq!(fault(b"\xff").code, Code::DECODE);
        assert_eq!(fault(b"{}").code, Code::INVALID_CONFIG);
        assert_eq!(fault(br#"{"name":"a/b"}"#).code, Code::INVALID_CONFIG);
        assert_eq!(fault(br#"{"name":1}"#).code, Code::INVALID_CONFIG);
        assert_eq!(fault(br#"{"name":"a","cniVersion":"9.9.9"}"#).code, Code::INCOMPATIBLE_VERSION);
        assert_eq!(fault(br#"{"name":"a","cniVersion":1}"#).code, Code::DECODE);
    }

    #[test]
    fn without_a_version_the_first_one_is_meant() {
        assert_eq!(config(json!({"name": "a"})).version(), Version::V0_1_0);
    }

    #[test]
    fn only_declared_capabilities_are_passed() {
        let offered = json!({"mac": "52:54:00:00:00:01", "bandwidth": {}}).as_object().cloned().unwrap();
        let with = config(json!({"name": "a", "capabilities": {"mac": true, "bandwidth": false}}));
        assert_eq!(
            with.with_runtime(&offered).object()["runtimeConfig"],
            json!({"mac": "52:54:00:00:00:01"})
        );
        let forged = json!({"name": "a", "runtimeConfig": {"mac": "52:54:00:00:00:66"}});
        let without = config(forged).with_runtime(&offered);
        assert!(!without.object().contains_key("runtimeConfig"));
    }

    #[test]
    fn an_absent_list_for_gc_is_not_an_empty_one() {
        let absent = config(json!({"name": "a"}));
        assert_eq!(absent.valid_attachments().unwrap(), None);
        let empty = config(json!({"name": "a", "cni.dev/attachments": []}));
        assert_eq!(empty.valid_attachments().unwrap(), Some(vec![]));
        let one = config(
            json!({"name": "a", "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}),
        );
        let valid = one.valid_attachments().unwrap().unwrap();
        assert_eq!(config(json!({"name": "a"})).with_valid_attachments(&valid).object().len(), 3);
        let wrong = config(json!({"name": "a", "cni.dev/valid-attachments": 7}));
        assert_eq!(wrong.valid_attachments().unwrap_err().code, Code::INVALID_CONFIG);
    }

    #[test]
    fn ipam_is_optional_and_its_type_is_checked() {
        assert_eq!(config(json!({"name": "a", "ipam": {}})).ipam_type().unwrap(), None);
        assert_eq!(
            config(json!({"name": "a", "ipam": {"type": "static"}}))
                .ipam_type()
                .unwrap()
                .map(|t| t.to_string()),
            Some("static".to_owned())
        );
        assert!(config(json!({"name": "a", "ipam": {"type": "../x"}})).ipam_type().is_err());
        assert!(config(json!({"name": "a", "ipam": []})).ipam_type().is_err());
    }

    proptest! {
        #[test]
        fn no_input_makes_the_reader_panic(bytes: Vec<u8>, text in r#"\{"name":"[a-z]{0,3}","[a-zA-Z]{1,10}":.{0,20}\}"#) {
            let _ = Config::from_slice(&bytes);
            if let Ok(config) = Config::from_slice(text.as_bytes()) {
                let _ = (config.prev_result(), config.valid_attachments(), config.ipam_type(), config.plugin_type());
            }
        }
    }
}
