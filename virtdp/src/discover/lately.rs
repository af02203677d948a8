//! NICs that carried the node a moment ago.
//!
//! While somebody configures the node's own NIC anew (`ifdown eth0; ifup eth0`), there is a moment in which neither a route nor an address
//! tells that the node lives by it. So one that carried the node is held back for a while after that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nic::lifeline::Reason;
use nic::{DeviceId, IfName, Skip, Standing};

use super::survey::Survey;

/// How long it is held back. To have an address by DHCP takes a few seconds.
pub(super) const HELD_FOR: Duration = Duration::from_secs(20);

/// Which NICs carried the node, when that was seen last, and why.
#[derive(Debug, Default)]
pub(super) struct Lately(BTreeMap<DeviceId, (Instant, IfName, Reason)>);

impl Lately {
    /// Takes notice of those that carry the node now, and holds back those that did until then. What pods have stays theirs.
    pub(super) fn check(&mut self, survey: &mut Survey, now: Instant) {
        self.0.retain(|_, (seen, ..)| now.saturating_duration_since(*seen) < HELD_FOR);
        for seen in &mut survey.nics {
            let id = &seen.nic.id;
            match &seen.standing {
                Standing::Skipped(Skip::Lifeline { interface, reason }) => {
                    self.0.insert(id.clone(), (now, interface.clone(), reason.clone()));
                }
                Standing::Offered(_) if !survey.leases.contains_key(id) => {
                    if let Some((_, interface, reason)) = self.0.get(id) {
                        let (interface, reason) = (interface.clone(), reason.clone());
                        seen.standing = Standing::Skipped(Skip::LatelyLifeline { interface, reason });
                    }
                }
                // Somebody insists, or something else is in the way.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nic::Health;

    use super::*;
    use crate::discover::{Lease, Seen, sample};

    const DEVICE: &str = "0000:00:03.0";

    fn look(lately: &mut Lately, standing: Standing, leased: bool, now: Instant) -> Standing {
        let nic = sample::nic(DEVICE);
        let lease = Lease { owner: "a pod".into(), mac: None, pod: None };
        let leases = leased.then(|| (nic.id.clone(), lease)).into_iter().collect();
        let seen = Seen { nic, link: None, standing, membership: None, told: None };
        let mut survey = Survey { nics: vec![seen], leases, ..Survey::default() };
        lately.check(&mut survey, now);
        survey.nics.remove(0).standing
    }

    #[test]
    fn what_carried_the_node_is_held_back_for_a_while_and_what_a_pod_has_is_not() {
        let (interface, reason) = ("eth0".parse().unwrap(), Reason::OnlyUp);
        let carries = || Standing::Skipped(Skip::Lifeline { interface, reason: reason.clone() });
        let carries = carries();
        let offered = || Standing::Offered(Health::Healthy);
        let insisted = || Standing::Insisted(Health::Healthy, Skip::NoDriver);
        let mut lately = Lately::default();
        let begun = Instant::now();
        assert_eq!(look(&mut lately, offered(), false, begun), offered());
        assert_eq!(look(&mut lately, carries.clone(), false, begun), carries);
        let soon = begun + HELD_FOR - Duration::from_millis(1);
        let held = look(&mut lately, offered(), false, soon);
        assert!(matches!(held, Standing::Skipped(Skip::LatelyLifeline { .. })), "{held:?}");
        assert_eq!(look(&mut lately, offered(), true, soon), offered());
        assert_eq!(look(&mut lately, insisted(), false, soon), insisted());
        // From when it was seen last.
        assert_eq!(look(&mut lately, carries.clone(), false, soon), carries);
        let later = soon + HELD_FOR - Duration::from_millis(1);
        assert_ne!(look(&mut lately, offered(), false, later), offered());
        assert_eq!(look(&mut lately, offered(), false, later + Duration::from_millis(1)), offered());
    }
}
