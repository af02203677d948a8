//! Selectors, as they are written.

use located::{Fault, Node};
use nic::{Demand, Needs, Selector};

use crate::reader::Reader;

/// What a selector may demand. The second half is what no NIC here can meet.
const DEMANDS: [&str; 18] = [
    "vendors",
    "devices",
    "drivers",
    "pciAddresses",
    "acpiIndexes",
    "rootDevices",
    "linkTypes",
    "names",
    "macs",
    "mtus",
    "queues",
    "networkIds",
    "tags",
    "pfNames",
    "ddpProfiles",
    "pKeys",
    "auxTypes",
    "vdpaType",
];
const OPTIONS: [&str; 3] = ["needVhostNet", "needTun", "isRdma"];

/// One selector of a pool.
pub(crate) fn selector(reader: &mut Reader<'_>, node: &Node) -> Result<Selector, Fault> {
    let known: Vec<&str> = DEMANDS.iter().chain(&OPTIONS).copied().collect();
    let mut selector = Selector::default();
    for (key, value) in reader.entries(node, "a selector", &known)? {
        match key {
            "needVhostNet" => selector.needs.vhost_net = reader.switch(value, key)?,
            "needTun" => selector.needs.tun = reader.switch(value, key)?,
            "isRdma" if reader.switch(value, key)? => {
                let why = "virtdp offers no RDMA devices";
                selector.demands.push(nothing(reader, value, key, why));
            }
            "isRdma" => {}
            _ => selector.demands.extend(demand(reader, key, value)?),
        }
    }
    if selector.demands.is_empty() {
        let what =
            "this selector would select every NIC: name a driver, or write `names: [\"*\"]` if that is meant";
        return Err(reader.fault(node, what));
    }
    Ok(selector)
}

/// One exclusion of a pool: the same keys, without what a pod needs.
pub(crate) fn exclusion(reader: &mut Reader<'_>, node: &Node) -> Result<Selector, Fault> {
    let mut exclusion = Selector { demands: Vec::new(), needs: Needs::default() };
    for (key, value) in reader.entries(node, "an exclusion", &DEMANDS)? {
        exclusion.demands.extend(demand(reader, key, value)?);
    }
    if exclusion.demands.is_empty() {
        return Err(reader.fault(node, "this exclusion would exclude every NIC: say which"));
    }
    Ok(exclusion)
}

fn nothing(reader: &mut Reader<'_>, node: &Node, key: &str, why: &str) -> Demand {
    reader.note(node, format!("`{key}`: {why}: this selects nothing"));
    Demand::Nothing(format!("`{key}`: {why}"))
}

fn demand(reader: &mut Reader<'_>, key: &'static str, node: &Node) -> Result<Option<Demand>, Fault> {
    Ok(Some(match key {
        "vendors" => Demand::Vendors(reader.list(node, key, hex)?),
        "devices" => Demand::Devices(reader.list(node, key, hex)?),
        "drivers" => Demand::Drivers(reader.list(node, key, word)?),
        "pciAddresses" => Demand::PciAddresses(reader.list(node, key, parsed)?),
        "acpiIndexes" => {
            let numbers = reader.items(node, key)?.iter().map(|item| reader.number(item, key));
            Demand::AcpiIndexes(numbers.collect::<Result<_, _>>()?)
        }
        "rootDevices" => {
            let texts = reader.list(node, key, |text| Ok(text.to_owned()))?;
            if texts.iter().any(|text| text.contains('#')) {
                let why = "functions cannot be chosen by their number, name their pciAddresses";
                return Ok(Some(nothing(reader, node, key, why)));
            }
            Demand::RootDevices(reader.list(node, key, parsed)?)
        }
        "linkTypes" => {
            let types = reader.list(node, key, word)?;
            if !types.iter().any(|text| text.eq_ignore_ascii_case("ether")) {
                return Ok(Some(nothing(reader, node, key, "virtdp offers only NICs of link type ether")));
            }
            Demand::Ethernet
        }
        "names" => Demand::Names(reader.list(node, key, parsed)?),
        "macs" => Demand::Macs(reader.list(node, key, parsed)?),
        "mtus" => {
            let numbers = reader.items(node, key)?.iter().map(|item| reader.number(item, key));
            Demand::Mtus(numbers.collect::<Result<_, _>>()?)
        }
        "queues" => Demand::Queues(reader.number(node, key)?),
        "networkIds" => Demand::NetworkIds(reader.list(node, key, word)?),
        "tags" => Demand::Tags(reader.list(node, key, word)?),
        // As it is there for a device that is no virtual function.
        "pfNames" => {
            reader.items(node, key)?;
            let why = "NICs here have no physical function with a name; for the interface's own name there is `names`";
            nothing(reader, node, key, why)
        }
        "vdpaType" => match reader.text(node, key)? {
            "" => return Ok(None),
            _ => nothing(reader, node, key, "virtdp offers no vDPA devices"),
        },
        _ => {
            reader.items(node, key)?;
            nothing(reader, node, key, "virtdp offers whole Ethernet NICs only")
        }
    }))
}

fn hex(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let number = (digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u16::from_str_radix(digits, 16).ok());
    number
        .flatten()
        .ok_or_else(|| format!("{text:?} is no number of four hexadecimal digits, such as \"1af4\""))
}

fn word(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= 255
        && !text.chars().any(|char| char.is_whitespace() || char.is_control());
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is no word")) }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}
