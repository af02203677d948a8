use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{AtHome, HardwareId, MacAddr, Metadata, Nic, Told};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd]);

fn resource(name: &str) -> ResourceName {
    format!("example.com/{name}").parse().unwrap()
}

fn nic() -> Nic {
    Nic {
        id: "0000:01:00.0".parse().unwrap(),
        bus_name: "virtio0".into(),
        pci: "0000:01:00.0".parse().ok(),
        above: vec!["0000:00:02.0".parse().unwrap()],
        acpi_index: Some(101),
        driver: Some("virtio_net".into()),
        hardware: Some(HardwareId { vendor: 0x1af4, device: 0x1041 }),
        numa_node: None,
        interfaces: vec![],
        has_interface: true,
    }
}

fn at_home() -> AtHome {
    AtHome { name: "eth1".parse().unwrap(), mac: Some(MAC), mtu: 1450, queues: Some(2) }
}

fn metadata() -> Metadata {
    let set = |text: &str| BTreeSet::from([text.to_owned()]);
    Metadata(BTreeMap::from([(MAC, Told { network_ids: set("net-a"), tags: set("fast") })]))
}

fn selector(demands: Vec<Demand>) -> Selector {
    Selector { demands, needs: Needs::default() }
}

fn pool(name: &str, demands: Vec<Demand>, exclude: Vec<Demand>) -> Pool {
    let exclude = exclude.into_iter().map(|demand| selector(vec![demand])).collect();
    Pool { selectors: vec![selector(demands)], exclude, ..Pool::empty(resource(name)) }
}

fn drivers(name: &str) -> Demand {
    Demand::Drivers(vec![name.into()])
}

/// Demands that the NIC above meets, and those that it does not, each pair of one kind.
fn demands() -> Vec<(Demand, Demand)> {
    let texts = |text: &str| vec![text.to_owned()];
    vec![
        (Demand::Vendors(vec![0x8086, 0x1af4]), Demand::Vendors(vec![0x8086])),
        (Demand::Devices(vec![0x1041]), Demand::Devices(vec![0x1000])),
        (drivers("virtio_net"), drivers("e1000")),
        (
            Demand::PciAddresses(vec!["0000:01:00.0".parse().unwrap()]),
            Demand::PciAddresses(vec!["0000:00:02.0".parse().unwrap()]),
        ),
        (Demand::AcpiIndexes(vec![101]), Demand::AcpiIndexes(vec![1])),
        (
            Demand::RootDevices(vec!["0000:00:02.0".parse().unwrap()]),
            Demand::RootDevices(vec!["0000:01:00.0".parse().unwrap()]),
        ),
        (Demand::Names(vec!["eth*".parse().unwrap()]), Demand::Names(vec!["ens?".parse().unwrap()])),
        (Demand::Macs(vec![MAC]), Demand::Macs(vec![MacAddr([2; 6])])),
        (Demand::Mtus(vec![1450, 9000]), Demand::Mtus(vec![9000])),
        (Demand::Queues(2), Demand::Queues(4)),
        (Demand::NetworkIds(texts("net-a")), Demand::NetworkIds(texts("net-b"))),
        (Demand::Tags(texts("fast")), Demand::Tags(texts("slow"))),
        (Demand::Ethernet, Demand::Nothing("it cannot be".into())),
    ]
}

/// Whether what is demanded can be told of a NIC that nobody has seen at home.
fn is_seen_from_afar(demand: &Demand) -> bool {
    !matches!(
        demand,
        Demand::Ethernet
            | Demand::Names(_)
            | Demand::Macs(_)
            | Demand::Mtus(_)
            | Demand::Queues(_)
            | Demand::NetworkIds(_)
            | Demand::Tags(_)
    )
}

#[test]
fn every_demand_selects_what_it_says_and_nothing_else() {
    let (nic, home, metadata) = (nic(), at_home(), metadata());
    let view = View { nic: &nic, home: Some(&home), metadata: Some(&metadata) };
    for (met, unmet) in demands() {
        let pools = |demand: &Demand| Pools::new(vec![pool("a", vec![demand.clone()], vec![])]);
        let membership = pools(&met).membership(&view).unwrap();
        assert_eq!(membership.pool.resource, resource("a"), "{met}");
        let why = pools(&unmet).membership(&view).unwrap_err().to_string();
        assert!(!why.is_empty() && !why.contains("no selector"), "{unmet}: {why}");
        // And turned round.
        let excluding = |demand: &Demand| {
            let pools = Pools::new(vec![pool("a", vec![drivers("virtio_net")], vec![demand.clone()])]);
            pools.membership(&view)
        };
        assert!(excluding(&met).unwrap_err().to_string().contains("it is excluded"), "{met}");
        assert!(excluding(&unmet).is_ok(), "{unmet}");
    }
}

#[test]
fn what_cannot_be_told_selects_nothing_and_excludes() {
    let nic = nic();
    let view = View { nic: &nic, home: None, metadata: None };
    for (met, unmet) in demands() {
        for demand in [met, unmet] {
            if is_seen_from_afar(&demand) {
                continue;
            }
            let selecting = Pools::new(vec![pool("a", vec![demand.clone()], vec![])]);
            let why = selecting.membership(&view).unwrap_err().to_string();
            assert!(why.contains("cannot be told from here"), "{why}");
            let excluding = Pools::new(vec![pool("a", vec![drivers("virtio_net")], vec![demand])]);
            let why = excluding.membership(&view).unwrap_err().to_string();
            assert!(why.starts_with("it may be excluded (") && why.contains("cannot be told"), "{why}");
        }
    }
}

#[test]
fn the_first_pool_that_wants_a_nic_has_it_and_the_others_are_named() {
    let (nic, home) = (nic(), at_home());
    let view = View { nic: &nic, home: Some(&home), metadata: None };
    let eth = || Demand::Names(vec!["eth*".parse().unwrap()]);
    let pools = Pools::new(vec![
        pool("intel", vec![drivers("iavf")], vec![]),
        pool("first", vec![eth()], vec![]),
        pool("not", vec![eth()], vec![Demand::Macs(vec![MAC])]),
        pool("second", vec![drivers("virtio_net")], vec![]),
    ]);
    let membership = pools.membership(&view).unwrap();
    assert_eq!(membership.pool.resource, resource("first"));
    assert_eq!(membership.also, [resource("second")]);
    let few =
        Pools::new(vec![pool("a", vec![drivers("iavf")], vec![]), pool("b", vec![drivers("ena")], vec![])]);
    assert_eq!(
        few.membership(&view).unwrap_err().to_string(),
        "no pool wants it: example.com/a: driver virtio_net is not in the pool's list (iavf); \
         example.com/b: driver virtio_net is not in the pool's list (ena)"
    );
    assert_eq!(Pools::default().membership(&view).unwrap_err().to_string(), "no pool is configured");
}

#[test]
fn the_selector_that_comes_first_decides_what_a_pod_needs() {
    let nic = nic();
    let view = View { nic: &nic, home: None, metadata: None };
    let vhost = Needs { vhost_net: true, tun: true };
    let with = Selector { demands: vec![Demand::Vendors(vec![0x1af4])], needs: vhost };
    let without = selector(vec![Demand::Devices(vec![0x1041])]);
    let needs = |selectors| {
        let pools = Pools::new(vec![Pool { selectors, ..Pool::empty(resource("a")) }]);
        pools.membership(&view).unwrap().needs
    };
    assert_eq!(needs(vec![with.clone(), without.clone()]), vhost);
    assert_eq!(needs(vec![without, with]), Needs::default());
}

#[test]
fn of_two_pools_with_one_name_the_first_is_kept() {
    let first = pool("a", vec![drivers("iavf")], vec![]);
    let pools = Pools::new(vec![first.clone(), pool("a", vec![], vec![])]);
    assert_eq!(pools.iter().map(|pool| pool.as_ref().clone()).collect::<Vec<_>>(), [first]);
}

#[test]
fn what_is_said_of_one_device_goes_before_what_is_said_of_all() {
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let info = BTreeMap::from([
        ("*".to_owned(), BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())])),
        ("0000:01:00.0".to_owned(), map("b", "3")),
        ("0000:01:00.1".to_owned(), map("c", "4")),
    ]);
    let pool = Pool { additional_info: info, ..Pool::empty(resource("a")) };
    let told = pool.additional_info_for(&nic().id);
    assert_eq!(told, BTreeMap::from([("a", "1"), ("b", "3")]));
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let pairs = demands();
    (0..pairs.len(), any::<bool>()).prop_map(move |(n, met)| {
        let (yes, no) = pairs[n].clone();
        if met { yes } else { no }
    })
}

fn any_pools() -> impl Strategy<Value = Vec<Pool>> {
    let selectors = || prop::collection::vec(prop::collection::vec(any_demand(), 1..3), 0..3);
    let pool = (selectors(), selectors());
    prop::collection::vec(pool, 0..4).prop_map(|pools| {
        let selectors = |lists: Vec<Vec<Demand>>| lists.into_iter().map(selector).collect();
        let pool = |(n, (select, exclude)): (usize, (Vec<_>, Vec<_>))| Pool {
            selectors: selectors(select),
            exclude: selectors(exclude),
            ..Pool::empty(resource(&format!("p{n}")))
        };
        pools.into_iter().enumerate().map(pool).collect()
    })
}

/// What is known of the NIC: how much of what there is to know.
fn any_view() -> impl Strategy<Value = (Option<AtHome>, Option<Metadata>)> {
    let home = (any::<bool>(), any::<bool>()).prop_map(|(mac, queues)| AtHome {
        mac: mac.then_some(MAC),
        queues: queues.then_some(2),
        ..at_home()
    });
    (prop::option::of(home), prop::option::of(Just(metadata())))
}

proptest! {
    #[test]
    fn a_nic_is_only_in_a_pool_all_of_whose_demands_it_surely_meets(pools in any_pools(), (home, metadata) in any_view()) {
        let nic = nic();
        let view = View { nic: &nic, home: home.as_ref(), metadata: metadata.as_ref() };
        if let Ok(membership) = Pools::new(pools).membership(&view) {
            let pool = membership.pool;
            prop_assert!(pool.selectors.iter().any(|selector| selector.is_met(&view) == Some(true)));
            prop_assert!(pool.exclude.iter().all(|exclusion| exclusion.is_met(&view) == Some(false)));
        }
    }

    #[test]
    fn an_exclusion_more_never_puts_a_nic_into_any_further_pool(
        pools in any_pools(),
        (home, metadata) in any_view(),
        to in 0_usize..4,
        more in any_demand(),
    ) {
        let nic = nic();
        let view = View { nic: &nic, home: home.as_ref(), metadata: metadata.as_ref() };
        let wanted_by = |pools: &[Pool]| -> Vec<ResourceName> {
            match Pools::new(pools.to_vec()).membership(&view) {
                Ok(membership) => [vec![membership.pool.resource.clone()], membership.also].concat(),
                Err(_) => vec![],
            }
        };
        let before = wanted_by(&pools);
        let mut pools = pools;
        if let Some(pool) = pools.get_mut(to) {
            pool.exclude.push(selector(vec![more]));
        }
        let after = wanted_by(&pools);
        prop_assert!(after.iter().all(|resource| before.contains(resource)), "{before:?} {after:?}");
    }

    #[test]
    fn to_know_less_never_selects_more(demands in prop::collection::vec(any_demand(), 1..4), exclude in any_demand()) {
        let nic = nic();
        let (home, metadata) = (at_home(), metadata());
        let all = View { nic: &nic, home: Some(&home), metadata: Some(&metadata) };
        let pools = Pools::new(vec![pool("a", demands, vec![exclude])]);
        for less in [View { home: None, ..all }, View { metadata: None, ..all }] {
            prop_assert!(pools.membership(&less).is_err() || pools.membership(&all).is_ok());
        }
    }
}
