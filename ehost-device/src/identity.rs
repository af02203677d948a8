//! Whether the NIC behind a device ID is the one that is known by it. Addresses of a VM's NICs may move over a reboot, while pods keep
//! the IDs that the kubelet gave them: such a pod must not find another network behind its ID.
//!
//! What is known is what the node agent's journal says, or, where it says nothing, the lease that the same pod has. A NIC that the
//! network's author names himself, by interface name or MAC, is the one that he means.

use cni::Error;
use ledger::{Entry, Fault, Lease, Ledger, Owner};
use nic::identity::Known;
use nic::{DeviceId, Link, MacAddr};

use crate::code::{self, ANOTHER_NIC};
use crate::config::Selector;

/// What is known of the NICs by their IDs.
pub(crate) struct Identity<'a> {
    device: &'a DeviceId,
    boot_id: &'a str,
    known: Option<Known>,
}

impl<'a> Identity<'a> {
    /// Reads what is known of the device that is locked, before its lease is touched.
    ///
    /// # Errors
    /// Code 108 when the journal is there and cannot be read.
    pub(crate) fn read(
        ledger: &Ledger,
        entry: &'a Entry<'_>,
        selector: &Selector,
        wanted: &Owner,
        boot_id: &'a str,
    ) -> Result<Self, Error> {
        let device = entry.device();
        let known = match selector {
            Selector::Name(_) | Selector::Mac(_) => None,
            Selector::Device(_) => match journalled(ledger, device)? {
                Some(known) => Some(known),
                // A lease that cannot be read says nothing here; it is dealt with later.
                None => entry.read().ok().flatten().and_then(|lease| by_lease(&lease, wanted)),
            },
        };
        Ok(Identity { device, boot_id, known })
    }

    /// Refuses a NIC that is another.
    ///
    /// # Errors
    /// Code 109.
    pub(crate) fn confirm(&self, link: &Link) -> Result<(), Error> {
        match (&self.known, link.permanent_mac) {
            (Some(known), Some(is)) if known.permanent_mac != is => Err(self.another(known, is)),
            // What names no MAC that it was made with can only be known by where it sits.
            _ => Ok(()),
        }
    }

    fn another(&self, known: &Known, is: MacAddr) -> Error {
        let device = self.device;
        let when = if known.boot_id == self.boot_id { "" } else { " until the last boot" };
        let message = format!("device {device} is another NIC than the one that was given by this ID");
        let details = format!(
            "{device} was the NIC {}{when} and is {is} now; if that is right: virtdp accept {device}",
            known.permanent_mac
        );
        Error::new(ANOTHER_NIC, message).with_details(details)
    }
}

fn journalled(ledger: &Ledger, device: &DeviceId) -> Result<Option<Known>, Error> {
    match ledger.identities().read() {
        Ok(mut journal) => Ok(journal.remove(device)),
        // The agent sets it aside and writes it anew.
        Err(error @ ledger::Error::Journal { source: Fault::Torn(_) | Fault::Large(_), .. }) => {
            cni::tell!("ehost-device: {}: what it knew of {device} is lost", code::ledger(error));
            Ok(None)
        }
        Err(error) => Err(code::ledger(error)),
    }
}

/// What the lease knows, if its pod is the one that asks: any other was given the ID after that, with whatever NIC is there.
fn by_lease(lease: &Lease, wanted: &Owner) -> Option<Known> {
    let (then, now) = (lease.owner.pod.as_ref()?, wanted.pod.as_ref()?);
    let same_uid = match (&then.uid, &now.uid) {
        (Some(then), Some(now)) => then == now,
        (None, _) | (_, None) => true,
    };
    let same = (&then.namespace, &then.name) == (&now.namespace, &now.name) && same_uid;
    let known = |permanent_mac| Known { permanent_mac, boot_id: lease.boot_id.clone() };
    lease.permanent_mac.filter(|_| same).map(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::{Home, Pod, Stage};
    use linux::Netns;
    use std::time::Duration;

    const HERE: &str = "this boot";
    const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0a]);
    const B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0b]);

    fn id() -> DeviceId {
        "0000:00:0a.0".parse().unwrap()
    }

    fn owner(pod: Option<(&str, Option<&str>)>) -> Owner {
        let pod = pod.map(|(name, uid)| Pod {
            namespace: "default".into(),
            name: name.into(),
            uid: uid.map(str::to_owned),
        });
        Owner {
            container_id: "one".to_owned(),
            if_name: "net1".parse().unwrap(),
            netns: "/run/netns/x".into(),
            netns_inode: None,
            network: "n".to_owned(),
            pod,
        }
    }

    fn lease(owner: Owner) -> Lease {
        let home = Home::of(&link(Some(A)), Vec::new(), None);
        Lease {
            device: id(),
            permanent_mac: Some(A),
            boot_id: "before".to_owned(),
            home,
            owner,
            stage: Stage::Plumbed { index: 3 },
        }
    }

    /// A link as the kernel shows it, with this MAC.
    fn link(permanent_mac: Option<MacAddr>) -> Link {
        let link = Netns::create().unwrap().route_socket().unwrap().link_by_name("lo").unwrap().unwrap();
        Link { permanent_mac, ..link }
    }

    /// What is said of a NIC with MAC [`B`] that `wanted` asks for by `selector`, with this journal and this lease.
    fn judge(
        journal: Option<&str>,
        lease: Option<Lease>,
        selector: &Selector,
        wanted: &Owner,
    ) -> Result<(), Error> {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(folder.path());
        let device = id();
        let entry = ledger.lock(&device, Duration::from_secs(30)).unwrap();
        if let Some(lease) = lease {
            entry.write(&lease).unwrap();
        }
        if let Some(journal) = journal {
            std::fs::write(folder.path().join("identities.json"), journal).unwrap();
        }
        let identity = Identity::read(&ledger, &entry, selector, wanted, HERE)?;
        assert!(identity.confirm(&link(None)).is_ok());
        identity.confirm(&link(Some(B)))
    }

    fn journal(mac: MacAddr, boot_id: &str) -> String {
        let devices =
            nic::identity::Journal::from([(id(), Known { permanent_mac: mac, boot_id: boot_id.to_owned() })]);
        serde_json::json!({"version": 1, "devices": devices}).to_string()
    }

    #[test]
    fn a_nic_that_is_not_the_one_in_the_journal_is_refused() {
        let by_id = Selector::Device(id());
        let nobody = owner(None);
        for (boot_id, words) in [
            (
                HERE,
                "0000:00:0a.0 was the NIC 52:54:00:00:00:0a and is 52:54:00:00:00:0b now; if that is right: virtdp accept 0000:00:0a.0",
            ),
            (
                "before",
                "0000:00:0a.0 was the NIC 52:54:00:00:00:0a until the last boot and is 52:54:00:00:00:0b now",
            ),
        ] {
            let refused = judge(Some(&journal(A, boot_id)), None, &by_id, &nobody).unwrap_err();
            assert_eq!(refused.code, ANOTHER_NIC);
            assert!(refused.to_string().contains(words), "{refused}");
        }
        assert!(judge(Some(&journal(B, "before")), None, &by_id, &nobody).is_ok());
        assert!(judge(None, None, &by_id, &nobody).is_ok());
        for by_its_author in [Selector::Name("eth1".into()), Selector::Mac(B)] {
            assert!(judge(Some(&journal(A, HERE)), None, &by_its_author, &nobody).is_ok());
        }
    }

    #[test]
    fn where_the_journal_says_nothing_the_lease_of_the_same_pod_does() {
        let by_id = Selector::Device(id());
        let had = owner(Some(("a", Some("u1"))));
        for (pod, refused) in [
            (Some(("a", Some("u1"))), true),
            (Some(("a", None)), true),
            // Made anew under the same name: the kubelet gave it the ID as it is now.
            (Some(("a", Some("u2"))), false),
            (Some(("b", None)), false),
            (None, false),
        ] {
            let outcome = judge(None, Some(lease(had.clone())), &by_id, &owner(pod));
            assert_eq!(outcome.is_err(), refused, "{pod:?}");
        }
        // An operator has said that it is right.
        assert!(judge(Some(&journal(B, HERE)), Some(lease(had.clone())), &by_id, &had).is_ok());
    }

    #[test]
    fn a_torn_journal_says_nothing_and_one_of_a_newer_release_fails_the_add() {
        let by_id = Selector::Device(id());
        let had = owner(Some(("a", None)));
        assert!(judge(Some("{"), None, &by_id, &had).is_ok());
        assert!(judge(Some("{"), Some(lease(had.clone())), &by_id, &had).is_err());
        let refused = judge(Some(r#"{"version": 2}"#), None, &by_id, &had).unwrap_err();
        assert_eq!(refused.code, code::LEDGER);
    }
}
