use super::*;
use nic::{IfName, MacAddr};
use proptest::prelude::*;

pub(crate) fn lease(device: &str) -> Lease {
    Lease {
        device: device.parse().unwrap(),
        permanent_mac: Some(MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd])),
        boot_id: "6a1b".to_owned(),
        home: Home {
            name: "eth1".parse().unwrap(),
            index: 3,
            alt_names: vec!["enp0s10".to_owned()],
            alias: Some("spare".to_owned()),
            mac: Some(MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd])),
            mtu: 1500,
            tx_queue_len: 1000,
            up: true,
            flags: nic::Link::MULTICAST,
            master: None,
            xdp: Vec::new(),
            tcx: None,
            channels: None,
            rings: None,
            offloads: None,
            settings: std::collections::BTreeMap::new(),
            addresses: vec!["021800000000000008000200c0000201".to_owned().try_into().unwrap()],
            routes: vec!["02180000fe03fd010000000008000100c6336400".to_owned().try_into().unwrap()],
        },
        owner: Owner {
            container_id: "3f1e".to_owned(),
            if_name: "net1".parse().unwrap(),
            netns: "/run/netns/x".into(),
            netns_inode: Some(4_026_532_000),
            network: "virt-net1".to_owned(),
            pod: Some(Pod { namespace: "default".into(), name: "testpod1".into(), uid: None }),
        },
        stage: Stage::Prepared,
    }
}

fn patience() -> Duration {
    Duration::from_millis(10)
}

#[test]
fn a_lease_with_thousands_of_routes_is_read_again_and_one_that_could_not_be_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(folder.path());
    let with_routes = |count| {
        let mut lease = lease("0000:00:0a.0");
        lease.home.routes = vec![lease.home.routes[0].clone(); count];
        lease
    };
    let entry = ledger.lock(&with_routes(0).device, patience()).unwrap();
    let large = with_routes(10_000);
    entry.write(&large).unwrap();
    assert_eq!(entry.read().unwrap(), Some(large.clone()));
    let refused = entry.write(&with_routes(100_000)).unwrap_err();
    let why = linux::chain(&refused);
    assert!(why.contains("0000:00:0a.0") && why.contains("is the most"), "{why}");
    assert_eq!(entry.read().unwrap(), Some(large));
}

#[test]
fn a_state_folder_that_is_a_file_has_no_leases() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let ledger = Ledger::at(file.path());
    let Listing { leases, unusable } = ledger.list().unwrap();
    assert!(leases.is_empty() && unusable.is_empty());
    assert_eq!(ledger.read(&"0000:00:0a.0".parse().unwrap()).unwrap(), None);
}

#[test]
fn a_lease_is_written_read_listed_and_closed() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(folder.path().join("state"));
    assert!(ledger.list().unwrap().leases.is_empty());
    let lease = lease("0000:00:0a.0");
    assert_eq!(ledger.read(&lease.device).unwrap(), None);
    let entry = ledger.lock(&lease.device, patience()).unwrap();
    entry.write(&lease).unwrap();
    let plumbed = lease.clone().after(Step::Plumb { index: 7 });
    entry.advance(&plumbed).unwrap();
    assert_eq!(entry.read().unwrap(), Some(plumbed.clone()));
    assert_eq!(ledger.list().unwrap().leases, [plumbed]);
    entry.close().unwrap();
    entry.close().unwrap();
    assert_eq!(ledger.read(&lease.device).unwrap(), None);
}

#[test]
fn a_stage_stands_in_a_line_behind_the_lease_and_a_line_that_is_torn_was_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(folder.path());
    let prepared = lease("0000:00:0a.0");
    let plumbed = prepared.clone().after(Step::Plumb { index: 7 });
    let path = folder.path().join("leases/0000:00:0a.0.json");
    let entry = ledger.lock(&prepared.device, patience()).unwrap();
    assert!(entry.advance(&plumbed).is_err());
    assert!(!path.exists(), "a stage without a lease");
    entry.write(&prepared).unwrap();
    let synced = std::fs::read(&path).unwrap();
    entry.advance(&plumbed).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.strip_prefix(&*synced).unwrap(), b"{\"stage\":{\"is\":\"plumbed\",\"index\":7}}\n");
    for length in 0..=whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        match entry.read() {
            // The line counts, and so does the lease, without the end of the line.
            Ok(lease) if length >= whole.len() - 1 => assert_eq!(lease.as_ref(), Some(&plumbed)),
            Ok(lease) if length >= synced.len() - 1 => {
                assert_eq!(lease.as_ref(), Some(&prepared), "{length}")
            }
            Err(Error::Unusable { source: Fault::Torn(_), .. }) if length < synced.len() - 1 => {}
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    for tail in ["\0\0", "{}", "}", "x", "{\"stage\":null}", "{\"stage\":{\"is\":\"returning\"}"] {
        std::fs::write(&path, [&*whole, tail.as_bytes()].concat()).unwrap();
        assert_eq!(entry.read().unwrap(), Some(plumbed.clone()), "{tail}");
    }
    // Written anew it is one document again.
    entry.write(&plumbed).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(value["stage"]["is"], "plumbed");
    // What the first form had.
    std::fs::write(
        &path,
        std::fs::read_to_string(&path).unwrap().replace("\"version\": 2", "\"version\": 1"),
    )
    .unwrap();
    assert_eq!(entry.read().unwrap(), Some(plumbed));
}

#[test]
fn the_file_says_its_version_and_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(folder.path());
    let entry = ledger.lock(&"0000:00:0a.0".parse().unwrap(), patience()).unwrap();
    entry.write(&lease("0000:00:0a.0")).unwrap();
    let path = folder.path().join("leases/0000:00:0a.0.json");
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(value["version"], 2);
    assert_eq!(value["stage"]["is"], "prepared");
    assert_eq!(value["home"]["name"], "eth1");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_device_has_one_lock_and_devices_do_not_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(folder.path());
    let held = ledger.lock(&"a".parse().unwrap(), patience()).unwrap();
    let error = ledger.lock(held.device(), patience()).unwrap_err();
    assert!(error.is_busy(), "{error}");
    ledger.lock(&"b".parse().unwrap(), patience()).unwrap();
}

#[test]
fn files_that_are_no_leases_are_reported_kept_and_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(folder.path());
    let good = ledger.lock(&"0000:00:0a.0".parse().unwrap(), patience()).unwrap();
    good.write(&lease("0000:00:0a.0")).unwrap();
    let leases = folder.path().join("leases");
    let whole = std::fs::read(leases.join("0000:00:0a.0.json")).unwrap();
    let bad: [(&str, &[u8]); 6] = [
        ("0000:00:01.0.json", b""),
        ("0000:00:02.0.json", &whole[..whole.len() / 2]),
        ("0000:00:03.0.json", &whole),
        ("0000:00:04.0.json", br#"{"version": 3, "something": "new"}"#),
        ("0000:00:05.0.json", br#"{"version": 1, "device": "../../x"}"#),
        (".hidden.json", b"{}"),
    ];
    for (name, bytes) in bad {
        std::fs::write(leases.join(name), bytes).unwrap();
    }
    std::fs::write(leases.join("README"), "not ours").unwrap();
    std::fs::write(leases.join(format!("{}x.json", files::TEMPORARY)), "half").unwrap();
    let listing = ledger.list().unwrap();
    assert_eq!(listing.leases, [lease("0000:00:0a.0")]);
    assert_eq!(listing.unusable.len(), bad.len());
    let newer = ledger.read(&"0000:00:04.0".parse().unwrap()).unwrap_err();
    assert!(
        matches!(newer, Error::Unusable { source: Fault::Newer { found: 3, newest: 2 }, .. }),
        "{newer:?}"
    );
    let foreign = ledger.read(&"0000:00:03.0".parse().unwrap()).unwrap_err();
    assert!(matches!(foreign, Error::Unusable { source: Fault::Foreign(_), .. }), "{foreign:?}");
    for (name, bytes) in bad {
        assert_eq!(std::fs::read(leases.join(name)).unwrap(), bytes, "{name} was changed");
    }
    let torn = ledger.lock(&"0000:00:02.0".parse().unwrap(), patience()).unwrap();
    torn.set_aside().unwrap();
    assert_eq!(torn.read().unwrap(), None);
    assert!(leases.join("0000:00:02.0.json.unusable").exists());
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Prepared),
        (1u32..9).prop_map(|index| Stage::Plumbed { index }),
        prop::option::of("[a-z]{1,5}").prop_map(|fault| Stage::Returning { fault }),
        any::<bool>().prop_map(|whole| Stage::Displaced { name: name("eth1-2"), whole }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u32..9).prop_map(|index| Step::Plumb { index }),
        prop::option::of("[a-z]{1,5}").prop_map(|fault| Step::Return { fault }),
        any::<bool>().prop_map(|whole| Step::Displace { name: name("eth1-2"), whole }),
    ]
}

proptest! {
    #[test]
    fn a_way_home_that_has_begun_is_never_taken_back(first in stage(), steps in prop::collection::vec(step(), 0..6)) {
        let mut begun = matches!(first, Stage::Returning { .. } | Stage::Displaced { .. });
        let mut stage = first;
        for step in steps {
            begun |= matches!(step, Step::Return { .. });
            stage = stage.after(step);
            let on_the_way = matches!(stage, Stage::Returning { .. } | Stage::Displaced { .. });
            prop_assert!(!begun || on_the_way, "{:?}", stage);
        }
    }

    #[test]
    fn no_content_makes_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::write(&path, bytes).unwrap();
        prop_assert!(read(&path, &"x".parse().unwrap()).is_err());
    }
}

proptest! {
    // Each case waits for the disk four times.
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn every_stage_survives_the_disk(stage in stage()) {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(folder.path());
        let lease = Lease { stage, ..lease("virtio3") };
        let entry = ledger.lock(&lease.device, patience()).unwrap();
        entry.write(&lease).unwrap();
        prop_assert_eq!(entry.read().unwrap(), Some(lease));
    }
}
