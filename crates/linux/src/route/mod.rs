//! rtnetlink: links, addresses and routes, read and changed over one blocking socket.
//!
//! A [`Socket`] speaks for the network namespace in which it was opened, for ever: open one in each namespace
//! ([`crate::Netns::route_socket`]) and hand both to the code.
//!
//! Source: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,nexthop}.h.

mod address;
mod kept;
mod lifeline;
mod link;
mod monitor;
mod neighbour;
mod settings;
mod socket;
mod table;
mod tuning;

pub use address::DuplicateDetection;
pub use kept::{KeptAddress, KeptRoute, ParseKeptError};
pub use lifeline::{Look, Vital};
pub use link::LinkChange;
pub use monitor::{Event, Groups, Monitor};
pub use socket::Socket;
pub use table::NewRoute;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const RTM_NEWLINKPROP: u16 = 108;
const RTM_DELLINKPROP: u16 = 109;
