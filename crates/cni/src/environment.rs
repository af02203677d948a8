//! What the runtime says in the environment.
//!
//! <https://www.cni.dev/docs/spec/#parameters>

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use nic::IfName;

use crate::{Code, ContainerId, Error, Verb};

/// The parameters of one call. Which of them are there depends on the verb: [`Environment::parse`] sees to it that those
/// which the verb needs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<ContainerId>,
    /// `CNI_NETNS`; empty means none.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub if_name: Option<IfName>,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`.
    pub path: SearchPath,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub netns_override: bool,
}

impl Environment {
    /// An environment with a verb and a search path, and nothing else.
    #[must_use]
    pub fn new(verb: Verb, path: SearchPath) -> Self {
        Environment {
            verb,
            container_id: None,
            netns: None,
            if_name: None,
            args: Args::default(),
            path,
            netns_override: false,
        }
    }

    /// The same for another verb.
    #[must_use]
    pub fn with_verb(&self, verb: Verb) -> Self {
        Environment { verb, ..self.clone() }
    }

    /// Reads the variables through `variable`.
    ///
    /// # Errors
    /// Code 4; the message names every variable that is missing or wrong, not only the first.
    pub fn parse(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let mut reader = Reader { variable, faults: Vec::new() };
        let verb = reader.verb();
        let attaches = matches!(verb, Some(Verb::Add | Verb::Check | Verb::Del));
        let environment = Environment {
            verb: verb.unwrap_or(Verb::Version),
            container_id: reader.parsed("CNI_CONTAINERID", attaches),
            netns: reader.path("CNI_NETNS", matches!(verb, Some(Verb::Add | Verb::Check))),
            if_name: reader.parsed("CNI_IFNAME", attaches),
            args: Args(reader.aside("CNI_ARGS", verb).unwrap_or_default()),
            path: SearchPath(reader.value("CNI_PATH").unwrap_or_default()),
            netns_override: reader
                .aside("CNI_NETNS_OVERRIDE", verb)
                .is_some_and(|text| text == "1" || text.eq_ignore_ascii_case("true")),
        };
        if environment.path.0.is_empty() && verb.is_some_and(|verb| verb != Verb::Version) {
            reader.faults.push("CNI_PATH is missing".to_owned());
        }
        match reader.faults.as_slice() {
            [] => Ok(environment),
            faults => Err(Error::new(Code::INVALID_ENVIRONMENT, faults.join("; "))),
        }
    }

    /// The variables as a delegate gets them; those that are not set are to be removed from what it inherits.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, Option<OsString>)> {
        let text = |text: Option<&str>| text.map(OsString::from);
        vec![
            ("CNI_COMMAND", text(Some(self.verb.as_str()))),
            ("CNI_CONTAINERID", text(self.container_id.as_ref().map(ContainerId::as_str))),
            ("CNI_NETNS", self.netns.as_ref().map(|netns| netns.clone().into_os_string())),
            ("CNI_IFNAME", text(self.if_name.as_ref().map(IfName::as_str))),
            ("CNI_ARGS", (!self.args.0.is_empty()).then(|| OsString::from(&self.args.0))),
            ("CNI_PATH", Some(self.path.0.clone())),
            ("CNI_NETNS_OVERRIDE", self.netns_override.then(|| OsString::from("1"))),
        ]
    }
}

/// `CNI_ARGS`: `KEY=VALUE` pairs, separated by `;`. Kept as written, since it is passed on to delegates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(String);

impl Args {
    /// Takes the text as it stands in `CNI_ARGS`.
    pub fn new(text: impl Into<String>) -> Self {
        Args(text.into())
    }

    /// Joins pairs; later ones win when a key is there twice.
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let pairs: Vec<_> =
            pairs.into_iter().map(|(key, value)| format!("{}={}", key.as_ref(), value.as_ref())).collect();
        Args(pairs.join(";"))
    }

    /// The text as it stands in `CNI_ARGS`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pairs; what has no `=` is passed over, as plugins do that know none of the keys.
    pub fn pairs(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.0.split(';').filter_map(|pair| pair.split_once('='))
    }

    /// The value of a key, the last one where it is there twice: `K8S_POD_NAME`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.pairs().rev().find(|(found, _)| *found == key).map(|(_, value)| value)
    }
}

/// `CNI_PATH`: the folders in which plugins are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath(OsString);

impl SearchPath {
    /// Takes the text as it stands in `CNI_PATH`, folders separated by `:`.
    pub fn new(text: impl Into<OsString>) -> Self {
        SearchPath(text.into())
    }

    /// The folders in order.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        env::split_paths(&self.0).filter(|folder| !folder.as_os_str().is_empty())
    }

    /// The text as it stands in `CNI_PATH`.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }
}

struct Reader<F> {
    variable: F,
    faults: Vec<String>,
}

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    fn value(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.value(name)?.into_string() {
            Ok(text) => Some(text),
            Err(_) => {
                self.faults.push(format!("{name} is not UTF-8"));
                None
            }
        }
    }

    /// A text that says nothing of which attachment is meant: a DEL reads what can be read of it, and does not fail.
    fn aside(&mut self, name: &str, verb: Option<Verb>) -> Option<String> {
        match verb {
            Some(Verb::Del) => self.value(name).map(|value| value.to_string_lossy().into_owned()),
            _ => self.text(name),
        }
    }

    fn verb(&mut self) -> Option<Verb> {
        let Some(text) = self.text("CNI_COMMAND") else {
            self.faults.push("CNI_COMMAND is missing".to_owned());
            return None;
        };
        let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == text);
        if verb.is_none() {
            let shown: String = text.chars().take(40).collect();
            self.faults.push(format!("CNI_COMMAND {shown:?} is not a verb known here"));
        }
        verb
    }

    /// A value that is parsed if there, whether or not the verb needs it: GC passes none, but a wrong one is wrong.
    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        &mut self,
        name: &str,
        needed: bool,
    ) -> Option<T> {
        let before = self.faults.len();
        match self.text(name).map(|text| text.parse()) {
            Some(Ok(value)) => return Some(value),
            Some(Err(error)) => self.faults.push(format!("{name}: {error}")),
            None if needed && self.faults.len() == before => self.faults.push(format!("{name} is missing")),
            None => {}
        }
        None
    }

    fn path(&mut self, name: &str, needed: bool) -> Option<PathBuf> {
        let path = self.value(name).map(PathBuf::from);
        if path.is_none() && needed {
            self.faults.push(format!("{name} is missing"));
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::parse(|name| {
            variables.iter().find(|(found, _)| *found == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn all_bad_variables_are_named_in_one_error() {
        let error =
            parse(&[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "a/b")]).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
        insta::assert_snapshot!(error.message, @r#"CNI_CONTAINERID: "../x" is not a container ID: it does not begin with a letter or digit; CNI_NETNS is missing; CNI_IFNAME: "a/b" is not an interface name: it contains '/', ':', white space or a control character; CNI_PATH is missing"#);
        let error = parse(&[("CNI_COMMAND", "MOVE")]).unwrap_err();
        insta::assert_snapshot!(error.message, @r#"CNI_COMMAND "MOVE" is not a verb known here"#);
    }

    #[test]
    fn del_needs_no_namespace_and_gc_no_container() {
        let del = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "net1"),
            ("CNI_NETNS", ""),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        assert_eq!(parse(&del).unwrap().netns, None);
        assert!(parse(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")]).is_ok());
        assert!(parse(&[("CNI_COMMAND", "VERSION")]).is_ok());
        assert!(parse(&[("CNI_COMMAND", "CHECK"), ("CNI_PATH", "/opt/cni/bin")]).is_err());
    }

    #[test]
    fn arguments_are_read_leniently_and_kept_as_written() {
        let args = Args::new("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;junk;K8S_POD_NAMESPACE=b;X=c=d");
        assert_eq!(args.value("K8S_POD_NAMESPACE"), Some("b"));
        assert_eq!(args.value("X"), Some("c=d"));
        assert_eq!(args.value("Y"), None);
        assert_eq!(Args::from_pairs([("A", "1"), ("B", "2")]).as_str(), "A=1;B=2");
    }

    proptest! {
        #[test]
        fn no_environment_makes_the_parser_panic(
            command in prop_oneof![Just("ADD".to_owned()), Just("DEL".to_owned()), ".{0,8}"],
            container in ".{0,20}", name in ".{0,20}", args in ".{0,40}",
        ) {
            let _ = parse(&[
                ("CNI_COMMAND", &command), ("CNI_CONTAINERID", &container), ("CNI_IFNAME", &name), ("CNI_ARGS", &args),
            ]).map(|environment| environment.args.value("K8S_POD_NAME").map(str::to_owned));
        }

        #[test]
        fn what_a_delegate_gets_reads_back_the_same(id in "[a-z0-9]{1,20}", name in "[a-z]{1,15}", args in "[A-Z=;]{0,20}") {
            let environment = parse(&[
                ("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", &id), ("CNI_IFNAME", &name), ("CNI_ARGS", &args),
                ("CNI_NETNS", "/var/run/netns/x"), ("CNI_PATH", "/a:/b"),
            ]).unwrap();
            let variables = environment.variables();
            let again = Environment::parse(|name| {
                variables.iter().find(|(found, _)| *found == name).and_then(|(_, value)| value.clone())
            });
            prop_assert_eq!(again.unwrap(), environment);
        }
    }
}
