//! Results of 0.1.0 and 0.2.0: one address per family, each with its routes, and no interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Dns, Ip, Route, empty_is_none, null_is_default};

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Success {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<Family>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<Family>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Dns::is_empty")]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct Family {
    ip: IpNet,
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    routes: Vec<OldRoute>,
}

#[derive(Serialize, Deserialize)]
struct OldRoute {
    dst: IpNet,
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
}

impl From<super::Success> for Success {
    fn from(new: super::Success) -> Self {
        let family = |six: bool| {
            let is_six = |net: &IpNet| matches!(net, IpNet::V6(_)) == six;
            let first = new.ips.iter().find(|ip| is_six(&ip.address))?;
            let routes = new.routes.iter().filter(|route| is_six(&route.dst));
            Some(Family {
                ip: first.address,
                gateway: first.gateway,
                routes: routes.map(|route| OldRoute { dst: route.dst, gw: route.gw }).collect(),
            })
        };
        Success { ip4: family(false), ip6: family(true), dns: new.dns.clone() }
    }
}

impl From<Success> for super::Success {
    fn from(old: Success) -> Self {
        let mut new = super::Success { dns: old.dns, ..Default::default() };
        for family in [old.ip4, old.ip6].into_iter().flatten() {
            new.ips.push(Ip { interface: None, address: family.ip, gateway: family.gateway });
            new.routes.extend(family.routes.into_iter().map(|route| Route::new(route.dst, route.gw)));
        }
        new
    }
}
