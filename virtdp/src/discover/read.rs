//! Reading the node: sysfs, then links, then routes and addresses, and the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use config::Config;
use ledger::{Ledger, Stage};
use linux::route::{Look, Socket, Vital};
use linux::{Devices, Sysfs};
use nic::lifeline::TornFacts;
use nic::{AtHome, DeviceId, NodeFacts};
use tracing::warn;

use super::identity::Identities;
use super::lately::Lately;
use super::pods;
use super::survey::{Lease, Memory, Survey, Tally};
use super::vital::Resolved;
use crate::cli::Settings;
use crate::configure::metadata;

/// How often the node is read again when it changed while we read it. It settles within milliseconds, unless sysfs and netlink
/// show different network namespaces, which no patience helps.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(15);

/// Reads the network namespace of the calling thread.
#[derive(Debug)]
pub(crate) struct Reader {
    sysfs: Sysfs,
    devices: Devices,
    ledger: Ledger,
    node_addresses: Vec<IpAddr>,
    peers: Resolved,
    insisted: BTreeSet<DeviceId>,
    routes: Option<Socket>,
    /// What was said about the ledger last.
    complaints: BTreeSet<String>,
    metadata_complaint: Option<String>,
    /// What it said when it could be read last of what NICs are like at home.
    at_home: BTreeMap<DeviceId, AtHome>,
    /// What is remembered for the next look.
    memory: Memory,
    /// The leases of NICs that are in pods.
    plumbed: Vec<ledger::Lease>,
    identities: Identities,
    lately: Lately,
}

impl Reader {
    /// A reader that changes nothing.
    pub(crate) fn new(settings: &Settings) -> Self {
        Reader {
            sysfs: Sysfs::at(&settings.sysfs),
            devices: Devices::at(&settings.sysfs),
            ledger: Ledger::at(&settings.state),
            node_addresses: settings.node_addresses.clone(),
            peers: Ok(Vec::new()),
            insisted: settings.offer_lifeline.clone(),
            routes: None,
            complaints: BTreeSet::new(),
            metadata_complaint: None,
            at_home: BTreeMap::new(),
            memory: Memory::default(),
            plumbed: Vec::new(),
            identities: Identities::new(settings),
            lately: Lately::default(),
        }
    }

    /// As [`Reader::new`], for the agent, which keeps the journal of identities.
    pub(crate) fn of_the_agent(settings: &Settings) -> Self {
        Reader { identities: Identities::new(settings).kept(), ..Reader::new(settings) }
    }

    /// Whose addresses the node must reach, from the next look on.
    pub(crate) fn set_peers(&mut self, peers: Resolved) {
        self.peers = peers;
    }

    /// Looks at the node.
    ///
    /// # Errors
    /// Something cannot be read, or kept changing. Nothing can be said about any NIC then.
    pub(crate) fn read(&mut self, config: &Arc<Config>) -> Result<Survey> {
        let mut attempt = 1;
        loop {
            match self.attempt(config)? {
                Ok(survey) => return Ok(survey),
                Err(torn) if attempt >= ATTEMPTS => return Err(torn),
                Err(_) => {}
            }
            attempt += 1;
            std::thread::sleep(PAUSE);
        }
    }

    /// One look. The inner error is that of facts that do not fit together.
    fn attempt(&mut self, config: &Arc<Config>) -> Result<Result<Survey>> {
        // The ledger first: a NIC that leaves while we read is then at home, which is the cautious mistake.
        self.read_ledger();
        self.read_metadata(config);
        let found = self.sysfs.find().context("find the network devices in sysfs")?;
        let look = match self.ask_kernel() {
            Ok(look) => look,
            Err(error) => {
                // A socket that failed once is not trusted again.
                self.routes = None;
                return Err(error);
            }
        };
        let Look { links, lifeline } = match look {
            Ok(look) => look,
            Err(torn) => return Ok(Err(torn.into())),
        };
        let leased = self.memory.leases.keys().cloned().collect();
        let facts = match NodeFacts::new(found.nics, &found.interfaces, links, lifeline, leased) {
            Ok(facts) => facts.insisting_on(&self.insisted | &config.offer_lifeline),
            Err(torn) => return Ok(Err(torn.into())),
        };
        self.remember(&facts);
        let mut survey = Survey::of(&facts, found.unreadable, &self.memory, Arc::clone(config));
        self.lately.check(&mut survey, Instant::now());
        pods::look(&mut survey, &self.plumbed, &self.devices);
        self.identities.check(&mut survey);
        Ok(Ok(survey))
    }

    fn ask_kernel(&mut self) -> Result<Result<Look, TornFacts>> {
        let peers = self.peers.clone().map_err(anyhow::Error::msg)?;
        let vital = Vital { addresses: self.node_addresses.clone(), peers };
        let socket = match &mut self.routes {
            Some(socket) => socket,
            none => none.insert(Socket::open().context("ask the kernel for links and routes")?),
        };
        socket.look(&vital).context("read links, routes and addresses")
    }

    /// Keeps in mind what NICs are like at home, for when they are away. What the ledger says goes before: a NIC that came back by
    /// itself still has the name and the MTU that it had in the pod.
    fn remember(&mut self, facts: &NodeFacts) {
        let mut before = std::mem::take(&mut self.memory.homes);
        for nic in facts.nics() {
            let link = facts.link(nic);
            let known = link.map(AtHome::from).or_else(|| before.remove(&nic.id));
            let another = |home: &AtHome| {
                let is = link.and_then(|link| link.permanent_mac);
                is.zip(home.mac).is_some_and(|(is, was)| is != was)
            };
            let home = match self.at_home.get(&nic.id).filter(|home| !another(home)) {
                Some(home) => Some(AtHome { queues: known.and_then(|known| known.queues), ..home.clone() }),
                None => known,
            };
            self.memory.homes.extend(home.map(|home| (nic.id.clone(), home)));
        }
    }

    /// What cannot be read of the ledger is said once, and is in nobody's way: it is ehost-device that decides by it.
    fn read_ledger(&mut self) {
        let listing = match self.ledger.list() {
            Ok(listing) => listing,
            Err(error) => {
                self.memory.tally.listed = false;
                self.complain(BTreeSet::from([format!("{:#}", anyhow::Error::from(error))]));
                return;
            }
        };
        self.memory.tally = Tally::of(&listing);
        let mut leases = BTreeMap::new();
        self.at_home.clear();
        let mut complaints = BTreeSet::new();
        self.plumbed.clear();
        for lease in listing.leases {
            if matches!(lease.stage, Stage::Plumbed { .. }) {
                self.plumbed.push(lease.clone());
            }
            let mac = lease.permanent_mac.or(lease.home.mac);
            let home = AtHome { name: lease.home.name, mac, mtu: lease.home.mtu, queues: None };
            self.at_home.insert(lease.device.clone(), home);
            // A NIC that is at home under another name is in nobody's hands.
            if !matches!(lease.stage, Stage::Displaced { .. }) {
                let owner = &lease.owner;
                let pod = owner.pod.clone().map(|pod| (pod, owner.if_name.clone()));
                leases.insert(lease.device, Lease { owner: lease.owner.to_string(), mac, pod });
            }
        }
        for error in listing.unusable {
            if let ledger::Error::Unusable { path, .. } = &error {
                let device =
                    path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
                // Somebody has it, though we cannot tell who.
                leases.extend(device.map(|device| {
                    (device, Lease { owner: "somebody unknown".into(), mac: None, pod: None })
                }));
            }
            complaints.insert(format!("{:#}", anyhow::Error::from(error)));
        }
        self.memory.leases = leases;
        self.complain(complaints);
    }

    /// What cannot be read is remembered as it was.
    fn read_metadata(&mut self, config: &Config) {
        let Some(path) = &config.metadata else {
            self.memory.metadata = None;
            self.metadata_complaint = None;
            return;
        };
        match metadata::read(path) {
            Ok(read) => {
                self.memory.metadata = Some(read);
                self.metadata_complaint = None;
            }
            Err(error) => {
                let reason = format!("{error:#}");
                if self.metadata_complaint.as_ref() != Some(&reason) {
                    warn!(
                        reason,
                        "the VM's metadata cannot be read: networkIds and tags select by what was read before"
                    );
                }
                self.metadata_complaint = Some(reason);
            }
        }
    }

    fn complain(&mut self, complaints: BTreeSet<String>) {
        for reason in complaints.difference(&self.complaints) {
            warn!(reason, "the ledger cannot be read in full: which NICs are in pods is known in part");
        }
        self.complaints = complaints;
    }
}
