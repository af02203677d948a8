//! One look at the NICs whose leases say that they are away, and what becomes of them. Blocking.

use std::time::Duration;

use anyhow::Result;
use ledger::{Lease, Ledger, Node, Stage, Whereabouts};
use linux::Devices;
use nic::{DeviceId, IfName, Link};
use tracing::debug;

use super::Homecoming;
use crate::cli::Settings;

/// What this process may do about a NIC that is astray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Powers {
    /// See it.
    Look,
    /// Bring it home.
    Change,
}

/// What was found out about a device, or done for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// An ADD, DEL or GC is at work on it.
    InHand,
    /// Its lease is right, or is gone by now.
    InOrder,
    /// It is on the node, and nobody has it.
    Astray(Stray),
    /// It was, and is now as it was at home, but for what is `lost`.
    Home {
        /// Its name now.
        name: IfName,
        /// What it was called before.
        was: IfName,
        /// Who had it.
        owner: String,
        /// What the kernel refuses, or refuses us, in words. The DEL of its owner may do more.
        lost: Vec<String>,
    },
    /// It was, and is home in nobody's hands, but under this name: its own is another link's, or it carries the node.
    Displaced {
        /// Its name now.
        name: IfName,
        /// Who had it.
        owner: String,
    },
    /// It could not be brought home.
    Fault(String),
}

/// A NIC that is on the node, and that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    /// Its name now.
    pub(crate) name: IfName,
    /// Who had it.
    pub(crate) owner: String,
}

impl Finding {
    /// What is counted of it.
    pub(super) fn outcome(&self) -> Option<Homecoming> {
        match self {
            Finding::Home { .. } => Some(Homecoming::Home),
            Finding::Displaced { .. } => Some(Homecoming::Displaced),
            Finding::Fault(_) => Some(Homecoming::Failed),
            Finding::InHand | Finding::InOrder | Finding::Astray(_) => None,
        }
    }
}

impl Powers {
    /// Those of this process.
    pub(super) fn ours() -> Powers {
        match linux::process::may_change_network() {
            Ok(true) => Powers::Change,
            Ok(false) => Powers::Look,
            Err(error) => {
                debug!(reason = error.chain(), "taking it that nothing may be changed");
                Powers::Look
            }
        }
    }
}

/// Looks at each of `devices`, in the network namespace of the calling thread.
pub(super) fn look_after(
    settings: &Settings,
    powers: Powers,
    devices: Vec<DeviceId>,
) -> Vec<(DeviceId, Finding)> {
    let ledger = Ledger::at(&settings.state);
    let node = Node::here().map(|node| Node { devices: Devices::at(&settings.sysfs), ..node });
    let mut node = match node {
        Ok(node) => node,
        Err(error) => {
            return devices.into_iter().map(|id| (id, Finding::Fault(error.chain()))).collect();
        }
    };
    if let Err(error) = node.heed(ledger.notes()) {
        debug!(reason = format!("{:#}", anyhow::Error::from(error)), "what was noted as vital is of no use");
    }
    let mut look = |device: &DeviceId| {
        look_at(&mut node, &ledger, powers, device)
            .unwrap_or_else(|error| Finding::Fault(format!("{error:#}")))
    };
    devices.into_iter().map(|device| (device.clone(), look(&device))).collect()
}

fn look_at(node: &mut Node, ledger: &Ledger, powers: Powers, device: &DeviceId) -> Result<Finding> {
    match powers {
        Powers::Look => {
            // Without a right to write, the lock can still be held together with others who look.
            let _held = match ledger.hold(device) {
                Err(error) if error.is_busy() => return Ok(Finding::InHand),
                held => held?,
            };
            Ok(match astray(node, ledger, device)? {
                Some((lease, link)) => {
                    Finding::Astray(Stray { name: link.name, owner: lease.owner.to_string() })
                }
                None => Finding::InOrder,
            })
        }
        Powers::Change => {
            let entry = match ledger.lock(device, Duration::ZERO) {
                Err(error) if error.is_busy() => return Ok(Finding::InHand),
                entry => entry?,
            };
            let Some((lease, link)) = astray(node, ledger, device)? else { return Ok(Finding::InOrder) };
            let owner = lease.owner.to_string();
            Ok(match ledger::put_right(node, &entry, &lease)? {
                ledger::Homecoming::Home => {
                    let lost = ledger::lost(node, &lease.home)?;
                    Finding::Home { name: lease.home.name, was: link.name, owner, lost }
                }
                ledger::Homecoming::Displaced { name } => Finding::Displaced { name, owner },
                ledger::Homecoming::Gone | ledger::Homecoming::OutOfSight => Finding::InOrder,
            })
        }
    }
}

/// The lease of a device that is on the node and should not be by it, and its link. The caller holds the device's lock.
fn astray(node: &mut Node, ledger: &Ledger, device: &DeviceId) -> Result<Option<(Lease, Link)>> {
    // A lease that cannot be read is told of by who reads the ledger for everybody.
    let Ok(Some(lease)) = ledger.read(device) else { return Ok(None) };
    if !says_that_it_is_away(&lease, &node.boot_id) {
        return Ok(None);
    }
    Ok(match ledger::whereabouts(node, &lease)? {
        Whereabouts::OnNode(link) => Some((lease, *link)),
        Whereabouts::WithOwner | Whereabouts::Unknown => None,
    })
}

/// A lease of another boot says nothing of this one, and its DEL closes it.
fn says_that_it_is_away(lease: &Lease, boot_id: &str) -> bool {
    lease.boot_id == boot_id && !matches!(lease.stage, Stage::Displaced { .. })
}
