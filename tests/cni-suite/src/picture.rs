//! What a network namespace looks like, for comparison.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use linux::Netns;
use serde_json::{Map, Value};

/// All that `ip -d` tells of links, addresses and routes, but for what changes by itself: counters, timers, indices, and what follows the
/// other end of a pair.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    links: BTreeMap<String, Map<String, Value>>,
    aliases: BTreeMap<String, Value>,
    routes: Vec<String>,
}

const VOLATILE: [&str; 8] =
    ["operstate", "ifindex", "link_index", "link", "link_netnsid", "qdisc", "stats64", "xstats"];
/// A plugin may keep its notes there: checks of their own look at it.
const ALIAS: &str = "ifalias";
const VOLATILE_FLAGS: [&str; 3] = ["LOWER_UP", "NO-CARRIER", "M-DOWN"];

/// Runs `ip` in a namespace.
pub(crate) fn ip(netns: &Netns, arguments: &str) -> Result<String> {
    let output = netns
        .run(|| Command::new("ip").args(arguments.split_whitespace()).output())?
        .context("cannot run ip (iproute2)")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Picture {
    pub(crate) fn of(netns: &Netns) -> Result<Self> {
        let (mut links, mut aliases) = (BTreeMap::new(), BTreeMap::new());
        for mut link in list(netns, "-d -j addr show")? {
            VOLATILE.iter().for_each(|key| {
                link.remove(*key);
            });
            if let Some(alias) = link.remove(ALIAS) {
                let name = link.get("ifname").and_then(Value::as_str).unwrap_or_default();
                aliases.insert(name.to_owned(), alias);
            }
            if let Some(flags) = link.get_mut("flags").and_then(Value::as_array_mut) {
                flags.retain(|flag| flag.as_str().is_none_or(|flag| !VOLATILE_FLAGS.contains(&flag)));
            }
            // In the order in which they were given, which says nothing.
            if let Some(names) = link.get_mut("altnames").and_then(Value::as_array_mut) {
                names.sort_by_cached_key(Value::to_string);
            }
            for address in link.get_mut("addr_info").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(address) = address.as_object_mut() {
                    address.remove("valid_life_time");
                    address.remove("preferred_life_time");
                }
            }
            let name = link.get("ifname").and_then(Value::as_str).unwrap_or_default().to_owned();
            links.insert(name, link);
        }
        let mut routes: Vec<String> = list(netns, "-d -j route show table all")?
            .into_iter()
            .map(|mut route| {
                // It says whether a cable is plugged in.
                route.remove("flags");
                Value::Object(route).to_string()
            })
            .collect();
        routes.sort();
        Ok(Picture { links, aliases, routes })
    }

    /// Interfaces other than loopback.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.links.keys().map(String::as_str).filter(|name| *name != "lo").collect()
    }

    /// What `ip` says of a link.
    pub(crate) fn link(&self, name: &str) -> Option<&Map<String, Value>> {
        self.links.get(name)
    }

    /// The alias of a link, as `ip link set alias` gives it.
    pub(crate) fn alias(&self, name: &str) -> Option<&str> {
        self.aliases.get(name).and_then(Value::as_str)
    }

    /// In what `now` differs other than in aliases, in words; empty if in nothing.
    pub(crate) fn differences(&self, now: &Picture) -> Vec<String> {
        let mut words = Vec::new();
        for (name, link) in &self.links {
            match now.links.get(name) {
                None => words.push(format!("{name} is missing")),
                Some(other) => words.extend(unlike(name, link, other)),
            }
        }
        words.extend(
            now.links
                .keys()
                .filter(|name| !self.links.contains_key(*name))
                .map(|name| format!("there is {name}")),
        );
        words.extend(only(&self.routes, &now.routes).map(|route| format!("the route {route} is missing")));
        words.extend(only(&now.routes, &self.routes).map(|route| format!("there is the route {route}")));
        words
    }
}

fn only<'a>(these: &'a [String], those: &'a [String]) -> impl Iterator<Item = &'a String> {
    these.iter().filter(|each| !those.contains(each))
}

fn unlike(name: &str, was: &Map<String, Value>, is: &Map<String, Value>) -> Vec<String> {
    let mut keys: Vec<&String> = was.keys().chain(is.keys()).collect();
    keys.sort();
    keys.dedup();
    // The details of a bridge fill pages.
    let word = |value: Option<&Value>| match value.map(Value::to_string) {
        None => "nothing".to_owned(),
        Some(text) if text.chars().count() > 80 => text.chars().take(80).chain(['…']).collect(),
        Some(text) => text,
    };
    keys.into_iter()
        .filter(|key| was.get(*key) != is.get(*key))
        .map(|key| format!("{name}: {key} is {}, was {}", word(is.get(key)), word(was.get(key))))
        .collect()
}

/// What a listing of `ip -j` has, without the empty objects that some releases print for what they filter out.
fn list(netns: &Netns, arguments: &str) -> Result<Vec<Map<String, Value>>> {
    let text = ip(netns, arguments)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<Map<String, Value>> =
        serde_json::from_str(&text).with_context(|| format!("ip {arguments} printed {text:?}"))?;
    Ok(list.into_iter().filter(|object| !object.is_empty()).collect())
}
