//! What is, at the moment when somebody asks: devices, leases, registrations. Costs nothing meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nic::{Skip, Standing};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use super::metrics::{Metrics, OfPool};
use crate::advertise::Lists;
use crate::configure::InForce;
use crate::discover::{Sight, Survey};

/// What is read at each scrape.
pub(super) struct State {
    metrics: Metrics,
    sight: watch::Receiver<Sight>,
    lists: watch::Receiver<Lists>,
    configured: watch::Receiver<InForce>,
    started: SystemTime,
}

/// All metrics of the agent.
pub(super) fn registry(
    metrics: &Metrics,
    sight: watch::Receiver<Sight>,
    lists: watch::Receiver<Lists>,
    configured: watch::Receiver<InForce>,
) -> Registry {
    let mut registry = Registry::default();
    let ours = registry.sub_registry_with_prefix("virtdp");
    metrics.register(ours);
    ours.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let state = State { metrics: metrics.clone(), sight, lists, configured, started: SystemTime::now() };
    registry.register_collector(Box::new(state));
    registry
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.devices(out)?;
        self.pools(out)?;
        self.node(out)?;
        process(out, self.started)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Devices {
    resource: String,
    state: &'static str,
}

impl State {
    /// What the kubelet hears.
    fn devices(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let lists = self.lists.borrow().clone().unwrap_or_default();
        let mut devices = BTreeMap::new();
        for resource in self.metrics.pools().keys() {
            for state in ["healthy", "unhealthy"] {
                devices.insert(Devices { resource: resource.to_string(), state }, 0_u64);
            }
            for offer in lists.get(resource).iter().flat_map(|list| list.iter()) {
                let state = if offer.ill.is_none() { "healthy" } else { "unhealthy" };
                *devices.entry(Devices { resource: resource.to_string(), state }).or_default() += 1;
            }
        }
        let help = "Devices in the list that the kubelet is sent, by their health";
        let mut encoder = gauge(out, "virtdp_devices", help, None)?;
        devices.iter().try_for_each(|(labels, count)| put(&mut encoder, labels, *count))
    }

    fn pools(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 where the configuration is in force as the file has it, 0 where the file is bad";
        let good = u64::from(self.configured.borrow().is_ok());
        gauge(out, "virtdp_configuration_good", help, None)?.encode_gauge(&good)?;
        let pools = self.metrics.pools();
        let help = "1 where the kubelet has our registration and listens";
        let mut encoder = gauge(out, "virtdp_registered", help, None)?;
        for (resource, state) in &pools {
            put(&mut encoder, &OfPool::new(resource), u64::from(state.registration.is_ok()))?;
        }
        let help = "When the kubelet was sent a list of devices last";
        let mut encoder = gauge(out, "virtdp_last_list_timestamp", help, Some(&Unit::Seconds))?;
        for (resource, state) in &pools {
            if let Some(time) = state.last_list {
                put(&mut encoder, &OfPool::new(resource), since_epoch(time))?;
            }
        }
        Ok(())
    }

    /// What was seen of the node. Where it cannot be read, nothing is said about its NICs: not even that there are none.
    fn node(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sight = self.sight.borrow().clone();
        let clear = u64::from(matches!(sight, Sight::Clear(_)));
        gauge(out, "virtdp_node_readable", "1 where the node's interfaces and routes can be read", None)?
            .encode_gauge(&clear)?;
        if let Some(look) = self.metrics.last_look() {
            let help = "When the node was looked at last";
            gauge(out, "virtdp_last_look_timestamp", help, Some(&Unit::Seconds))?
                .encode_gauge(&since_epoch(look.time))?;
            let help = "How long the last look at the node took";
            gauge(out, "virtdp_last_look_duration", help, Some(&Unit::Seconds))?
                .encode_gauge(&look.took.as_secs_f64())?;
        }
        if let Sight::Clear(survey) = sight {
            skipped(out, &survey)?;
            leases(out, &survey)?;
        }
        Ok(())
    }
}

/// NICs that are for no pod, and devices that nobody understands.
fn skipped(out: &mut DescriptorEncoder<'_>, survey: &Survey) -> fmt::Result {
    let mut reasons = BTreeMap::from(SKIPS.map(|reason| (reason, 0_u64)));
    for seen in &survey.nics {
        if let Standing::Skipped(skip) = &seen.standing {
            *reasons.entry(class(skip)).or_default() += 1;
        }
    }
    reasons.insert("unreadable", u64::try_from(survey.unreadable.len()).unwrap_or(u64::MAX));
    let mut encoder = gauge(out, "virtdp_skipped_nics", "NICs of the node that no pod can have", None)?;
    reasons.iter().try_for_each(|(reason, count)| put(&mut encoder, &[("reason", *reason)], *count))?;
    let insisted = survey.nics.iter().filter(|seen| matches!(seen.standing, Standing::Insisted(..))).count();
    let help = "NICs that carry the node and are offered all the same (--offer-lifeline)";
    gauge(out, "virtdp_lifeline_offered_nics", help, None)?
        .encode_gauge(&u64::try_from(insisted).unwrap_or(u64::MAX))
}

/// The classes of reasons for which a NIC is skipped.
const SKIPS: [&str; 7] =
    ["lifeline", "no_driver", "no_interface", "unwanted", "several_interfaces", "out_of_sight", "unreadable"];

fn class(skip: &Skip) -> &'static str {
    match skip {
        Skip::Lifeline { .. } | Skip::LatelyLifeline { .. } => "lifeline",
        Skip::NoDriver => "no_driver",
        Skip::NoInterface(_) => "no_interface",
        Skip::Unwanted(_) => "unwanted",
        Skip::SeveralInterfaces(_) => "several_interfaces",
        Skip::OutOfSight => "out_of_sight",
    }
}

fn leases(out: &mut DescriptorEncoder<'_>, survey: &Survey) -> fmt::Result {
    let tally = &survey.ledger;
    let mut encoder = gauge(out, "virtdp_leases", "Leases in the ledger, by stage", None)?;
    for (stage, count) in [
        ("prepared", tally.prepared),
        ("plumbed", tally.plumbed),
        ("returning", tally.returning),
        ("displaced", tally.displaced),
    ] {
        put(&mut encoder, &[("stage", stage)], count)?;
    }
    gauge(out, "virtdp_unusable_leases", "Files in the ledger that are no leases", None)?
        .encode_gauge(&tally.unusable)?;
    let help = "1 where the ledger's folder can be listed";
    gauge(out, "virtdp_ledger_readable", help, None)?.encode_gauge(&u64::from(tally.listed))
}

/// The two process metrics that dashboards ask for, under the names that all programs give them.
fn process(out: &mut DescriptorEncoder<'_>, started: SystemTime) -> fmt::Result {
    let help = "When the process started";
    gauge(out, "process_start_time", help, Some(&Unit::Seconds))?.encode_gauge(&since_epoch(started))?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(bytes) = resident(&status) {
        let help = "Memory of the process in RAM";
        gauge(out, "process_resident_memory", help, Some(&Unit::Bytes))?.encode_gauge(&bytes)?;
    }
    Ok(())
}

/// VmRSS of a /proc/PID/status, in bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn gauge<'a>(
    out: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    out.encode_descriptor(name, help, unit, MetricType::Gauge)
}

fn put(
    encoder: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    encoder.encode_family(labels)?.encode_gauge(&value)
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_is_read_of_what_the_kernel_writes() {
        assert_eq!(resident("VmSize:\t  9000 kB\nVmRSS:\t    5312 kB\n"), Some(5312 * 1024));
        for odd in ["", "VmRSS:", "VmRSS:\tmany kB", "VmRSS:\t1", "VmRSS:\t18446744073709551615 kB"] {
            assert_eq!(resident(odd), None, "{odd}");
        }
        let own = resident(&std::fs::read_to_string("/proc/self/status").unwrap()).unwrap();
        assert!(own > 100_000, "{own}");
    }
}
