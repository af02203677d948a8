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

/// Which NICs carry the node, or did until a moment ago.
#[derive(Debug, Default)]
pub(super) struct Lately(BTreeMap<DeviceId, Carrier>);

#[derive(Debug)]
struct Carrier {
    interface: IfName,
    reason: Reason,
    /// When it was first seen not to carry the node any more. Where nothing changes nobody looks, so the last time that it did is no measure.
    ended: Option<Instant>,
}

impl Lately {
    /// Takes notice of those that carry the node now, and holds back those that did until then. What pods have stays theirs.
    pub(super) fn check(&mut self, survey: &mut Survey, now: Instant) {
        for seen in &mut survey.nics {
            let id = &seen.nic.id;
            if let Standing::Skipped(Skip::Lifeline { interface, reason }) = &seen.standing {
                let (interface, reason) = (interface.clone(), reason.clone());
                self.0.insert(id.clone(), Carrier { interface, reason, ended: None });
                continue;
            }
            let Some(carrier) = self.0.get_mut(id) else { continue };
            let ended = *carrier.ended.get_or_insert(now);
            if now.saturating_duration_since(ended) >= HELD_FOR {
                self.0.remove(id);
            } else if matches!(seen.standing, Standing::Offered(_)) && !survey.leases.contains_key(id) {
                let (interface, reason) = (carrier.interface.clone(), carrier.reason.clone());
                seen.standing = Standing::Skipped(Skip::LatelyLifeline { interface, reason });
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
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(look(&mut lately, offered(), false, begun), offered());
        assert_eq!(look(&mut lately, carries.clone(), false, begun), carries);
        // Nothing has changed for long, so nobody has looked; then it ceases.
        let held = look(&mut lately, offered(), false, after(3600));
        assert!(matches!(held, Standing::Skipped(Skip::LatelyLifeline { .. })), "{held:?}");
        assert_eq!(look(&mut lately, offered(), true, after(3601)), offered());
        assert_eq!(look(&mut lately, insisted(), false, after(3601)), insisted());
        assert_eq!(look(&mut lately, offered(), false, after(3619)), held);
        // And once more, from the beginning.
        assert_eq!(look(&mut lately, carries.clone(), false, after(3619)), carries);
        assert_eq!(look(&mut lately, offered(), false, after(3620)), held);
        assert_eq!(look(&mut lately, offered(), false, after(3639)), held);
        assert_eq!(look(&mut lately, offered(), false, after(3640)), offered());
        assert_eq!(look(&mut lately, offered(), false, after(3641)), offered());
    }
}
