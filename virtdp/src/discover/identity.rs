//! Keeping the journal of identities, and finding the NICs that are not those that pods were given. The rule is [`nic::identity`].
//!
//! A journal that cannot be read or written is said and in nobody's way: what is known is remembered for as long as the agent runs.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use ledger::{Error, Fault};
use nic::identity::{Comparison, Journal, Known, compare};
use nic::{DeviceId, Health};
use tracing::{info, warn};

use super::survey::{Seen, Survey};
use crate::allocate::checkpoint;
use crate::cli::Settings;

/// How long somebody else may be at the journal: who writes it writes one file.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How often somebody else may be quicker.
pub(super) const ATTEMPTS: u32 = 5;

/// The journal, and what is to become of it.
#[derive(Debug)]
pub(super) struct Identities {
    journal: ledger::Identities,
    checkpoint: PathBuf,
    keeping: Keeping,
    /// What is known and could not be written.
    unwritten: Option<Journal>,
    /// What was said of the journal last.
    complaint: Option<String>,
    /// What was said of strangers last.
    told: BTreeMap<DeviceId, String>,
}

/// Whether the journal is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    Kept,
    OnlyRead,
}

impl Identities {
    /// A journal that is only read.
    pub(super) fn new(settings: &Settings) -> Self {
        Identities::at(&settings.state, settings.kubelet.checkpoint())
    }

    fn at(state: &Path, checkpoint: PathBuf) -> Self {
        Identities {
            journal: ledger::Identities::at(state),
            checkpoint,
            keeping: Keeping::OnlyRead,
            unwritten: None,
            complaint: None,
            told: BTreeMap::new(),
        }
    }

    /// A journal that is kept.
    pub(super) fn kept(self) -> Self {
        Identities { keeping: Keeping::Kept, ..self }
    }

    /// Compares what a look at the node shows with the journal: NICs that are not those that somebody may have been given are
    /// marked, and the journal takes in the others.
    pub(super) fn check(&mut self, survey: &mut Survey) {
        let after = self.compared(survey);
        for seen in &mut survey.nics {
            if let Some(stranger) = after.strangers.get(&seen.nic.id) {
                seen.standing = seen.standing.with_health(Health::Stranger(Box::new(stranger.clone())));
            }
        }
        if self.keeping == Keeping::OnlyRead {
            return;
        }
        let strangers: BTreeMap<DeviceId, String> =
            after.strangers.into_iter().map(|(device, stranger)| (device, stranger.to_string())).collect();
        for (device, reason) in &strangers {
            if self.told.get(device) != Some(reason) {
                warn!(%device, reason, "another NIC sits at this ID: pods do not get it");
            }
        }
        self.told = strangers;
    }

    fn compared(&mut self, survey: &Survey) -> Comparison {
        let boot_id = linux::boot_id().unwrap_or_default();
        let seen = survey.nics.iter().map(|seen| (seen.nic.id.clone(), permanent_mac(seen))).collect();
        let given = OnceCell::new();
        let holder = |device: &DeviceId| self::holder(device, survey, &self.checkpoint, &given);
        let mut unwritten = self.unwritten.take();
        let mut complaint = None;
        let mut attempt = 1;
        let after = loop {
            let on_disk = match self.journal.read() {
                Ok(journal) => Some(journal),
                Err(error) => {
                    let torn =
                        matches!(&error, Error::Journal { source: Fault::Torn(_) | Fault::Large(_), .. });
                    let aside = torn && self.keeping == Keeping::Kept && self.journal.set_aside().is_ok();
                    complaint = Some(format!("{:#}", anyhow::Error::from(error)));
                    aside.then(Journal::new)
                }
            };
            let mut known = unwritten.clone().or_else(|| on_disk.clone()).unwrap_or_default();
            for (device, lease) in &survey.leases {
                if let (Some(permanent_mac), false) = (lease.mac, known.contains_key(device)) {
                    known.insert(device.clone(), Known { permanent_mac, boot_id: boot_id.clone() });
                }
            }
            let after = compare(&known, &seen, &boot_id, holder);
            if self.keeping == Keeping::OnlyRead || on_disk.as_ref() == Some(&after.journal) {
                break after;
            }
            let Some(on_disk) = on_disk else {
                self.unwritten = Some(after.journal.clone());
                break after;
            };
            match self.journal.replace(&on_disk, &after.journal, PATIENCE) {
                Ok(true) => break after,
                // An operator has said something.
                Ok(false) if attempt < ATTEMPTS => unwritten = None,
                Ok(false) => {
                    self.unwritten = Some(after.journal.clone());
                    break after;
                }
                Err(error) => {
                    complaint = Some(format!("{:#}", anyhow::Error::from(error)));
                    self.unwritten = Some(after.journal.clone());
                    break after;
                }
            }
            attempt += 1;
        };
        if self.keeping == Keeping::Kept {
            for (device, was) in &after.followed {
                info!(%device, %was, "another NIC sits at this ID now, which nobody has");
            }
            if let Some(reason) = complaint.as_ref().filter(|_| complaint != self.complaint) {
                warn!(reason, "which NIC was at which ID is not known in full, or not kept over a reboot");
            }
            self.complaint = complaint;
        }
        after
    }
}

/// The MAC that a NIC was made with, where it can be seen.
pub(super) fn permanent_mac(seen: &Seen) -> Option<nic::MacAddr> {
    seen.link.as_ref()?.permanent_mac.filter(nic::MacAddr::is_unicast)
}

/// Who has, or may have, a device.
fn holder(
    device: &DeviceId,
    survey: &Survey,
    checkpoint: &Path,
    given: &OnceCell<Result<BTreeMap<DeviceId, String>>>,
) -> Option<String> {
    if let Some(lease) = survey.leases.get(device) {
        return Some(format!("{} has it by the ledger", lease.owner));
    }
    match given.get_or_init(|| checkpoint::holders(checkpoint)) {
        Ok(given) => given.get(device).map(|pod| format!("pod {pod} has it by the kubelet's checkpoint")),
        Err(error) => {
            Some(format!("somebody may have it, since the kubelet's checkpoint cannot be read ({error:#})"))
        }
    }
}

#[cfg(test)]
mod tests;
