//! Input that nobody would write, made from what somebody would: nothing panics, nothing is moved that should not be, and the DEL that
//! follows puts all right. What reads it is fuzzed at length in `tests/fuzz`; here it is the whole program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::bench::{Answer, Bench};

/// What an IPAM plugin answers, in full.
const RESULT: &str = r#"{"cniVersion":"1.1.0","interfaces":[],"ips":[{"address":"10.56.217.2/24","gateway":"10.56.217.1","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"10.56.217.1","mtu":1400,"advmss":1360,"priority":7,"table":9,"scope":0}],"dns":{"nameservers":["10.56.217.1"],"domain":"d","search":["s"],"options":["o"]}}"#;

/// What stands behind a lease whose ADD is complete.
const PLUMBED: &str = "\n{\"stage\":{\"is\":\"plumbed\",\"index\":3}}\n";

fn cases() -> ProptestConfig {
    // Each case is some processes; a failure is shown with its input and repeats, since these do not depend on time.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) }
}

/// Any small JSON.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[^/]{0,12}".prop_map(Value::from),
        "[0-9a-f.:]{1,12}(/[0-9]{1,3})?".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{0,8}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// What is done to a good document.
#[derive(Clone, Debug)]
enum Spoil {
    /// The part of this number, in the order of the text, becomes something else.
    Replace(prop::sample::Index, Value),
    /// The text ends here.
    Cut(prop::sample::Index),
    /// A byte becomes another.
    Byte(prop::sample::Index, u8),
}

fn any_spoil() -> impl Strategy<Value = Vec<Spoil>> {
    let replace =
        (any::<prop::sample::Index>(), any_json()).prop_map(|(at, value)| Spoil::Replace(at, value));
    let cut = any::<prop::sample::Index>().prop_map(Spoil::Cut);
    let byte = (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Spoil::Byte(at, byte));
    prop::collection::vec(prop_oneof![4 => replace, 1 => cut, 2 => byte], 1..4)
}

/// The document with all of it done.
fn spoilt(good: &Value, spoils: &[Spoil]) -> Vec<u8> {
    let mut value = good.clone();
    for spoil in spoils {
        if let Spoil::Replace(at, with) = spoil {
            let mut places = Vec::new();
            pointers(&value, String::new(), &mut places);
            // Taken at its word it would be a folder of the machine's.
            places.retain(|place| place != "/stateDir");
            if !places.is_empty() {
                let place = &places[at.index(places.len())];
                *value.pointer_mut(place).unwrap() = with.clone();
            }
        }
    }
    let mut bytes = value.to_string().into_bytes();
    for spoil in spoils {
        // With `stateDir` unreadable the machine's own state folder would be used: what is from there on stays.
        let key = b"\"stateDir\"";
        let until = bytes.windows(key.len()).position(|window| window == key).unwrap_or(bytes.len());
        match spoil {
            Spoil::Byte(at, byte) if until > 0 => bytes[at.index(until)] = *byte,
            Spoil::Cut(at) if !bytes.is_empty() => bytes.truncate(at.index(bytes.len())),
            _ => {}
        }
    }
    bytes
}

/// Every part of a value but the whole.
fn pointers(value: &Value, at: String, into: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, child) in children {
        let at = format!("{at}/{key}");
        pointers(child, at.clone(), into);
        into.push(at);
    }
}

/// It ended by itself, with an answer in JSON, and not by a fault of its own.
fn sane(answer: &Answer) {
    assert!(
        answer.ok || answer.json["code"].as_u64().is_some_and(|code| code != 0),
        "{}{}",
        answer.json,
        answer.stderr
    );
    assert!(!answer.json.to_string().contains("by a fault of its own"), "{}{}", answer.json, answer.stderr);
}

/// What a file begins with, where that is JSON.
fn first(bytes: &[u8]) -> Option<Value> {
    serde_json::Deserializer::from_slice(bytes).into_iter().next()?.ok()
}

fn names(bench: &Bench) -> BTreeSet<String> {
    let links = bench.node.route_socket().unwrap().links().unwrap();
    links.into_iter().map(|link| link.name.to_string()).collect()
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whatever_the_configuration_says_an_add_is_whole_or_nothing_and_a_del_can_be_made_good(spoils in any_spoil()) {
        let bench = Bench::new();
        let before = bench.portrait();
        let previous: Value = serde_json::from_str(RESULT).unwrap();
        let good = bench.config(json!({
            "prevResult": previous, "runtimeConfig": {"mac": "52:54:00:00:00:77"}, "mtu": 1400, "dns": {"domain": "d"},
            "allowLifeline": false,
        }));
        let config = spoilt(&good, &spoils);
        let netns = bench.pod_path().display().to_string();
        let added = bench.run_raw("ADD", "one", &netns, &config);
        sane(&added);
        if added.ok {
            bench.run_raw("DEL", "one", &netns, &config).expect();
        }
        bench.assert_untouched(&before);
        for verb in ["CHECK", "GC", "STATUS", "VERSION"] {
            sane(&bench.run_raw(verb, "one", &netns, &config));
        }

        bench.run("ADD", &good).expect();
        sane(&bench.run_raw("DEL", "one", &netns, &config));
        bench.run("DEL", &good).expect();
        bench.assert_untouched(&before);
    }

    #[test]
    fn whatever_the_environment_says_an_add_is_whole_or_nothing(
        name in prop::sample::select(vec!["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS", "CNI_NETNS_OVERRIDE"]),
        value in prop_oneof![
            prop::collection::vec(1_u8.., 0..40).prop_map(OsString::from_vec),
            "[a-zA-Z0-9_.-]{1,20}".prop_map(OsString::from),
            "(IgnoreUnknown=1;)?(K8S_POD_[A-Z]{3,9}=[^\\x00]{0,8};?){0,4}".prop_map(OsString::from),
        ],
    ) {
        let bench = Bench::new();
        let before = bench.portrait();
        let config = bench.config(json!({}));
        let mut variable = OsString::from(format!("{name}="));
        variable.push(value);
        // The program's own variables are set before.
        let odd = ["env".into(), variable];
        let added = bench.run_through(&odd, "ADD", &config);
        sane(&added);
        if added.ok {
            bench.run_through(&odd, "DEL", &config).expect();
        }
        bench.assert_untouched(&before);

        bench.run("ADD", &config).expect();
        let deleted = bench.run_through(&odd, "DEL", &config);
        sane(&deleted);
        // What says which attachment is meant must be right; the rest is nobody's need.
        prop_assert!(deleted.ok || !["CNI_NETNS", "CNI_ARGS", "CNI_NETNS_OVERRIDE"].contains(&name), "{}", deleted.json);
        bench.run("DEL", &config).expect();
        bench.assert_untouched(&before);
    }

    #[test]
    fn whatever_an_ipam_plugin_answers_an_add_is_whole_or_nothing_and_a_del_brings_the_nic_home(
        spoils in any_spoil(), ends in prop_oneof![Just(0), Just(1), Just(137)],
    ) {
        let bench = Bench::new();
        let before = bench.portrait();
        std::fs::write(bench.folder.path().join("answer"), spoilt(&serde_json::from_str(RESULT).unwrap(), &spoils)).unwrap();
        bench.ipam("odd", &format!("cat {}; exit {ends}", bench.folder.path().join("answer").display()));
        let config = bench.config(json!({"ipam": {"type": "odd"}}));
        let added = bench.run("ADD", &config);
        sane(&added);
        prop_assert!(ends == 0 || !added.ok);
        if !added.ok {
            prop_assert_eq!(bench.portrait(), before.clone());
            prop_assert_eq!(bench.asked(), ["ADD", "DEL"]);
            // By it whoever comes next knows of the address that was not given back.
            prop_assert_eq!(bench.lease().exists(), ends != 0);
            bench.run("ADD", &bench.config(json!({}))).expect();
        }
        let deleted = bench.run("DEL", &config);
        sane(&deleted);
        prop_assert_eq!(deleted.ok, ends == 0);
        bench.assert_untouched(&before);
    }

    #[test]
    fn whatever_is_in_a_lease_a_del_touches_no_other_link_and_what_cannot_be_read_keeps_none_from_succeeding(
        spoils in any_spoil(), out: bool, behind in prop_oneof![Just(PLUMBED.to_owned()), "[^x]{0,20}", any_json().prop_map(|json| json.to_string())],
    ) {
        let bench = Bench::new();
        let config = bench.config(json!({}));
        bench.run("ADD", &config).expect();
        let good = first(&std::fs::read(bench.lease()).unwrap()).unwrap();
        if !out {
            bench.run("DEL", &config).expect();
        }
        let before = names(&bench);
        let neighbour = bench.on_node("-j link show dev wire");
        let mut lease = spoilt(&good, &spoils);
        lease.extend(behind.as_bytes());
        std::fs::write(bench.lease(), &lease).unwrap();
        let deleted = bench.run("DEL", &config);
        sane(&deleted);
        let readable = first(&lease).is_some();
        prop_assert!(deleted.ok || readable, "{}", deleted.json);
        // The NIC itself, under whatever name the lease gives it.
        let now = names(&bench);
        prop_assert!(now.difference(&before).count() <= 1, "{:?} was {:?}", now, before);
        prop_assert!(now.contains("wire") && now.contains("lo"));
        if !out {
            // Its flags tell of its other end, which is at home and as it was.
            prop_assert_eq!(bench.on_node("-j link show dev wire"), neighbour);
        }
    }
}
