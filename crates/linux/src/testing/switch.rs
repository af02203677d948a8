//! A datapath of Open vSwitch in the kernel, made without its programs.
//!
//! Source: include/uapi/linux/{genetlink,openvswitch}.h.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use crate::wire::{self, NLM_F_ACK, Request};

/// GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID and _NAME.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// OVS_DP_CMD_NEW and OVS_VPORT_CMD_NEW, OVS_DP_CMD_DEL, OVS_DATAPATH_VERSION.
const NEW: u8 = 1;
const DELETE: u8 = 2;
const VERSION: u8 = 2;
const DATAPATH_NAME: u16 = 1;
const DATAPATH_UPCALL: u16 = 2;
const PORT_TYPE: u16 = 2;
const PORT_NAME: u16 = 3;
const PORT_UPCALL: u16 = 5;
const PORT_NETDEV: u32 = 1;
const PORT_INTERNAL: u32 = 2;
/// `struct genlmsghdr`, and `struct ovs_header` behind it.
const HEADER: usize = 4;

/// Makes a datapath with bridges (a link each, as `ovs-vsctl add-br` does) and existing links as their ports.
///
/// # Errors
/// The kernel has no Open vSwitch, or refuses.
pub fn open_vswitch(datapath: &str, bridges: &[&str], ports: &[&str]) -> io::Result<()> {
    let mut generic = Generic::open()?;
    let family = generic.family("ovs_datapath")?;
    let mut request = Request::new(family, 0, &head(NEW, 0));
    request.attributes().put_text(DATAPATH_NAME, datapath);
    request.attributes().put_u32(DATAPATH_UPCALL, 0);
    generic.call(request)?;
    let mut routes = crate::route::Socket::open().map_err(io::Error::other)?;
    let link = routes.link_by_name(datapath).map_err(io::Error::other)?;
    let index = link.ok_or(io::ErrorKind::NotFound)?.index;
    let family = generic.family("ovs_vport")?;
    let bridges = bridges.iter().map(|name| (PORT_INTERNAL, *name));
    for (kind, name) in bridges.chain(ports.iter().map(|name| (PORT_NETDEV, *name))) {
        let mut request = Request::new(family, 0, &head(NEW, index));
        request.attributes().put_u32(PORT_TYPE, kind);
        request.attributes().put_text(PORT_NAME, name);
        request.attributes().put_u32(PORT_UPCALL, 0);
        generic.call(request)?;
    }
    Ok(())
}

/// Deletes a datapath with its bridges; its ports are links like others then.
///
/// # Errors
/// There is none, or the kernel refuses.
pub fn close_open_vswitch(datapath: &str) -> io::Result<()> {
    let mut generic = Generic::open()?;
    let family = generic.family("ovs_datapath")?;
    let mut request = Request::new(family, 0, &head(DELETE, 0));
    request.attributes().put_text(DATAPATH_NAME, datapath);
    generic.call(request).map(|_| ())
}

fn head(command: u8, datapath: u32) -> [u8; 8] {
    let [i0, i1, i2, i3] = datapath.to_ne_bytes();
    [command, VERSION, 0, 0, i0, i1, i2, i3]
}

struct Generic {
    socket: Socket,
    sequence: u32,
}

impl Generic {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Generic { socket, sequence: 0 })
    }

    fn family(&mut self, name: &str) -> io::Result<u16> {
        let mut request = Request::new(CONTROL, 0, &[GET_FAMILY, 1, 0, 0]);
        request.attributes().put_text(FAMILY_NAME, name);
        let answer = self.call(request)?.ok_or(io::ErrorKind::InvalidData)?;
        let mut attributes = wire::attributes(answer.get(HEADER..).unwrap_or_default());
        let id =
            attributes.find(|(kind, _)| *kind == FAMILY_ID).and_then(|(_, value)| wire::u16_at(value, 0));
        id.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The answer's payload, if there was more than an acknowledgement.
    fn call(&mut self, mut request: Request) -> io::Result<Option<Vec<u8>>> {
        request.flags |= NLM_F_ACK;
        self.sequence += 1;
        self.socket.send(&request.bytes(self.sequence), 0)?;
        let mut answer = None;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in wire::messages(&datagram).filter(|message| message.sequence == self.sequence) {
                match wire::error(&message).filter(|_| message.kind == wire::NLMSG_ERROR) {
                    Some((0, _)) => return Ok(answer),
                    Some((errno, _)) => return Err(io::Error::from_raw_os_error(errno)),
                    None => answer = Some(message.payload.to_vec()),
                }
            }
        }
    }
}
