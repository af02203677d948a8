//! What changes, as it changes: multicast groups of rtnetlink.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nic::{Address, Link};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, address, link};
use crate::{Error, fault, wire};

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE, _NEXTHOP.
const LINK: u32 = 1;
const IPV4_ADDRESS: u32 = 5;
const IPV4_ROUTE: u32 = 7;
const IPV4_RULE: u32 = 8;
const IPV6_ADDRESS: u32 = 9;
const IPV6_ROUTE: u32 = 11;
const IPV6_RULE: u32 = 19;
const NEXTHOP: u32 = 32;
const IFLA_NEW_NETNSID: u16 = 45;
const BUFFER: usize = 64 * 1024;
const WHAT: &str = "listen to the kernel";

/// What to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    links: bool,
    addresses: bool,
    routes: bool,
}

impl Groups {
    /// Links only.
    pub const LINKS: Groups = Groups { links: true, addresses: false, routes: false };
    /// Addresses only.
    pub const ADDRESSES: Groups = Groups { links: false, addresses: true, routes: false };
    /// Links, addresses, routes, rules and nexthop objects.
    pub const ALL: Groups = Groups { links: true, addresses: true, routes: true };

    fn numbers(self) -> impl Iterator<Item = u32> {
        const ROUTES: &[u32] = &[IPV4_ROUTE, IPV6_ROUTE, IPV4_RULE, IPV6_RULE, NEXTHOP];
        let links: &[u32] = if self.links { &[LINK] } else { &[] };
        let addresses: &[u32] = if self.addresses { &[IPV4_ADDRESS, IPV6_ADDRESS] } else { &[] };
        let routes: &[u32] = if self.routes { ROUTES } else { &[] };
        links.iter().chain(addresses).chain(routes).copied()
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A link is new or changed.
    Link(Box<Link>),
    /// A link is gone from this network namespace.
    LinkGone {
        /// Its last state.
        link: Box<Link>,
        /// It lives on in another network namespace (IFLA_NEW_NETNSID).
        moved: bool,
    },
    /// An address is new, changed or gone.
    Address {
        /// The address.
        address: Address,
        /// RTM_DELADDR.
        gone: bool,
    },
    /// Some route, rule or nexthop object changed.
    Routes,
    /// The kernel dropped events because we were slow: look at everything again.
    Missed,
}

/// A socket that hears changes of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: netlink_sys::Socket,
    buffer: Vec<u8>,
    waiting: std::collections::VecDeque<Event>,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open(groups: Groups) -> Result<Self, Error> {
        let opened = fault::step(|| "open a netlink socket".to_owned(), io::Error::from, || open(groups));
        let socket = opened.map_err(|source| Error::Socket { kind: "netlink", source })?;
        Ok(Monitor { socket, buffer: vec![0; BUFFER], waiting: std::collections::VecDeque::new() })
    }

    /// Subscribes as [`Monitor::open`] does, to the changes of other network namespaces as well: those that have a number in this one,
    /// as each has that a NIC went to from here.
    ///
    /// # Errors
    /// [`Error::Socket`]; without CAP_NET_BROADCAST the kernel refuses.
    pub fn open_for_all(groups: Groups) -> Result<Self, Error> {
        let monitor = Monitor::open(groups)?;
        let listening = monitor.socket.set_listen_all_namespaces(true);
        listening.map(|()| monitor).map_err(|source| Error::Socket { kind: "netlink", source })
    }

    /// The next event, waiting for it until `deadline`; `None` when that has passed.
    ///
    /// # Errors
    /// [`Error::Transport`].
    pub fn wait(&mut self, deadline: Instant) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // What is there already is delivered even when the time is over.
                return self.next_now();
            }
            // A timeout of zero would mean "for ever".
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left.max(Duration::from_millis(1))))
                .map_err(transport)?;
            self.receive(RecvFlags::TRUNC)?;
        }
    }

    /// The next event if there is one already, for use behind a readiness notification: make the descriptor
    /// non-blocking if you like, it never blocks here. Read until `None` before waiting for readiness again.
    ///
    /// # Errors
    /// [`Error::Transport`].
    pub fn next_now(&mut self) -> Result<Option<Event>, Error> {
        while self.waiting.is_empty() {
            if !self.receive(RecvFlags::TRUNC | RecvFlags::DONTWAIT)? {
                return Ok(None);
            }
        }
        Ok(self.waiting.pop_front())
    }

    /// Reads one datagram into `waiting`; false when there is none (yet).
    fn receive(&mut self, flags: RecvFlags) -> Result<bool, Error> {
        let length = match rustix::net::recv(&self.socket, self.buffer.as_mut_slice(), flags) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(Errno::NOBUFS) => {
                self.waiting.push_back(Event::Missed);
                return Ok(true);
            }
            Err(errno) => return Err(transport(errno)),
        };
        match self.buffer.get(..length) {
            Some(datagram) => self.waiting.extend(wire::messages(datagram).filter_map(|m| event(&m))),
            None => self.waiting.push_back(Event::Missed),
        }
        Ok(true)
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn open(groups: Groups) -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    for group in groups.numbers() {
        match socket.add_membership(group) {
            // A kernel before 5.3 has no nexthop objects and no group for them.
            Err(error) if group == NEXTHOP && error.kind() == io::ErrorKind::InvalidInput => {}
            other => other?,
        }
    }
    Ok(socket)
}

fn transport(errno: Errno) -> Error {
    Error::Transport { what: WHAT.to_owned(), source: errno.into() }
}

fn event(message: &wire::Message<'_>) -> Option<Event> {
    let payload = message.payload;
    // Bridges announce their ports as links of family AF_BRIDGE, RTM_DELLINK for a port that leaves: not for us.
    if matches!(message.kind, RTM_NEWLINK | RTM_DELLINK) && payload.first() != Some(&wire::AF_UNSPEC) {
        return None;
    }
    match message.kind {
        RTM_NEWLINK => link::read(payload).map(|link| Event::Link(Box::new(link))),
        RTM_DELLINK => {
            let mut attributes = wire::attributes(payload.get(16..)?);
            let moved = attributes.any(|(kind, _)| kind == IFLA_NEW_NETNSID);
            link::read(payload).map(|link| Event::LinkGone { link: Box::new(link), moved })
        }
        RTM_NEWADDR => address::read(payload).map(|address| Event::Address { address, gone: false }),
        RTM_DELADDR => address::read(payload).map(|address| Event::Address { address, gone: true }),
        RTM_NEWROUTE | RTM_DELROUTE => Some(Event::Routes),
        // RTM_NEWRULE, RTM_DELRULE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP.
        32 | 33 | 104 | 105 => Some(Event::Routes),
        _ => None,
    }
}
