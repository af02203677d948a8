//! Routes that are default routes in effect: 0.0.0.0/1 and 128.0.0.0/1, as VPN programs set them, 2000::/3, all of 1.0.0.0/8,
//! 2.0.0.0/8, ..., a full table of the Internet.
//!
//! The line is drawn above what is private: where the destinations that leave through one link by one table are together as many as
//! an IPv4 /7 or an IPv6 /6, they are more than all private, link-local and shared addresses together (10.0.0.0/8 is the largest
//! IPv4 network that is anyone's own, fc00::/7 the largest of IPv6), so part of the world is behind that link.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Reason, Root};
use crate::Route;

/// The links to much of all addresses.
pub(super) fn roots(routes: &[Route]) -> Vec<Root> {
    let mut ways: BTreeMap<(bool, u32, u32), Vec<&Route>> = BTreeMap::new();
    for route in routes {
        // Multicast goes to all links that want it (224.0.0.0/4, ff00::/8), and default routes have a reason of their own.
        if route.unicast && !route.destination.is_multicast() && !route.is_default() {
            for output in &route.outputs {
                ways.entry((route.destination.is_ipv6(), route.table, *output)).or_default().push(route);
            }
        }
    }
    let wide = ways.into_iter().filter_map(|((ipv6, table, output), mut routes)| {
        let narrowest = if ipv6 { 6 } else { 7 };
        routes.sort_by_key(|route| (start(route.destination), route.prefix_len));
        if covered(&routes) < size(narrowest) {
            return None;
        }
        let widest = routes.iter().min_by_key(|route| route.prefix_len)?;
        let reason = Reason::WideRoutes {
            destination: widest.destination,
            prefix_len: widest.prefix_len,
            others: routes.len().saturating_sub(1),
            table,
        };
        Some((output, reason))
    });
    wide.collect()
}

/// How much of its family's addresses the routes cover, none counted twice. They are in the order of their addresses, the wider
/// first, so each lies in the one before it or behind it.
fn covered(routes: &[&Route]) -> u128 {
    let mut sum = 0_u128;
    let mut end = 0_u128;
    for route in routes {
        let start = start(route.destination);
        if start >= end {
            let size = size(route.prefix_len);
            sum = sum.saturating_add(size);
            end = start.saturating_add(size);
        }
    }
    sum
}

/// Where a prefix begins and how long it is, on a line whose length is 2^120 for both families: a sum fits, and what is smaller than
/// a unit covers nothing.
fn start(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 88,
        IpAddr::V6(ip) => ip.to_bits() >> 8,
    }
}

fn size(prefix_len: u8) -> u128 {
    120_u32.checked_sub(prefix_len.into()).map_or(0, |bits| 1 << bits)
}
