//! What CNI plugins read: the network configuration, the environment, what an IPAM plugin answers, the pod's annotation.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use cni::{Config, Environment, Success, Version};

use crate::Target;

pub(crate) const NETWORK: Target = Target {
    name: "network",
    run: network,
    seeds: &[
        r#"{"cniVersion":"1.1.0","name":"n","type":"ehost-device","deviceID":"0000:00:0a.0","ipam":{"type":"host-local"},"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"net1","mac":"52:54:00:00:00:0a","mtu":1500,"sandbox":"/var/run/netns/p"}],"ips":[{"address":"10.1.2.3/24","gateway":"10.1.2.1","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"}],"dns":{"nameservers":["10.1.0.1"]}}}"#,
        r#"{"cniVersion":"0.2.0","name":"n","type":"t","prevResult":{"ip4":{"ip":"10.1.2.3/24","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::3/64"}}}"#,
        r#"{"cniVersion":"0.4.0","name":"n","type":"t","prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.3/24"}]},"runtimeConfig":{"deviceID":"x"}}"#,
        r#"{"cniVersion":"1.1.0","name":"n","type":"t","cni.dev/valid-attachments":[{"containerID":"c","ifname":"net1"}]}"#,
        "{",
    ],
};

fn network(bytes: &[u8]) {
    let Ok(config) = Config::from_slice(bytes) else { return };
    let _ = (config.plugin_type(), config.ipam_type(), config.valid_attachments());
    // What is handed to a delegate is read as what it was.
    let again = Config::from_slice(&config.to_bytes()).expect("our own configuration");
    assert_eq!((again.name(), again.version()), (config.name(), config.version()));
    if let Ok(Some(result)) = config.prev_result() {
        can_be_passed_on(&result);
    }
}

/// A result that was read can be written in every version and read again, and in the newest nothing of it is lost.
fn can_be_passed_on(result: &Success) {
    for version in Version::ALL {
        let written = result.to_value(version);
        let again = Success::from_value(&written, None).expect("our own result");
        assert!(
            version < Version::LATEST || again.to_value(version) == written,
            "{result:?} became {again:?}"
        );
    }
}

/// What an IPAM plugin writes, with success and without.
pub(crate) const ANSWER: Target = Target {
    name: "answer",
    run: answer,
    seeds: &[
        r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24","gateway":"10.1.2.1","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":100,"table":7,"scope":253}],"dns":{"nameservers":["10.1.0.1"],"domain":"d","search":["s"],"options":["o"]}}"#,
        r#"{"cniVersion":"0.4.0","interfaces":null,"ips":[{"version":"6","address":"fd00::3/64","gateway":""}],"dns":{}}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::3/64"},"dns":{"nameservers":null}}"#,
        r#"{"cniVersion":"1.0.0","code":11,"msg":"no address left","details":"10.1.2.0/24 is full"}"#,
        "panic: runtime error\n",
    ],
};

fn answer(bytes: &[u8]) {
    if let Some(error) = cni::Error::from_json(bytes) {
        let again = cni::Error::from_json(error.to_json(Version::LATEST).as_bytes());
        assert_eq!(again, Some(error), "our own error");
    }
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    for version in Version::ALL {
        let Ok(result) = Success::from_value(&value, Some(version)) else { continue };
        let count = result.interfaces.len();
        let leads_nowhere = |ip: &cni::Ip| ip.interface.is_some_and(|index| index >= count);
        assert!(count == 0 || !result.ips.iter().any(leads_nowhere), "{result:?}");
        can_be_passed_on(&result);
    }
}

/// Variables, each ended by a NUL.
pub(crate) const ENVIRONMENT: Target = Target {
    name: "environment",
    run: environment,
    seeds: &[
        "CNI_COMMAND=ADD\0CNI_CONTAINERID=c1\0CNI_NETNS=/var/run/netns/p\0CNI_IFNAME=net1\0CNI_PATH=/opt/cni/bin\0CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=d;K8S_POD_NAME=p\0",
        "CNI_COMMAND=DEL\0CNI_CONTAINERID=.\0CNI_IFNAME=a/b\0CNI_ARGS=;;=;a\0",
    ],
};

fn environment(bytes: &[u8]) {
    let variables: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    let parsed = Environment::parse(|name| {
        let value =
            |variable: &&[u8]| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        variables.iter().find_map(value).map(OsString::from_vec)
    });
    if let Ok(environment) = parsed {
        if let Some(name) = &environment.if_name {
            assert!(
                (1..=15).contains(&name.as_str().len()) && !name.as_str().contains(['/', ':', ' ']),
                "{name:?}"
            );
        }
        for (key, _) in environment.args.pairs() {
            assert!(environment.args.value(key).is_some(), "{key:?}");
        }
        // What a delegate gets says the same to it.
        let passed = environment.variables();
        let again = Environment::parse(|name| passed.iter().find(|(key, _)| *key == name)?.1.clone());
        assert_eq!(again.expect("our own environment"), environment);
    }
}

pub(crate) const SELECTION: Target = Target {
    name: "selection",
    run: selection,
    seeds: &[
        "virt-network, other/b@net7",
        r#"[{"name":"a","namespace":"b","interface":"net3","ips":["10.1.2.3/24"],"mac":"52:54:00:00:00:0a","default-route":["10.1.2.1"],"cni-args":{"a":1}}]"#,
        r#"{"name":"a"}"#,
    ],
};

fn selection(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (namespace, taken) = ("default".parse().unwrap(), "eth0".parse().unwrap());
    let Ok(selections) = cluster::selections(text, &namespace, &taken) else { return };
    let mut names: Vec<_> =
        selections.iter().map(|selection| selection.interface.as_str().to_owned()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), selections.len(), "two networks, one interface: {selections:?}");
    assert!(!names.iter().any(|name| name == "eth0"), "{selections:?}");
}
