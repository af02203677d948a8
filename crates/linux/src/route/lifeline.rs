//! What the lifeline rule ([`nic::lifeline`]) is judged by, read in the one order in which it may be: links before all that names them.

use std::net::IpAddr;

use nic::lifeline::{Named, TornFacts};
use nic::{Lifeline, Link};

use super::Socket;
use crate::Error;

/// What somebody named as vital for the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vital {
    /// Addresses of the node itself.
    pub addresses: Vec<IpAddr>,
    /// Addresses of those whom the node must reach: the API server.
    pub peers: Vec<IpAddr>,
}

/// The links of a network namespace, and which of them carry the node.
#[derive(Clone, Debug)]
pub struct Look {
    /// All links.
    pub links: Vec<Link>,
    /// Those that carry it.
    pub lifeline: Lifeline,
}

impl Socket {
    /// Looks which links carry the node whose network namespace this is.
    ///
    /// # Errors
    /// Links, routes or addresses cannot be read. The inner error: they changed meanwhile, and should be read again.
    pub fn look(&mut self, vital: &Vital) -> Result<Result<Look, TornFacts>, Error> {
        let links = self.links()?;
        let routes = self.routes()?;
        let addresses = self.addresses()?;
        let mut named: Vec<Named> = vital.addresses.iter().copied().map(Named::Address).collect();
        for ip in &vital.peers {
            named.push(Named::Peer { ip: *ip, outputs: self.ways_to(*ip)? });
        }
        let found = Lifeline::find(&links, &routes, &addresses, &named);
        Ok(found.map(|lifeline| Look { links, lifeline }))
    }
}
