//! CHECK, GC and STATUS.

use serde_json::{Value, json};

use super::{CHECK, ERROR};
use crate::bed::{Bed, Call, IF_NAME, Pod};
use crate::check::{Area, Check, Verdict, hold};

pub(super) fn area() -> Area {
    const GC: &str = "gc-clean-up-any-stale-resources";
    const STATUS: &str = "status-check-plugin-status";
    let check = |name, expects, section, run| Check { name, expects, section, run };
    Area {
        title: "verbs",
        checks: vec![
            check(
                "check",
                "CHECK succeeds right after ADD, and when a later plugin has added an address",
                CHECK,
                |bed| {
                    let config = added(bed, "0.4.0")?;
                    bed.verb("CHECK", "c1", &bed.pod, &config)?.result()?;
                    bed.pod.ip("addr add 10.66.0.1/24 dev net1")?;
                    bed.verb("CHECK", "c1", &bed.pod, &config)?.result().map(drop)
                },
            ),
            check("check-misses-the-address", "CHECK fails when the address has gone", CHECK, |bed| {
                check_fails(bed, "addr del 10.88.0.1/24 dev net1")
            }),
            check("check-misses-the-route", "CHECK fails when the route has gone", CHECK, |bed| {
                check_fails(bed, "route del 10.99.0.0/16")
            }),
            check("check-misses-the-interface", "CHECK fails when the interface has gone", CHECK, |bed| {
                check_fails(bed, "link del net1")
            }),
            check("check-hears-ipam", "CHECK fails when that of IPAM fails", CHECK, |bed| {
                let config = added(bed, "0.4.0")?;
                bed.ipam(
                    "CHECK",
                    r#"echo "{\"cniVersion\":\"$version\",\"code\":113,\"msg\":\"not leased\"}"; exit 1"#,
                )?;
                bed.verb("CHECK", "c1", &bed.pod, &config)?.error().map(drop)
            }),
            check(
                "check-too-old",
                "CHECK in version 0.3.1, which has none, fails with code 1",
                ERROR,
                |bed| {
                    bed.needs("0.4.0")?;
                    let result = bed.add(&bed.config_for(1, json!({ "cniVersion": "0.3.1" }))?)?;
                    let config = bed.config_for(1, json!({ "cniVersion": "0.3.1", "prevResult": result }))?;
                    let code = bed.verb("CHECK", "c1", &bed.pod, &config)?.error()?;
                    hold!(code == 1, "the code is {code}");
                    Ok(())
                },
            ),
            check(
                "gc",
                "GC removes what its list does not have: address free, NIC home; it is forwarded to IPAM",
                GC,
                gc,
            ),
            check("gc-of-another-network", "GC of another network touches nothing", GC, |bed| {
                gc_spares(bed, json!({ "name": "another", "cni.dev/valid-attachments": [] }))
            }),
            check("gc-all-valid", "GC touches no attachment that is in its list", GC, |bed| {
                let valid = json!([{ "containerID": "c1", "ifname": IF_NAME }]);
                gc_spares(bed, json!({ "cni.dev/valid-attachments": valid }))
            }),
            check("status", "STATUS succeeds where ADD would, and says nothing", STATUS, |bed| {
                bed.needs("1.1.0")?;
                let answer = bed.raw(&[("CNI_COMMAND", "STATUS")], bed.config()?.to_string().as_bytes())?;
                hold!(answer.stdout.is_empty() || !answer.succeeded(), "it prints {:?}", answer.stdout);
                answer.result().map(drop)
            }),
            check("status-hears-ipam", "STATUS fails when that of IPAM fails", STATUS, |bed| {
                bed.needs("1.1.0")?;
                bed.ipam(
                    "STATUS",
                    r#"echo "{\"cniVersion\":\"$version\",\"code\":50,\"msg\":\"no address left\"}"; exit 1"#,
                )?;
                let answer = bed.raw(&[("CNI_COMMAND", "STATUS")], bed.config()?.to_string().as_bytes())?;
                answer.error().map(drop)
            }),
        ],
    }
}

/// ADD; the configuration with its result.
fn added(bed: &Bed<'_>, needs: &str) -> Verdict<Value> {
    bed.needs(needs)?;
    let result = bed.add(&bed.config()?)?;
    bed.config_for(1, json!({ "prevResult": result }))
}

fn check_fails(bed: &Bed<'_>, pods: &str) -> Verdict {
    let config = added(bed, "0.4.0")?;
    bed.pod.ip(pods)?;
    bed.verb("CHECK", "c1", &bed.pod, &config)?.error().map(drop)
}

fn run_gc(bed: &Bed<'_>, keys: Value) -> Verdict {
    let call = Call { verb: "GC", container: "", netns: "", if_name: "" };
    bed.call(call, &bed.config_for(1, keys)?)?.result().map(drop)
}

fn gc(bed: &Bed<'_>) -> Verdict {
    bed.needs("1.1.0")?;
    let before = bed.picture()?;
    bed.nic(2)?;
    let second = Pod::new()?;
    bed.add(&bed.config()?)?;
    let other = bed.config_for(2, json!({}))?;
    bed.verb("ADD", "c2", &second, &other)?.result()?;
    let theirs = second.picture()?;
    let valid = json!([{ "containerID": "c2", "ifname": IF_NAME }]);
    run_gc(bed, json!({ "cni.dev/valid-attachments": valid }))?;
    let differences = theirs.differences(&second.picture()?);
    hold!(differences.is_empty(), "in the valid container's pod: {}", differences.join("; "));
    hold!(bed.asked().iter().any(|asked| asked.starts_with("GC")), "IPAM was called for {:?}", bed.asked());
    bed.verb("DEL", "c2", &second, &other)?.result()?;
    bed.ip("link del eth2")?;
    bed.is_again(&before, "after GC")
}

fn gc_spares(bed: &Bed<'_>, keys: Value) -> Verdict {
    bed.needs("1.1.0")?;
    bed.add(&bed.config()?)?;
    let (node, pod) = (bed.picture()?, bed.pod.picture()?);
    run_gc(bed, keys)?;
    bed.node_is_again(&node, "after GC")?;
    let differences = pod.differences(&bed.pod.picture()?);
    hold!(differences.is_empty(), "after GC, in the pod: {}", differences.join("; "));
    hold!(bed.leased()? == ["c1"], "the address is free: {:?}", bed.leased()?);
    Ok(())
}
