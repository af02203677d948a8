//! ADD does all of its work, or none; DEL undoes it.

use serde_json::{Value, json};

use super::{ADD, DEL, DELEGATED};
use crate::bed::{Bed, IF_NAME, Pod, file_names, mac};
use crate::check::{Area, Check, Stop, Verdict, hold};

pub(super) fn area() -> Area {
    let check = |name, expects, section, run| Check { name, expects, section, run };
    Area {
        title: "transaction",
        checks: vec![
            check(
                "add",
                "ADD puts the NIC into the pod: the wanted name, up, its own MAC, the address and route that IPAM gave",
                ADD,
                adds,
            ),
            check(
                "result",
                "the result says what is there: interface, MAC, sandbox, address",
                "add-success",
                result,
            ),
            check(
                "no-ipam",
                "without ipam the NIC is moved and gets no address; DEL brings it home",
                ADD,
                without_ipam,
            ),
            check(
                "add-del",
                "after ADD and DEL node and pod are as before, and no address is leased",
                DEL,
                add_del,
            ),
            check(
                "host-local",
                "the same with the real host-local: its address is on the NIC, and free again after DEL",
                DELEGATED,
                host_local,
            ),
            check(
                "ipam-fails",
                "IPAM fails: so does ADD, nothing is touched, and IPAM is asked to DEL",
                DELEGATED,
                ipam_fails,
            ),
            check(
                "ipam-talks-nonsense",
                "IPAM answers no result: ADD fails and nothing is touched",
                DELEGATED,
                |bed| refused(bed, "echo nonsense; exit 0"),
            ),
            check(
                "ipam-bad-route",
                "IPAM gives a route that the kernel refuses: ADD fails, nothing is touched, the address is free",
                DELEGATED,
                |bed| {
                    refused(
                        bed,
                        r#"case $version in 0.[12].0) exit 1;; esac; : >"$folder/leased/$CNI_CONTAINERID"
                        echo "{\"cniVersion\":\"$version\",\"ips\":[{\"version\":\"4\",\"address\":\"10.88.0.1/24\"}],\"routes\":[{\"dst\":\"10.99.0.0/16\",\"gw\":\"10.88.0.255\"}]}"; exit 0"#,
                    )
                },
            ),
            check(
                "ipam-absent",
                "the IPAM plugin does not exist: ADD fails and nothing is touched",
                DELEGATED,
                |bed| {
                    let before = bed.picture()?;
                    let config = bed.config_for(1, json!({ "ipam": { "type": "suite-absent" } }))?;
                    bed.verb("ADD", "c1", &bed.pod, &config)?.error()?;
                    bed.is_again(&before, "after the failed ADD")
                },
            ),
            check(
                "name-taken",
                "an interface of the wanted name is in the pod: ADD fails, and neither is touched",
                ADD,
                name_taken,
            ),
            check(
                "add-of-a-taken-nic",
                "ADD of a NIC that another pod has fails, and neither that nor the DEL after it disturbs the other pod",
                ADD,
                taken_nic,
            ),
        ],
    }
}

fn adds(bed: &Bed<'_>) -> Verdict {
    bed.add(&bed.config()?)?;
    let picture = bed.pod.picture()?;
    let Some(link) = picture.link(IF_NAME) else {
        return Err(Stop::Fault(format!("{IF_NAME} is not in the pod, but {}", picture.names().join(", "))));
    };
    let text = Value::Object(link.clone());
    let has = |key: &str, value: &str| link.get(key).is_some_and(|found| found.to_string().contains(value));
    hold!(has("flags", "\"UP\""), "it is down: {text}");
    hold!(has("address", &mac(1)), "its MAC is another: {text}");
    hold!(has("addr_info", "10.88.0.1"), "it has no address: {text}");
    let routes = bed.pod.ip("route show")?;
    hold!(routes.contains("10.99.0.0/16 via 10.88.0.254"), "the route is missing: {routes}");
    hold!(!bed.picture()?.names().contains(&"eth1"), "the NIC is still on the node");
    Ok(())
}

fn result(bed: &Bed<'_>) -> Verdict {
    bed.needs("0.3.0")?;
    let result = bed.add(&bed.config()?)?;
    let sandbox = bed.pod.path();
    let address = mac(1);
    for (pointer, wanted) in [
        ("/interfaces/0/name", IF_NAME),
        ("/interfaces/0/mac", &address),
        ("/interfaces/0/sandbox", &sandbox),
        ("/ips/0/address", "10.88.0.1/24"),
    ] {
        let found = result.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        hold!(found.eq_ignore_ascii_case(wanted), "{pointer} is {found:?}, not {wanted:?}");
    }
    let of = result.pointer("/ips/0/interface").and_then(Value::as_u64);
    hold!(of == Some(0), "/ips/0/interface is {of:?}, not 0");
    Ok(())
}

fn without_ipam(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config_for(1, json!({ "ipam": null }))?;
    bed.add(&config)?;
    hold!(bed.pod.picture()?.names() == [IF_NAME], "{IF_NAME} is not in the pod");
    bed.del(&config)?;
    hold!(bed.asked().is_empty(), "an IPAM plugin was called: {:?}", bed.asked());
    bed.is_again(&before, "after DEL")
}

fn add_del(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    bed.del(&config)?;
    hold!(bed.asked() == ["ADD c1", "DEL c1"], "IPAM was called for {:?}", bed.asked());
    bed.is_again(&before, "after DEL")
}

fn host_local(bed: &Bed<'_>) -> Verdict {
    if !bed.subject.has_host_local() {
        return Err(Stop::NotChecked("host-local was not found; see --cni-path".to_owned()));
    }
    let before = bed.picture()?;
    let data = bed.folder().join("host-local");
    let ipam = json!({ "type": "host-local", "subnet": "10.87.0.0/24", "dataDir": data });
    let config = bed.config_for(1, json!({ "ipam": ipam }))?;
    bed.add(&config)?;
    let leased = || -> Verdict<Vec<String>> {
        Ok(file_names(&data.join("suite"))?.into_iter().filter(|name| name.starts_with("10.")).collect())
    };
    let addresses = bed.pod.ip(&format!("-4 -o addr show dev {IF_NAME}"))?;
    let given = leased()?;
    hold!(
        given.len() == 1 && given.iter().all(|address| addresses.contains(address.as_str())),
        "host-local gave {given:?}, and the pod has {addresses:?}"
    );
    bed.del(&config)?;
    hold!(leased()?.is_empty(), "host-local still leases {:?}", leased()?);
    bed.is_again(&before, "after DEL")
}

fn ipam_fails(bed: &Bed<'_>) -> Verdict {
    refused(
        bed,
        r#": >"$folder/leased/$CNI_CONTAINERID"; echo "{\"cniVersion\":\"$version\",\"code\":111,\"msg\":\"no address left\"}"; exit 1"#,
    )?;
    hold!(bed.asked() == ["ADD c1", "DEL c1"], "IPAM was called for {:?}", bed.asked());
    Ok(())
}

/// An ADD whose IPAM plugin does this instead of its work.
fn refused(bed: &Bed<'_>, ipam: &str) -> Verdict {
    let before = bed.picture()?;
    bed.ipam("ADD", ipam)?;
    bed.verb("ADD", "c1", &bed.pod, &bed.config()?)?.error()?;
    bed.is_again(&before, "after the failed ADD")
}

fn name_taken(bed: &Bed<'_>) -> Verdict {
    bed.pod.ip(&format!("link add {IF_NAME} type bridge"))?;
    let (node, pod) = (bed.picture()?, bed.pod.picture()?);
    bed.verb("ADD", "c1", &bed.pod, &bed.config()?)?.error()?;
    bed.node_is_again(&node, "after the refused ADD")?;
    let differences = pod.differences(&bed.pod.picture()?);
    hold!(differences.is_empty(), "after the refused ADD, in the pod: {}", differences.join("; "));
    Ok(())
}

fn taken_nic(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    let (node, pod) = (bed.picture()?, bed.pod.picture()?);
    let second = Pod::new()?;
    bed.verb("ADD", "c2", &second, &config)?.error()?;
    // That it succeeds is what other checks ask for.
    bed.verb("DEL", "c2", &second, &config)?;
    bed.node_is_again(&node, "after the second ADD and DEL")?;
    bed.pod_is_empty(&second, "after the second ADD and DEL")?;
    let differences = pod.differences(&bed.pod.picture()?);
    hold!(differences.is_empty(), "in the first pod: {}", differences.join("; "));
    bed.del(&config)?;
    bed.is_again(&before, "after DEL")
}
