//! DEL too often, too late, or with less than it would like: the node and the other pods must not notice.

use serde_json::json;

use super::{DEL, LIFECYCLE};
use crate::bed::{Bed, Call, IF_NAME, Pod, path_of};
use crate::check::{Area, Check, Verdict, hold};

pub(super) fn area() -> Area {
    let check = |name, expects, section, run| Check { name, expects, section, run };
    Area {
        title: "repeats",
        checks: vec![
            check("del-twice", "a second DEL succeeds and changes nothing", DEL, |bed| {
                let before = bed.picture()?;
                let config = bed.config()?;
                bed.add(&config)?;
                bed.del(&config)?;
                bed.del(&config)?;
                bed.is_again(&before, "after the second DEL")
            }),
            check(
                "del-without-add",
                "DEL for a container that was never added succeeds, changes nothing, and still asks IPAM",
                DEL,
                |bed| {
                    let before = bed.picture()?;
                    bed.del(&bed.config()?)?;
                    hold!(bed.asked() == ["DEL c1"], "IPAM was called for {:?}", bed.asked());
                    bed.is_again(&before, "after DEL")
                },
            ),
            check("del-with-prev-result", "DEL with the result of ADD brings the NIC home", DEL, |bed| {
                let before = bed.picture()?;
                let result = bed.add(&bed.config()?)?;
                bed.del(&bed.config_for(1, json!({ "prevResult": result }))?)?;
                bed.is_again(&before, "after DEL")
            }),
            check(
                "netns-empty",
                "DEL without CNI_NETNS succeeds and gives the address back: the variable is optional",
                DEL,
                |bed| netns_gone(bed, ""),
            ),
            check(
                "netns-gone",
                "DEL succeeds and gives the address back when the namespace no longer exists",
                DEL,
                |bed| netns_gone(bed, "/absent/netns"),
            ),
            check(
                "fell-home",
                "the NIC came home under the pod's name, as real NICs do when a namespace ends: DEL puts it right",
                DEL,
                fell_home,
            ),
            check(
                "late-del",
                "a late DEL for the last pod does not touch the NIC that the next pod has by now",
                DEL,
                late_del,
            ),
            check(
                "ipam-del-fails",
                "IPAM fails in DEL: that is told, and the NIC comes home all the same, now or by the next DEL",
                DEL,
                ipam_del_fails,
            ),
            check(
                "add-again",
                "after DEL the same NIC can be given to another pod, and comes home again",
                LIFECYCLE,
                |bed| {
                    let before = bed.picture()?;
                    let config = bed.config()?;
                    bed.add(&config)?;
                    bed.del(&config)?;
                    let second = Pod::new()?;
                    bed.verb("ADD", "c2", &second, &config)?.result()?;
                    bed.verb("DEL", "c2", &second, &config)?.result()?;
                    bed.pod_is_empty(&second, "after the second DEL")?;
                    bed.is_again(&before, "after the second DEL")
                },
            ),
        ],
    }
}

/// A DEL that must give the address back, whatever it knows of the namespace.
fn netns_gone(bed: &Bed<'_>, netns: &str) -> Verdict {
    let config = bed.config()?;
    bed.add(&config)?;
    // The NIC of the check is a virtual one, and would end with its namespace.
    bed.pod.ip(&format!("link del {IF_NAME}"))?;
    bed.call(Call { verb: "DEL", container: "c1", netns, if_name: IF_NAME }, &config)?.result()?;
    let leased = bed.leased()?;
    hold!(leased.is_empty(), "an address stays leased to {}", leased.join(", "));
    Ok(())
}

fn fell_home(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    bed.pod.ip(&format!("link set {IF_NAME} netns {}", path_of(&bed.node)))?;
    let call = Call { verb: "DEL", container: "c1", netns: "/absent/netns", if_name: IF_NAME };
    bed.call(call, &config)?.result()?;
    bed.is_again(&before, "after DEL")
}

fn late_del(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    bed.del(&config)?;
    let second = Pod::new()?;
    bed.verb("ADD", "c2", &second, &config)?.result()?;
    let theirs = second.picture()?;
    // That it succeeds is what other checks ask for.
    bed.verb("DEL", "c1", &bed.pod, &config)?;
    let differences = theirs.differences(&second.picture()?);
    hold!(differences.is_empty(), "in the second pod: {}", differences.join("; "));
    bed.verb("DEL", "c2", &second, &config)?.result()?;
    bed.is_again(&before, "after the second pod's DEL")
}

fn ipam_del_fails(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    bed.ipam("DEL", r#"echo "{\"cniVersion\":\"$version\",\"code\":112,\"msg\":\"disk full\"}"; exit 1"#)?;
    bed.verb("DEL", "c1", &bed.pod, &config)?.error()?;
    bed.ipam("DEL", "")?;
    bed.del(&config)?;
    bed.is_again(&before, "after the next DEL")
}
