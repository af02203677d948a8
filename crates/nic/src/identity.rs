//! Which NIC sits at which device ID, over reboots.
//!
//! A VM's PCI addresses are not its NICs: a reboot with one NIC more or less, or a hot-plug, may give an address to another NIC. Who
//! was given the address must not find another network behind it. So the MAC that each NIC was made with is journalled with its
//! device ID. When they part, and somebody may have the ID, the NIC there is a stranger, until nobody has the ID any more or an
//! operator says that it is right so. When nobody has it, the journal follows.
//!
//! A NIC that names no MAC that it was made with can only be known by where it sits.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DeviceId, MacAddr};

/// What was known of the NICs, by device ID.
pub type Journal = BTreeMap<DeviceId, Known>;

/// The NIC that sat at a device ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The MAC that it was made with.
    pub permanent_mac: MacAddr,
    /// The boot in which it was last seen there (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// Another NIC than the one that was given away by this device ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The ID.
    pub device: DeviceId,
    /// The MAC that was known.
    pub was: MacAddr,
    /// The MAC of the NIC that sits there now.
    pub is: MacAddr,
    /// It was known in another boot than this one.
    pub rebooted: bool,
    /// Where the NIC that was known sits now, if it is still there.
    pub moved_to: Option<DeviceId>,
    /// Who has, or may have, the ID: "pod default/a has it by the ledger".
    pub holder: String,
}

/// What a look at the node says about the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What is to be known from now on.
    pub journal: Journal,
    /// The NICs that are not those that somebody may have been given.
    pub strangers: BTreeMap<DeviceId, Stranger>,
    /// The IDs that have gone to other NICs, which is in nobody's way: with the MAC that was known.
    pub followed: BTreeMap<DeviceId, MacAddr>,
}

/// Compares what is known with what a look at the node shows.
///
/// `seen` are all devices, each with the MAC that it was made with where that can be seen: not while its interface is in another
/// network namespace. `holder` says who has, or may have, a device ID.
#[must_use]
pub fn compare(
    known: &Journal,
    seen: &BTreeMap<DeviceId, Option<MacAddr>>,
    boot_id: &str,
    mut holder: impl FnMut(&DeviceId) -> Option<String>,
) -> Comparison {
    let mut after = Comparison::default();
    for (device, then) in known {
        // What is not there and nobody's is forgotten.
        if !seen.contains_key(device) && holder(device).is_none() {
            continue;
        }
        after.journal.insert(device.clone(), then.clone());
    }
    for (device, mac) in seen {
        let Some(is) = *mac else { continue };
        let here = Known { permanent_mac: is, boot_id: boot_id.to_owned() };
        if let Some(then) = known.get(device).filter(|then| then.permanent_mac != is) {
            let was = then.permanent_mac;
            if let Some(holder) = holder(device) {
                let moved_to =
                    seen.iter().find(|(_, mac)| **mac == Some(was)).map(|(device, _)| device.clone());
                let rebooted = then.boot_id != boot_id;
                let stranger = Stranger { device: device.clone(), was, is, rebooted, moved_to, holder };
                after.strangers.insert(device.clone(), stranger);
                continue;
            }
            after.followed.insert(device.clone(), was);
        }
        after.journal.insert(device.clone(), here);
    }
    after
}

impl fmt::Display for Stranger {
    /// `it was the NIC 52:54:00:00:00:0a until the last boot (now at 0000:00:0b.0) and is 52:54:00:00:00:0b now, and ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stranger { device, was, is, rebooted, moved_to, holder } = self;
        write!(f, "it was the NIC {was}")?;
        if *rebooted {
            f.write_str(" until the last boot")?;
        }
        if let Some(moved_to) = moved_to {
            write!(f, " (now at {moved_to})")?;
        }
        write!(f, " and is {is} now, and {holder}; if that is right: virtdp accept {device}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: &str = "this boot";
    const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0a]);
    const B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0b]);

    fn id(text: &str) -> DeviceId {
        text.parse().unwrap()
    }

    fn journal(entries: &[(&str, MacAddr, &str)]) -> Journal {
        let known = |mac: &MacAddr, boot: &str| Known { permanent_mac: *mac, boot_id: boot.to_owned() };
        entries.iter().map(|(device, mac, boot)| (id(device), known(mac, boot))).collect()
    }

    fn seen(entries: &[(&str, Option<MacAddr>)]) -> BTreeMap<DeviceId, Option<MacAddr>> {
        entries.iter().map(|(device, mac)| (id(device), *mac)).collect()
    }

    fn nobody(_: &DeviceId) -> Option<String> {
        None
    }

    fn somebody(_: &DeviceId) -> Option<String> {
        Some("pod default/a has it by the ledger".to_owned())
    }

    #[test]
    fn nics_that_are_new_are_noted_and_those_that_stay_are_noted_for_this_boot() {
        let known = journal(&[("0000:00:0a.0", A, "before")]);
        let after =
            compare(&known, &seen(&[("0000:00:0a.0", Some(A)), ("0000:00:0b.0", Some(B))]), HERE, somebody);
        assert_eq!(after.journal, journal(&[("0000:00:0a.0", A, HERE), ("0000:00:0b.0", B, HERE)]));
        assert!(after.strangers.is_empty() && after.followed.is_empty());
    }

    #[test]
    fn another_nic_at_an_id_that_somebody_has_is_a_stranger_and_the_journal_stays() {
        let known = journal(&[("0000:00:0a.0", A, "before")]);
        let after = compare(&known, &seen(&[("0000:00:0a.0", Some(B))]), HERE, somebody);
        assert_eq!(after.journal, known);
        assert_eq!(
            after.strangers[&id("0000:00:0a.0")].to_string(),
            "it was the NIC 52:54:00:00:00:0a until the last boot and is 52:54:00:00:00:0b now, and pod default/a has it by \
             the ledger; if that is right: virtdp accept 0000:00:0a.0"
        );
    }

    #[test]
    fn nics_that_changed_places_name_each_other() {
        let known = journal(&[("0000:00:0a.0", A, HERE), ("0000:00:0b.0", B, HERE)]);
        let swapped = seen(&[("0000:00:0a.0", Some(B)), ("0000:00:0b.0", Some(A))]);
        let first = |device: &DeviceId| somebody(device).filter(|_| *device == id("0000:00:0a.0"));
        let after = compare(&known, &swapped, HERE, first);
        assert_eq!(after.journal, journal(&[("0000:00:0a.0", A, HERE), ("0000:00:0b.0", A, HERE)]));
        let words = after.strangers[&id("0000:00:0a.0")].to_string();
        assert!(
            words.starts_with(
                "it was the NIC 52:54:00:00:00:0a (now at 0000:00:0b.0) and is 52:54:00:00:00:0b"
            ),
            "{words}"
        );
        assert_eq!(after.followed, BTreeMap::from([(id("0000:00:0b.0"), B)]));
    }

    #[test]
    fn another_nic_at_an_id_that_nobody_has_is_followed() {
        let known = journal(&[("0000:00:0a.0", A, "before")]);
        let after = compare(&known, &seen(&[("0000:00:0a.0", Some(B))]), HERE, nobody);
        assert_eq!(after.journal, journal(&[("0000:00:0a.0", B, HERE)]));
        assert_eq!(after.followed, BTreeMap::from([(id("0000:00:0a.0"), A)]));
        assert!(after.strangers.is_empty());
    }

    #[test]
    fn a_nic_whose_mac_cannot_be_seen_is_what_it_was() {
        let known = journal(&[("0000:00:0a.0", A, "before")]);
        for holder in [nobody, somebody] {
            assert_eq!(compare(&known, &seen(&[("0000:00:0a.0", None)]), HERE, holder).journal, known);
        }
    }

    #[test]
    fn a_nic_that_is_gone_is_known_for_as_long_as_somebody_has_its_id() {
        let known = journal(&[("0000:00:0a.0", A, "before")]);
        assert_eq!(compare(&known, &seen(&[]), HERE, somebody).journal, known);
        assert_eq!(compare(&known, &seen(&[]), HERE, nobody).journal, Journal::new());
    }

    proptest! {
        /// Whatever was known and is seen: an ID that somebody has never gets another MAC in the journal, and each NIC that is
        /// seen is either what the journal says, or a stranger.
        #[test]
        fn no_held_id_changes_its_nic(
            known in prop::collection::btree_map(0_u8..4, 0_u8..4, 0..4),
            shown in prop::collection::btree_map(0_u8..4, prop::option::of(0_u8..4), 0..4),
            held in prop::collection::btree_set(0_u8..4, 0..4),
        ) {
            let device = |n: u8| id(&format!("virtio{n}"));
            let mac = |n: u8| MacAddr([2, 0, 0, 0, 0, n]);
            let known: Journal = known
                .into_iter()
                .map(|(n, m)| (device(n), Known { permanent_mac: mac(m), boot_id: "before".to_owned() }))
                .collect();
            let shown = shown.into_iter().map(|(n, m)| (device(n), m.map(mac))).collect();
            let holder = |asked: &DeviceId| held.iter().any(|n| device(*n) == *asked).then(|| "held".to_owned());
            let after = compare(&known, &shown, HERE, holder);
            for (device, then) in known.iter().filter(|(device, _)| holder(device).is_some()) {
                prop_assert_eq!(after.journal[device].permanent_mac, then.permanent_mac);
            }
            for (device, mac) in shown.iter().filter_map(|(device, mac)| Some((device, (*mac)?))) {
                let agrees = after.journal[device].permanent_mac == mac;
                prop_assert_eq!(agrees, !after.strangers.contains_key(device));
            }
            // A second look says the same.
            let again = compare(&after.journal, &shown, HERE, holder);
            prop_assert_eq!(again.journal, after.journal);
            prop_assert!(again.followed.is_empty());
        }
    }
}
