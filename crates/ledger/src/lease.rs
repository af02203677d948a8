//! One lease, and the stages of its life.

use std::collections::BTreeMap;
use std::path::PathBuf;

use linux::bpf::Tcx;
use linux::route::{KeptAddress, KeptRoute};
use nic::{Channels, DeviceId, IfName, Link, MacAddr, Offloads, Rings};
use serde::{Deserialize, Serialize};

/// A NIC that is, or is about to be, away from home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Which NIC.
    pub device: DeviceId,
    /// The address that it was made with, where it has one: tells whether another NIC sits at this ID after a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permanent_mac: Option<MacAddr>,
    /// In which boot it left home ([`linux::boot_id`]). In any other, no network namespace of then exists, and nothing
    /// that was done to the NIC is left to be undone.
    pub boot_id: String,
    /// What it is to be again.
    pub home: Home,
    /// For whom it left.
    pub owner: Owner,
    /// How far it got.
    pub stage: Stage,
}

/// What a NIC looked like in the node's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// IFLA_IFNAME.
    pub name: IfName,
    /// `ifi_index`; the kernel keeps it where it can.
    pub index: u32,
    /// Alternative names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alt_names: Vec<String>,
    /// IFLA_IFALIAS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// IFLA_ADDRESS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// IFLA_MTU in bytes.
    pub mtu: u32,
    /// IFLA_TXQLEN in packets.
    pub tx_queue_len: u32,
    /// IFF_UP.
    pub up: bool,
    /// The other flags that an administrator sets ([`Link::FLAGS`]).
    #[serde(default = "usual_flags")]
    pub flags: u32,
    /// The bridge or bond that it was a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<IfName>,
    /// How many queues it used, where its driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// How long they were, where its driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rings: Option<Rings>,
    /// Which offloads were wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offloads: Option<Offloads>,
    /// What was set of it in numbers ([`linux::route::Socket::settings`]), but for sysctls that were as those of any new interface and would have
    /// followed them ([`linux::Sysctl::follows`]); none in leases that were written before that was noted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, i64>,
    /// The XDP programs that the node had put on it. They go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xdp: Vec<u32>,
    /// The TCX programs that the node had put on it, which go with it, too; none where they could not be seen, in leases that were written before
    /// that was noted, and once the NIC is home and was seen to have none of its owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcx: Option<Vec<TcxProgram>>,
    /// Its addresses but link-local ones where the kernel makes them itself, and those that expire, which whoever asked for
    /// them asks for again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<KeptAddress>,
    /// The routes through it that an administrator set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<KeptRoute>,
}

/// What tells a TCX program: the BPF link that holds it, where one does, since its holder may change the program; else the program's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcxProgram {
    /// The number of the link.
    Link(u32),
    /// The number of the program.
    Program(u32),
}

impl From<&Tcx> for TcxProgram {
    fn from(program: &Tcx) -> TcxProgram {
        match program.link {
            0 => TcxProgram::Program(program.id),
            link => TcxProgram::Link(link),
        }
    }
}

/// For whom a NIC left home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME: what the NIC is called there.
    pub if_name: IfName,
    /// CNI_NETNS.
    pub netns: PathBuf,
    /// The inode of that network namespace, which tells it from a later one at the same path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_inode: Option<u64>,
    /// The network's name.
    pub network: String,
    /// The pod, where the runtime names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// A pod, as CNI_ARGS name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// How far a lease got.
///
/// Every stage but `Plumbed` means, to whoever holds the device's lock: a process died here. The NIC may be at home, in
/// the owner's namespace, or in the initial namespace under a strange name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Stage {
    /// Written before anything is changed: the NIC may or may not have been moved.
    Prepared,
    /// The ADD was completed: the owner has the NIC.
    Plumbed {
        /// The NIC's index in the owner's network namespace.
        index: u32,
    },
    /// On its way home.
    Returning {
        /// Why it is not there yet, after an attempt that failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
    },
    /// At home and in nobody's hands. Either another link took its name or an alternative name meanwhile, or it carries the node
    /// under the name that it has: it gets its own back as soon as that is over. Or the lease stays for the sake of the owner's addresses, which are
    /// known by it: the NIC came home as it was, without its owner's DEL, or IPAM could not take them back; then it may also be gone.
    Displaced {
        /// Its name now.
        name: IfName,
        /// It was as it had been, and nothing of it is left to be restored: whatever it is by now, somebody else made it. Only TCX programs of its
        /// owner's may be left ([`Home::tcx`]), since not everybody sees them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole: bool,
    },
}

/// What happens to a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The ADD is complete, the NIC has this index in the owner's namespace.
    Plumb {
        /// The index.
        index: u32,
    },
    /// The way home begins, or an attempt failed.
    Return {
        /// Why the attempt failed.
        fault: Option<String>,
    },
    /// The NIC is home, and the lease stays.
    Displace {
        /// The name.
        name: IfName,
        /// Nothing is left to be restored.
        whole: bool,
    },
}

impl Stage {
    /// The stage after a step. Total: a step that makes no sense in a stage leaves it as it is, and in particular no
    /// way home that has begun is ever taken back.
    #[must_use]
    pub fn after(self, step: Step) -> Stage {
        match (self, step) {
            (Stage::Prepared | Stage::Plumbed { .. }, Step::Plumb { index }) => Stage::Plumbed { index },
            (stage @ (Stage::Returning { .. } | Stage::Displaced { .. }), Step::Plumb { .. }) => stage,
            (_, Step::Return { fault }) => Stage::Returning { fault },
            (Stage::Returning { .. } | Stage::Displaced { .. }, Step::Displace { name, whole }) => {
                Stage::Displaced { name, whole }
            }
            (stage @ (Stage::Prepared | Stage::Plumbed { .. }), Step::Displace { .. }) => stage,
        }
    }
}

impl Lease {
    /// The lease after a step.
    #[must_use]
    pub fn after(self, step: Step) -> Lease {
        Lease { stage: self.stage.after(step), ..self }
    }

    /// Whether the NIC came home and was as it had been: the lease stays for the owner's addresses, and whatever else the NIC is by now, somebody
    /// else made it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.stage, Stage::Displaced { whole: true, .. })
    }

    /// Whether the NIC is for this interface of this container.
    #[must_use]
    pub fn is_for(&self, container_id: &str, if_name: &IfName) -> bool {
        self.owner.container_id == container_id && self.owner.if_name == *if_name
    }
}

impl Home {
    /// A snapshot of a link with its addresses. `master` is the name of the link's master. Queues, rings, offloads, settings,
    /// TCX programs and routes are not in it.
    #[must_use]
    pub fn of(link: &Link, addresses: Vec<KeptAddress>, master: Option<IfName>) -> Home {
        Home {
            name: link.name.clone(),
            index: link.index,
            alt_names: link.alt_names.clone(),
            alias: link.alias.clone(),
            mac: link.mac,
            mtu: link.mtu,
            tx_queue_len: link.tx_queue_len,
            up: link.up,
            flags: link.flags,
            master,
            xdp: link.xdp.iter().map(|program| program.id).collect(),
            tcx: None,
            channels: None,
            rings: None,
            offloads: None,
            settings: BTreeMap::new(),
            addresses,
            routes: Vec::new(),
        }
    }
}

/// In leases that were written before the flags were noted.
fn usual_flags() -> u32 {
    Link::MULTICAST
}

impl std::fmt::Display for Owner {
    /// `pod default/testpod1 (container 3f1e, interface net1)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Twelve characters of a container's ID are what people see elsewhere, too.
        let short: String = self.container_id.chars().take(12).collect();
        match &self.pod {
            Some(pod) => {
                write!(
                    f,
                    "pod {}/{} (container {short}, interface {})",
                    pod.namespace, pod.name, self.if_name
                )
            }
            None => write!(f, "container {short}, interface {}", self.if_name),
        }
    }
}
