//! VERSION, and results in each version of the specification.

use serde_json::{Value, json};

use super::ADD;
use crate::bed::Bed;
use crate::check::{Area, Check, Stop, Verdict, hold};

pub(super) fn area() -> Area {
    const IN_VERSION: &str =
        "ADD answers in the version that the configuration names, or a runtime cannot read the result";
    let version = |name, run| Check { name, expects: IN_VERSION, section: "add-success", run };
    Area {
        title: "versions",
        checks: vec![
            Check {
                name: "version",
                expects: "VERSION lists versions and needs neither container nor namespace: runtimes ask before anything else",
                section: "version-probe-plugin-version-support",
                run: version_lists,
            },
            version("result-0.1.0", |bed| result_in(bed, "0.1.0")),
            version("result-0.2.0", |bed| result_in(bed, "0.2.0")),
            version("result-0.3.0", |bed| result_in(bed, "0.3.0")),
            version("result-0.3.1", |bed| result_in(bed, "0.3.1")),
            version("result-0.4.0", |bed| result_in(bed, "0.4.0")),
            version("result-1.0.0", |bed| result_in(bed, "1.0.0")),
            version("result-1.1.0", |bed| result_in(bed, "1.1.0")),
            Check {
                name: "version-unknown",
                expects: "a configuration of a version that does not exist is refused with code 1, and nothing is touched",
                section: super::ERROR,
                run: unknown_version,
            },
            Check {
                name: "prev-result",
                expects: "in a chain, ADD passes prevResult on with its own added: later plugins know of earlier ones by it alone",
                section: ADD,
                run: prev_result,
            },
        ],
    }
}

fn version_lists(bed: &Bed<'_>) -> Verdict {
    let versions = bed.versions()?;
    hold!(!versions.is_empty(), "supportedVersions is empty");
    Ok(())
}

fn result_in(bed: &Bed<'_>, version: &str) -> Verdict {
    if !bed.versions()?.iter().any(|spoken| spoken == version) {
        return Err(Stop::NotChecked("VERSION does not list it".to_owned()));
    }
    let before = bed.picture()?;
    let config = bed.config_for(1, json!({ "cniVersion": version }))?;
    let result = bed.add(&config)?;
    let said = result.get("cniVersion").and_then(Value::as_str);
    hold!(said == Some(version), "cniVersion of the result is {said:?}");
    let text = |pointer: &str| result.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    if ["0.1.0", "0.2.0"].contains(&version) {
        hold!(text("/ip4/ip").as_deref() == Some("10.88.0.1/24"), "ip4 is not in the result: {result}");
    } else {
        hold!(
            text("/ips/0/address").as_deref() == Some("10.88.0.1/24"),
            "ips is not in the result: {result}"
        );
        hold!(
            text("/interfaces/0/name").as_deref() == Some("net1"),
            "interfaces is not in the result: {result}"
        );
        let family = text("/ips/0/version");
        let old = version.starts_with("0.");
        hold!(
            family.as_deref() == old.then_some("4"),
            "ips[].version is {family:?}, which {} has",
            if old { "each address up to 0.4.0" } else { "no address since 1.0.0" }
        );
    }
    bed.del(&config)?;
    bed.is_again(&before, "after DEL")
}

fn unknown_version(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config_for(1, json!({ "cniVersion": "9.9.9" }))?;
    let code = bed.verb("ADD", "c1", &bed.pod, &config)?.error()?;
    hold!(code == 1, "the code is {code}");
    bed.is_again(&before, "after the refused ADD")
}

fn prev_result(bed: &Bed<'_>) -> Verdict {
    let version = bed.config()?.get("cniVersion").cloned();
    let previous = json!({
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": bed.pod.path()}],
        "ips": [{"version": "4", "address": "192.0.2.7/24", "interface": 0}],
        "dns": {},
    });
    let result = bed.add(&bed.config_for(1, json!({ "prevResult": previous }))?)?;
    let of = |key: &str, field: &str| -> Vec<String> {
        let list = result.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter().filter_map(|each| each.get(field)?.as_str().map(str::to_owned)).collect()
    };
    let (names, addresses) = (of("interfaces", "name"), of("ips", "address"));
    for (list, wanted) in
        [(&names, "eth0"), (&names, "net1"), (&addresses, "192.0.2.7/24"), (&addresses, "10.88.0.1/24")]
    {
        hold!(
            list.iter().any(|each| each == wanted),
            "{wanted} is not in the result, which has {names:?} and {addresses:?}"
        );
    }
    Ok(())
}
