//! What IPAM and the configuration said, put onto the interface: sysctls, addresses and routes, and the neighbours told.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use cni::{Error, Ip, Success};
use ipnet::IpNet;
use linux::route::{
    DuplicateDetection, Groups, KeptAddress, KeptRoute, LinkChange, Monitor, NewRoute, Socket,
};
use linux::{Sysctl, announce};
use nic::Link;

use super::Pod;
use crate::code::{self, DUPLICATE_ADDRESS};

/// A virtio NIC has carrier some milliseconds after it was set up; one whose cable is out never has.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);
/// Duplicate address detection takes up to 2 s by default (RFC 4862: a delay of up to 1 s, then RETRANS_TIMER).
const DETECTION_PATIENCE: Duration = Duration::from_secs(10);
/// RT_SCOPE_LINK.
const SCOPE_LINK: u8 = 253;
/// RT_TABLE_MAIN.
const RT_TABLE_MAIN: u32 = 254;

/// Sets the interface up with its addresses and routes.
///
/// # Errors
/// The kernel refused something, or another host has an address.
pub(super) fn configure(
    pod: &mut Pod,
    link: &Link,
    sysctls: &[(Sysctl, String)],
    network: &Success,
) -> Result<(), Error> {
    let what = |step: &str| format!("{step} {} in the pod", link.name);
    if network.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        allow_ipv6(pod, link)?;
    }
    for (sysctl, value) in sysctls {
        let what = format!("set {sysctl} to {value:?} for {}", link.name);
        pod.netns.set_sysctl(sysctl, &link.name, value).map_err(code::io(what))?;
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    pod.routes.change_link(link.index, &up).map_err(code::io(what("set up")))?;
    for ip in &network.ips {
        pod.routes
            .add_address(link.index, ip.address.addr(), ip.address.prefix_len())
            .map_err(code::io(what("give an address to")))?;
    }
    for route in &network.routes {
        match pod.routes.add_route(&resolve(route, &network.ips, link.index)) {
            // The route to the subnet itself, which IPAM plugins like to name, came with the address. Another that is there
            // is that of a network before this one, and stays: the cluster's default route leads to all services.
            Err(error) if error.is_exists() => {
                cni::tell!("ehost-device: the pod has a route to {} already, which stays", route.dst);
            }
            other => other.map_err(code::io(what("add a route through")))?,
        }
    }
    if network.ips.is_empty() { Ok(()) } else { introduce(pod, link, &network.ips) }
}

/// Adds the addresses that the NIC had at home to those of IPAM.
pub(super) fn keep_addresses(network: &mut Success, home: &[KeptAddress]) {
    let known = home.iter().filter_map(KeptAddress::address);
    for kept in known.filter_map(|address| IpNet::new(address.ip, address.prefix_len).ok()) {
        if network.ips.iter().all(|ip| ip.address != kept) {
            network.ips.push(Ip { interface: None, address: kept, gateway: None });
        }
    }
}

/// Sets the routes that the NIC had at home, and returns those that the pod did not have. Their source addresses must be known to be unique.
///
/// # Errors
/// The kernel refused one.
pub(super) fn keep_routes(pod: &mut Pod, link: &Link, home: &[KeptRoute]) -> Result<Vec<cni::Route>, Error> {
    let mut set = Vec::new();
    for kept in home {
        match pod.routes.give_route(link.index, kept) {
            Ok(()) => set.extend(kept.route().and_then(|route| told(&route))),
            Err(error) if error.is_exists() => {
                cni::tell!("ehost-device: the pod has a route to {kept:?} already, which stays");
            }
            Err(error) => {
                return Err(code::io(format!("keep the route to {kept:?} through {}", link.name))(error));
            }
        }
    }
    Ok(set)
}

/// A route of the kernel in the words of a result.
fn told(route: &nic::Route) -> Option<cni::Route> {
    Some(cni::Route {
        table: (route.table != RT_TABLE_MAIN).then_some(route.table),
        priority: (route.priority != 0).then_some(route.priority),
        ..cni::Route::new(IpNet::new(route.destination, route.prefix_len).ok()?, route.gateway)
    })
}

/// Runtimes switch IPv6 off in namespaces of IPv4 clusters; whoever gives this interface an IPv6 address wants it on.
fn allow_ipv6(pod: &Pod, link: &Link) -> Result<(), Error> {
    match pod.netns.set_sysctl(&Sysctl::disable_ipv6(), &link.name, "0") {
        // /proc/sys is read-only here; if IPv6 is off, the address will be refused with the kernel's words.
        Err(error) if error.is_read_only() => Ok(()),
        other => other.map_err(code::io(format!("allow IPv6 on {}", link.name))),
    }
}

/// A route as the kernel takes it. One without a next hop goes through the gateway of the first address of its family,
/// as with all CNI plugins; one of link scope has none.
fn resolve(route: &cni::Route, ips: &[Ip], output: u32) -> NewRoute {
    let destination = route.dst.network();
    let same_family = |ip: &&Ip| ip.address.addr().is_ipv4() == destination.is_ipv4();
    let gateway = match route.scope {
        Some(SCOPE_LINK) => route.gw,
        _ => route.gw.or_else(|| ips.iter().filter(same_family).find_map(|ip| ip.gateway)),
    };
    NewRoute {
        gateway,
        // Clouds hand out /32 addresses with a gateway outside of them.
        onlink: gateway.is_some_and(|gateway| !is_reachable(gateway, ips)),
        scope: route.scope,
        table: route.table,
        priority: route.priority,
        mtu: route.mtu,
        advmss: route.advmss,
        ..NewRoute::new(destination, route.dst.prefix_len(), output)
    }
}

fn is_reachable(gateway: IpAddr, ips: &[Ip]) -> bool {
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    link_local || ips.iter().any(|ip| ip.address.contains(&gateway))
}

/// Waits until the addresses are known to be ours alone, then tells the neighbours.
fn introduce(pod: &mut Pod, link: &Link, ips: &[Ip]) -> Result<(), Error> {
    let what = || format!("announce the addresses of {}", link.name);
    let Pod { netns, routes } = pod;
    let done = netns.run(|| -> Result<(), Error> {
        if !await_carrier(routes, link.index, Instant::now() + CARRIER_PATIENCE).map_err(code::io(what()))? {
            cni::tell!("ehost-device: {} has no carrier: its addresses are not announced", link.name);
            return Ok(());
        }
        detect_duplicates(routes, link, ips)?;
        for (place, ip) in ips.iter().enumerate() {
            let (before, _) = ips.split_at(place);
            let told = match (ip.address.addr(), link.mac) {
                // By a socket it takes a grace period of RCU longer.
                (IpAddr::V4(ip), Some(_)) if is_first(ip, before) => routes.announce(link.index, ip),
                (IpAddr::V4(ip), Some(mac)) => announce::gratuitous_arp(link.index, mac, ip),
                (IpAddr::V6(ip), Some(mac)) => announce::unsolicited_advertisement(link.index, mac, ip),
                (_, None) => Ok(()),
            };
            // The neighbours find out by themselves, only later.
            if let Err(error) = told {
                cni::tell!("ehost-device: {}", error.chain());
            }
        }
        Ok(())
    });
    done.map_err(code::io(what()))?
}

/// Whether the kernel takes an address as its own sender: the first one of its subnet, of those that came before.
fn is_first(ip: Ipv4Addr, before: &[Ip]) -> bool {
    !before.iter().any(|other| other.address.contains(&IpAddr::V4(ip)))
}

fn detect_duplicates(routes: &mut Socket, link: &Link, ips: &[Ip]) -> Result<(), Error> {
    let six: Vec<IpAddr> = ips.iter().map(|ip| ip.address.addr()).filter(IpAddr::is_ipv6).collect();
    if six.is_empty() {
        return Ok(());
    }
    let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let deadline = Instant::now() + DETECTION_PATIENCE;
    match routes
        .await_duplicate_detection(link.index, &six, deadline)
        .map_err(code::io(format!("wait for duplicate address detection on {}", link.name)))?
    {
        DuplicateDetection::Unique => Ok(()),
        DuplicateDetection::Duplicate(ips) => {
            let message = format!("another host on the network of {} has {}", link.name, list(&ips));
            Err(Error::new(DUPLICATE_ADDRESS, message))
        }
        DuplicateDetection::Undecided(ips) => {
            cni::tell!("ehost-device: {}: duplicate detection goes on for {}", link.name, list(&ips));
            Ok(())
        }
    }
}

/// Whether the link has carrier before `deadline`.
fn await_carrier(routes: &mut Socket, index: u32, deadline: Instant) -> Result<bool, linux::Error> {
    let is_there =
        |routes: &mut Socket| routes.link_by_index(index).map(|link| link.is_some_and(|link| link.carrier));
    if is_there(routes)? {
        return Ok(true);
    }
    let mut monitor = Monitor::open(Groups::LINKS)?;
    while !is_there(routes)? {
        if monitor.wait(deadline)?.is_none() {
            return is_there(routes);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, gateway: Option<&str>) -> Ip {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        Ip { interface: None, address: address.parse().unwrap(), gateway }
    }

    #[test]
    fn a_route_without_next_hop_goes_through_the_gateway_of_its_family() {
        let ips =
            [ip("fd00::2/64", Some("fd00::1")), ip("10.0.0.2/24", None), ip("10.1.0.2/24", Some("10.1.0.1"))];
        let resolved = |dst: &str| resolve(&cni::Route::new(dst.parse().unwrap(), None), &ips, 7);
        assert_eq!(resolved("0.0.0.0/0").gateway, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(resolved("::/0").gateway, Some("fd00::1".parse().unwrap()));
        assert!(!resolved("::/0").onlink);
        let link =
            cni::Route { scope: Some(SCOPE_LINK), ..cni::Route::new("10.9.0.0/16".parse().unwrap(), None) };
        assert_eq!(resolve(&link, &ips, 7).gateway, None);
    }

    #[test]
    fn a_gateway_outside_of_all_subnets_is_reached_directly() {
        let ips = [ip("10.0.0.2/32", Some("169.254.1.1")), ip("fd00::2/128", Some("fe80::1"))];
        let resolved = |dst: &str| resolve(&cni::Route::new(dst.parse().unwrap(), None), &ips, 7);
        assert!(resolved("0.0.0.0/0").onlink);
        assert!(!resolved("::/0").onlink);
    }

    #[test]
    fn host_bits_of_a_destination_do_not_reach_the_kernel() {
        let route = cni::Route::new("10.9.1.1/16".parse().unwrap(), None);
        assert_eq!(resolve(&route, &[], 7).destination, "10.9.0.0".parse::<IpAddr>().unwrap());
    }
}
