//! What the log says of NICs that are astray: each thing once.

use std::collections::BTreeMap;

use nic::DeviceId;
use tracing::{debug, info, warn};

use super::look::{Finding, Stray};

/// What was told last of each device.
#[derive(Debug, Default)]
pub(super) struct Report(BTreeMap<DeviceId, Finding>);

impl Report {
    /// Forgets what was told of others than these.
    pub(super) fn keep(&mut self, devices: &[DeviceId]) {
        self.0.retain(|device, _| devices.contains(device));
    }

    /// How many are astray still.
    pub(super) fn astray(&self) -> usize {
        let stray = |finding: &&Finding| matches!(finding, Finding::Astray(_) | Finding::Fault(_));
        self.0.values().filter(stray).count()
    }

    /// Tells what is new.
    pub(super) fn tell(&mut self, device: DeviceId, finding: &Finding) {
        if self.0.get(&device) == Some(finding) {
            return;
        }
        match finding {
            Finding::InHand => debug!(%device, "an ADD, DEL or GC is at work on it"),
            Finding::InOrder => debug!(%device, "its lease is in order"),
            Finding::Astray(Stray { name, owner }) => warn!(
                interface = %name,
                owner,
                "{device} is back on the node and in nobody's hands: the DEL of its owner, a GC or the next ADD brings it home \
                 as it was; virtdp would, with CAP_NET_ADMIN"
            ),
            Finding::Home { name, was, owner, lost } => {
                info!(
                    interface = %name,
                    was = %was,
                    owner,
                    "Brought {device} home, which was back on the node and in nobody's hands"
                );
                for lost in lost {
                    warn!("{device} is home as {name}, without {lost}");
                }
            }
            Finding::Displaced { name, owner } => warn!(
                interface = %name,
                owner,
                "{device} is home under another name: its own or an alternative one is another link's, or it carries the node; \
                 the DEL of its owner, a GC or the next ADD gives it back when that is over"
            ),
            Finding::Fault(reason) => {
                warn!(reason, "{device} could not be brought home, this is tried again")
            }
        }
        self.0.insert(device, finding.clone());
    }
}
