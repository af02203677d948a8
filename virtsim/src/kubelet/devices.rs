//! What the device manager knows and how it decides, without any I/O: resources with their devices, which container has
//! which, and which devices to take next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kubelet_api::deviceplugin::{ContainerAllocateResponse, Device, DevicePluginOptions, HEALTHY};
use nic::ResourceName;
use prost::Message;
use tokio::time::Instant;

use super::checkpoint::{Data, Entry, NO_TOPOLOGY};
use super::types::{Capacities, Capacity, ContainerAllocation, DeviceStatus};

/// One connection to a plugin, told apart from others of the same resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PluginId(pub(super) u64);

/// Devices by NUMA node, [`NO_TOPOLOGY`] for those without.
type ByNode = BTreeMap<i64, Vec<String>>;

#[derive(Default)]
pub(super) struct Devices {
    resources: BTreeMap<ResourceName, Resource>,
    /// UID, container, resource.
    allocations: BTreeMap<String, BTreeMap<String, BTreeMap<ResourceName, Allocation>>>,
    /// What is taken: by an allocation, or by one that is under way.
    taken: BTreeMap<ResourceName, BTreeSet<String>>,
    grace_period: Duration,
    align_numa: bool,
}

struct Resource {
    endpoint: Endpoint,
    /// Absent until the first list: until then the resource does not exist for anybody but its plugin.
    list: Option<BTreeMap<String, Device>>,
    /// Of the list, those that may be allocated.
    healthy: BTreeSet<String>,
}

enum Endpoint {
    Running { plugin: PluginId, options: DevicePluginOptions },
    Stopped { since: Instant },
}

struct Allocation {
    devices: ByNode,
    response: ContainerAllocateResponse,
}

impl Allocation {
    fn ids(&self) -> BTreeSet<String> {
        self.devices.values().flatten().cloned().collect()
    }
}

/// What to do next for one container and resource.
#[derive(Debug, PartialEq)]
pub(super) enum Choice {
    /// It has its devices already, or the resource is none of ours.
    Nothing,
    /// These are taken now.
    Taken(BTreeSet<String>),
    /// The plugin may say which it prefers; then see [`Devices::take_preferred`].
    Ask { plugin: PluginId, question: Question },
}

/// A choice that is half made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// Taken already.
    pub(super) taken: BTreeSet<String>,
    /// What the rest may come from, best first; the plugin's preference picks from the first.
    pools: Vec<BTreeSet<String>>,
    /// What the plugin is told is available.
    pub(super) available: BTreeSet<String>,
    /// How many devices the container wants in all.
    pub(super) required: usize,
}

impl Devices {
    pub(super) fn new(grace_period: Duration, align_numa: bool) -> Self {
        Devices { grace_period, align_numa, ..Devices::default() }
    }

    /// What an earlier kubelet left. Its resources have no devices until their plugins register again.
    pub(super) fn restore(&mut self, data: Data, now: Instant) {
        for entry in data.pod_device_entries.unwrap_or_default() {
            let Ok(resource) = entry.resource_name.parse() else { continue };
            // An answer that cannot be decoded is one without options; the devices count all the same.
            let response = entry.alloc_resp.unwrap_or_default();
            let response = ContainerAllocateResponse::decode(response.as_slice()).unwrap_or_default();
            let devices =
                entry.device_ids.into_iter().map(|(node, ids)| (node, ids.unwrap_or_default())).collect();
            self.allocations
                .entry(entry.pod_uid)
                .or_default()
                .entry(entry.container_name)
                .or_default()
                .insert(resource, Allocation { devices, response });
        }
        for name in data.registered_devices.unwrap_or_default().into_keys() {
            let Ok(name) = name.parse() else { continue };
            let resource = Resource {
                endpoint: Endpoint::Stopped { since: now },
                list: Some(BTreeMap::new()),
                healthy: BTreeSet::new(),
            };
            self.resources.insert(name, resource);
        }
        self.release_untaken();
    }

    pub(super) fn to_checkpoint(&self) -> Data {
        let mut entries = Vec::new();
        for (uid, containers) in &self.allocations {
            for (container, resources) in containers {
                for (resource, allocation) in resources {
                    entries.push(Entry {
                        pod_uid: uid.clone(),
                        container_name: container.clone(),
                        resource_name: resource.to_string(),
                        device_ids: allocation
                            .devices
                            .iter()
                            .map(|(node, ids)| (*node, Some(ids.clone())))
                            .collect(),
                        alloc_resp: Some(allocation.response.encode_to_vec()),
                    });
                }
            }
        }
        let registered = self.resources.iter().filter(|(_, resource)| resource.list.is_some());
        Data {
            pod_device_entries: (!entries.is_empty()).then_some(entries),
            // Only healthy ones: that is what the kubelet writes.
            registered_devices: Some(
                registered
                    .map(|(name, resource)| {
                        (name.to_string(), Some(resource.healthy.iter().cloned().collect()))
                    })
                    .collect(),
            ),
        }
    }

    /// A plugin answered; what was listed before stays until it lists anew.
    pub(super) fn connected(&mut self, name: &ResourceName, plugin: PluginId, options: DevicePluginOptions) {
        let endpoint = Endpoint::Running { plugin, options };
        match self.resources.get_mut(name) {
            Some(resource) => resource.endpoint = endpoint,
            None => {
                let resource = Resource { endpoint, list: None, healthy: BTreeSet::new() };
                self.resources.insert(name.clone(), resource);
            }
        }
    }

    /// A list: it replaces the one before.
    pub(super) fn listed(&mut self, name: &ResourceName, devices: Vec<Device>) {
        if let Some(resource) = self.resources.get_mut(name) {
            let is_healthy = |device: &&Device| device.health == HEALTHY;
            resource.healthy = devices.iter().filter(is_healthy).map(|device| device.id.clone()).collect();
            resource.list = Some(devices.into_iter().map(|device| (device.id.clone(), device)).collect());
        }
    }

    /// The plugin is gone, whichever it was: nothing is healthy any more.
    pub(super) fn disconnected(&mut self, name: &ResourceName, now: Instant) {
        if let Some(resource) = self.resources.get_mut(name) {
            resource.healthy.clear();
            resource.endpoint = Endpoint::Stopped { since: now };
        }
    }

    /// Forgets resources whose plugin has been gone for too long; says whether there were any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.resources.len();
        let grace_period = self.grace_period;
        self.resources.retain(|_, resource| match resource.endpoint {
            Endpoint::Stopped { since } => now < since + grace_period,
            Endpoint::Running { .. } => true,
        });
        before != self.resources.len()
    }

    /// When [`Devices::expire`] will next have something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let expiry = |resource: &Resource| match resource.endpoint {
            Endpoint::Stopped { since } => Some(since + self.grace_period),
            Endpoint::Running { .. } => None,
        };
        self.resources.values().filter_map(expiry).min()
    }

    pub(super) fn capacities(&self) -> Capacities {
        let mut owners: BTreeMap<(&ResourceName, &str), &str> = BTreeMap::new();
        for (uid, containers) in &self.allocations {
            for (resource, allocation) in containers.values().flatten() {
                owners.extend(
                    allocation.devices.values().flatten().map(|id| ((resource, id.as_str()), uid.as_str())),
                );
            }
        }
        let status = |name, resource: &Resource, id: &String| DeviceStatus {
            healthy: resource.healthy.contains(id),
            pod: owners.get(&(name, id.as_str())).map(|uid| (*uid).to_owned()),
        };
        let mut capacities = Capacities::new();
        for (name, resource) in &self.resources {
            let Some(list) = &resource.list else { continue };
            let devices: BTreeMap<_, _> =
                list.keys().map(|id| (id.clone(), status(name, resource, id))).collect();
            let count = |healthy: bool| {
                devices.values().filter(|device| device.healthy || !healthy).fold(0, |count, _| count + 1)
            };
            let capacity = Capacity { capacity: count(false), allocatable: count(true), devices };
            capacities.insert(name.clone(), capacity);
        }
        capacities
    }

    /// Healthy devices, in use or not, as the pod resources service shows them.
    pub(super) fn allocatable(&self) -> impl Iterator<Item = (&ResourceName, &Device)> {
        self.resources.iter().flat_map(|(name, resource)| {
            let healthy = |device: &&Device| resource.healthy.contains(&device.id);
            resource.list.iter().flat_map(BTreeMap::values).filter(healthy).map(move |device| (name, device))
        })
    }

    /// What a container has: resource, device ID, NUMA node.
    pub(super) fn of_container(
        &self,
        uid: &str,
        container: &str,
    ) -> impl Iterator<Item = (&ResourceName, &str, Option<i64>)> {
        self.container(uid, container).flat_map(|(resource, allocation)| {
            allocation.devices.iter().flat_map(move |(node, ids)| {
                let node = (*node != NO_TOPOLOGY).then_some(*node);
                ids.iter().map(move |id| (resource, id.as_str(), node))
            })
        })
    }

    /// What a container's processes need: the plugins' answers, merged.
    pub(super) fn options_of(&self, uid: &str, container: &str) -> ContainerAllocation {
        let mut merged = ContainerAllocation { container: container.to_owned(), ..Default::default() };
        for (resource, allocation) in self.container(uid, container) {
            merged.devices.insert(resource.clone(), allocation.ids().into_iter().collect());
            let answer = &allocation.response;
            let options = &mut merged.options;
            for (key, value) in &answer.envs {
                options.envs.entry(key.clone()).or_insert_with(|| value.clone());
            }
            for (key, value) in &answer.annotations {
                options.annotations.entry(key.clone()).or_insert_with(|| value.clone());
            }
            for mount in &answer.mounts {
                if !options.mounts.iter().any(|known| known.container_path == mount.container_path) {
                    options.mounts.push(mount.clone());
                }
            }
            for device in &answer.devices {
                if !options.devices.iter().any(|known| known.container_path == device.container_path) {
                    options.devices.push(device.clone());
                }
            }
            for device in &answer.cdi_devices {
                if !options.cdi_devices.contains(device) {
                    options.cdi_devices.push(device.clone());
                }
            }
        }
        merged
    }

    /// Which of a container's resources want PreStartContainer, with the plugin and the devices.
    pub(super) fn pre_start(&self, uid: &str, container: &str) -> Vec<(ResourceName, PluginId, Vec<String>)> {
        let wants = |name: &ResourceName| match self.resources.get(name)?.endpoint {
            Endpoint::Running { plugin, options } => options.pre_start_required.then_some(plugin),
            Endpoint::Stopped { .. } => None,
        };
        self.container(uid, container)
            .filter_map(|(name, allocation)| {
                Some((name.clone(), wants(name)?, allocation.ids().into_iter().collect()))
            })
            .collect()
    }

    /// The device IDs of one resource that a container has.
    pub(super) fn ids(&self, uid: &str, container: &str, resource: &ResourceName) -> BTreeSet<String> {
        let of_resource = self.container(uid, container).filter(|(name, _)| *name == resource);
        of_resource.flat_map(|(_, allocation)| allocation.ids()).collect()
    }

    fn container<'a>(
        &'a self,
        uid: &str,
        container: &str,
    ) -> impl Iterator<Item = (&'a ResourceName, &'a Allocation)> + use<'a> {
        self.allocations.get(uid).and_then(|containers| containers.get(container)).into_iter().flatten()
    }

    /// Decides where a container's devices come from. The error is in the kubelet's words.
    pub(super) fn choose(
        &mut self,
        uid: &str,
        container: &str,
        name: &ResourceName,
        required: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Choice, String> {
        let resource = self.resources.get(name);
        let list = resource.and_then(|resource| Some((resource, resource.list.as_ref()?)));
        if list.is_none() && !self.taken.contains_key(name) {
            return Ok(Choice::Nothing);
        }
        let owned = self.ids(uid, container, name);
        if !owned.is_empty() && owned.len() != required {
            let owned = owned.len();
            return Err(format!(
                "pod {uid:?} container {container:?} changed request for resource {:?} from {owned} to {required}",
                name.as_str()
            ));
        }
        let Some((resource, list)) = list else {
            return Err(format!("cannot allocate unregistered device {name}"));
        };
        if resource.healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {name}"));
        }
        if !resource.healthy.is_superset(&owned) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {name}"
            ));
        }
        if required == owned.len() {
            return Ok(Choice::Nothing);
        }

        let mut taken = BTreeSet::new();
        take(&mut taken, reusable, required);
        let in_use = self.taken.get(name).cloned().unwrap_or_default();
        let free: BTreeSet<_> = resource.healthy.difference(&in_use).cloned().collect();
        let missing = required - taken.len();
        if free.len() < missing {
            return Err(format!(
                "requested number of devices unavailable for {name}. Requested: {missing}, Available: {}",
                free.len()
            ));
        }
        let aligned =
            if self.align_numa { aligned(list, &free, reusable, required) } else { BTreeSet::new() };
        let rest: BTreeSet<_> = free.difference(&aligned).cloned().collect();
        // The plugin chooses within the aligned ones where they are more than enough, else they are all taken and it
        // chooses among the rest.
        let pools = if missing < aligned.len() {
            vec![aligned]
        } else {
            take(&mut taken, &aligned, required);
            vec![rest]
        };
        if taken.len() == required {
            return Ok(self.take(name, taken));
        }
        let first: BTreeSet<_> = pools.iter().flatten().cloned().collect();
        let available = first.union(&taken).cloned().collect();
        let question = Question { taken, pools, available, required };
        match resource.endpoint {
            Endpoint::Running { plugin, options } if options.get_preferred_allocation_available => {
                Ok(Choice::Ask { plugin, question })
            }
            _ => self.take_preferred(name, question, &[]),
        }
    }

    /// Completes a choice with what the plugin prefers; the rest is taken in order.
    pub(super) fn take_preferred(
        &mut self,
        name: &ResourceName,
        question: Question,
        preferred: &[String],
    ) -> Result<Choice, String> {
        let Question { mut taken, pools, required, .. } = question;
        let preferred: BTreeSet<_> = preferred.iter().cloned().collect();
        for pool in &pools {
            let wanted: BTreeSet<_> = preferred.intersection(pool).cloned().collect();
            take(&mut taken, &wanted, required);
            take(&mut taken, pool, required);
        }
        if taken.len() < required {
            return Err(format!(
                "unexpectedly allocated less resources than required. Requested: {required}, Got: {}",
                taken.len()
            ));
        }
        Ok(self.take(name, taken))
    }

    fn take(&mut self, name: &ResourceName, devices: BTreeSet<String>) -> Choice {
        self.taken.entry(name.clone()).or_default().extend(devices.iter().cloned());
        Choice::Taken(devices)
    }

    /// The plugin that would allocate, or why there is none, in the kubelet's words.
    pub(super) fn plugin(&self, name: &ResourceName) -> Result<PluginId, String> {
        match self.resources.get(name).map(|resource| &resource.endpoint) {
            Some(Endpoint::Running { plugin, .. }) => Ok(*plugin),
            Some(Endpoint::Stopped { .. }) => Err(format!("endpoint {name} has been stopped")),
            None => Err(format!("unknown Device Plugin {name}")),
        }
    }

    /// The plugin has allocated.
    pub(super) fn allocated(
        &mut self,
        uid: &str,
        container: &str,
        name: &ResourceName,
        devices: &BTreeSet<String>,
        response: ContainerAllocateResponse,
    ) -> Result<(), String> {
        let list = self.resources.get(name).and_then(|resource| resource.list.as_ref());
        let mut by_node = ByNode::new();
        for id in devices {
            // The kubelet dereferences the entry and crashes where the plugin has dropped the device meanwhile.
            let Some(device) = list.and_then(|list| list.get(id)) else {
                return Err(format!(
                    "device {id} of {name} vanished from the plugin's list during Allocate (a real kubelet crashes here)"
                ));
            };
            let nodes: Vec<i64> =
                device.topology.iter().flat_map(|topology| &topology.nodes).map(|node| node.id).collect();
            for node in if nodes.is_empty() { vec![NO_TOPOLOGY] } else { nodes } {
                by_node.entry(node).or_default().push(id.clone());
            }
        }
        self.allocations
            .entry(uid.to_owned())
            .or_default()
            .entry(container.to_owned())
            .or_default()
            .insert(name.clone(), Allocation { devices: by_node, response });
        Ok(())
    }

    /// Gives back what was taken for an allocation that failed.
    pub(super) fn release_untaken(&mut self) {
        self.taken.clear();
        for (name, allocation) in self.allocations.values().flat_map(BTreeMap::values).flatten() {
            self.taken.entry(name.clone()).or_default().extend(allocation.ids());
        }
    }

    /// UIDs of the pods that have devices.
    pub(super) fn pods(&self) -> BTreeSet<String> {
        self.allocations.keys().cloned().collect()
    }

    /// The pod is gone: its devices are free. Says whether it had any.
    pub(super) fn remove_pod(&mut self, uid: &str) -> bool {
        let had = self.allocations.remove(uid).is_some();
        self.release_untaken();
        had
    }
}

/// Moves devices from `pool` to `taken` until there are `required`.
fn take(taken: &mut BTreeSet<String>, pool: &BTreeSet<String>, required: usize) {
    let missing = required.saturating_sub(taken.len());
    let more: Vec<_> = pool.difference(taken).take(missing).cloned().collect();
    taken.extend(more);
}

/// The topology manager's default limit; with more, a kubelet that aligns does not start.
const MOST_NUMA_NODES: usize = 8;

/// The free devices of the fewest NUMA nodes that have enough together with those that are used again; of all nodes where
/// no nodes have. Of as many nodes, the lower ones are taken.
fn aligned(
    list: &BTreeMap<String, Device>,
    free: &BTreeSet<String>,
    reusable: &BTreeSet<String>,
    required: usize,
) -> BTreeSet<String> {
    let nodes: BTreeSet<i64> = list.values().flat_map(nodes_of).collect();
    if nodes.len() > MOST_NUMA_NODES {
        return BTreeSet::new();
    }
    // A set of nodes is a number with one bit for each.
    let bits: BTreeMap<i64, u32> = nodes.into_iter().zip((0..).map(|bit| 1 << bit)).collect();
    let sets: BTreeMap<&String, u32> = list
        .iter()
        .map(|(id, device)| {
            (id, nodes_of(device).filter_map(|node| bits.get(&node)).fold(0, |set, bit| set | bit))
        })
        .collect();
    let set_of = |id: &String| sets.get(id).copied().unwrap_or_default();
    let all = bits.values().fold(0, |set, bit| set | bit);
    let enough = |nodes: u32| {
        let (again, elsewhere): (Vec<u32>, Vec<u32>) =
            reusable.iter().map(set_of).filter(|set| *set != 0).partition(|set| set & nodes != 0);
        elsewhere.is_empty()
            && again.len() + free.iter().filter(|id| set_of(id) & nodes != 0).count() >= required
    };
    let fewest = (1..=all).filter(|nodes| enough(*nodes)).min_by_key(|nodes| (nodes.count_ones(), *nodes));
    let nodes = fewest.unwrap_or(all);
    free.iter().filter(|id| set_of(id) & nodes != 0).cloned().collect()
}

fn nodes_of(device: &Device) -> impl Iterator<Item = i64> {
    device.topology.iter().flat_map(|topology| &topology.nodes).map(|node| node.id)
}
