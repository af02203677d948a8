//! Netlink on the wire: messages out of attributes, and attributes out of messages.
//!
//! Written here rather than taken from netlink-packet-route because that (0.34) fails a whole message when one
//! attribute that we do not even need has an unexpected form, and knows no nexthop objects. Nothing here fails on an
//! attribute: what is unknown or too short is skipped by whoever looks for it.
//!
//! Source: include/uapi/linux/netlink.h and Documentation/userspace-api/netlink/intro.rst.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLMSG_OVERRUN: u16 = 4;

const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// A request under construction.
pub(crate) struct Request {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    payload: Attributes,
}

impl Request {
    /// `body` is the fixed part behind the header: `ifinfomsg`, `rtmsg`, ...
    pub(crate) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        Request { kind, flags, payload: Attributes { bytes: body.to_vec() } }
    }

    pub(crate) fn attributes(&mut self) -> &mut Attributes {
        &mut self.payload
    }

    pub(crate) fn into_payload(self) -> Vec<u8> {
        self.payload.bytes
    }

    pub(crate) fn bytes(&self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(HEADER + self.payload.bytes.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.payload.bytes.len());
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&(self.flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.payload.bytes);
        bytes
    }
}

/// Attributes under construction, each padded to four bytes.
pub(crate) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        // A value that does not fit the length field cannot come from our typed callers; the kernel refuses it then.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    pub(crate) fn put_text(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value);
    }

    pub(crate) fn put_ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.put(kind, &ip.octets()),
            IpAddr::V6(ip) => self.put(kind, &ip.octets()),
        }
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes { bytes: Vec::new() };
        fill(&mut inner);
        self.put(kind | NLA_F_NESTED, &inner.bytes);
    }
}

/// One received message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram; ends at the first one whose length is impossible.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            port: u32_at(datagram, 12)?,
            payload: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes in `bytes` as (type without flags, value); ends at the first one whose length is impossible.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// NLMSG_ERROR: the error number (0 is an acknowledgement) and the extended-ack text.
pub(crate) fn error(message: &Message<'_>) -> Option<(i32, Option<String>)> {
    let code = i32_at(message.payload, 0)?;
    // `struct nlmsgerr`: the code, then the request's header, then its payload unless capped, then attributes.
    let request = if message.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        usize::try_from(u32_at(message.payload, 4)?).ok()?.next_multiple_of(4)
    };
    let tail = message.payload.get(request.saturating_add(4)..).unwrap_or(&[]);
    Some((code.saturating_neg(), extended_ack(message.flags, tail)))
}

/// NLMSG_DONE: the error number with which a dump ended.
pub(crate) fn done(message: &Message<'_>) -> (i32, Option<String>) {
    let code = i32_at(message.payload, 0).unwrap_or(0);
    (code.saturating_neg(), extended_ack(message.flags, message.payload.get(4..).unwrap_or(&[])))
}

fn extended_ack(flags: u16, tail: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    attributes(tail).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, value)| text(value))
}

/// A NUL-terminated text; bytes that are not UTF-8 are replaced.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or(value)).into_owned()
}

pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b))),
        16 => <[u8; 16]>::try_from(value).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b))),
        _ => None,
    }
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_ne_bytes)
}

pub(crate) fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array_at(bytes, offset).map(i32::from_ne_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut request = Request::new(16, NLM_F_ACK, &[0; 16]);
        request.attributes().put_text(3, "eth0");
        request.attributes().nest(52, |list| list.put_text(53, "a-long-name"));
        let bytes = request.bytes(7);
        let all: Vec<_> = messages(&bytes).collect();
        let [message] = all.as_slice() else { panic!("{} messages", all.len()) };
        assert_eq!((message.kind, message.sequence), (16, 7));
        let found: Vec<_> = attributes(message.payload.get(16..).unwrap()).collect();
        assert_eq!(found[0], (3, b"eth0\0".as_slice()));
        assert_eq!(found[1].0, 52);
        assert_eq!(attributes(found[1].1).map(|(_, v)| text(v)).collect::<Vec<_>>(), ["a-long-name"]);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = (error(&message), done(&message), attributes(message.payload).count());
            }
            let _ = attributes(&bytes).count();
        }
    }
}
