use config::Config;
use nic::{IfName, Skip, Unwanted, VFIO_PCI};
use proptest::prelude::*;

use super::*;
use crate::discover::{Lease, sample};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn seen(device: &str, standing: Standing) -> Seen {
    let membership = (!matches!(standing, Standing::Skipped(_))).then(|| membership(VIRT));
    Seen { nic: sample::nic(device), link: None, standing, membership, told: None }
}

const VIRT: &str = "kernel.org/virt";

fn resource(name: &str) -> ResourceName {
    name.parse().unwrap()
}

fn membership(name: &str) -> Membership {
    let pool = Arc::new(Pool::empty(resource(name)));
    Membership { pool, needs: Needs::default(), also: Vec::new() }
}

fn configured(names: &[&str]) -> Arc<Config> {
    let pools = names.iter().map(|name| Pool::empty(resource(name))).collect();
    Arc::new(Config { pools: Pools::new(pools), ..Config::default() })
}

fn healthy(device: &str) -> Seen {
    seen(device, Standing::Offered(Health::Healthy))
}

fn skipped(device: &str) -> Seen {
    seen(device, Standing::Skipped(Skip::NoDriver))
}

fn survey(nics: Vec<Seen>, leased: &[&str]) -> Survey {
    let lease = |device: &&str| (id(device), Lease { owner: "pod default/a".into(), mac: None, pod: None });
    Survey {
        nics,
        leases: leased.iter().map(lease).collect(),
        config: configured(&[VIRT]),
        ..Survey::default()
    }
}

fn begin(survey: &Survey, now: Instant) -> Offers {
    Offers::begin(survey, &Given::new(), now)
}

fn given(devices: &[&str]) -> Given {
    devices.iter().map(|device| (id(device), resource(VIRT))).collect()
}

/// Each device with why it is ill.
fn shown(offers: &Offers) -> Vec<String> {
    let one = |offer: Offer| format!("{} {}", offer.id, offer.ill.as_deref().unwrap_or("Healthy"));
    offers.offers().map(one).collect()
}

#[test]
fn what_is_withdrawn_is_unhealthy_first_and_gone_later() {
    let start = Instant::now();
    let mut offers = begin(&survey(vec![healthy(FIRST), healthy(SECOND)], &[]), start);
    offers.update(&survey(vec![healthy(FIRST)], &[]), start);
    let withdrawn = ["0000:00:09.0 Healthy", "0000:00:0a.0 the device is gone from the node"];
    offers.expire(&Given::new(), start);
    assert_eq!(shown(&offers), withdrawn);
    let later = offers.expires(start).unwrap();
    offers.expire(&Given::new(), later);
    assert_eq!(shown(&offers), ["0000:00:09.0 Healthy"]);
    assert_eq!(offers.expires(later), None);
}

#[test]
fn what_comes_back_in_time_was_never_away() {
    let start = Instant::now();
    let mut offers = begin(&survey(vec![healthy(FIRST)], &[]), start);
    offers.update(&survey(vec![skipped(FIRST)], &[]), start);
    assert_eq!(shown(&offers), ["0000:00:09.0 no driver is bound to it"]);
    offers.update(&survey(vec![healthy(FIRST)], &[]), start + WITHDRAWN_FOR);
    offers.expire(&Given::new(), start + WITHDRAWN_FOR * 9);
    assert_eq!(shown(&offers), ["0000:00:09.0 Healthy"]);
}

#[test]
fn what_somebody_has_stays_listed_as_unhealthy() {
    let start = Instant::now();
    let much_later = start + IN_FLIGHT_FOR * 2;
    // By the ledger.
    let mut offers = begin(&survey(vec![healthy(FIRST)], &[FIRST]), start);
    offers.update(&survey(vec![], &[FIRST]), start);
    offers.expire(&Given::new(), much_later);
    assert_eq!(offers.offers().count(), 1);
    offers.update(&survey(vec![], &[]), much_later);
    // By the kubelet.
    offers.expire(&given(&[FIRST]), much_later);
    assert_eq!(offers.offers().count(), 1);
    offers.expire(&Given::new(), much_later);
    assert_eq!(offers.offers().count(), 0);
    // On its way, until that is over.
    let mut offers = begin(&survey(vec![healthy(FIRST)], &[]), start);
    offers.allocate(&resource(VIRT), &[FIRST.into()], start).unwrap();
    offers.update(&survey(vec![], &[]), start);
    offers.expire(&Given::new(), start + WITHDRAWN_FOR);
    assert_eq!(shown(&offers), ["0000:00:09.0 the device is gone from the node"]);
    offers.expire(&Given::new(), start + IN_FLIGHT_FOR);
    assert_eq!(offers.offers().count(), 0);
}

#[test]
fn what_a_pod_had_before_our_start_is_listed_though_it_is_gone() {
    let start = Instant::now();
    let given = given(&[FIRST, SECOND]);
    let offers = Offers::begin(&survey(vec![healthy(SECOND)], &[]), &given, start);
    assert_eq!(shown(&offers), ["0000:00:09.0 the device is gone from the node", "0000:00:0a.0 Healthy"]);
    assert_eq!(offers.in_use(&given).len(), 2);
}

#[test]
fn a_device_that_was_given_is_listed_once_though_its_id_is_not_its_pci_address() {
    let start = Instant::now();
    let mut on_pci = healthy("vd0");
    on_pci.nic.pci = Some("0000:00:0a.0".parse().unwrap());
    let offers = Offers::begin(&survey(vec![on_pci], &[]), &given(&["vd0"]), start);
    assert_eq!(shown(&offers), ["vd0 Healthy"]);
}

#[test]
fn a_node_that_cannot_be_read_offers_only_what_pods_have() {
    let start = Instant::now();
    let mut offers = begin(&survey(vec![healthy(FIRST), healthy(SECOND)], &[SECOND]), start);
    offers.go_blind("no routes");
    assert_eq!(shown(&offers), ["0000:00:09.0 the node cannot be read: no routes", "0000:00:0a.0 Healthy"]);
    assert!(matches!(offers.allocate(&resource(VIRT), &[FIRST.into()], start), Err(Refusal::Ill(..))));
    offers.expire(&Given::new(), start + IN_FLIGHT_FOR);
    offers.update(&survey(vec![healthy(FIRST), healthy(SECOND)], &[]), start);
    assert_eq!(shown(&offers), ["0000:00:09.0 Healthy", "0000:00:0a.0 Healthy"]);
}

#[test]
fn a_refusal_names_the_device_and_the_reason_and_gives_nothing() {
    let start = Instant::now();
    let interface: IfName = "eth2".parse().unwrap();
    let ill = seen(SECOND, Standing::Offered(Health::NoCarrier(interface)));
    let mut offers = begin(&survey(vec![healthy(FIRST), ill, skipped("0000:00:03.0")], &[]), start);
    for (device, words) in [
        ("0000:00:0f.0", "device 0000:00:0f.0 is not offered"),
        ("0000:00:03.0", "device 0000:00:03.0 is not offered: no driver is bound to it"),
        (SECOND, "device 0000:00:0a.0 is unhealthy: eth2 is up and has no carrier"),
        ("../../etc\n", "device ../../etc\\n is not offered"),
        ("", "device  is not offered"),
    ] {
        let refused = offers.allocate(&resource(VIRT), &[FIRST.into(), device.into()], start).unwrap_err();
        assert_eq!(refused.to_string(), words);
    }
    // Nothing of it is in flight.
    offers.update(&survey(vec![], &[]), start);
    offers.expire(&Given::new(), start + WITHDRAWN_FOR);
    assert_eq!(offers.offers().count(), 0);
}

#[test]
fn devices_are_given_in_the_order_of_addresses_and_as_often_as_asked() {
    let start = Instant::now();
    let mut offers = begin(&survey(vec![healthy(SECOND), healthy(FIRST)], &[]), start);
    for _ in 0..2 {
        let given =
            offers.allocate(&resource(VIRT), &[SECOND.into(), FIRST.into(), SECOND.into()], start).unwrap();
        let ids: Vec<&str> = given.iter().map(|offer| offer.id.as_str()).collect();
        assert_eq!(ids, [FIRST, SECOND]);
    }
}

#[test]
fn a_nic_that_is_away_was_given_or_came_home_is_known_as_such() {
    let start = Instant::now();
    let at_home = |device: &str| {
        let interface = nic::Interface { index: 3, name: "eth1".parse().unwrap(), hardware: true };
        let mut seen = healthy(device);
        seen.nic.interfaces = vec![interface];
        seen
    };
    let used = |offers: &Offers| offers.offers().next().unwrap().used;
    let mut offers = begin(&survey(vec![at_home(FIRST)], &[]), start);
    assert_eq!(used(&offers), LastUse::Unknown);
    offers.allocate(&resource(VIRT), &[FIRST.into()], start + WITHDRAWN_FOR).unwrap();
    assert_eq!(used(&offers), LastUse::At(start + WITHDRAWN_FOR));
    // By the ledger, whether or not the interface is here already; and without the ledger, by the interface.
    let mut now = start + WITHDRAWN_FOR * 2;
    for away in [survey(vec![at_home(FIRST)], &[FIRST]), survey(vec![healthy(FIRST)], &[])] {
        offers.update(&away, now);
        offers.allocate(&resource(VIRT), &[FIRST.into()], now).unwrap();
        assert_eq!(used(&offers), LastUse::Away);
        now += WITHDRAWN_FOR;
        for later in [now, now + WITHDRAWN_FOR] {
            offers.update(&survey(vec![at_home(FIRST)], &[]), later);
            assert_eq!(used(&offers), LastUse::At(now), "it came home once");
        }
    }
    // What vfio holds has no interface.
    let mut on_vfio = healthy(FIRST);
    on_vfio.nic.driver = Some(VFIO_PCI.into());
    assert_eq!(used(&begin(&survey(vec![on_vfio], &[]), start)), LastUse::Unknown);
    // After a restart, what pods have by the kubelet's word was given just now, for all we know.
    let given = given(&[FIRST]);
    assert_eq!(used(&Offers::begin(&survey(vec![at_home(FIRST)], &[]), &given, start)), LastUse::At(start));
    assert_eq!(used(&Offers::begin(&survey(vec![at_home(FIRST)], &[FIRST]), &given, start)), LastUse::Away);
}

/// The NIC is in the pool of another resource now, or in none.
fn moved(device: &str, to: Option<&str>) -> Seen {
    match to {
        Some(name) => Seen { membership: Some(membership(name)), ..healthy(device) },
        None => seen(device, Standing::Skipped(Skip::Unwanted(Unwanted(Vec::new())))),
    }
}

/// The lists, each device with why it is ill.
fn lists(offers: &Offers) -> Vec<String> {
    let one = |offer: &Offer| format!("{} {}", offer.id, offer.ill.as_deref().unwrap_or("Healthy"));
    let list = |(name, list): (ResourceName, Vec<Offer>)| {
        format!("{name}: {}", list.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    offers.lists().into_iter().map(list).collect()
}

const OTHER: &str = "example.com/other";

#[test]
fn a_free_nic_leaves_one_list_before_it_is_in_another() {
    let start = Instant::now();
    let mut offers = begin(&survey(vec![healthy(FIRST)], &[]), start);
    let both = Survey { config: configured(&[OTHER, VIRT]), ..survey(vec![moved(FIRST, Some(OTHER))], &[]) };
    offers.update(&both, start);
    let leaving =
        ["example.com/other: ", "kernel.org/virt: 0000:00:09.0 it belongs to example.com/other now"];
    assert_eq!(lists(&offers), leaving);
    let ids = [FIRST.to_owned()];
    assert!(matches!(offers.allocate(&resource(VIRT), &ids, start), Err(Refusal::Ill(..))));
    let unknown = offers.allocate(&resource(OTHER), &ids, start).unwrap_err();
    assert_eq!(unknown.to_string(), "device 0000:00:09.0 is not offered: it is offered as kernel.org/virt");
    offers.expire(&Given::new(), offers.expires(start).unwrap());
    assert_eq!(lists(&offers), ["example.com/other: 0000:00:09.0 Healthy", "kernel.org/virt: "]);
    assert_eq!(offers.allocate(&resource(OTHER), &ids, start).unwrap().len(), 1);
}

#[test]
fn a_pool_that_is_configured_no_more_stays_until_nobody_has_its_nics() {
    let start = Instant::now();
    let much_later = start + IN_FLIGHT_FOR * 2;
    let mut offers = begin(&survey(vec![healthy(FIRST), healthy(SECOND)], &[FIRST]), start);
    let none = |leased: &[&str]| Survey {
        config: configured(&[OTHER]),
        ..survey(vec![moved(FIRST, None), moved(SECOND, Some(OTHER))], leased)
    };
    offers.update(&none(&[FIRST]), start);
    assert_eq!(
        lists(&offers),
        [
            "example.com/other: ",
            "kernel.org/virt: 0000:00:09.0 Healthy, 0000:00:0a.0 it belongs to example.com/other now",
        ]
    );
    offers.expire(&Given::new(), much_later);
    let held = ["example.com/other: 0000:00:0a.0 Healthy", "kernel.org/virt: 0000:00:09.0 Healthy"];
    assert_eq!(lists(&offers), held);
    assert!(offers.is_ours(&resource(VIRT)));
    // By the kubelet's word it is still given, by the ledger it is home.
    offers.update(&none(&[]), much_later);
    offers.expire(&given(&[FIRST]), much_later);
    assert_eq!(lists(&offers)[1], "kernel.org/virt: 0000:00:09.0 no pool is configured");
    offers.expire(&Given::new(), much_later);
    assert_eq!(lists(&offers), ["example.com/other: 0000:00:0a.0 Healthy"]);
    assert!(!offers.is_ours(&resource(VIRT)));
}

#[test]
fn a_nic_that_a_pod_has_stays_in_the_list_that_it_was_given_from() {
    let start = Instant::now();
    let now_other =
        Survey { config: configured(&[OTHER, VIRT]), ..survey(vec![moved(FIRST, Some(OTHER))], &[FIRST]) };
    // After a restart, too: the kubelet's checkpoint tells.
    let mut offers = Offers::begin(&now_other, &given(&[FIRST]), start);
    let stays = ["example.com/other: ", "kernel.org/virt: 0000:00:09.0 Healthy"];
    assert_eq!(lists(&offers), stays);
    offers.expire(&given(&[FIRST]), start + IN_FLIGHT_FOR);
    assert_eq!(lists(&offers), stays);
}

proptest! {
    /// Whatever the node shows and whenever, a device never leaves the list that is leased, was just allocated, or was not
    /// listed as Unhealthy before.
    #[test]
    fn nothing_vanishes_that_the_kubelet_may_look_up(
        steps in prop::collection::vec((0_u8..8, 0_u8..8, 0_u8..8, 0_u64..20, any::<bool>()), 1..40),
    ) {
        let devices = [FIRST, SECOND, "vd0"];
        let of = |bits: u8| devices.iter().enumerate().filter(move |(n, _)| bits & (1 << n) != 0).map(|(_, d)| *d);
        let mut now = Instant::now();
        let mut offers = begin(&survey(devices.map(healthy).to_vec(), &[]), now);
        let mut allocated: BTreeMap<&str, Instant> = BTreeMap::new();
        for (present, leased, wanted, seconds, blind) in steps {
            let before: Vec<Offer> = offers.offers().collect();
            now += Duration::from_secs(seconds);
            let leased: Vec<&str> = of(leased).collect();
            if blind {
                offers.go_blind("test");
            } else {
                offers.update(&survey(of(present).map(healthy).collect(), &leased), now);
            }
            offers.expire(&Given::new(), now);
            let after: Vec<Offer> = offers.offers().collect();
            for offer in before {
                if after.iter().any(|other| other.id == offer.id) {
                    continue;
                }
                prop_assert!(blind || !leased.contains(&offer.id.as_str()), "{} is leased", offer.id);
                prop_assert!(offer.ill.is_some(), "{} was healthy", offer.id);
                let fresh = allocated.get(offer.id.as_str()).is_some_and(|at| now < *at + IN_FLIGHT_FOR);
                prop_assert!(!fresh, "{} is in flight", offer.id);
            }
            for device in of(wanted) {
                if offers.allocate(&resource(VIRT), &[device.to_owned()], now).is_ok() {
                    allocated.insert(device, now);
                }
            }
        }
    }
}
