//! NICs in pods, where the agent may look: as root on the node it may, in a pod without capabilities it may not. What cannot be seen
//! is never held against a NIC.

use ledger::{Lease, look_into_pod};
use linux::Devices;
use nic::Health;

use super::survey::Survey;

/// Takes in how the NICs of these leases are, where their owners have them.
pub(super) fn look(survey: &mut Survey, plumbed: &[Lease], devices: &Devices) {
    if plumbed.is_empty() {
        return;
    }
    let Ok(boot_id) = linux::boot_id() else { return };
    for seen in &mut survey.nics {
        let away = seen.nic.interfaces.is_empty();
        let Some(lease) = plumbed.iter().find(|lease| away && lease.device == seen.nic.id) else { continue };
        if let Some(link) = look_into_pod(lease, devices, &boot_id) {
            seen.standing = seen.standing.with_health(Health::of(&link));
        }
    }
}
