use std::cell::RefCell;

use super::*;
use proptest::prelude::*;

/// Notes what it is asked to do, and says yes.
#[derive(Default)]
struct Obedient(RefCell<Vec<String>>);

impl Obedient {
    fn note(&self, what: &str) {
        self.0.borrow_mut().push(what.to_owned());
    }
}

impl Plugin for Obedient {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        self.note("ADD");
        Ok(add.config.prev_result()?.unwrap_or_default())
    }
    fn del(&self, _: &Del) -> Result<(), Error> {
        self.note("DEL");
        Ok(())
    }
    fn check(&self, _: &Check) -> Result<(), Error> {
        self.note("CHECK");
        Ok(())
    }
    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        self.note(&format!("GC {}", gc.valid.len()));
        Ok(())
    }
    fn status(&self, _: &Status) -> Result<(), Error> {
        self.note("STATUS");
        Ok(())
    }
}

const ABOUT: About = About::new("test", "0");

/// A file that is no namespace of ours.
const ELSEWHERE: &str = "/dev/null";

fn ask(verb: &str, netns: &str, stdin: &[u8]) -> (Result<String, Error>, Vec<String>) {
    let plugin = Obedient::default();
    let variables = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "net1"),
        ("CNI_NETNS", netns),
        ("CNI_PATH", "/nowhere"),
    ];
    let variable = |name: &str| {
        variables.iter().find(|(found, _)| *found == name).map(|(_, value)| OsString::from(value))
    };
    let answer = answer(&plugin, &ABOUT, variable, stdin);
    (answer, plugin.0.into_inner())
}

fn code(verb: &str, stdin: &[u8]) -> u32 {
    let (answer, calls) = ask(verb, ELSEWHERE, stdin);
    assert_eq!(calls, Vec::<String>::new(), "the plugin was called");
    answer.unwrap_err().code.0
}

#[test]
fn each_verb_reaches_the_plugin_once_and_only_add_has_output() {
    for verb in ["ADD", "DEL", "CHECK", "STATUS"] {
        let (answer, calls) = ask(verb, ELSEWHERE, br#"{"cniVersion":"1.1.0","name":"n","type":"t"}"#);
        assert_eq!(answer.unwrap().is_empty(), verb != "ADD");
        assert_eq!(calls, [verb]);
    }
}

#[test]
fn the_result_is_in_the_version_of_the_configuration() {
    let config = br#"{"cniVersion":"0.3.1","name":"n","prevResult":{"interfaces":[{"name":"net1","mtu":1500,"sandbox":"/x"}],
        "ips":[{"address":"10.0.0.2/24","interface":0}]}}"#;
    let (answer, _) = ask("ADD", ELSEWHERE, config);
    insta::assert_snapshot!(answer.unwrap(), @r#"
    {
      "cniVersion": "0.3.1",
      "interfaces": [
        {
          "name": "net1",
          "sandbox": "/x"
        }
      ],
      "ips": [
        {
          "address": "10.0.0.2/24",
          "interface": 0,
          "version": "4"
        }
      ]
    }
    "#);
}

#[test]
fn verbs_are_refused_in_versions_that_do_not_have_them() {
    assert_eq!(code("CHECK", br#"{"cniVersion":"0.3.1","name":"n"}"#), 1);
    assert_eq!(code("GC", br#"{"cniVersion":"1.0.0","name":"n","cni.dev/attachments":[]}"#), 1);
    assert_eq!(code("STATUS", br#"{"cniVersion":"1.0.0","name":"n"}"#), 1);
    assert_eq!(code("ADD", br#"{"cniVersion":"2.0.0","name":"n"}"#), 1);
}

#[test]
fn bad_configurations_never_reach_the_plugin() {
    assert_eq!(code("ADD", b""), 6);
    assert_eq!(code("DEL", b"not json"), 6);
    assert_eq!(code("ADD", br#"{"cniVersion":"1.0.0"}"#), 7);
    let mut large = br#"{"name":"n"}"#.to_vec();
    large.resize(usize::try_from(LARGEST_CONFIG).unwrap() + 1, b' ');
    assert_eq!(code("ADD", &large), 6);
}

#[test]
fn gc_without_a_list_changes_nothing() {
    let (answer, calls) = ask("GC", "", br#"{"cniVersion":"1.1.0","name":"n"}"#);
    assert_eq!(answer.unwrap(), "");
    assert!(calls.is_empty());
    let (answer, calls) =
        ask("GC", "", br#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[]}"#);
    assert_eq!(answer.unwrap(), "");
    assert_eq!(calls, ["GC 0"]);
}

#[test]
fn our_own_namespace_is_refused_and_a_missing_one_only_stops_add() {
    let own = "/proc/thread-self/ns/net";
    let config = br#"{"cniVersion":"1.0.0","name":"n"}"#;
    for verb in ["ADD", "CHECK", "DEL"] {
        let (answer, calls) = ask(verb, own, config);
        assert_eq!(answer.unwrap_err().code, Code::INVALID_NETNS);
        assert!(calls.is_empty());
    }
    assert_eq!(ask("ADD", "/gone", config).0.unwrap_err().code, Code::INVALID_NETNS);
    assert_eq!(ask("DEL", "/gone", config).1, ["DEL"]);
    assert_eq!(ask("DEL", "", config).1, ["DEL"]);
}

#[test]
fn version_answers_in_the_version_that_was_asked_in() {
    insta::assert_snapshot!(
        ask("VERSION", "", b"").0.unwrap(),
        @r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
    );
    assert!(
        ask("VERSION", "", br#"{"cniVersion":"0.4.0"}"#).0.unwrap().starts_with(r#"{"cniVersion":"0.4.0""#)
    );
    assert!(
        ask("VERSION", "", br#"{"cniVersion":"9.0.0"}"#).0.unwrap().starts_with(r#"{"cniVersion":"1.1.0""#)
    );
}

proptest! {
    #[test]
    fn no_stdin_makes_a_plugin_panic(verb in "ADD|DEL|CHECK|GC|STATUS|VERSION", stdin: Vec<u8>) {
        let _ = ask(&verb, ELSEWHERE, &stdin);
    }
}
