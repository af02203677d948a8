//! What the walkthrough reads out of the tools' output. Pure, so that a check that cannot fail is noticed in a test.

// Indexing a JSON value gives null where there is nothing.
#![allow(clippy::indexing_slicing)]

use std::net::Ipv4Addr;

use serde_json::Value;

/// The word that follows `key` in the output of iproute2 and the like.
pub(crate) fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut words = text.split_whitespace();
    words.find(|word| *word == key)?;
    words.next()
}

/// The value of a `key: value` line, as ethtool prints them.
pub(crate) fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// `what` if it is what is wanted, else what was found.
pub(crate) fn same(found: Option<&str>, wanted: &str) -> Result<String, String> {
    match found {
        Some(found) if found == wanted => Ok(found.to_owned()),
        Some(found) => Err(format!("{found}, but it should be {wanted}")),
        None => Err(format!("nothing found; it should be {wanted}")),
    }
}

/// The line that contains all of `words`.
pub(crate) fn line_with(text: &str, words: &[&str]) -> Result<String, String> {
    text.lines()
        .find(|line| words.iter().all(|word| line.contains(word)))
        .map(|line| line.trim().to_owned())
        .ok_or_else(|| format!("no line has all of {words:?}"))
}

/// The address, if it is in `10.56.217.0/24` with that prefix length: what `deployments/virt-crd.yaml` asks for.
pub(crate) fn in_the_range(inet: Option<&str>) -> Result<String, String> {
    let inet = inet.ok_or("no IPv4 address")?;
    let wrong = || format!("{inet} is not in 10.56.217.0/24");
    let (ip, length) = inet.split_once('/').ok_or_else(wrong)?;
    let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
    let [a, b, c, _] = ip.octets();
    if (a, b, c) == (10, 56, 217) && length == "24" { Ok(inet.to_owned()) } else { Err(wrong()) }
}

/// What a NIC is like, as `ip -json -details link` shows it: all that must be the same after the walkthrough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) name: String,
    pub(crate) mac: String,
    mtu: u64,
    up: bool,
    tx_queue_len: u64,
    alt_names: Vec<String>,
}

/// The NIC below this PCI address, if the node has it.
pub(crate) fn home_of(links: &Value, pci: &str, parent: &str) -> Result<Home, String> {
    let link = links
        .as_array()
        .and_then(|links| links.iter().find(|link| link["parentdev"] == parent || link["parentdev"] == pci))
        .ok_or_else(|| format!("the node has no interface of {pci} ({parent})"))?;
    let text = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
    let names = |key: &str| -> Vec<String> {
        link[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok(Home {
        name: text("ifname"),
        mac: text("address"),
        mtu: link["mtu"].as_u64().unwrap_or_default(),
        up: names("flags").iter().any(|flag| flag == "UP"),
        tx_queue_len: link["txqlen"].as_u64().unwrap_or_default(),
        alt_names: names("altnames"),
    })
}

/// How many of the resource the node has (`capacity`) or can give (`allocatable`), by `get nodes -o json`.
pub(crate) fn amount(nodes: &str, kind: &str, resource: &str) -> Result<String, String> {
    let nodes: Value = serde_json::from_str(nodes).map_err(|_| format!("no JSON: {nodes}"))?;
    let found = nodes["items"][0]["status"][kind][resource].as_str();
    found.map(str::to_owned).ok_or_else(|| format!("the node has no {kind} of {resource}"))
}

/// How many pods there are, if all of them run and are ready; else which do not, and why. By `get pods -o json`.
pub(crate) fn all_run(pods: &str) -> Result<String, String> {
    let pods: Value = serde_json::from_str(pods).map_err(|_| format!("no JSON: {pods}"))?;
    let pods = pods["items"].as_array().ok_or("no list of pods")?;
    let troubles: Vec<String> = pods.iter().filter_map(trouble).collect();
    if troubles.is_empty() { Ok(pods.len().to_string()) } else { Err(troubles.join("; ")) }
}

fn trouble(pod: &Value) -> Option<String> {
    let status = &pod["status"];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = word(&pod["metadata"]["name"]);
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        Some(format!("{name} is being deleted"))
    } else if status["phase"] != "Running" {
        let words = [&status["phase"], &status["reason"], &status["message"]].map(word);
        Some(format!("{name} is {}", words.join(" ").trim_end()))
    } else if !conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        Some(format!("{name} is not ready"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_and_values_are_found_or_missed() {
        let text =
            "    link/ether 52:54:00:00:00:0a brd ff:ff:ff:ff:ff:ff\n    inet 10.56.217.10/24 scope global";
        assert_eq!(word_after(text, "link/ether"), Some("52:54:00:00:00:0a"));
        assert_eq!(word_after(text, "inet6"), None);
        let text = "driver: virtio_net\nversion: 1.0.0\nbus-info: 0000:00:0a.0\n";
        assert_eq!(value_of(text, "bus-info"), Some("0000:00:0a.0"));
        assert_eq!(value_of(text, "bus"), None);
        assert!(same(Some("a"), "b").is_err() && same(None, "b").is_err() && same(Some("b"), "b").is_ok());
        assert!(line_with(text, &["driver", "virtio_net"]).is_ok());
        assert!(line_with(text, &["driver", "1.0.0"]).is_err());
    }

    #[test]
    fn only_addresses_of_the_network_pass() {
        assert!(in_the_range(Some("10.56.217.10/24")).is_ok());
        for bad in
            [None, Some("10.56.218.10/24"), Some("10.56.217.10/16"), Some("10.56.217.10"), Some("x/24")]
        {
            assert!(in_the_range(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_nic_that_changed_or_is_gone_is_noticed() {
        let link = json!({"ifname": "eth1", "address": "52:54:00:00:00:09", "mtu": 1500, "txqlen": 1000,
            "flags": ["BROADCAST", "UP"], "parentdev": "virtio1"});
        let home = home_of(&json!([link]), "0000:00:09.0", "virtio1").unwrap();
        assert_eq!((home.name.as_str(), home.up), ("eth1", true));
        let mut changed = link.clone();
        changed["flags"] = json!(["BROADCAST"]);
        assert_ne!(home_of(&json!([changed]), "0000:00:09.0", "virtio1").unwrap(), home);
        assert!(home_of(&json!([link]), "0000:00:0a.0", "virtio2").is_err());
    }

    #[test]
    fn amounts_are_read_from_a_list_of_nodes() {
        let node = json!({"status": {"allocatable": {"kernel.org/virt": "2"}}});
        let nodes = json!({"kind": "List", "items": [node]}).to_string();
        assert_eq!(amount(&nodes, "allocatable", "kernel.org/virt").as_deref(), Ok("2"));
        for bad in [&nodes, r#"{"kind": "List", "items": []}"#, "connection refused"] {
            assert!(amount(bad, "capacity", "kernel.org/virt").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_that_is_turned_away_waits_or_does_not_go_is_named() {
        let pod = |status: Value| json!({"metadata": {"name": "testpod1"}, "status": status});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let well = pod(json!({"phase": "Running", "conditions": ready}));
        let says = |pods: &[&Value]| all_run(&json!({"items": pods}).to_string());
        assert_eq!(says(&[&well, &well]), Ok("2".to_owned()));
        let rejected =
            json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices"});
        let troubles = [
            (pod(rejected), "testpod1 is Failed UnexpectedAdmissionError no healthy devices"),
            (pod(json!({"phase": "Pending"})), "testpod1 is Pending"),
            (pod(json!({"phase": "Running", "conditions": []})), "testpod1 is not ready"),
        ];
        for (pod, trouble) in troubles {
            assert_eq!(says(&[&well, &pod]), Err(trouble.to_owned()));
        }
        let mut going = well.clone();
        going["metadata"]["deletionTimestamp"] = json!("2026-11-24T00:00:00Z");
        assert_eq!(says(&[&going]), Err("testpod1 is being deleted".to_owned()));
        assert!(all_run("connection refused").is_err() && all_run("{}").is_err());
    }
}
