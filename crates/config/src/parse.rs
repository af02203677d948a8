//! The file as a whole, and its pools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use located::{Content, Fault, Node, documents};
use nic::{DeviceId, Pool, Pools, ResourceName, Selector};
use serde_json::Value;

use crate::reader::Reader;
use crate::selector::{exclusion, selector};
use crate::{Config, DEFAULT_PREFIX};

const KEYS: [&str; 5] = ["resourceList", "resourcePrefix", "offerLifeline", "cdi", "metadata"];
const POOL_KEYS: [&str; 8] = [
    "resourceName",
    "resourcePrefix",
    "deviceType",
    "excludeTopology",
    "additionalInfo",
    "selectors",
    "exclude",
    // Written by some versions of its operator, always empty.
    "SelectorObj",
];
const DEVICE_TYPES: [&str; 3] = ["netDevice", "accelerator", "auxNetDevice"];

/// Reads a configuration: YAML, or JSON. `file` is what faults call it.
///
/// # Errors
/// What is wrong first, and where.
pub fn parse(text: &str, file: &Path) -> Result<Config, Fault> {
    let name = file.display().to_string();
    let mut documents = documents(&name, text)?.into_iter();
    let Some(root) = documents.next() else {
        return Err(Fault::of_file(name, "the file is empty: `resourceList` is missing"));
    };
    let mut reader = Reader { file: &name, notes: Vec::new() };
    if let Some(second) = documents.next() {
        return Err(reader.fault(&second, "a second document: a configuration is one"));
    }
    if is_config_map(&root) {
        let what = "this is a ConfigMap: what is wanted is the text of the file in its data";
        return Err(reader.fault(&root, what));
    }
    file_of(&mut reader, &root)
}

fn is_config_map(root: &Node) -> bool {
    let Content::Map(entries) = &root.content else { return false };
    let kind = |(key, value): &(String, Node)| {
        key == "kind" && value.content == Content::Plain(Value::String("ConfigMap".to_owned()))
    };
    entries.iter().any(kind)
}

fn file_of(reader: &mut Reader<'_>, root: &Node) -> Result<Config, Fault> {
    let entries: BTreeMap<&str, &Node> = reader.entries(root, "the file", &KEYS)?.into_iter().collect();
    let prefix = match entries.get("resourcePrefix") {
        Some(node) => reader.text(node, "resourcePrefix")?,
        None => DEFAULT_PREFIX,
    };
    let cdi = entries.get("cdi").map(|node| reader.switch(node, "cdi")).transpose()?.unwrap_or(false);
    let offer_lifeline = match entries.get("offerLifeline") {
        Some(node) => reader.list(node, "offerLifeline", |text| {
            text.parse::<DeviceId>().map_err(|error| error.to_string())
        })?,
        None => Vec::new(),
    };
    let metadata = match entries.get("metadata") {
        Some(node) => Some(PathBuf::from(reader.text(node, "metadata")?)),
        None => None,
    };
    if let (Some(node), Some(path)) = (entries.get("metadata"), &metadata)
        && !path.is_absolute()
    {
        return Err(
            reader.fault(node, "`metadata` must be an absolute path, of a config drive or a JSON file")
        );
    }
    let Some(list) = entries.get("resourceList") else {
        return Err(reader.fault(root, "`resourceList` is missing"));
    };
    let Content::List(items) = &list.content else {
        return Err(reader.fault(list, "`resourceList` must be a list of resources"));
    };
    if items.is_empty() {
        reader.note(list, "`resourceList` is empty: nothing is offered");
    }
    let mut pools: Vec<Pool> = Vec::new();
    for item in items {
        let Some(pool) = pool(reader, item, prefix, cdi)? else { continue };
        if pools.iter().any(|other| other.resource == pool.resource) {
            return Err(reader.fault(item, format!("the resource {} stands here twice", pool.resource)));
        }
        let shared =
            |other: &Pool| Some((other.resource.clone(), pool.resource.shared_variable(&other.resource)?));
        if let Some((other, variable)) = pools.iter().find_map(shared) {
            let what = format!(
                "{} and {other} both set the variable {variable} in containers: give one another name",
                pool.resource
            );
            return Err(reader.fault(item, what));
        }
        pools.push(pool);
    }
    if let Some(node) = entries.get("metadata").filter(|_| metadata.is_some())
        && !pools.iter().any(asks_metadata)
    {
        reader.note(node, "`metadata` is read for nobody: no selector has networkIds or tags");
    }
    let notes = std::mem::take(&mut reader.notes);
    Ok(Config {
        pools: Pools::new(pools),
        offer_lifeline: offer_lifeline.into_iter().collect(),
        metadata,
        notes,
    })
}

fn asks_metadata(pool: &Pool) -> bool {
    let selectors = pool.selectors.iter().chain(&pool.exclude);
    let mut demands = selectors.flat_map(|selector| &selector.demands);
    demands.any(|demand| matches!(demand, nic::Demand::NetworkIds(_) | nic::Demand::Tags(_)))
}

/// A pool; none if it is of devices that are no NICs.
fn pool(reader: &mut Reader<'_>, node: &Node, prefix: &str, cdi: bool) -> Result<Option<Pool>, Fault> {
    let entries: BTreeMap<&str, &Node> =
        reader.entries(node, "a resource", &POOL_KEYS)?.into_iter().collect();
    let Some(name_node) = entries.get("resourceName") else {
        return Err(reader.fault(node, "`resourceName` is missing"));
    };
    let name = reader.text(name_node, "resourceName")?;
    let prefix_node = entries.get("resourcePrefix");
    let prefix = match prefix_node {
        // As it is there: empty means the default.
        Some(node) => {
            Some(reader.text(node, "resourcePrefix")?).filter(|text| !text.is_empty()).unwrap_or(prefix)
        }
        None => prefix,
    };
    if name.contains('/') {
        let what = "`resourceName` has a \"/\": put what stands before it into `resourcePrefix`";
        return Err(reader.fault(name_node, what));
    }
    let resource: ResourceName = format!("{prefix}/{name}")
        .parse()
        .map_err(|error: nic::NameError| reader.fault(name_node, error.to_string()))?;
    let mut pool = Pool { cdi, ..Pool::empty(resource) };
    if let Some(node) = entries.get("excludeTopology") {
        pool.exclude_topology = reader.switch(node, "excludeTopology")?;
    }
    if let Some(node) = entries.get("additionalInfo") {
        pool.additional_info = additional_info(reader, node)?;
    }
    if let Some(node) = entries.get("SelectorObj")
        && node.content != Content::Plain(Value::Null)
    {
        return Err(reader.fault(node, "`SelectorObj` must be empty: use `selectors`"));
    }
    let Some(selectors) = entries.get("selectors") else {
        return Err(reader.fault(node, "`selectors` is missing: say which NICs belong to this resource"));
    };
    pool.selectors = one_or_more(reader, selectors, "selectors", selector)?;
    if let Some(node) = entries.get("exclude") {
        pool.exclude = one_or_more(reader, node, "exclude", exclusion)?;
    }
    let Some(type_node) = entries.get("deviceType") else { return Ok(Some(pool)) };
    match reader.text(type_node, "deviceType")? {
        "" | "netDevice" => Ok(Some(pool)),
        other if DEVICE_TYPES.contains(&other) => {
            reader.note(type_node, format!("{} is left out: virtdp offers no {other}s", pool.resource));
            Ok(None)
        }
        other => {
            let meant = located::nearest(other, DEVICE_TYPES.into_iter()).unwrap_or("netDevice");
            Err(reader.fault(type_node, format!("there is no deviceType {other:?}: did you mean `{meant}`?")))
        }
    }
}

/// One selector, or a list of some.
fn one_or_more(
    reader: &mut Reader<'_>,
    node: &Node,
    key: &str,
    read: fn(&mut Reader<'_>, &Node) -> Result<Selector, Fault>,
) -> Result<Vec<Selector>, Fault> {
    if matches!(node.content, Content::Map(_)) {
        return Ok(vec![read(reader, node)?]);
    }
    let mut selectors = Vec::new();
    for item in reader.items(node, key)? {
        selectors.push(read(reader, item)?);
    }
    Ok(selectors)
}

fn additional_info(
    reader: &Reader<'_>,
    node: &Node,
) -> Result<BTreeMap<String, BTreeMap<String, String>>, Fault> {
    let map = |node: &Node, what: &str| match &node.content {
        Content::Map(entries) => Ok(entries.clone()),
        _ => Err(reader.fault(node, format!("{what} must have keys and values"))),
    };
    let mut info = BTreeMap::new();
    for (device, values) in map(node, "`additionalInfo`")? {
        if device != "*" && device.parse::<DeviceId>().is_err() {
            let shown: String = device.chars().take(60).collect();
            return Err(reader.fault(&values, format!("{shown:?} is neither a device ID nor \"*\"")));
        }
        let mut texts = BTreeMap::new();
        for (key, value) in map(&values, "what is said of a device")? {
            texts.insert(key.clone(), reader.text(&value, &key)?.to_owned());
        }
        info.insert(device, texts);
    }
    Ok(info)
}
