//! Which of the free NICs a container should get: close together first, and always the same for the same question.

use std::collections::{BTreeMap, BTreeSet};

use crate::DeviceId;

/// A NIC that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Which.
    pub id: DeviceId,
    /// The NUMA node it is close to.
    pub numa_node: Option<u16>,
}

/// Chooses `size` of the `available` NICs, those in `must` among them.
///
/// All on one NUMA node if that is possible, there on the node where `must` lies, else on the one that is just large
/// enough, so that larger requests still find room; otherwise on as few nodes as possible. Then by device ID.
/// The answer is shorter than `size` if there are not enough; the kubelet accepts that.
#[must_use]
pub fn prefer(available: &[Candidate], must: &[DeviceId], size: usize) -> Vec<DeviceId> {
    let must: BTreeSet<&DeviceId> = must.iter().collect();
    let mut chosen: Vec<DeviceId> = must.iter().map(|id| (*id).clone()).collect();

    let mut anchored: BTreeMap<Option<u16>, usize> = BTreeMap::new();
    let mut free: BTreeMap<Option<u16>, BTreeSet<&DeviceId>> = BTreeMap::new();
    for candidate in available {
        if must.contains(&candidate.id) {
            *anchored.entry(candidate.numa_node).or_default() += 1;
        } else {
            free.entry(candidate.numa_node).or_default().insert(&candidate.id);
        }
    }

    while chosen.len() < size {
        let missing = size - chosen.len();
        let best = free.iter().filter(|(_, ids)| !ids.is_empty()).max_by_key(|(node, ids)| {
            let anchors = anchored.get(node).copied().unwrap_or(0);
            let enough = ids.len() >= missing;
            // Of nodes with enough the smallest, of the others the largest; of equals the lowest number. NICs that
            // know no node come after those that do.
            let fit = if enough { usize::MAX - ids.len() } else { ids.len() };
            (anchors, enough, node.is_some(), fit, std::cmp::Reverse(**node))
        });
        let Some((node, _)) = best else { break };
        let node = *node;
        let ids = free.remove(&node).unwrap_or_default();
        chosen.extend(ids.into_iter().take(missing).cloned());
    }
    chosen.truncate(size.max(must.len()));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: &str, numa_node: Option<u16>) -> Candidate {
        Candidate { id: id.parse().unwrap(), numa_node }
    }

    fn ids(chosen: &[DeviceId]) -> Vec<&str> {
        chosen.iter().map(DeviceId::as_str).collect()
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
    fn what_must_be_in_decides_the_numa_node() {
        let available = [
            candidate("0000:00:01.0", Some(0)),
            candidate("0000:80:01.0", Some(1)),
            candidate("0000:80:02.0", Some(1)),
        ];
        let must = ["0000:80:02.0".parse().unwrap()];
        assert_eq!(ids(&prefer(&available, &must, 2)), ["0000:80:02.0", "0000:80:01.0"]);
    }

    #[test]
    fn too_few_is_a_short_answer() {
        let available = [candidate("0000:00:01.0", None)];
        assert_eq!(ids(&prefer(&available, &[], 2)), ["0000:00:01.0"]);
        assert!(prefer(&[], &[], 2).is_empty());
    }

    proptest! {
        #[test]
        fn the_choice_is_of_the_right_size_without_doubles_and_independent_of_order(
            nodes in prop::collection::btree_map(0_u8..30, prop::option::of(0_u16..3), 0..20),
            size in 0_usize..25,
            musts in 0_usize..4,
        ) {
            let mut available: Vec<_> =
                nodes.iter().map(|(n, node)| candidate(&format!("0000:{n:02x}:01.0"), *node)).collect();
            let must: Vec<DeviceId> = available.iter().take(musts.min(size)).map(|c| c.id.clone()).collect();
            let chosen = prefer(&available, &must, size);
            prop_assert_eq!(chosen.len(), size.min(available.len()));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
            prop_assert!(must.iter().all(|id| chosen.contains(id)));
            prop_assert!(chosen.iter().all(|id| available.iter().any(|c| c.id == *id)));
            available.reverse();
            prop_assert_eq!(prefer(&available, &must, size), chosen);
        }

        #[test]
        fn if_one_node_suffices_one_node_is_used(
            nodes in prop::collection::btree_map(0_u8..30, 0_u16..3, 1..20),
            size in 1_usize..8,
        ) {
            let available: Vec<_> =
                nodes.iter().map(|(n, node)| candidate(&format!("0000:{n:02x}:01.0"), Some(*node))).collect();
            let largest = (0..3).map(|n| nodes.values().filter(|node| **node == n).count()).max().unwrap();
            prop_assume!(largest >= size);
            let chosen = prefer(&available, &[], size);
            let used: BTreeSet<_> =
                available.iter().filter(|c| chosen.contains(&c.id)).map(|c| c.numa_node).collect();
            prop_assert_eq!(used.len(), 1);
        }
    }
}
