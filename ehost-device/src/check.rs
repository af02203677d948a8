//! CHECK: is what ADD returned still there? Plugins chained after us may have added to it, and that is no fault.

use cni::plugin::Check;
use cni::{Code, Config, Error, Success};
use ledger::Node;
use linux::Netns;
use linux::route::Socket;
use nic::Link;

use crate::code::{self, CHECK_FAILED};
use crate::config::{self, Selector, Surroundings};
use crate::log::Steps;

/// Compares the pod with `prevResult`.
///
/// # Errors
/// Code 106 with everything that is missing or different; 7 without `prevResult`.
pub(crate) fn check(check: &Check, steps: &mut Steps) -> Result<(), Error> {
    let surroundings = Surroundings::read(&check.config)?;
    let Some(previous) = check.config.prev_result()? else {
        return Err(Error::new(
            Code::INVALID_CONFIG,
            "CHECK needs prevResult, and the configuration has none",
        ));
    };
    steps.begin("ipam");
    surroundings.plugins(&check.environment.path).ipam_check(&check.config, &check.environment)?;
    if is_passed_through(&check.config)? {
        return Ok(());
    }
    steps.begin("compare");
    let netns = Netns::open(&check.netns).map_err(|error| Error::from_chain(Code::INVALID_NETNS, &error))?;
    let mut pod = netns.route_socket().map_err(code::io("enter the pod"))?;
    let mut faults = lease_faults(&surroundings, check, steps)?;
    match pod.link_by_name(check.if_name.as_str()).map_err(code::io("look at the pod's interfaces"))? {
        Some(link) => faults.extend(link_faults(&mut pod, check, &previous, &link)?),
        None => faults.push("it is not in the pod".to_owned()),
    }
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!("interface {} is not as ADD left it", check.if_name);
    Err(Error::new(CHECK_FAILED, message).with_details(faults.join("; ")))
}

/// Whether the NIC is one without an interface, so that there is none to compare.
fn is_passed_through(config: &Config) -> Result<bool, Error> {
    let Selector::Device(id) = config::selector(config)? else { return Ok(false) };
    let node = Node::here().map_err(code::io("look at the node's devices"))?;
    Ok(node.devices.driver(&node.devices.canonical(id)).as_deref() == Some(nic::VFIO_PCI))
}

/// The NIC in the pod is the one that the lease is about.
fn lease_faults(surroundings: &Surroundings, check: &Check, steps: &mut Steps) -> Result<Vec<String>, Error> {
    let mut node = Node::here().map_err(code::io("look at the node's network"))?;
    let listing = surroundings.ledger.list().map_err(code::ledger)?;
    let mine =
        listing.leases.into_iter().find(|lease| lease.is_for(check.container_id.as_str(), &check.if_name));
    let Some(lease) = mine else { return Ok(vec!["there is no lease for it".to_owned()]) };
    steps.device = Some(lease.device.clone());
    let place = ledger::whereabouts(&mut node, &lease)
        .map_err(code::io(format!("look for device {}", lease.device)))?;
    Ok(match place {
        ledger::Whereabouts::WithOwner => Vec::new(),
        ledger::Whereabouts::OnNode(link) => {
            vec![format!("device {} is on the node, as {}", lease.device, link.name)]
        }
        ledger::Whereabouts::Unknown => vec![format!("device {} is nowhere to be found", lease.device)],
    })
}

fn link_faults(
    pod: &mut Socket,
    check: &Check,
    previous: &Success,
    link: &Link,
) -> Result<Vec<String>, Error> {
    let mut faults = Vec::new();
    let ours =
        previous.container_interfaces().find(|(_, interface)| interface.name == check.if_name.as_str());
    let Some((index, interface)) = ours else {
        return Err(Error::new(
            Code::INVALID_CONFIG,
            format!("prevResult has no interface {}", check.if_name),
        ));
    };
    let mac = link.mac.map(|mac| mac.to_string());
    if interface.mac.is_some() && !same_text(interface.mac.as_deref(), mac.as_deref()) {
        let words = |mac: Option<&str>| mac.unwrap_or("none").to_owned();
        faults.push(format!("MAC is {}, was {}", words(mac.as_deref()), words(interface.mac.as_deref())));
    }
    if !link.up {
        faults.push("it is down".to_owned());
    }
    let addresses = pod.addresses().map_err(code::io("list the pod's addresses"))?;
    for ip in previous.ips.iter().filter(|ip| ip.interface.is_none_or(|of| of == index)) {
        let there = addresses.iter().any(|address| {
            address.index == link.index
                && address.ip == ip.address.addr()
                && address.prefix_len == ip.address.prefix_len()
        });
        // An address that names no interface may be on any of the pod's.
        let elsewhere =
            ip.interface.is_none() && addresses.iter().any(|address| address.ip == ip.address.addr());
        if !there && !elsewhere {
            faults.push(format!("address {} is missing", ip.address));
        }
    }
    let routes = pod.routes().map_err(code::io("list the pod's routes"))?;
    for route in &previous.routes {
        let there = routes.iter().any(|found| {
            found.unicast
                && found.destination == route.dst.network()
                && found.prefix_len == route.dst.prefix_len()
                && route.table.is_none_or(|table| table == found.table)
                && route.priority.is_none_or(|priority| priority == found.priority)
        });
        if !there {
            faults.push(format!("the route to {} is missing", route.dst));
        }
    }
    Ok(faults)
}

fn same_text(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        (one, other) => one == other,
    }
}
