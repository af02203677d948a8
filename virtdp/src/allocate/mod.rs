//! Allocating: what a container is told about the NICs that it is given, what others on the node read about them, and which ones we
//! would rather give.

mod cdi;
pub(crate) mod checkpoint;
mod device_info;
mod grant;
mod published;
mod several;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kubelet_api::deviceplugin::{
    AllocateResponse, CdiDevice, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    ContainerPreferredAllocationResponse, DeviceSpec, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use linux::Sysfs;
use nic::{Candidate, DeviceId, ResourceName, prefer};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::cdi::Cdi;
use self::device_info::DeviceInfo;
use self::grant::{DeviceNode, Grant};
pub(crate) use self::several::Allocators;
use crate::advertise::Offer;
use crate::cli::Settings;

/// The resource for which the variable of the 2018 project lives on.
const RESOURCE_OF_2018: &str = "kernel.org/virt";

/// What containers get besides the NIC itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    /// `/dev/vhost-net`, and with it `/dev/net/tun`: to build an interface of its own on top of the NIC.
    pub(crate) vhost_net: bool,
    /// `/dev/net/tun` alone.
    pub(crate) tun: bool,
    /// Device nodes come through CDI, not through the kubelet.
    pub(crate) cdi: bool,
}

impl Extras {
    /// With what the offer's pool adds.
    fn with(self, offer: &Offer) -> Extras {
        Extras {
            vhost_net: self.vhost_net || offer.needs.vhost_net,
            tun: self.tun || offer.needs.tun,
            cdi: self.cdi || offer.pool.cdi,
        }
    }
}

/// Answers the kubelet for one resource, and writes what others on the node read about its devices.
#[derive(Clone, Debug)]
pub(crate) struct Allocator {
    resource: ResourceName,
    extras: Extras,
    sysfs: Sysfs,
    device_info: DeviceInfo,
    cdi: Option<Cdi>,
}

/// Why an allocation that the desk granted fails all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It lacks what a container needs to use it.
    #[error("device {device} cannot be used by a container: {}", .reason)]
    Unusable { device: DeviceId, reason: String },
    /// The process ends.
    #[error("the agent stops")]
    Stopping,
}

impl Failure {
    /// All that [`Failure::class`] may be.
    pub(crate) const CLASSES: [&str; 2] = ["unusable", "stopping"];

    /// The reason in one word, for metrics.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Failure::Unusable { .. } => "unusable",
            Failure::Stopping => "stopping",
        }
    }
}

impl Allocator {
    pub(crate) fn new(settings: &Settings, resource: &ResourceName) -> Self {
        Allocator {
            resource: resource.clone(),
            extras: settings.extras,
            sysfs: Sysfs::at(&settings.sysfs),
            device_info: DeviceInfo::new(&settings.device_info, resource),
            cdi: Cdi::new(&settings.cdi, resource),
        }
    }

    /// Writes what others read about devices that pods have.
    async fn restore(&self, in_use: Vec<Offer>) {
        self.on_disk(move |this| in_use.iter().for_each(|offer| this.write_device_info(offer))).await;
    }

    /// The list has changed.
    pub(crate) async fn follow(&self, list: Arc<Vec<Offer>>) {
        self.on_disk(move |this| this.follow_now(&list)).await;
    }

    /// The answer to Allocate. `containers` holds the devices of each container, `list` all there are.
    ///
    /// # Errors
    /// A device lacks what a container needs to use it.
    pub(crate) async fn answer(
        &self,
        containers: Vec<Vec<Offer>>,
        list: Arc<Vec<Offer>>,
    ) -> Result<AllocateResponse, Failure> {
        let answered = self.on_disk(move |this| this.answer_now(containers, &list)).await;
        answered.unwrap_or(Err(Failure::Stopping))
    }

    /// None if the process ends.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Allocator) -> T + Send + 'static,
    ) -> Option<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.ok()
    }

    fn follow_now(&self, list: &[Offer]) {
        let forgotten = self.device_info.forget_others(list);
        complain(forgotten, "device-info files of devices that are gone cannot be removed");
        self.publish(list);
    }

    fn answer_now(&self, containers: Vec<Vec<Offer>>, list: &[Offer]) -> Result<AllocateResponse, Failure> {
        let grant = |offer: Offer| {
            let device = offer.id.clone();
            Grant::of(offer, &self.sysfs)
                .map_err(|error| Failure::Unusable { device, reason: error.chain().to_string() })
        };
        let containers: Vec<Vec<Grant>> = containers
            .into_iter()
            .map(|offers| offers.into_iter().map(grant).collect())
            .collect::<Result<_, _>>()?;
        for granted in containers.iter().flatten() {
            self.write_device_info(&granted.offer);
        }
        let cdi = self.publish(list);
        Ok(response(&self.resource, &containers, self.extras, cdi))
    }

    /// What cannot be written is said and in nobody's way: pods get their NICs by the kubelet's word, not by this.
    fn write_device_info(&self, offer: &Offer) {
        if let Err(error) = self.device_info.write(offer, self.extras.with(offer)) {
            warn!(device = %offer.id, reason = format!("{error:#}"), "the device-info file cannot be written");
        }
    }

    /// Keeps the CDI file; gives it if a runtime can go by it. A file that is there is kept up also when CDI is off by now: the kubelet starts
    /// a container again by the names that it was given once.
    fn publish(&self, list: &[Offer]) -> Option<&Cdi> {
        let cdi = self.cdi.as_ref()?;
        let kept = cdi.is_there();
        let grant = |offer: &Offer| {
            Grant::of(offer.clone(), &self.sysfs)
                .inspect_err(|error| debug!(device = %offer.id, reason = error.chain(), "no CDI device"))
        };
        let wanted = list.iter().filter(|offer| kept || self.extras.with(offer).cdi);
        let grants: Vec<Grant> = wanted.filter_map(|offer| grant(offer).ok()).collect();
        let published = cdi.publish(&grants, self.extras);
        let is_there =
            complain(published, "the CDI file cannot be kept: containers get device nodes without it");
        (is_there && list.iter().any(|offer| self.extras.with(offer).cdi)).then_some(cdi)
    }
}

/// Says what went wrong with something that stops nobody; tells whether nothing did.
fn complain(outcome: anyhow::Result<()>, what: &str) -> bool {
    if let Err(error) = &outcome {
        warn!(reason = format!("{error:#}"), "{what}");
    }
    outcome.is_ok()
}

/// The answer to Allocate. `containers` holds the devices of each container; `cdi` is given where the runtime adds what belongs to them.
fn response(
    resource: &ResourceName,
    containers: &[Vec<Grant>],
    extras: Extras,
    cdi: Option<&Cdi>,
) -> AllocateResponse {
    let one = |grants: &Vec<Grant>| {
        let (by_cdi, by_kubelet): (Vec<&Grant>, Vec<&Grant>) =
            grants.iter().partition(|grant| cdi.is_some_and(|cdi| cdi.name(grant).is_some()));
        let nodes: BTreeSet<DeviceNode> =
            by_kubelet.into_iter().flat_map(|grant| grant.nodes(extras)).collect();
        let names = by_cdi.into_iter().filter_map(|grant| cdi?.name(grant));
        ContainerAllocateResponse {
            envs: environment(resource, grants, extras),
            devices: nodes.into_iter().map(DeviceSpec::from).collect(),
            cdi_devices: names.map(|name| CdiDevice { name }).collect(),
            ..ContainerAllocateResponse::default()
        }
    };
    AllocateResponse { container_responses: containers.iter().map(one).collect() }
}

/// What a container finds in its environment.
///
/// `PCIDEVICE_<RESOURCE>` and `PCIDEVICE_<RESOURCE>_INFO` are what users of sriov-network-device-plugin read. IDs are in the order of
/// addresses: the kubelet keeps none, and so the same devices read the same in an init container and in the one after it.
fn environment(resource: &ResourceName, grants: &[Grant], extras: Extras) -> BTreeMap<String, String> {
    let [ids_of, info_of] = resource.variables();
    let ids: Vec<&str> = grants.iter().map(|grant| grant.offer.id.as_str()).collect();
    let info: serde_json::Map<_, _> =
        grants.iter().map(|grant| (grant.offer.id.to_string(), grant.info(extras))).collect();
    let mut environment =
        BTreeMap::from([(info_of, serde_json::Value::Object(info).to_string()), (ids_of, ids.join(","))]);
    // Of two resources that set the same variable one is lost, so only one resource sets this.
    if resource.as_str() == RESOURCE_OF_2018 {
        let pci: Vec<String> =
            grants.iter().filter_map(|grant| grant.offer.pci).map(|pci| pci.to_string()).collect();
        if !pci.is_empty() {
            environment.insert("VIRT_PCI_ADDR".to_owned(), pci.join(","));
        }
    }
    environment
}

/// The answer to GetPreferredAllocation. Never an error: that would fail the pod, and any choice is better.
pub(crate) fn preferred(
    request: &PreferredAllocationRequest,
    offers: &[Offer],
    now: Instant,
) -> PreferredAllocationResponse {
    let one = |request: &ContainerPreferredAllocationRequest| ContainerPreferredAllocationResponse {
        device_ids: preferred_by_one(request, offers, now),
    };
    PreferredAllocationResponse { container_responses: request.container_requests.iter().map(one).collect() }
}

fn preferred_by_one(
    request: &ContainerPreferredAllocationRequest,
    offers: &[Offer],
    now: Instant,
) -> Vec<String> {
    let parse = |ids: &[String]| -> Vec<DeviceId> { ids.iter().filter_map(|id| id.parse().ok()).collect() };
    let candidate = |id: DeviceId| {
        let offer = offers.iter().find(|offer| offer.id == id);
        Candidate {
            id,
            numa_node: offer.and_then(|offer| offer.numa_node),
            network: offer.and_then(|offer| offer.network.clone()),
            used: offer.map(|offer| offer.used(now)).unwrap_or_default(),
        }
    };
    let available: Vec<Candidate> = parse(&request.available_device_ids).into_iter().map(candidate).collect();
    let must = parse(&request.must_include_device_ids);
    let size = usize::try_from(request.allocation_size).unwrap_or(0);
    prefer(&available, &must, size).into_iter().map(|id| id.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use linux::testing::{ETHERNET, Tree};

    use super::*;
    use crate::advertise::LastUse;

    pub(super) fn offer(id: &str, numa_node: Option<u16>) -> Offer {
        let id: DeviceId = id.parse().unwrap();
        let mac = Some(nic::MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd]));
        let driver = Some("virtio_net".into());
        let pool = Arc::new(nic::Pool::empty("kernel.org/virt".parse().unwrap()));
        Offer { numa_node, driver, mac, ..Offer::bare(id, pool) }
    }

    fn grants(offers: &[Offer]) -> Vec<Grant> {
        let sysfs = Sysfs::at("/nonexistent");
        offers.iter().map(|offer| Grant::of(offer.clone(), &sysfs).unwrap()).collect()
    }

    #[test]
    fn a_container_finds_its_nics_in_the_environment() {
        let offers = [offer("0000:00:09.0", Some(1)), offer("0000:00:0a.0", None)];
        let environment =
            environment(&"kernel.org/virt".parse().unwrap(), &grants(&offers), Extras::default());
        let shown: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "PCIDEVICE_KERNEL_ORG_VIRT=0000:00:09.0,0000:00:0a.0",
                "PCIDEVICE_KERNEL_ORG_VIRT_INFO={\"0000:00:09.0\":{\"generic\":{\"deviceID\":\"0000:00:09.0\"},\
                 \"netdevice\":{\"driver\":\"virtio_net\",\"mac\":\"52:54:00:c4:e6:cd\",\"numaNode\":\"1\"}},\
                 \"0000:00:0a.0\":{\"generic\":{\"deviceID\":\"0000:00:0a.0\"},\
                 \"netdevice\":{\"driver\":\"virtio_net\",\"mac\":\"52:54:00:c4:e6:cd\"}}}",
                "VIRT_PCI_ADDR=0000:00:09.0,0000:00:0a.0",
            ]
        );
    }

    #[test]
    fn two_resources_share_no_variable_and_a_nic_without_pci_has_no_address() {
        let names = |resource: &str, id: &str| -> Vec<String> {
            let grants = grants(&[offer(id, None)]);
            environment(&resource.parse().unwrap(), &grants, Extras::default()).into_keys().collect()
        };
        let one = names("kernel.org/virt", "0000:00:0a.0");
        let two = names("example.com/virt", "0000:00:0a.0");
        assert!(one.iter().all(|name| !two.contains(name)), "{one:?} {two:?}");
        assert_eq!(
            names("kernel.org/virt", "vd0"),
            ["PCIDEVICE_KERNEL_ORG_VIRT", "PCIDEVICE_KERNEL_ORG_VIRT_INFO"]
        );
    }

    /// An allocator that writes into `root`, on a node where vfio-pci holds 0000:00:0b.0.
    fn allocator(root: &std::path::Path, tree: &Tree, extras: Extras) -> Allocator {
        tree.pci("pci0000:00/0000:00:0b.0", ETHERNET, 0x1af4, 0x1041);
        let resource: ResourceName = "kernel.org/virt".parse().unwrap();
        Allocator {
            extras,
            sysfs: Sysfs::at(tree.path()),
            device_info: DeviceInfo::new(&root.join("dp"), &resource),
            cdi: Cdi::new(&root.join("cdi"), &resource),
            resource,
        }
    }

    fn list() -> Vec<Offer> {
        vec![
            offer("0000:00:0a.0", None),
            Offer { driver: Some(nic::VFIO_PCI.into()), ..offer("0000:00:0b.0", None) },
            offer("virtio_mmio.", None),
        ]
    }

    #[test]
    fn a_container_gets_the_device_nodes_of_all_its_nics_once_each() {
        let (root, tree) = (tempfile::tempdir().unwrap(), Tree::new());
        let allocator = allocator(root.path(), &tree, Extras { vhost_net: true, ..Extras::default() });
        let refused = allocator.answer_now(vec![list()], &list()).unwrap_err().to_string();
        assert!(
            refused.contains("0000:00:0b.0 cannot be used by a container: read the IOMMU group"),
            "{refused}"
        );
        tree.iommu_group("pci0000:00/0000:00:0b.0", 4, None);
        let answer = allocator.answer_now(vec![list(), vec![list().remove(0)]], &list()).unwrap();
        let nodes = |n: usize| -> Vec<String> {
            let specs = answer.container_responses[n].devices.iter();
            specs
                .map(|spec| format!("{} {} {}", spec.host_path, spec.container_path, spec.permissions))
                .collect()
        };
        let extra = ["/dev/net/tun /dev/net/tun rw", "/dev/vhost-net /dev/vhost-net rw"];
        let vfio = ["/dev/vfio/4 /dev/vfio/4 rw", "/dev/vfio/vfio /dev/vfio/vfio rw"];
        assert_eq!(nodes(0), [extra[0], vfio[0], vfio[1], extra[1]]);
        assert_eq!(nodes(1), extra);
        assert!(answer.container_responses.iter().all(|one| one.cdi_devices.is_empty()));
        assert!(!root.path().join("cdi").exists());
    }

    #[test]
    fn with_cdi_the_runtime_is_told_names_and_without_its_file_the_kubelet_gets_the_nodes() {
        let (root, tree) = (tempfile::tempdir().unwrap(), Tree::new());
        let on = Extras { tun: true, cdi: true, ..Extras::default() };
        let allocator = allocator(root.path(), &tree, on);
        // A list may be known before vfio has made the group.
        allocator.follow_now(&list());
        tree.iommu_group("pci0000:00/0000:00:0b.0", 4, None);
        let answer = allocator.answer_now(vec![list()], &list()).unwrap().container_responses.remove(0);
        let names: Vec<&str> = answer.cdi_devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["kernel.org/virt=0000:00:0a.0", "kernel.org/virt=0000:00:0b.0"]);
        // What CDI cannot name comes as ever.
        assert_eq!(answer.devices.len(), 1);
        let file = root.path().join("cdi/virtnet-kernel.org_virt.json");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("/dev/vfio/4") && !text.contains("virtio_mmio"), "{text}");

        allocator.follow_now(&list()[..1]);
        assert!(!std::fs::read_to_string(&file).unwrap().contains("0000:00:0b.0"));
        std::fs::remove_dir_all(root.path().join("cdi")).unwrap();
        std::fs::write(root.path().join("cdi"), "in the way").unwrap();
        let answer = allocator.answer_now(vec![list()], &list()).unwrap().container_responses.remove(0);
        assert_eq!((answer.cdi_devices.len(), answer.devices.len()), (0, 3));

        // Switched off, the file is kept up, and none is made.
        std::fs::remove_file(root.path().join("cdi")).unwrap();
        allocator.follow_now(&list());
        assert!(file.exists());
        let off = Allocator { extras: Extras::default(), ..allocator };
        off.follow_now(&list()[..1]);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("0000:00:0a.0") && !text.contains("0000:00:0b.0"), "{text}");
        std::fs::remove_file(&file).unwrap();
        off.follow_now(&list());
        assert!(!file.exists());
    }

    #[test]
    fn a_preference_is_given_whatever_is_asked() {
        let offers =
            [offer("0000:00:09.0", Some(0)), offer("0000:80:01.0", Some(1)), offer("0000:80:02.0", Some(1))];
        let ask = |available: &[&str], must: &[&str], size| {
            let request = ContainerPreferredAllocationRequest {
                available_device_ids: available.iter().map(ToString::to_string).collect(),
                must_include_device_ids: must.iter().map(ToString::to_string).collect(),
                allocation_size: size,
            };
            preferred_by_one(&request, &offers, Instant::now())
        };
        let all = ["0000:00:09.0", "0000:80:01.0", "0000:80:02.0"];
        assert_eq!(ask(&all, &[], 2), ["0000:80:01.0", "0000:80:02.0"]);
        assert_eq!(ask(&all, &["0000:00:09.0"], 1), ["0000:00:09.0"]);
        assert_eq!(ask(&["unknown-one", "not an id"], &[], 3), ["unknown-one"]);
        assert!(ask(&all, &[], -1).is_empty());
    }

    #[test]
    fn what_was_just_given_or_is_still_away_is_given_last() {
        let now = Instant::now();
        let mut offers =
            ["0000:00:09.0", "0000:00:0a.0", "0000:00:0b.0", "0000:00:0c.0"].map(|id| offer(id, None));
        offers[0].used = LastUse::Away;
        offers[1].used = LastUse::At(now - Duration::from_secs(2));
        offers[2].used = LastUse::At(now - Duration::from_secs(600));
        let request = ContainerPreferredAllocationRequest {
            available_device_ids: offers.iter().map(|offer| offer.id.to_string()).collect(),
            must_include_device_ids: Vec::new(),
            allocation_size: 4,
        };
        let order = ["0000:00:0c.0", "0000:00:0b.0", "0000:00:0a.0", "0000:00:09.0"];
        assert_eq!(preferred_by_one(&request, &offers, now), order);
    }
}
