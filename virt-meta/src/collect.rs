//! GC: what belongs to no valid attachment goes, network by network.

use std::collections::{BTreeMap, BTreeSet};

use cni::plugin::Gc;
use cni::runtime::Network;
use cni::{ContainerId, Error, NetworkName, ValidAttachment};

use crate::attach::detach;
use crate::record::Record;
use crate::settings::Settings;

/// Detaches recorded containers that are not valid any more, then has each network collect what it finds by itself.
pub(crate) fn collect(settings: &Settings, gc: &Gc) -> Result<(), Error> {
    let store = settings.store();
    let plugins = settings.plugins(&gc.environment);
    let valid: BTreeSet<&ValidAttachment> = gc.valid.iter().collect();
    let records = store.all()?;
    let mut outcomes = Vec::new();
    for record in records.iter().filter(|record| !valid.contains(&id(record))) {
        outcomes.push(store.lock(&record.container_id).and_then(|_lock| {
            // It may have been deleted while we waited for the lock.
            let Some(record) = store.read(&record.container_id) else { return Ok(()) };
            let netns = record.netns.clone();
            detach(record, &store, &plugins, Some(&netns))
        }));
    }
    match settings.cluster_network() {
        Ok(cluster) => {
            for (network, valid) in by_network(cluster, &gc.valid, &records) {
                let collected = network.gc(&plugins, &valid);
                outcomes.push(
                    collected.map_err(|error| error.within(format_args!("network {}", network.name()))),
                );
            }
        }
        Err(error) => outcomes.push(Err(error)),
    }
    Error::all(outcomes)
}

/// Each network with the attachments to it that are valid: the cluster's with the runtime's list, the others with that
/// list's containers under the interfaces of our records.
///
/// IPAM plugins keep addresses by the network's name, and two definitions may share one, so attachments are gathered by
/// name. If there is a valid container without a record (attached by another meta plugin before), nobody knows its
/// interfaces; then the other networks are left alone, lest a running pod's address be given away.
fn by_network(
    cluster: Network,
    valid: &[ValidAttachment],
    records: &[Record],
) -> Vec<(Network, Vec<ValidAttachment>)> {
    let known: BTreeSet<ValidAttachment> = records.iter().map(id).collect();
    let containers: BTreeSet<&ContainerId> = valid.iter().map(|valid| &valid.container_id).collect();
    let mut attachments: BTreeMap<NetworkName, BTreeSet<ValidAttachment>> = BTreeMap::new();
    let mut networks: BTreeMap<String, Network> = BTreeMap::new();
    attachments.entry(cluster.name().clone()).or_default().extend(valid.iter().cloned());
    if valid.iter().all(|valid| known.contains(valid)) {
        for record in records {
            for step in record.steps.iter().filter(|step| !record.is_cluster(step)) {
                let Ok(network) = step.network() else { continue };
                let of_name = attachments.entry(network.name().clone()).or_default();
                if containers.contains(&record.container_id) {
                    of_name.insert(ValidAttachment {
                        container_id: record.container_id.clone(),
                        if_name: step.interface.clone(),
                    });
                }
                networks.entry(step.network.clone()).or_insert(network);
            }
        }
    }
    std::iter::once(cluster)
        .chain(networks.into_values())
        .map(|network| {
            let valid = attachments.get(network.name()).into_iter().flatten().cloned().collect();
            (network, valid)
        })
        .collect()
}

fn id(record: &Record) -> ValidAttachment {
    ValidAttachment { container_id: record.container_id.clone(), if_name: record.interface.clone() }
}
