//! What was told of the NICs in pods, and what is to be told now. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use nic::{DeviceId, IfName};
use tokio::time::Instant;

/// After something was told of a NIC, nothing is for this long; then what holds, if that is something else.
const PAUSE: Duration = Duration::from_secs(60);
/// An API server that does not answer is asked again after a pause that doubles up to this.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// As many are told at once. Where more happens at once it is the node that has a fault, and the others follow.
const AT_ONCE: usize = 32;

/// A NIC in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) pod: ledger::Pod,
    /// What it is called there.
    pub(super) interface: IfName,
    pub(super) condition: Condition,
}

/// How a NIC in a pod is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Condition {
    Well,
    Unplugged,
    /// With the reason.
    Ill(String),
}

/// The interface that a pod had ended with the device that was unplugged: what is plugged in there later is no NIC of the pod's, however
/// well it is.
pub(super) fn stay_unplugged(before: &BTreeMap<DeviceId, Held>, held: &mut BTreeMap<DeviceId, Held>) {
    for (device, held) in held {
        let was = before.get(device).filter(|before| before.pod == held.pod);
        if was.is_some_and(|before| before.condition == Condition::Unplugged) {
            held.condition = Condition::Unplugged;
        }
    }
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) device: DeviceId,
    pub(super) held: Held,
    /// 0 for what the NIC was already when it was first seen in this pod; what it becomes after that is counted, so that two Events that
    /// say the same have different numbers.
    pub(super) number: u32,
    /// What was told before.
    before: Condition,
}

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<DeviceId, Known>);

#[derive(Debug)]
struct Known {
    pod: ledger::Pod,
    told: Condition,
    number: u32,
    not_before: Option<Instant>,
    failures: u32,
}

impl Told {
    /// What is to be told now; from here on it counts as told.
    pub(super) fn take(&mut self, held: &BTreeMap<DeviceId, Held>, now: Instant) -> Vec<Notice> {
        self.0.retain(|device, known| held.get(device).is_some_and(|held| held.pod == known.pod));
        let mut notices = Vec::new();
        for (device, held) in held {
            let known = self.0.entry(device.clone()).or_insert_with(|| Known {
                pod: held.pod.clone(),
                // A pod gets a NIC that is well, so that it is not is news, also to an agent that has just started.
                told: Condition::Well,
                number: u32::from(held.condition == Condition::Well),
                not_before: None,
                failures: 0,
            });
            let due = known.told != held.condition && known.not_before.is_none_or(|time| time <= now);
            if !due || notices.len() >= AT_ONCE {
                continue;
            }
            let before = std::mem::replace(&mut known.told, held.condition.clone());
            notices.push(Notice { device: device.clone(), held: held.clone(), number: known.number, before });
            known.number = known.number.saturating_add(1);
            known.not_before = Some(now + PAUSE);
        }
        notices
    }

    /// When there may be something to tell again.
    pub(super) fn next(&self, held: &BTreeMap<DeviceId, Held>) -> Option<Instant> {
        let waits = |(device, known): (&DeviceId, &Known)| {
            let differs = held.get(device).is_some_and(|held| held.condition != known.told);
            known.not_before.filter(|_| differs)
        };
        self.0.iter().filter_map(waits).min()
    }

    /// It has arrived.
    pub(super) fn done(&mut self, device: &DeviceId) {
        if let Some(known) = self.0.get_mut(device) {
            known.failures = 0;
        }
    }

    /// It has not arrived, and may later.
    pub(super) fn again(&mut self, notice: &Notice, now: Instant) {
        let Some(known) = self.0.get_mut(&notice.device) else { return };
        known.told = notice.before.clone();
        known.number = notice.number;
        let pause = PAUSE.saturating_mul(2_u32.saturating_pow(known.failures)).min(LONGEST);
        known.not_before = Some(now + pause);
        known.failures = known.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn held(pod: &str, condition: Condition) -> BTreeMap<DeviceId, Held> {
        let pod = ledger::Pod { namespace: "default".into(), name: pod.into(), uid: None };
        let held = Held { pod, interface: "net1".parse().unwrap(), condition };
        BTreeMap::from([("0000:00:0a.0".parse().unwrap(), held)])
    }

    fn ill() -> Condition {
        Condition::Ill("no carrier".into())
    }

    #[test]
    fn a_nic_that_is_well_from_the_start_is_no_news() {
        let mut told = Told::default();
        assert_eq!(told.take(&held("a", Condition::Well), Instant::now()), []);
        assert_eq!(told.next(&held("a", Condition::Well)), None);
    }

    #[test]
    fn each_change_is_told_once_and_another_after_a_pause_only() {
        let (mut told, now) = (Told::default(), Instant::now());
        let first = told.take(&held("a", ill()), now);
        assert_eq!((first.len(), first[0].number), (1, 0));
        assert_eq!(told.take(&held("a", ill()), now + SECOND), []);
        // It comes and goes: nothing is told, and nothing is left to tell.
        assert_eq!(told.take(&held("a", Condition::Well), now + SECOND), []);
        assert_eq!(told.next(&held("a", Condition::Well)), Some(now + PAUSE));
        assert_eq!(told.take(&held("a", ill()), now + SECOND * 2), []);
        assert_eq!(told.next(&held("a", ill())), None);
        let second = told.take(&held("a", Condition::Unplugged), now + PAUSE);
        assert_eq!((second.len(), second[0].number), (1, 1));
    }

    #[test]
    fn what_is_found_at_the_start_has_number_0_and_what_comes_later_has_not() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert_eq!(told.take(&held("a", ill()), now)[0].number, 0);
        let mut told = Told::default();
        assert_eq!(told.take(&held("a", Condition::Well), now), []);
        assert_eq!(told.take(&held("a", ill()), now)[0].number, 1);
    }

    #[test]
    fn a_nic_that_was_unplugged_never_comes_back_to_its_pod() {
        for (pod, before, after) in [
            ("a", Condition::Unplugged, Condition::Unplugged),
            ("a", ill(), Condition::Well),
            ("b", Condition::Unplugged, Condition::Well),
        ] {
            let mut now = held("a", Condition::Well);
            stay_unplugged(&held(pod, before), &mut now);
            assert_eq!(now, held("a", after));
        }
    }

    #[test]
    fn another_pod_with_the_same_nic_hears_of_its_own() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert_eq!(told.take(&held("a", ill()), now).len(), 1);
        assert_eq!(told.take(&held("b", ill()), now)[0].held.pod.name, "b");
        assert_eq!(told.take(&BTreeMap::new(), now), []);
        assert!(told.0.is_empty());
    }

    #[test]
    fn what_did_not_arrive_is_told_again_after_pauses_that_grow_to_a_limit() {
        let (mut told, mut now) = (Told::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let notices = told.take(&held("a", ill()), now);
            assert_eq!(notices[0].number, 0);
            told.again(&notices[0], now);
            let next = told.next(&held("a", ill())).unwrap();
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [60, 120, 240, 480, 900, 900, 900]);
        // Well again meanwhile: nobody need know.
        assert_eq!(told.take(&held("a", Condition::Well), now), []);
        // Once it has arrived, the next one is tried as the first was.
        assert_eq!(told.take(&held("a", ill()), now).len(), 1);
        told.done(&"0000:00:0a.0".parse().unwrap());
        let notices = told.take(&held("a", Condition::Well), now + PAUSE);
        told.again(&notices[0], now);
        assert_eq!(told.next(&held("a", Condition::Well)), Some(now + PAUSE));
    }

    #[test]
    fn not_all_is_told_at_once() {
        let mut many = BTreeMap::new();
        for number in 0..100 {
            let one = held("a", ill()).into_values().next().unwrap();
            many.insert(format!("virtio{number}").parse().unwrap(), one);
        }
        let (mut told, now) = (Told::default(), Instant::now());
        let mut counts = Vec::new();
        for _ in 0..5 {
            counts.push(told.take(&many, now).len());
        }
        assert_eq!(counts, [32, 32, 32, 4, 0]);
    }
}
