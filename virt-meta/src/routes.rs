//! The pod's choice of a default route (`default-route` in its annotation): the route goes before those that are there,
//! which stay. When the network goes, its interface takes the route along, and the cluster network's is the first again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Code, Error};
use linux::Netns;
use linux::route::{NewRoute, Socket};
use nic::Route;

use crate::record::{Record, Step};

const MAIN_TABLE: u32 = 254;
/// What the kernel makes of an IPv6 route that names no metric (IP6_RT_PRIO_USER).
const USUAL_IPV6_METRIC: u32 = 1024;

/// Adds the default routes that the pod asked for. To be called when all networks are attached.
pub(crate) fn choose(record: &Record) -> Result<(), Error> {
    let Some(step) = record.steps.iter().find(|step| !step.default_route.is_empty()) else { return Ok(()) };
    add(record, step).map_err(|error| error.within(record.place(step)))
}

fn add(record: &Record, step: &Step) -> Result<(), Error> {
    let failed = |error: linux::Error| Error::new(Code::IO, "add the default route").caused_by(&error);
    let netns = Netns::open(&record.netns)
        .map_err(|error| Error::new(Code::INVALID_NETNS, "add the default route").caused_by(&error))?;
    let mut routes = netns.route_socket().map_err(failed)?;
    let link = routes.link_by_name(step.interface.as_str()).map_err(failed)?;
    let link = link.ok_or_else(|| {
        Error::new(Code::IO, "add the default route").with_details("the interface is not in the pod")
    })?;
    for gateway in &step.default_route {
        add_through(&mut routes, step, link.index, *gateway).map_err(failed)?;
    }
    Ok(())
}

fn add_through(routes: &mut Socket, step: &Step, index: u32, gateway: IpAddr) -> Result<(), linux::Error> {
    let everything = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let result = step.result().unwrap_or_default();
    let link_local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let route = NewRoute {
        gateway: Some(gateway),
        onlink: !link_local && !result.ips.iter().any(|ip| ip.address.contains(&gateway)),
        priority: metric(&routes.routes()?, gateway),
        ..NewRoute::new(everything, 0, index)
    };
    match routes.prepend_route(&route) {
        // Its IPAM plugin gave the same route.
        Err(error) if error.is_exists() => Ok(()),
        other => other,
    }
}

/// The metric with which a default route wins. For IPv4 none is best, and of equal ones the first wins. For IPv6 the
/// kernel shares traffic out between equal ones, so it must be a better one than the best that is there.
fn metric(routes: &[Route], gateway: IpAddr) -> Option<u32> {
    if gateway.is_ipv4() {
        return None;
    }
    let others = routes.iter().filter(|route| {
        route.is_default() && route.unicast && route.destination.is_ipv6() && route.table == MAIN_TABLE
    });
    let best = others.map(|route| route.priority).chain([USUAL_IPV6_METRIC]).min();
    best.map(|best| best.saturating_sub(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metric_beats_what_is_there() {
        let route = |destination: &str, priority, table| Route {
            destination: destination.parse().unwrap(),
            prefix_len: 0,
            table,
            priority,
            outputs: vec![2],
            gateway: None,
            unicast: true,
        };
        let six: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(metric(&[route("0.0.0.0", 0, 254)], "10.0.0.1".parse().unwrap()), None);
        assert_eq!(metric(&[], six), Some(1023));
        assert_eq!(metric(&[route("0.0.0.0", 5, 254), route("::", 7, 100)], six), Some(1023));
        assert_eq!(metric(&[route("::", 512, 254), route("::", 1024, 254)], six), Some(511));
        assert_eq!(metric(&[route("::", 1, 254)], six), Some(1));
    }
}
