//! What the network of a node looks like, without what comes and goes by itself: it must be the same before and after.

use serde_json::{Value, json};

/// From `ip -d -j addr show` and `ip -d -j route show table all`: links (with alternative names, MAC, MTU, state), addresses, routes.
///
/// Times to live, what follows the state of a link a moment later, and the order in which the kernel lists things are left out.
#[must_use]
pub fn snapshot(mut links: Value, mut routes: Value) -> Value {
    for link in links.as_array_mut().into_iter().flatten() {
        if let Some(addresses) = link.get_mut("addr_info").and_then(Value::as_array_mut) {
            for address in addresses.iter_mut() {
                leave_out(address, &["valid_life_time", "preferred_life_time"]);
            }
            addresses.sort_by_cached_key(Value::to_string);
        }
        // Carrier and queueing discipline follow IFF_UP a moment later; IFF_UP itself is in the flags.
        leave_out(link, &["operstate", "qdisc"]);
        if let Some(flags) = link.get_mut("flags").and_then(Value::as_array_mut) {
            flags.retain(|flag| !matches!(flag.as_str(), Some("LOWER_UP" | "NO-CARRIER")));
        }
    }
    if let Some(routes) = routes.as_array_mut() {
        for route in routes.iter_mut() {
            leave_out(route, &["expires"]);
        }
        // The kernel lists routes of one table in the order in which they came, and those that it makes itself come when they like.
        routes.sort_by_cached_key(Value::to_string);
    }
    json!({ "links": links, "routes": routes })
}

fn leave_out(value: &mut Value, keys: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// The lines that only one of two snapshots has, if they differ.
#[must_use]
pub fn differences(before: &Value, now: &Value) -> Option<String> {
    if now == before {
        return None;
    }
    let lines = |value: &Value| -> Vec<String> {
        format!("{value:#}").lines().map(|line| line.trim_end_matches(',').to_owned()).collect()
    };
    let (old, new) = (lines(before), lines(now));
    let only = |these: &[String], those: &[String], sign: &str| -> String {
        these.iter().filter(|line| !those.contains(line)).map(|line| format!("{sign} {line}\n")).collect()
    };
    let differs = format!("{}{}", only(&old, &new, "-"), only(&new, &old, "+"));
    // Lines that are only in another order, or there more than once, tell nothing by themselves.
    Some(if differs.is_empty() { format!("before {before:#}\nnow {now:#}") } else { differs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_by_itself_is_left_out() {
        let link = |mtu: u32, state: &str, flags: &[&str], life: u32| {
            json!([{"ifname": "eth1", "mtu": mtu, "operstate": state, "flags": flags,
                "addr_info": [{"local": "10.0.0.1", "valid_life_time": life}]}])
        };
        let routes = json!([{"dst": "b", "expires": 5}, {"dst": "a"}]);
        let before = snapshot(link(1500, "DOWN", &["UP", "NO-CARRIER"], 9), routes);
        let same = snapshot(link(1500, "UP", &["UP"], 8), json!([{"dst": "a"}, {"dst": "b"}]));
        assert_eq!(differences(&before, &same), None);
        let other = snapshot(link(1400, "UP", &["UP"], 8), json!([{"dst": "a"}]));
        let told = differences(&before, &other).unwrap();
        assert!(told.contains("-       \"mtu\": 1500") && told.contains("+       \"mtu\": 1400"), "{told}");
        assert!(told.contains("\"dst\": \"b\""), "{told}");
    }
}
