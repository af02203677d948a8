//! Hardware addresses: where a device sits on the bus, and what it is called on the wire.

use std::fmt;
use std::str::FromStr;

/// A PCI function's address, `domain:bus:device.function`, written as the kernel writes it: `0000:00:0a.0`.
///
/// The domain has four hexadecimal digits, or more where the kernel needs more (Intel VMD uses `10000` and up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The PCI segment.
    pub fn domain(&self) -> u32 {
        self.domain
    }

    /// The bus within the domain.
    pub fn bus(&self) -> u8 {
        self.bus
    }

    /// The device (slot) on the bus, below 32.
    pub fn device(&self) -> u8 {
        self.device
    }

    /// The function of the device, below 8.
    pub fn function(&self) -> u8 {
        self.function
    }
}

/// Why a text is not a PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a PCI address (expected the form 0000:00:0a.0)")]
pub struct ParsePciError {
    text: String,
}

impl FromStr for PciAddress {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_pci(text).ok_or_else(|| ParsePciError { text: text.to_owned() })
    }
}

fn parse_pci(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    if !(4..=8).contains(&domain.len()) || bus.len() != 2 || device.len() != 2 || function.len() != 1 {
        return None;
    }
    let hex = |digits: &str| {
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let address = PciAddress {
        domain: hex(domain)?,
        bus: u8::try_from(hex(bus)?).ok()?,
        device: u8::try_from(hex(device)?).ok()?,
        function: u8::try_from(hex(function)?).ok()?,
    };
    // Five bits of device, three of function: PCI Local Bus Specification 3.0, section 3.2.2.3.2.
    (address.device < 32 && address.function < 8).then_some(address)
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// An Ethernet address, written `52:54:00:c4:e6:cd`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a MAC address (expected six pairs of hexadecimal digits: 52:54:00:c4:e6:cd)")]
pub struct ParseMacError {
    text: String,
}

impl MacAddr {
    /// Whether an interface can own this address: neither a group address nor all zeros.
    #[must_use]
    pub fn is_unicast(&self) -> bool {
        let MacAddr([first, ..]) = self;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    /// Accepts `:` or `-` between the pairs, in either case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_mac(text).ok_or_else(|| ParseMacError { text: text.to_owned() })
    }
}

fn parse_mac(text: &str) -> Option<MacAddr> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut bytes = [0; 6];
    let mut pairs = text.split(separator);
    for byte in &mut bytes {
        let pair = pairs.next()?;
        if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(MacAddr(bytes))
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MacAddr([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::name::serde_as_text!(PciAddress, MacAddr);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pci_addresses_are_read_as_the_kernel_writes_them() {
        for text in ["0000:00:0a.0", "0000:81:1f.7", "10000:00:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", "00:0a.0", "0000:00:0a", "0000:00:20.0", "0000:00:0a.8", "0000:00:+a.0", "../0000:00:0a.0"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn mac_addresses_need_six_pairs() {
        assert_eq!("52-54-00-C4-E6-CD".parse::<MacAddr>().unwrap().to_string(), "52:54:00:c4:e6:cd");
        for text in ["", "52:54:00:c4:e6", "52:54:00:c4:e6:cd:00", "52:54:00:c4:e6:+d", "525400c4e6cd"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?} was taken");
        }
        assert!(!MacAddr([1, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!MacAddr([0; 6]).is_unicast());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = text.parse::<PciAddress>();
            let _ = text.parse::<MacAddr>();
        }

        #[test]
        fn a_mac_address_survives_its_text(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddr(bytes).to_string().parse::<MacAddr>().unwrap(), MacAddr(bytes));
        }
    }
}
