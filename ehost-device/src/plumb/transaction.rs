//! What an ADD changes, the lease on disk first, and how that is undone.

use std::os::fd::AsFd;

use cni::plugin::Add;
use cni::{Code, Error, Interface, Success};
use ledger::{Addresses, Entry, Homecoming, Lease, Node, Step};
use linux::route::LinkChange;
use nic::Link;

use super::shape::{self, Retuning};
use super::{ARRIVAL_PATIENCE, Pod, network, no_interface};
use crate::code::{self, DEVICE_NOT_FOUND, NOT_HOME};
use crate::config::Settings;
use crate::log::Steps;
use crate::release;

/// Either [`Transaction::attach`] succeeds, or [`Transaction::undo`] follows.
pub(super) struct Transaction<'a> {
    node: &'a mut Node,
    pod: &'a mut Pod,
    entry: &'a Entry<'a>,
    lease: &'a Lease,
    settings: &'a Settings,
    add: &'a Add,
    /// IPAM has given out addresses, or may have: it was asked.
    addressed: bool,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(
        node: &'a mut Node,
        pod: &'a mut Pod,
        entry: &'a Entry<'a>,
        lease: &'a Lease,
        settings: &'a Settings,
        add: &'a Add,
    ) -> Transaction<'a> {
        Transaction { node, pod, entry, lease, settings, add, addressed: false }
    }

    pub(super) fn attach(&mut self, retuning: Retuning, steps: &mut Steps) -> Result<Success, Error> {
        let (add, lease) = (self.add, self.lease);
        steps.begin("lease");
        // It may be on disk all the same where this fails: a folder that could not be synced.
        self.entry.write(lease).map_err(code::ledger)?;
        steps.begin("move");
        let nic = self.hand_over()?;
        let interface = shape::shape(self.pod, &nic, &self.settings.interface, retuning, &add.if_name)?;
        steps.begin("ipam");
        let plugins = self.settings.surroundings.plugins(&add.environment.path);
        let plugin = add.config.ipam_type()?;
        // The DEL that it is owed when it fails is that of the undoing, which keeps the lease where that fails, too.
        self.addressed = plugin.is_some();
        let ipam = plugin.map(|plugin| plugins.add(&plugin, &add.config, &add.environment)).transpose()?;
        let mut network = match ipam {
            Some(ipam) if ipam.ips.is_empty() => {
                return Err(Error::new(code::NO_ADDRESS, "the IPAM plugin gave no address"));
            }
            ipam => ipam.unwrap_or_default(),
        };
        let wanted = &self.settings.interface;
        network.routes.extend(wanted.routes.iter().cloned());
        if wanted.keep_addresses {
            network::keep_addresses(&mut network, &lease.home.addresses);
        }
        steps.begin("configure");
        network::configure(self.pod, &interface, &wanted.sysctls, &network)?;
        if wanted.keep_addresses {
            network.routes.extend(network::keep_routes(self.pod, &interface, &lease.home.routes)?);
        }
        let seen = self
            .pod
            .routes
            .link_by_index(interface.index)
            .map_err(code::io("read the interface back"))?
            .ok_or_else(|| {
                Error::new(DEVICE_NOT_FOUND, format!("{} vanished from the pod", interface.name))
            })?;
        steps.begin("lease");
        self.entry.advance(&lease.clone().after(Step::Plumb { index: nic.index })).map_err(code::ledger)?;
        let interface = Interface {
            name: seen.name.to_string(),
            mac: seen.mac.map(|mac| mac.to_string()),
            mtu: Some(seen.mtu),
            sandbox: Some(add.netns.display().to_string()),
            socket_path: None,
            pci_id: lease.device.pci().map(|pci| pci.to_string()),
        };
        let ips = network.ips.into_iter().map(|ip| cni::Ip { interface: Some(0), ..ip }).collect();
        Ok(Success { interfaces: vec![interface], ips, routes: network.routes, dns: network.dns })
    }

    /// Moves and renames the NIC in one message, and finds it in the pod.
    fn hand_over(&mut self) -> Result<Link, Error> {
        let Transaction { node, pod, lease, settings, add, .. } = self;
        let from = &lease.home.name;
        let index = lease.home.index;
        let current = node
            .routes
            .link_by_index(index)
            .map_err(code::io(format!("look at {from}")))?
            .ok_or_else(|| no_interface(node, &lease.device))?;
        let name = shape::name_in_pod(&settings.interface, &current, &add.if_name);
        let what = || format!("move {from} to the pod as {name}");
        // It may bear the wanted name already, as an alternative one: then the kernel would not rename it.
        if current.alt_names.iter().any(|name| name == add.if_name.as_str()) {
            node.routes.remove_alt_names(index, &[add.if_name.to_string()]).map_err(code::io(what()))?;
        }
        let change = LinkChange {
            netns: Some(pod.netns.as_fd()),
            name: Some(name),
            mac: settings.interface.mac,
            mtu: settings.interface.mtu,
            ..LinkChange::default()
        };
        node.routes.change_link(index, &change).map_err(code::io(what()))?;
        let moved = pod.routes.link_by_name(name.as_str()).map_err(code::io(what()))?;
        moved
            .filter(|moved| moved.parent_device == current.parent_device)
            .ok_or_else(|| Error::new(Code::IO, what()).with_details("it is not in the pod after the move"))
    }

    /// Undoes all of it. The first cause stays the error; what could not be undone is added to its details.
    pub(super) fn undo(self, mut error: Error) -> Error {
        let Transaction { node, entry, lease, settings, add, addressed, .. } = self;
        let mut addresses = Addresses::GivenBack;
        if addressed {
            let plugins = settings.surroundings.plugins(&add.environment.path);
            if let Err(further) = plugins.ipam_del(&add.config, &add.environment) {
                error = error.and_also("the addresses could not be given back", &further);
                addresses = Addresses::Owed;
            }
        }
        match ledger::bring_home(node, entry, lease, None, ARRIVAL_PATIENCE, addresses) {
            Ok(Homecoming::Home) => match release::tell_lost(node, lease) {
                Ok(()) => error,
                Err(further) => error.and_also("what the NIC lost is not known", &further),
            },
            Ok(Homecoming::Gone) => error,
            Ok(Homecoming::Displaced { name }) => {
                let further = Error::new(NOT_HOME, format!("{} is home as {name}", lease.device));
                error.and_also("its name was taken meanwhile", &further)
            }
            Ok(Homecoming::OutOfSight) => {
                let further = Error::new(NOT_HOME, format!("device {} is out of sight", lease.device));
                error.and_also("the NIC could not be brought home", &further)
            }
            Err(further) => error.and_also("the NIC could not be brought home", &code::not_home(further)),
        }
    }
}
