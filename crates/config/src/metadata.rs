//! The VM's metadata, as OpenStack writes them on a config drive: which network each port is in, and what the user wrote on it.
//!
//! They are joined with NICs by MAC alone: the PCI addresses in them are those that the host had in mind.
//! Source: OpenStack Nova, `network_data.json` and `meta_data.json` of `openstack/latest`.

use std::collections::BTreeMap;

use nic::{MacAddr, Metadata};
use serde_json::Value;

/// Reads one document: the network data, the metadata with device tags, or both in one.
///
/// # Errors
/// It is not JSON, or neither of the two.
pub fn metadata(text: &str) -> Result<Metadata, String> {
    metadata_of_drive(&[text])
}

/// Reads the documents of a config drive.
///
/// # Errors
/// One is not JSON, or none of them has what is looked for.
pub fn metadata_of_drive(texts: &[&str]) -> Result<Metadata, String> {
    let mut metadata = Metadata::default();
    let mut known = false;
    for text in texts {
        let document: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        known |= ["links", "devices"].iter().any(|key| document.get(key).is_some_and(Value::is_array));
        links(&document, &mut metadata);
        devices(&document, &mut metadata);
    }
    if known { Ok(metadata) } else { Err("neither `links` nor `devices` is in it".to_owned()) }
}

fn links(document: &Value, metadata: &mut Metadata) {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let by_id: BTreeMap<String, MacAddr> = items(document, "links")
        .filter_map(|link| Some((text(link, "id")?, text(link, "ethernet_mac_address")?.parse().ok()?)))
        .collect();
    for mac in by_id.values() {
        metadata.0.entry(*mac).or_default();
    }
    for network in items(document, "networks") {
        let mac = text(network, "link").and_then(|link| by_id.get(&link));
        if let (Some(mac), Some(id)) = (mac, text(network, "network_id")) {
            metadata.0.entry(*mac).or_default().network_ids.insert(id);
        }
    }
}

fn devices(document: &Value, metadata: &mut Metadata) {
    for device in items(document, "devices") {
        let mac = device.get("mac").and_then(Value::as_str).and_then(|mac| mac.parse().ok());
        let Some(mac) = mac else { continue };
        let tags = items(device, "tags").filter_map(Value::as_str).map(str::to_owned);
        metadata.0.entry(mac).or_default().tags.extend(tags);
    }
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}
