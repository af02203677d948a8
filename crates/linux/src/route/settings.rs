//! What is set of an interface in numbers: of the link itself, and below `/proc/sys/net`, where what was set ends when the interface is moved to
//! another network namespace. All of it is read from one message.
//!
//! Source: include/uapi/linux/{if_link,ip,ipv6}.h; net/ipv4/devinet.c, `inet_fill_link_af`; net/ipv6/addrconf.c, `ipv6_store_devconf`.

use std::collections::BTreeMap;

use super::link::{absent_is_none, body};
use super::{RTM_GETLINK, RTM_NEWLINK, Socket};
use crate::Error;
use crate::wire::{self, AF_INET, AF_INET6, Request};

const IFLA_AF_SPEC: u16 = 26;
/// Of both families: IFLA_INET_CONF is 1, IFLA_INET6_CONF is 2.
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;

/// IFLA_*, and what `ip -d link` calls them. Those of IPv4 come last: the kernel sets them, too, when it sets the ones before.
const OF_THE_LINK: [(u16, &str); 6] = [
    (27, "group"),
    (41, "gso_max_size"),
    (40, "gso_max_segs"),
    (58, "gro_max_size"),
    (63, "gso_ipv4_max_size"),
    (64, "gro_ipv4_max_size"),
];

/// The sysctls in the order of IPV4_DEVCONF_*, which begins with 1. The empty ones cannot be set.
const OF_IPV4: [&str; 33] = [
    "forwarding",
    "",
    "proxy_arp",
    "accept_redirects",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "rp_filter",
    "accept_source_route",
    "bootp_relay",
    "log_martians",
    "tag",
    "arp_filter",
    "medium_id",
    "disable_xfrm",
    "disable_policy",
    "force_igmp_version",
    "arp_announce",
    "arp_ignore",
    "promote_secondaries",
    "arp_accept",
    "arp_notify",
    "accept_local",
    "src_valid_mark",
    "proxy_arp_pvlan",
    "route_localnet",
    "igmpv2_unsolicited_report_interval",
    "igmpv3_unsolicited_report_interval",
    "ignore_routes_with_linkdown",
    "drop_unicast_in_l2_multicast",
    "drop_gratuitous_arp",
    "bc_forwarding",
    "arp_evict_nocarrier",
];

/// The sysctls in the order of DEVCONF_*, which begins with 0. The empty ones cannot be set, are no numbers, follow the MTU, or are told in
/// another unit or form than they are set in.
const OF_IPV6: [&str; 60] = [
    "forwarding",
    "hop_limit",
    "",
    "accept_ra",
    "accept_redirects",
    "autoconf",
    "dad_transmits",
    "router_solicitations",
    "",
    "",
    "use_tempaddr",
    "temp_valid_lft",
    "temp_prefered_lft",
    "regen_max_retry",
    "max_desync_factor",
    "max_addresses",
    "force_mld_version",
    "accept_ra_defrtr",
    "accept_ra_pinfo",
    "accept_ra_rtr_pref",
    "",
    "accept_ra_rt_info_max_plen",
    "proxy_ndp",
    "optimistic_dad",
    "accept_source_route",
    "",
    "disable_ipv6",
    "accept_dad",
    "force_tllao",
    "ndisc_notify",
    "mldv1_unsolicited_report_interval",
    "mldv2_unsolicited_report_interval",
    "suppress_frag_ndisc",
    "accept_ra_from_local",
    "use_optimistic",
    "accept_ra_mtu",
    "",
    "use_oif_addrs_only",
    "accept_ra_min_hop_limit",
    "ignore_routes_with_linkdown",
    "drop_unicast_in_l2_multicast",
    "drop_unsolicited_na",
    "keep_addr_on_down",
    "",
    "seg6_enabled",
    "seg6_require_hmac",
    "enhanced_dad",
    "addr_gen_mode",
    "disable_policy",
    "accept_ra_rt_info_min_plen",
    "ndisc_tclass",
    "rpl_seg_enabled",
    "ra_defrtr_metric",
    "ioam6_enabled",
    "ioam6_id",
    "",
    "ndisc_evict_nocarrier",
    "accept_untracked_na",
    "accept_ra_min_lft",
    "force_forwarding",
];

impl Socket {
    /// What is set of a link in numbers: by the names of `ip -d link`, as `group`, and of [`Sysctl`](crate::Sysctl)s; those that this
    /// kernel knows. `None` where there is no such link.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn settings(&mut self, index: u32) -> Result<Option<BTreeMap<String, i64>>, Error> {
        let request = Request::new(RTM_GETLINK, 0, &body(index, 0, 0));
        let read = |kind: u16, payload: &[u8]| (kind == RTM_NEWLINK).then(|| read(payload));
        absent_is_none(self.get(|| format!("read the settings of link {index}"), request, read))
    }

    /// Sets those of the settings that are the link's own, all of them.
    ///
    /// # Errors
    /// The kernel refuses: a limit is above what the driver allows.
    pub fn set_limits(&mut self, index: u32, settings: &BTreeMap<String, i64>) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        for (kind, name) in OF_THE_LINK {
            if let Some(value) = settings.get(name).and_then(|value| u32::try_from(*value).ok()) {
                request.attributes().put_u32(kind, value);
            }
        }
        self.call(|| format!("set group and limits of link {index}"), request)
    }
}

fn read(payload: &[u8]) -> BTreeMap<String, i64> {
    let mut settings = BTreeMap::new();
    for (kind, value) in wire::attributes(payload.get(super::link::BODY..).unwrap_or_default()) {
        if let Some((_, name)) = OF_THE_LINK.iter().find(|(of, _)| *of == kind) {
            settings.insert((*name).to_owned(), wire::u32_at(value, 0).map_or(0, i64::from));
        } else if kind == IFLA_AF_SPEC {
            for (family, of_family) in wire::attributes(value) {
                for (kind, table) in wire::attributes(of_family) {
                    if family == u16::from(AF_INET) && kind == IFLA_INET_CONF {
                        settings.extend(sysctls("ipv4", &OF_IPV4, table));
                    } else if family == u16::from(AF_INET6) && kind == IFLA_INET6_CONF {
                        settings.extend(sysctls("ipv6", &OF_IPV6, table));
                    }
                }
            }
        }
    }
    settings
}

fn sysctls(family: &str, names: &[&str], table: &[u8]) -> impl Iterator<Item = (String, i64)> {
    let (words, _) = table.as_chunks::<4>();
    let named = names.iter().zip(words).filter(|(name, _)| !name.is_empty());
    named.map(move |(name, word)| {
        (format!("net.{family}.conf.IFNAME.{name}"), i64::from(i32::from_ne_bytes(*word)))
    })
}
