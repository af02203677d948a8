//! The ledger's files, leases and the journal of identities: torn, foreign, or of a newer release.

use std::fs;
use std::time::Duration;

use ledger::{Error, Ledger};
use nic::DeviceId;

use crate::Target;

pub(crate) const LEASE: Target = Target {
    name: "lease",
    run: lease,
    seeds: &[
        r#"{"version":1,"device":"0000:00:0a.0","permanent_mac":"52:54:00:00:00:0a","boot_id":"b","home":{"name":"eth2","index":4,"alt_names":["storage0"],"mtu":1400,"tx_queue_len":500,"up":true,"addresses":["021800000000000008000200c0000201"]},"owner":{"container_id":"c","if_name":"net1","netns":"/var/run/netns/p","netns_inode":4026532,"network":"n","pod":{"namespace":"d","name":"p"}},"stage":{"is":"prepared"}}
{"stage":{"is":"plumbed","index":4}}
"#,
        r#"{"version":3,"device":"0000:00:0a.0"}"#,
        r#"{"version":1,"device":"0000:00:09.0","boot_id":"b","stage":{"is":"returning","fault":"x"}}"#,
    ],
};

fn lease(bytes: &[u8]) {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(state.path());
    ledger.prepare().unwrap();
    let device: DeviceId = "0000:00:0a.0".parse().unwrap();
    fs::write(state.path().join("leases/0000:00:0a.0.json"), bytes).unwrap();
    let listing = ledger.list().expect("the folder can be listed");
    assert_eq!(listing.leases.len() + listing.unusable.len(), 1, "a lease is neither dropped nor doubled");
    match ledger.read(&device) {
        Ok(Some(lease)) => {
            assert_eq!(lease.device, device);
            // What was read can be written, and is the same.
            let entry = ledger.lock(&device, Duration::ZERO).unwrap();
            entry.write(&lease).unwrap();
            assert_eq!(entry.read().unwrap(), Some(lease));
        }
        Ok(None) => panic!("the file is there"),
        Err(error) => assert!(matches!(error, Error::Unusable { .. }), "{error}"),
    }
}

pub(crate) const JOURNAL: Target = Target {
    name: "journal",
    run: journal,
    seeds: &[
        r#"{"version":1,"devices":{"0000:00:09.0":{"permanent_mac":"52:54:00:00:00:09","boot_id":"a"},"virtio3":{"permanent_mac":"52:54:00:00:00:0a","boot_id":"b"}}}"#,
        r#"{"version":2,"devices":[]}"#,
        r#"{"version":1,"devices":{"../0000:00:09.0":{}}}"#,
    ],
};

fn journal(bytes: &[u8]) {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::at(state.path());
    fs::write(state.path().join("identities.json"), bytes).unwrap();
    let journal = match ledger.identities().read() {
        Ok(journal) => journal,
        Err(error) => {
            assert!(matches!(error, Error::Journal { .. }), "{error}");
            // Whoever writes it anew loses nothing.
            ledger.identities().set_aside().unwrap();
            assert_eq!(fs::read(state.path().join("identities.json.unusable")).unwrap(), bytes);
            assert!(ledger.identities().read().unwrap().is_empty());
            return;
        }
    };
    // What was read can be written, and is the same.
    assert!(ledger.identities().replace(&journal, &journal, Duration::ZERO).unwrap());
    assert_eq!(ledger.identities().read().unwrap(), journal);
}
