//! Links: read, moved, renamed, changed.

use std::os::fd::{AsRawFd, BorrowedFd};

use nic::{IfName, Link, MacAddr, Xdp};

use super::{RTM_DELLINK, RTM_DELLINKPROP, RTM_GETLINK, RTM_NEWLINK, RTM_NEWLINKPROP, Socket};
use crate::Error;
use crate::wire::{self, NLM_F_CREATE, NLM_F_EXCL, Request};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_CARRIER: u16 = 33;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
/// IFLA_XDP_DRV_PROG_ID, _SKB_ and _HW_, and the XDP_FLAGS_* of each.
const XDP_MODES: [(u16, u32); 3] = [(5, 1 << 2), (6, 1 << 1), (7, 1 << 3)];
/// RTEXT_FILTER_SKIP_STATS: statistics are most of a link's message, and we read none.
const SKIP_STATS: u32 = 1 << 3;

const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
/// `struct ifinfomsg`.
pub(super) const BODY: usize = 16;

/// What is to change about a link, all in one RTM_NEWLINK. What is `None` stays as it is.
///
/// With `netns` and `name` this is one call, but **not atomic**: where another link in the target namespace has the new
/// name the kernel says EEXIST, and the link *has moved already*, under its old name (net/core/rtnetlink.c,
/// `do_setlink`: first the move, then the rename). So look for the name first, and look for the link after an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    /// Into which network namespace. A link that is moved goes down and loses addresses and routes.
    pub netns: Option<BorrowedFd<'a>>,
    /// IFLA_IFNAME.
    pub name: Option<&'a IfName>,
    /// IFLA_ADDRESS.
    pub mac: Option<MacAddr>,
    /// IFLA_MTU in bytes.
    pub mtu: Option<u32>,
    /// IFLA_TXQLEN in packets.
    pub tx_queue_len: Option<u32>,
    /// IFLA_IFALIAS; the empty text removes it.
    pub alias: Option<&'a str>,
    /// IFF_UP.
    pub up: Option<bool>,
    /// IFLA_MASTER; 0 takes the link out of its bond or bridge.
    pub master: Option<u32>,
    /// All of [`Link::FLAGS`].
    pub flags: Option<u32>,
}

impl Socket {
    /// All links of the namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &body(0, 0, 0));
        request.attributes().put_u32(IFLA_EXT_MASK, SKIP_STATS);
        self.dump(|| "list links".to_owned(), request, read_new)
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &body(index, 0, 0));
        request.attributes().put_u32(IFLA_EXT_MASK, SKIP_STATS);
        absent_is_none(self.get(|| format!("read link {index}"), request, read_new))
    }

    /// The link with this name or alternative name (up to 127 bytes), if there is one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &body(0, 0, 0));
        request.attributes().put_u32(IFLA_EXT_MASK, SKIP_STATS);
        // IFLA_IFNAME finds alternative names too (`__dev_get_by_name`), but takes no more than 15 bytes.
        let kind = if name.len() > 15 { IFLA_ALT_IFNAME } else { IFLA_IFNAME };
        request.attributes().put_text(kind, name);
        absent_is_none(self.get(|| format!("read link {name:?}"), request, read_new))
    }

    /// Changes a link in one message; see [`LinkChange`] for what that does not promise.
    ///
    /// # Errors
    /// [`Error::Refused`] with the kernel's words.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let mut flags = 0;
        let mut mask = 0;
        if let Some(up) = change.up {
            mask |= IFF_UP;
            flags |= if up { IFF_UP } else { 0 };
        }
        if let Some(wanted) = change.flags {
            mask |= Link::FLAGS;
            flags |= wanted & Link::FLAGS;
        }
        let mut request = Request::new(RTM_NEWLINK, 0, &body(index, flags, mask));
        let attributes = request.attributes();
        if let Some(netns) = change.netns {
            attributes.put(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
        }
        if let Some(name) = change.name {
            attributes.put_text(IFLA_IFNAME, name.as_str());
        }
        if let Some(MacAddr(bytes)) = change.mac {
            attributes.put(IFLA_ADDRESS, &bytes);
        }
        if let Some(mtu) = change.mtu {
            attributes.put_u32(IFLA_MTU, mtu);
        }
        if let Some(length) = change.tx_queue_len {
            attributes.put_u32(IFLA_TXQLEN, length);
        }
        if let Some(alias) = change.alias {
            // Without the NUL: an empty value is what removes an alias.
            attributes.put(IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(master) = change.master {
            attributes.put_u32(IFLA_MASTER, master);
        }
        self.call(|| describe(index, change), request)
    }

    /// Gives a link further names (kernel 5.5+).
    ///
    /// # Errors
    /// EEXIST where a link of this namespace has one of them already.
    pub fn add_alt_names(&mut self, index: u32, names: &[String]) -> Result<(), Error> {
        self.alt_names(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, index, names)
    }

    /// Takes alternative names away.
    ///
    /// # Errors
    /// ENOENT or EINVAL where the link has no such name.
    pub fn remove_alt_names(&mut self, index: u32, names: &[String]) -> Result<(), Error> {
        self.alt_names(RTM_DELLINKPROP, 0, index, names)
    }

    fn alt_names(&mut self, kind: u16, flags: u16, index: u32, names: &[String]) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        let mut request = Request::new(kind, flags, &body(index, 0, 0));
        request.attributes().nest(IFLA_PROP_LIST, |list| {
            for name in names {
                list.put_text(IFLA_ALT_IFNAME, name);
            }
        });
        let verb = if kind == RTM_NEWLINKPROP { "add" } else { "remove" };
        self.call(|| format!("{verb} alternative names {names:?} of link {index}"), request)
    }

    /// Takes an XDP program off a link.
    ///
    /// # Errors
    /// EBUSY where a process or a file holds it there by a BPF link.
    pub fn remove_xdp(&mut self, index: u32, program: Xdp) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        request.attributes().nest(IFLA_XDP, |xdp| {
            xdp.put(IFLA_XDP_FD, &(-1i32).to_ne_bytes());
            xdp.put_u32(IFLA_XDP_FLAGS, program.mode);
        });
        self.call(|| format!("take XDP program {} off link {index}", program.id), request)
    }

    /// Makes a VLAN of this tag upon a link, down.
    ///
    /// # Errors
    /// EEXIST where a link has the name, or the link below a VLAN of this tag; EOPNOTSUPP where the kernel has no 8021q.
    pub fn add_vlan(&mut self, lower: u32, name: &IfName, tag: u16) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body(0, 0, 0));
        let attributes = request.attributes();
        attributes.put_text(IFLA_IFNAME, name.as_str());
        attributes.put_u32(IFLA_LINK, lower);
        attributes.nest(IFLA_LINKINFO, |info| {
            info.put_text(IFLA_INFO_KIND, "vlan");
            info.nest(IFLA_INFO_DATA, |data| data.put(IFLA_VLAN_ID, &tag.to_ne_bytes()));
        });
        self.call(|| format!("add VLAN {tag} named {name} to link {lower}"), request)
    }

    /// Deletes a virtual link.
    ///
    /// # Errors
    /// EOPNOTSUPP where it is hardware.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let request = Request::new(RTM_DELLINK, 0, &body(index, 0, 0));
        self.call(|| format!("delete link {index}"), request)
    }
}

/// A text for errors: what was asked of which link.
fn describe(index: u32, change: &LinkChange<'_>) -> String {
    let mut parts = Vec::new();
    if change.netns.is_some() {
        parts.push("move it to another network namespace".to_owned());
    }
    parts.extend(change.name.map(|name| format!("name it {name}")));
    parts.extend(change.mac.map(|mac| format!("set MAC {mac}")));
    parts.extend(change.mtu.map(|mtu| format!("set MTU {mtu}")));
    parts.extend(change.tx_queue_len.map(|length| format!("set queue length {length}")));
    parts.extend(change.alias.map(|alias| format!("set alias {alias:?}")));
    parts.extend(change.up.map(|up| if up { "set it up" } else { "set it down" }.to_owned()));
    parts.extend(change.master.map(|master| format!("set master {master}")));
    parts.extend(change.flags.map(|flags| format!("set flags {flags:#x}")));
    format!("link {index}: {}", parts.join(", "))
}

pub(super) fn body(index: u32, flags: u32, mask: u32) -> [u8; BODY] {
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    let [f0, f1, f2, f3] = flags.to_ne_bytes();
    let [m0, m1, m2, m3] = mask.to_ne_bytes();
    [0, 0, 0, 0, i0, i1, i2, i3, f0, f1, f2, f3, m0, m1, m2, m3]
}

pub(super) fn absent_is_none<T>(answer: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if error.is_absent() => Ok(None),
        other => other,
    }
}

fn read_new(kind: u16, payload: &[u8]) -> Option<Link> {
    if kind == RTM_NEWLINK { read(payload) } else { None }
}

/// Reads RTM_NEWLINK or RTM_DELLINK. A link without index or usable name is none.
pub(super) fn read(payload: &[u8]) -> Option<Link> {
    let flags = wire::u32_at(payload, 8)?;
    let mut name = None;
    let mut link = Link {
        index: wire::u32_at(payload, 4)?,
        // Filled in below; a message without a name is dropped.
        name: "lo".parse().ok()?,
        alt_names: Vec::new(),
        kind: None,
        mac: None,
        permanent_mac: None,
        mtu: 0,
        tx_queue_len: 0,
        rx_queues: None,
        alias: None,
        up: flags & IFF_UP != 0,
        flags: flags & Link::FLAGS,
        carrier: false,
        loopback: flags & IFF_LOOPBACK != 0,
        master: None,
        lower: None,
        further_lowers: Vec::new(),
        lower_elsewhere: false,
        remote: None,
        xdp: Vec::new(),
        parent_bus: None,
        parent_device: None,
    };
    for (kind, value) in wire::attributes(payload.get(BODY..)?) {
        match kind {
            IFLA_IFNAME => name = wire::text(value).parse().ok(),
            IFLA_ADDRESS => link.mac = mac(value),
            IFLA_PERM_ADDRESS => link.permanent_mac = mac(value),
            IFLA_MTU => link.mtu = wire::u32_at(value, 0).unwrap_or(0),
            IFLA_TXQLEN => link.tx_queue_len = wire::u32_at(value, 0).unwrap_or(0),
            IFLA_NUM_RX_QUEUES => link.rx_queues = wire::u32_at(value, 0),
            IFLA_IFALIAS => link.alias = Some(wire::text(value)).filter(|alias| !alias.is_empty()),
            IFLA_CARRIER => link.carrier = value.first() == Some(&1),
            IFLA_MASTER => link.master = wire::u32_at(value, 0).filter(|index| *index != 0),
            IFLA_LINK => link.lower = wire::u32_at(value, 0).filter(|index| *index != 0),
            IFLA_LINK_NETNSID => link.lower_elsewhere = true,
            IFLA_PARENT_DEV_NAME => link.parent_device = Some(wire::text(value)),
            IFLA_PARENT_DEV_BUS_NAME => link.parent_bus = Some(wire::text(value)),
            IFLA_XDP => link.xdp = xdp(value),
            IFLA_LINKINFO => read_info(&mut link, value),
            IFLA_PROP_LIST => {
                let names = wire::attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                link.alt_names = names.map(|(_, value)| wire::text(value)).collect();
            }
            _ => {}
        }
    }
    link.name = name?;
    Some(link)
}

/// What its kind says of a link.
fn read_info(link: &mut Link, info: &[u8]) {
    let find = |wanted| wire::attributes(info).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    link.kind = find(IFLA_INFO_KIND).map(wire::text);
    let (lowers, remotes): (&[u16], &[u16]) = match link.kind.as_deref() {
        // IFLA_VXLAN_LINK; IFLA_VXLAN_GROUP and _GROUP6.
        Some("vxlan") => (&[3], &[2, 16]),
        // IFLA_HSR_SLAVE1 and 2.
        Some("hsr") => (&[1, 2], &[]),
        // IFLA_GENEVE_REMOTE and _REMOTE6.
        Some("geneve") => (&[], &[2, 7]),
        // IFLA_GRE_REMOTE.
        Some("gre" | "gretap" | "erspan" | "ip6gre" | "ip6gretap" | "ip6erspan") => (&[], &[7]),
        // IFLA_IPTUN_REMOTE.
        Some("ipip" | "sit" | "ip6tnl") => (&[], &[3]),
        // IFLA_VTI_REMOTE.
        Some("vti" | "vti6") => (&[], &[5]),
        _ => return,
    };
    for (kind, value) in wire::attributes(find(IFLA_INFO_DATA).unwrap_or_default()) {
        if lowers.contains(&kind) {
            link.further_lowers.extend(wire::u32_at(value, 0).filter(|index| *index != 0));
        } else if remotes.contains(&kind) {
            link.remote = wire::ip(value).filter(|ip| !ip.is_unspecified()).or(link.remote);
        }
    }
}

fn xdp(value: &[u8]) -> Vec<Xdp> {
    let mode = |kind| XDP_MODES.iter().find(|(attribute, _)| *attribute == kind).map(|(_, mode)| *mode);
    wire::attributes(value)
        .filter_map(|(kind, id)| Some(Xdp { mode: mode(kind)?, id: wire::u32_at(id, 0)? }))
        .collect()
}

fn mac(value: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(value).ok().map(MacAddr)
}
