//! Which of the free NICs a container should get: close together first, on one network, rested, and always the same for the same
//! question.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::DeviceId;

/// How long a NIC rests after it was given away or came home, where there is a choice. The kubelet takes a device for free as soon as
/// the pod is gone for it; with a deletion without grace that is before the CNI DEL has ended, and the next pod's ADD fails then and is
/// tried again 20 to 25 s later (kubelet 1.36).
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// A NIC that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Which.
    pub id: DeviceId,
    /// The NUMA node it is close to.
    pub numa_node: Option<u16>,
    /// The network it is plugged into, where that is known: what the VM's metadata calls it.
    pub network: Option<String>,
    /// When it was in somebody's hands.
    pub used: Used,
}

/// When a NIC was in somebody's hands last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Used {
    /// Never, as far as is known.
    #[default]
    Never,
    /// It was given to a pod, or was seen to come home, this long ago.
    Before(Reverse<Duration>),
    /// It is away: on its way home at best.
    Now,
}

impl Used {
    /// This long ago.
    #[must_use]
    pub fn before(ago: Duration) -> Self {
        Used::Before(Reverse(ago))
    }

    fn is_rested(self) -> bool {
        match self {
            Used::Never => true,
            Used::Before(Reverse(ago)) => ago >= COOL_DOWN,
            Used::Now => false,
        }
    }
}

/// Chooses `size` of the `available` NICs, those in `must` among them.
///
/// All on one NUMA node if that is possible, there on the node where `must` lies, else on one that has enough rested NICs ([`COOL_DOWN`]), else on the
/// one that is just large enough, so that larger requests still find room; otherwise on as few nodes as possible. Within a node
/// the same by network. Then whatever was used longest ago, and last by device ID.
/// The answer is shorter than `size` if there are not enough; the kubelet accepts that.
#[must_use]
pub fn prefer(available: &[Candidate], must: &[DeviceId], size: usize) -> Vec<DeviceId> {
    let must: BTreeSet<&DeviceId> = must.iter().collect();
    let (anchors, free): (BTreeSet<&Candidate>, BTreeSet<&Candidate>) =
        available.iter().partition(|candidate| must.contains(&candidate.id));
    // Whoever names a device twice means one.
    let free: BTreeMap<&DeviceId, &Candidate> = free.into_iter().rev().map(|one| (&one.id, one)).collect();
    let free: Vec<&Candidate> = free.into_values().collect();
    let missing = size.saturating_sub(must.len());

    let on_network =
        |group, count| gather(group, &anchors, count, |one| one.network.clone(), &longest_unused);
    let chosen = gather(free, &anchors, missing, |one| one.numa_node, &on_network);
    must.into_iter().cloned().chain(chosen.into_iter().map(|candidate| candidate.id.clone())).collect()
}

fn longest_unused(mut group: Vec<&Candidate>, count: usize) -> Vec<&Candidate> {
    group.sort_by(|one, other| (one.used, &one.id).cmp(&(other.used, &other.id)));
    group.truncate(count);
    group
}

/// Takes `count` of the `free` NICs from as few groups with the same `key` as possible. `within` chooses in a group.
fn gather<'a, K: Ord>(
    free: Vec<&'a Candidate>,
    anchors: &BTreeSet<&'a Candidate>,
    count: usize,
    key: impl Fn(&'a Candidate) -> Option<K>,
    within: &dyn Fn(Vec<&'a Candidate>, usize) -> Vec<&'a Candidate>,
) -> Vec<&'a Candidate> {
    let mut groups: BTreeMap<Option<K>, Vec<&Candidate>> = BTreeMap::new();
    for candidate in free {
        groups.entry(key(candidate)).or_default().push(candidate);
    }
    let mut anchored: BTreeMap<Option<K>, usize> = BTreeMap::new();
    for anchor in anchors {
        *anchored.entry(key(anchor)).or_default() += 1;
    }
    let mut chosen = Vec::new();
    while chosen.len() < count && !groups.is_empty() {
        let missing = count - chosen.len();
        let ranked = groups.into_iter().map(|(key, group)| {
            let enough = group.len() >= missing;
            let rested = group.iter().filter(|candidate| candidate.used.is_rested()).count();
            // Of groups with enough the smallest, of the others the largest; of equals the first. NICs that know no node or network
            // come after those that do.
            let fit = if enough { usize::MAX - group.len() } else { group.len() };
            let anchors = anchored.get(&key).copied().unwrap_or(0);
            let rank = (anchors, enough, rested.min(missing), key.is_some(), fit);
            (rank, Reverse(key), group)
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked
            .sort_by(|(rank, key, _), (other_rank, other_key, _)| (rank, key).cmp(&(other_rank, other_key)));
        let best = ranked.pop();
        chosen.extend(best.into_iter().flat_map(|(_, _, group)| within(group, missing)));
        groups = ranked.into_iter().map(|(_, Reverse(key), group)| (key, group)).collect();
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: &str, numa_node: Option<u16>) -> Candidate {
        Candidate { id: id.parse().unwrap(), numa_node, network: None, used: Used::Never }
    }

    fn at(number: u8, network: Option<&str>, used: Used) -> Candidate {
        let id = format!("0000:00:{number:02x}.0");
        Candidate { network: network.map(str::to_owned), used, ..candidate(&id, None) }
    }

    fn ids(chosen: &[DeviceId]) -> Vec<&str> {
        chosen.iter().map(DeviceId::as_str).collect()
    }

    /// The slots of the NICs that are chosen.
    fn slots(available: &[Candidate], size: usize) -> Vec<u8> {
        prefer(available, &[], size).iter().map(|id| id.pci().unwrap().device()).collect()
    }

    const fn seconds(seconds: u64) -> Used {
        Used::Before(Reverse(Duration::from_secs(seconds)))
    }

    #[test]
    fn one_numa_node_before_the_order_of_addresses() {
        let available = [
            candidate("0000:00:01.0", Some(0)),
            candidate("0000:80:01.0", Some(1)),
            candidate("0000:80:02.0", Some(1)),
        ];
        assert_eq!(ids(&prefer(&available, &[], 2)), ["0000:80:01.0", "0000:80:02.0"]);
        assert_eq!(ids(&prefer(&available, &[], 1)), ["0000:00:01.0"]);
        assert_eq!(ids(&prefer(&available, &[], 3)).len(), 3);
    }

    #[test]
    fn what_must_be_in_decides_the_numa_node_and_the_network() {
        let available = [
            candidate("0000:00:01.0", Some(0)),
            candidate("0000:80:01.0", Some(1)),
            candidate("0000:80:02.0", Some(1)),
        ];
        let must = ["0000:80:02.0".parse().unwrap()];
        assert_eq!(ids(&prefer(&available, &must, 2)), ["0000:80:02.0", "0000:80:01.0"]);
        let available = [
            at(1, Some("a"), Used::Never),
            at(2, Some("b"), Used::Now),
            at(3, Some("b"), Used::Never),
            at(4, None, Used::Never),
        ];
        let must = ["0000:00:03.0".parse().unwrap()];
        assert_eq!(ids(&prefer(&available, &must, 2)), ["0000:00:03.0", "0000:00:02.0"]);
    }

    #[test]
    fn too_few_is_a_short_answer() {
        let available = [candidate("0000:00:01.0", None)];
        assert_eq!(ids(&prefer(&available, &[], 2)), ["0000:00:01.0"]);
        assert!(prefer(&[], &[], 2).is_empty());
    }

    #[test]
    fn several_nics_are_of_one_network_and_one_leaves_the_larger_network_whole() {
        let available = [
            at(1, Some("a"), Used::Never),
            at(2, Some("b"), Used::Never),
            at(3, None, Used::Never),
            at(4, Some("b"), Used::Never),
        ];
        assert_eq!(slots(&available, 2), [2, 4]);
        assert_eq!(slots(&available, 1), [1]);
        assert_eq!(slots(&available, 3), [2, 4, 1]);
    }

    #[test]
    fn a_numa_node_weighs_more_than_a_network() {
        let on =
            |number, node, network| Candidate { numa_node: Some(node), ..at(number, network, Used::Never) };
        let available = [on(1, 0, Some("a")), on(2, 1, Some("a")), on(3, 1, Some("b"))];
        assert_eq!(slots(&available, 2), [2, 3]);
    }

    #[test]
    fn what_was_used_longest_ago_comes_first_and_what_is_still_away_last() {
        let available = [
            at(1, None, Used::Now),
            at(2, None, seconds(3)),
            at(3, None, seconds(900)),
            at(4, None, seconds(100)),
        ];
        assert_eq!(slots(&available, 4), [3, 4, 2, 1]);
        assert_eq!(slots(&[at(1, None, seconds(900)), at(2, None, Used::Never)], 1), [2]);
    }

    #[test]
    fn a_rested_nic_elsewhere_is_better_than_a_hot_one_that_fits() {
        let on = |number, node, used| Candidate { numa_node: Some(node), ..at(number, None, used) };
        // Alone on its node, it would be taken first.
        for hot in [Used::Now, seconds(29)] {
            let available = [on(1, 0, hot), on(2, 1, Used::Never), on(3, 1, Used::Never)];
            assert_eq!(slots(&available, 1), [2], "{hot:?}");
            assert_eq!(slots(&available[..1], 1), [1], "a hot NIC is better than none");
        }
        assert_eq!(slots(&[on(1, 0, seconds(30)), on(2, 1, Used::Never), on(3, 1, Used::Never)], 1), [1]);
        // Two of one node are better than two rested ones of two nodes: a pod lives longer than a cool-down.
        assert_eq!(slots(&[on(1, 0, Used::Never), on(2, 1, Used::Never), on(3, 1, Used::Now)], 2), [2, 3]);
    }

    fn used() -> impl Strategy<Value = Used> {
        prop_oneof![Just(Used::Never), Just(Used::Now), (0_u64..100).prop_map(seconds)]
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (prop::option::of(0_u16..3), prop::option::of("[ab]"), used());
        prop::collection::btree_map(0_u8..30, one, 0..20).prop_map(|all| {
            let one = |(number, (numa_node, network, used))| {
                let id = format!("0000:{number:02x}:01.0").parse().unwrap();
                Candidate { id, numa_node, network, used }
            };
            all.into_iter().map(one).collect()
        })
    }

    proptest! {
        #[test]
        fn the_choice_is_of_the_right_size_without_doubles_and_independent_of_order(
            candidates in candidates(),
            size in 0_usize..25,
            musts in 0_usize..4,
        ) {
            let mut available = candidates;
            let must: Vec<DeviceId> = available.iter().take(musts.min(size)).map(|c| c.id.clone()).collect();
            let chosen = prefer(&available, &must, size);
            prop_assert_eq!(chosen.len(), size.min(available.len()));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
            prop_assert!(must.iter().all(|id| chosen.contains(id)));
            prop_assert!(chosen.iter().all(|id| available.iter().any(|c| c.id == *id)));
            available.reverse();
            prop_assert_eq!(prefer(&available, &must, size), chosen.clone());
            available.extend(available.clone());
            prop_assert_eq!(prefer(&available, &must, size), chosen);
        }

        #[test]
        fn if_one_node_suffices_one_node_is_used(candidates in candidates(), size in 1_usize..8) {
            let available: Vec<_> = candidates.into_iter().filter(|c| c.numa_node.is_some()).collect();
            let of = |n: u16| available.iter().filter(|c| c.numa_node == Some(n)).count();
            prop_assume!((0..3).map(of).max().unwrap() >= size);
            let chosen = prefer(&available, &[], size);
            let used: BTreeSet<_> =
                available.iter().filter(|c| chosen.contains(&c.id)).map(|c| c.numa_node).collect();
            prop_assert_eq!(used.len(), 1);
        }

        #[test]
        fn if_one_network_suffices_on_one_node_one_network_is_used(candidates in candidates(), size in 1_usize..8) {
            let available: Vec<_> = candidates.into_iter().map(|c| Candidate { numa_node: Some(0), ..c }).collect();
            let of = |network: Option<&str>| available.iter().filter(|c| c.network.as_deref() == network).count();
            prop_assume!([None, Some("a"), Some("b")].into_iter().map(of).max().unwrap() >= size);
            let chosen = prefer(&available, &[], size);
            let used: BTreeSet<_> =
                available.iter().filter(|c| chosen.contains(&c.id)).map(|c| &c.network).collect();
            prop_assert_eq!(used.len(), 1);
        }

        #[test]
        fn one_nic_is_a_rested_one_whenever_there_is_one(candidates in candidates()) {
            let rested = candidates.iter().any(|c| c.used.is_rested());
            let chosen = prefer(&candidates, &[], 1);
            let used = candidates.iter().find(|c| chosen.contains(&c.id)).map(|c| c.used);
            prop_assert_eq!(used.is_some_and(Used::is_rested), rested);
        }

        #[test]
        fn without_nodes_and_networks_nobody_waits_longer_than_who_is_chosen(candidates in candidates(), size in 0_usize..25) {
            let blank = |c: Candidate| Candidate { numa_node: None, network: None, ..c };
            let available: Vec<_> = candidates.into_iter().map(blank).collect();
            let chosen = prefer(&available, &[], size);
            let (taken, left): (Vec<_>, Vec<_>) = available.iter().partition(|c| chosen.contains(&c.id));
            let latest = taken.iter().map(|c| c.used).max();
            prop_assert!(left.iter().all(|c| Some(c.used) >= latest || taken.is_empty()));
        }
    }
}
