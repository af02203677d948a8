use super::*;
use proptest::prelude::*;
use serde_json::json;

fn full() -> Success {
    Success {
        interfaces: vec![
            Interface { name: "vethx".into(), mac: Some("aa:bb:cc:00:00:01".into()), ..Default::default() },
            Interface {
                name: "net1".into(),
                mac: Some("52:54:00:c4:e6:cd".into()),
                mtu: Some(1500),
                sandbox: Some("/var/run/netns/x".into()),
                socket_path: None,
                pci_id: Some("0000:00:0a.0".into()),
            },
        ],
        ips: vec![
            Ip {
                interface: Some(1),
                address: "10.56.217.2/24".parse().unwrap(),
                gateway: "10.56.217.1".parse().ok(),
            },
            Ip { interface: Some(1), address: "fd00::2/64".parse().unwrap(), gateway: None },
            Ip { interface: Some(1), address: "10.0.0.2/8".parse().unwrap(), gateway: None },
        ],
        routes: vec![
            Route {
                mtu: Some(1400),
                table: Some(100),
                ..Route::new("0.0.0.0/0".parse().unwrap(), "10.56.217.1".parse().ok())
            },
            Route::new("fd01::/64".parse().unwrap(), None),
        ],
        dns: Dns { nameservers: vec!["10.0.0.53".into()], ..Dns::default() },
    }
}

#[test]
fn the_newest_form_has_everything() {
    insta::assert_snapshot!(full().to_value(Version::V1_1_0), @r#"{"cniVersion":"1.1.0","dns":{"nameservers":["10.0.0.53"]},"interfaces":[{"mac":"aa:bb:cc:00:00:01","name":"vethx"},{"mac":"52:54:00:c4:e6:cd","mtu":1500,"name":"net1","pciID":"0000:00:0a.0","sandbox":"/var/run/netns/x"}],"ips":[{"address":"10.56.217.2/24","gateway":"10.56.217.1","interface":1},{"address":"fd00::2/64","interface":1},{"address":"10.0.0.2/8","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"10.56.217.1","mtu":1400,"table":100},{"dst":"fd01::/64"}]}"#);
}

#[test]
fn down_to_1_0_only_the_version_changes() {
    let mut expected = full().to_value(Version::V1_1_0);
    expected["cniVersion"] = "1.0.0".into();
    assert_eq!(full().to_value(Version::V1_0_0), expected);
}

#[test]
fn down_to_0_3_and_0_4_addresses_have_families_and_the_new_keys_go() {
    insta::assert_snapshot!(full().to_value(Version::V0_4_0), @r#"{"cniVersion":"0.4.0","dns":{"nameservers":["10.0.0.53"]},"interfaces":[{"mac":"aa:bb:cc:00:00:01","name":"vethx"},{"mac":"52:54:00:c4:e6:cd","name":"net1","sandbox":"/var/run/netns/x"}],"ips":[{"address":"10.56.217.2/24","gateway":"10.56.217.1","interface":1,"version":"4"},{"address":"fd00::2/64","interface":1,"version":"6"},{"address":"10.0.0.2/8","interface":1,"version":"4"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.56.217.1"},{"dst":"fd01::/64"}]}"#);
}

#[test]
fn down_to_0_1_and_0_2_one_address_per_family_is_left() {
    insta::assert_snapshot!(full().to_value(Version::V0_2_0), @r#"{"cniVersion":"0.2.0","dns":{"nameservers":["10.0.0.53"]},"ip4":{"gateway":"10.56.217.1","ip":"10.56.217.2/24","routes":[{"dst":"0.0.0.0/0","gw":"10.56.217.1"}]},"ip6":{"ip":"fd00::2/64","routes":[{"dst":"fd01::/64"}]}}"#);
}

#[test]
fn old_results_are_read() {
    let value = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]}});
    let success = Success::from_value(&value, None).unwrap();
    assert_eq!(
        success.ips,
        [Ip { interface: None, address: "10.0.0.2/24".parse().unwrap(), gateway: "10.0.0.1".parse().ok() }]
    );
    assert_eq!(success.routes, [Route::new("0.0.0.0/0".parse().unwrap(), None)]);
}

#[test]
fn what_go_writes_for_nothing_is_nothing() {
    let value = json!({"cniVersion": "0.4.0", "interfaces": null, "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": ""}],
        "routes": null, "dns": {}});
    let success = Success::from_value(&value, None).unwrap();
    assert!(success.interfaces.is_empty() && success.dns.is_empty());
    assert_eq!(success.ips[0].gateway, None);
}

#[test]
fn a_result_that_contradicts_itself_is_refused() {
    for bad in [
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2"}]}),
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.2/24", "interface": 1}]}),
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.2/24", "interface": -1}]}),
        json!({"cniVersion": "7.0.0"}),
        json!([]),
    ] {
        assert!(Success::from_value(&bad, None).is_err(), "{bad} was taken");
    }
}

fn address() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0_u8..=32).prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap()),
        (any::<[u8; 16]>(), 0_u8..=128).prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap()),
    ]
}

fn success() -> impl Strategy<Value = Success> {
    let interface =
        ("[a-z]{1,8}", any::<Option<u16>>(), any::<bool>()).prop_map(|(name, mtu, inside)| Interface {
            name,
            mtu: mtu.map(u32::from),
            sandbox: inside.then(|| "/ns".to_owned()),
            ..Default::default()
        });
    (
        prop::collection::vec(interface, 0..3),
        prop::collection::vec((address(), any::<bool>()), 0..4),
        prop::collection::vec((address(), any::<Option<u32>>()), 0..3),
    )
        .prop_map(|(interfaces, ips, routes)| {
            let first = (!interfaces.is_empty()).then_some(0);
            Success {
                ips: ips
                    .into_iter()
                    .map(|(address, on)| Ip { interface: first.filter(|_| on), address, gateway: None })
                    .collect(),
                routes: routes
                    .into_iter()
                    .map(|(dst, priority)| Route { priority, ..Route::new(dst, None) })
                    .collect(),
                interfaces,
                dns: Dns::default(),
            }
        })
}

proptest! {
    #[test]
    fn nothing_is_lost_in_the_newest_versions(success in success()) {
        for version in [Version::V1_0_0, Version::V1_1_0] {
            prop_assert_eq!(&Success::from_value(&success.to_value(version), None).unwrap(), &success);
        }
    }

    #[test]
    fn what_was_written_in_any_version_reads_and_writes_the_same(success in success()) {
        for version in Version::ALL {
            let written = success.to_value(version);
            let read = Success::from_value(&written, None).unwrap();
            prop_assert_eq!(read.to_value(version), written);
        }
    }

    #[test]
    fn addresses_survive_from_0_3_up(success in success()) {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            prop_assert_eq!(&Success::from_value(&success.to_value(version), None).unwrap().ips, &success.ips);
        }
    }
}
