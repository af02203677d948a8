//! What the neighbours of a link are told by way of the kernel's own neighbour table.

use std::net::{IpAddr, Ipv4Addr};

use super::{RTM_DELNEIGH, RTM_NEWNEIGH, Socket};
use crate::Error;
use crate::wire::{AF_INET, NLM_F_CREATE, Request};

const NDA_DST: u16 = 1;
/// Resolve it now, as if there were a packet for it.
const NTF_USE: u8 = 1;

impl Socket {
    /// Broadcasts an ARP request for `ip`, an address of the link itself: with it as sender and target this is a gratuitous one (RFC 5227
    /// section 3). The link must be up. The kernel takes the first address of the link whose subnet has `ip` as the sender
    /// (`inet_select_addr`), so for a later one it is none: there is [`crate::announce::gratuitous_arp`], which takes longer.
    ///
    /// # Errors
    /// ENOBUFS where the neighbour table is full.
    pub fn announce(&mut self, index: u32, ip: Ipv4Addr) -> Result<(), Error> {
        // The kernel asks at once, before it answers (net/core/neighbour.c, `__neigh_event_send`). Nobody is to answer, so it would ask again.
        self.call(
            || format!("announce {ip} on link {index}"),
            request(RTM_NEWNEIGH, NLM_F_CREATE, index, ip),
        )?;
        self.call(|| format!("forget neighbour {ip} on link {index}"), request(RTM_DELNEIGH, 0, index, ip))
    }
}

fn request(kind: u16, flags: u16, index: u32, ip: Ipv4Addr) -> Request {
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    // `struct ndmsg`; the state is NUD_NONE.
    let use_it = if kind == RTM_NEWNEIGH { NTF_USE } else { 0 };
    let mut request = Request::new(kind, flags, &[AF_INET, 0, 0, 0, i0, i1, i2, i3, 0, 0, use_it, 0]);
    request.attributes().put_ip(NDA_DST, IpAddr::V4(ip));
    request
}
