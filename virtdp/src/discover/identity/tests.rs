use linux::Netns;
use nic::{Link, MacAddr, Standing};

use super::*;
use crate::discover::{Lease, sample};

const NIC: &str = "0000:00:0a.0";
const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0a]);
const B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0b]);

/// A node's folders, and the journal that the agent keeps there.
struct Node {
    folder: tempfile::TempDir,
    identities: Identities,
}

impl Node {
    fn new() -> Node {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("device-plugins")).unwrap();
        let identities = read_in(folder.path()).kept();
        Node { folder, identities }
    }

    /// The agent is started anew.
    fn restart(&mut self) {
        self.identities = read_in(self.folder.path()).kept();
    }

    /// The kubelet's checkpoint.
    fn checkpoint(&self, text: &str) {
        std::fs::write(self.folder.path().join("device-plugins/checkpoint"), text).unwrap();
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("state/identities.json")
    }

    /// What is said of the NIC when it has this MAC and these leases are there.
    fn look(&mut self, mac: MacAddr, leases: &[(&str, Option<MacAddr>)]) -> String {
        said(&mut self.identities, mac, leases)
    }
}

fn read_in(folder: &Path) -> Identities {
    Identities::at(&folder.join("state"), folder.join("device-plugins/checkpoint"))
}

fn said(identities: &mut Identities, mac: MacAddr, leases: &[(&str, Option<MacAddr>)]) -> String {
    let lease =
        |(owner, mac): &(&str, Option<MacAddr>)| Lease { owner: (*owner).to_owned(), mac: *mac, pod: None };
    let leases = leases.iter().map(|each| (NIC.parse().unwrap(), lease(each))).collect();
    let standing = Standing::Offered(Health::Healthy);
    let mut survey = Survey {
        nics: vec![Seen {
            nic: sample::nic(NIC),
            link: Some(link(mac)),
            standing,
            membership: None,
            told: None,
        }],
        leases,
        ..Survey::default()
    };
    identities.check(&mut survey);
    survey.nics[0].standing.health().unwrap().to_string()
}

/// A link as the kernel shows it, with this MAC.
fn link(mac: MacAddr) -> Link {
    let link = Netns::create().unwrap().route_socket().unwrap().link_by_name("lo").unwrap().unwrap();
    Link { mac: Some(mac), permanent_mac: Some(mac), ..link }
}

#[test]
fn a_journal_is_written_once_and_kept_over_a_restart() {
    let mut node = Node::new();
    assert_eq!(node.look(A, &[]), "healthy");
    let text = std::fs::read_to_string(node.journal()).unwrap();
    assert!(text.contains(&A.to_string()), "{text}");
    let written = node.journal().metadata().unwrap().modified().unwrap();
    node.look(A, &[]);
    node.restart();
    node.look(A, &[]);
    assert_eq!(node.journal().metadata().unwrap().modified().unwrap(), written, "it was written again");
    assert_eq!(node.look(B, &[]), "healthy", "nobody had it");
    assert!(std::fs::read_to_string(node.journal()).unwrap().contains(&B.to_string()));
}

#[test]
fn another_nic_is_a_stranger_for_as_long_as_somebody_has_the_id() {
    let mut node = Node::new();
    node.look(A, &[]);
    let by_the_ledger = node.look(B, &[("pod default/a", None)]);
    assert!(
        by_the_ledger
            .contains(&format!("the NIC {A} and is {B} now, and pod default/a has it by the ledger"))
    );
    node.checkpoint(
        r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u-1","ContainerName":"c","ResourceName":"example.com/any",
            "DeviceIDs":{"-1":["0000:00:0a.0"]}}]},"Checksum":1}"#,
    );
    let by_the_kubelet = node.look(B, &[]);
    assert!(by_the_kubelet.contains("pod u-1 has it by the kubelet's checkpoint"), "{by_the_kubelet}");
    node.restart();
    assert_eq!(node.look(B, &[]), by_the_kubelet);
    node.checkpoint("\0\0");
    let unknown = node.look(B, &[]);
    assert!(unknown.contains("the kubelet's checkpoint cannot be read"), "{unknown}");
    std::fs::remove_dir_all(node.folder.path().join("device-plugins")).unwrap();
    let unknown = node.look(B, &[]);
    assert!(unknown.contains("device-plugins is not there"), "{unknown}");
    std::fs::create_dir(node.folder.path().join("device-plugins")).unwrap();
    assert_eq!(node.look(B, &[]), "healthy");
}

#[test]
fn a_torn_journal_is_kept_aside_and_rebuilt_from_leases_and_from_what_is_seen() {
    for torn in ["", "{", "\0\0\0", "[1, 2]"] {
        let mut node = Node::new();
        node.look(A, &[]);
        std::fs::write(node.journal(), torn).unwrap();
        let said = node.look(B, &[("pod default/a", Some(A))]);
        assert!(said.contains(&format!("the NIC {A} and is {B} now")), "{torn:?}: {said}");
        let aside = node.folder.path().join("state/identities.json.unusable");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), torn);
        node.restart();
        assert!(node.look(B, &[("pod default/a", None)]).contains(&A.to_string()));
    }
}

#[test]
fn a_journal_that_cannot_be_written_is_remembered_until_it_can() {
    let mut node = Node::new();
    let state = node.folder.path().join("state");
    std::fs::write(&state, "in the way").unwrap();
    let held: &[_] = &[("pod default/a", None)];
    assert_eq!(node.look(A, held), "healthy");
    assert!(node.look(B, held).contains("it was the NIC"));
    assert!(node.look(B, held).contains("it was the NIC"));
    std::fs::remove_file(&state).unwrap();
    assert!(node.look(B, held).contains("it was the NIC"));
    node.restart();
    assert!(node.look(B, held).contains("it was the NIC"));
}

#[test]
fn the_journal_of_a_newer_release_is_left_as_it_is() {
    let mut node = Node::new();
    let newer = r#"{"version": 2, "nics": []}"#;
    std::fs::create_dir(node.folder.path().join("state")).unwrap();
    std::fs::write(node.journal(), newer).unwrap();
    let held: &[_] = &[("pod default/a", None)];
    assert_eq!(node.look(A, held), "healthy");
    assert!(node.look(B, held).contains("it was the NIC"));
    assert_eq!(std::fs::read_to_string(node.journal()).unwrap(), newer);
}

#[test]
fn who_only_looks_writes_nothing() {
    let mut node = Node::new();
    said(&mut read_in(node.folder.path()), A, &[]);
    assert!(!node.journal().exists());
    node.look(A, &[]);
    let before = std::fs::read(node.journal()).unwrap();
    assert_eq!(said(&mut read_in(node.folder.path()), B, &[]), "healthy");
    assert!(said(&mut read_in(node.folder.path()), B, &[("pod default/a", None)]).contains("it was the NIC"));
    assert_eq!(std::fs::read(node.journal()).unwrap(), before);
    std::fs::write(node.journal(), "{").unwrap();
    said(&mut read_in(node.folder.path()), B, &[]);
    assert_eq!(std::fs::read_to_string(node.journal()).unwrap(), "{");
}
