//! What is counted while the agent works. A cheap handle: whoever counts has a clone of it.
//!
//! Counters begin at 0 as soon as a pool exists, so that the first event is an increase. What is not counted but *is* (devices,
//! leases) is read from the owners of that state when somebody asks, see [`super::exposition`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use nic::ResourceName;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use super::events::Outcome;
use crate::advertise::{Ended, Refusal, Trouble};
use crate::allocate::Failure;
use crate::repatriate::Homecoming;

/// The counters of one agent, and the little state that nobody else keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    allocations: Family<OfPool, Counter>,
    refusals: Family<WithReason, Counter>,
    lists: Family<OfPool, Counter>,
    registrations: Family<OfPool, Counter>,
    registration_failures: Family<WithReason, Counter>,
    registrations_ended: Family<WithReason, Counter>,
    events: Family<WithOutcome, Counter>,
    homecomings: Family<WithOutcome, Counter>,
    stray: Gauge<u64, AtomicU64>,
    looks: Counter,
    failed_looks: Counter,
    last_look: watch::Sender<Option<Look>>,
    pools: watch::Sender<BTreeMap<ResourceName, PoolState>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfPool {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithReason {
    resource: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithOutcome {
    outcome: &'static str,
}

/// One look at the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// When it ended.
    pub(super) at: Instant,
    /// The same by the clock on the wall.
    pub(super) time: SystemTime,
    /// How long it took.
    pub(super) took: Duration,
}

/// What is known of one pool beside its list.
#[derive(Clone, Debug)]
pub(super) struct PoolState {
    /// Registered, or why not.
    pub(super) registration: Result<(), String>,
    /// When the kubelet was sent a list last.
    pub(super) last_list: Option<SystemTime>,
}

impl OfPool {
    pub(super) fn new(resource: &ResourceName) -> Self {
        OfPool { resource: resource.to_string() }
    }
}

impl Metrics {
    /// The node was looked at.
    pub(crate) fn looked<T, E>(&self, took: Duration, outcome: &Result<T, E>) {
        self.0.looks.inc();
        if outcome.is_err() {
            self.0.failed_looks.inc();
        }
        let look = Look { at: Instant::now(), time: SystemTime::now(), took };
        self.0.last_look.send_replace(Some(look));
    }

    /// From now on this pool is to be registered with the kubelet.
    pub(crate) fn begins(&self, resource: &ResourceName) {
        let of_pool = OfPool::new(resource);
        for family in [&self.0.allocations, &self.0.lists, &self.0.registrations] {
            drop(family.get_or_create(&of_pool));
        }
        for (family, reasons) in [
            (&self.0.refusals, Refusal::CLASSES.as_slice()),
            (&self.0.refusals, &Failure::CLASSES),
            (&self.0.registration_failures, &Trouble::CLASSES),
            (&self.0.registrations_ended, &Ended::CLASSES),
        ] {
            for reason in reasons {
                drop(family.get_or_create(&WithReason { resource: resource.to_string(), reason }));
            }
        }
        self.of(resource, |state| state.registration = Err("not registered yet".to_owned()));
    }

    /// This pool is not to be registered any more. What was counted stays.
    pub(crate) fn ends(&self, resource: &ResourceName) {
        self.0.pools.send_modify(|pools| drop(pools.remove(resource)));
    }

    /// The kubelet took the registration, and listens.
    pub(crate) fn registered(&self, resource: &ResourceName) {
        self.0.registrations.get_or_create(&OfPool::new(resource)).inc();
        self.of(resource, |state| state.registration = Ok(()));
    }

    /// A registration has ended.
    pub(crate) fn ended(&self, resource: &ResourceName, why: Ended) {
        count(&self.0.registrations_ended, resource, why.class());
        self.of(resource, |state| state.registration = Err(why.to_string()));
    }

    /// There is no registration.
    pub(crate) fn trouble(&self, resource: &ResourceName, trouble: &Trouble) {
        count(&self.0.registration_failures, resource, trouble.class());
        self.of(resource, |state| state.registration = Err(trouble.to_string()));
    }

    /// The kubelet was sent a list.
    pub(crate) fn list_sent(&self, resource: &ResourceName) {
        self.0.lists.get_or_create(&OfPool::new(resource)).inc();
        self.of(resource, |state| state.last_list = Some(SystemTime::now()));
    }

    /// The kubelet asked for devices, and got them or not.
    pub(crate) fn allocated(&self, resource: &ResourceName, devices: usize) {
        let devices = u64::try_from(devices).unwrap_or(u64::MAX);
        self.0.allocations.get_or_create(&OfPool::new(resource)).inc_by(devices);
    }

    /// A container got none, by a reason of [`Refusal::CLASSES`] or [`Failure::CLASSES`].
    pub(crate) fn refused(&self, resource: &ResourceName, class: &'static str) {
        count(&self.0.refusals, resource, class);
    }

    /// An Event was to be posted.
    pub(super) fn event(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Posted => "posted",
            Outcome::Later => "failed",
            Outcome::Refused => "refused",
        };
        self.0.events.get_or_create(&WithOutcome { outcome }).inc();
    }

    /// A NIC that was astray is home, or could not be brought there.
    pub(crate) fn homecoming(&self, outcome: Homecoming) {
        self.0.homecomings.get_or_create(&WithOutcome { outcome: outcome.class() }).inc();
    }

    /// So many NICs are astray and stay so.
    pub(crate) fn astray(&self, nics: usize) {
        self.0.stray.set(u64::try_from(nics).unwrap_or(u64::MAX));
    }

    /// The last look at the node.
    pub(super) fn last_look(&self) -> Option<Look> {
        *self.0.last_look.borrow()
    }

    /// The pools, and how they are.
    pub(super) fn pools(&self) -> BTreeMap<ResourceName, PoolState> {
        self.0.pools.borrow().clone()
    }

    fn of(&self, resource: &ResourceName, change: impl FnOnce(&mut PoolState)) {
        self.0.pools.send_modify(|pools| {
            let new = || PoolState { registration: Ok(()), last_list: None };
            change(pools.entry(resource.clone()).or_insert_with(new));
        });
    }

    /// Makes the counters known to a registry whose prefix is the program's name.
    pub(super) fn register(&self, registry: &mut Registry) {
        let of_pool = [
            ("allocations", "Devices given to containers", &self.0.allocations),
            ("lists_sent", "Lists of devices sent to the kubelet", &self.0.lists),
            ("registrations", "Registrations that the kubelet took", &self.0.registrations),
        ];
        for (name, help, family) in of_pool {
            registry.register(name, help, family.clone());
        }
        let with_reason = [
            (
                "allocation_refusals",
                "Containers to which no device was given, because one was unknown or ill",
                &self.0.refusals,
            ),
            ("registration_failures", "Attempts to register that failed", &self.0.registration_failures),
            (
                "registrations_ended",
                "Registrations that ended, after each of which comes another",
                &self.0.registrations_ended,
            ),
        ];
        for (name, help, family) in with_reason {
            registry.register(name, help, family.clone());
        }
        for outcome in ["posted", "failed", "refused"] {
            drop(self.0.events.get_or_create(&WithOutcome { outcome }));
        }
        let help =
            "Events on pods whose NIC was unplugged or turned ill: posted, failed to be tried again, refused";
        registry.register("pod_events", help, self.0.events.clone());
        for outcome in Homecoming::ALL {
            drop(self.0.homecomings.get_or_create(&WithOutcome { outcome: outcome.class() }));
        }
        let help = "NICs in nobody's hands that virtdp brought home: as they were, under another name, or not (each attempt)";
        registry.register("homecomings", help, self.0.homecomings.clone());
        let help = "NICs that are on the node in nobody's hands, and were not brought home as they were";
        registry.register("stray_nics", help, self.0.stray.clone());
        registry.register("looks", "Looks at the interfaces and routes of the node", self.0.looks.clone());
        registry.register(
            "failed_looks",
            "Looks at the node that failed: something could not be read",
            self.0.failed_looks.clone(),
        );
    }
}

fn count(family: &Family<WithReason, Counter>, resource: &ResourceName, reason: &'static str) {
    family.get_or_create(&WithReason { resource: resource.to_string(), reason }).inc();
}
