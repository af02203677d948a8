//! Calls that cannot be right: the code, the form of the error, and that nothing was touched.

use serde_json::json;

use super::{ADD, ERROR};
use crate::bed::{Bed, Call, IF_NAME, path_of};
use crate::check::{Area, Check, Verdict, hold};

pub(super) fn area() -> Area {
    const PARAMETERS: &str = "parameters";
    let check = |name, expects, section, run| Check { name, expects, section, run };
    Area {
        title: "errors",
        checks: vec![
            check(
                "no-container-id",
                "ADD without CNI_CONTAINERID fails with code 4: it must not be empty",
                PARAMETERS,
                |bed| environment(bed, "", IF_NAME, None),
            ),
            check(
                "bad-container-id",
                "ADD for container ../c1 fails with code 4: it must start with a letter or digit, and becomes file names",
                PARAMETERS,
                |bed| environment(bed, "../c1", IF_NAME, None),
            ),
            check(
                "no-interface-name",
                "ADD without CNI_IFNAME fails with code 4: it is required",
                ADD,
                |bed| environment(bed, "c1", "", None),
            ),
            check(
                "bad-interface-name",
                "ADD with an interface name that no interface can have fails with code 4",
                PARAMETERS,
                |bed| {
                    for name in ["a/b", "..", "a-name-of-more-than-15"] {
                        environment(bed, "c1", name, None)?;
                    }
                    Ok(())
                },
            ),
            check("no-netns", "ADD without CNI_NETNS fails with code 4: it is required", ADD, |bed| {
                environment(bed, "c1", IF_NAME, Some(""))
            }),
            check("unknown-verb", "an unknown CNI_COMMAND fails with code 4", ERROR, unknown_verb),
            check(
                "not-json",
                "a configuration that is no JSON fails with code 6: it cannot be decoded",
                ERROR,
                |bed| configuration(bed, "{\"cniVersion\": ", 6),
            ),
            check(
                "no-network-name",
                "a configuration without a name fails with code 7: it is required",
                ERROR,
                |bed| configuration(bed, &bed.config_for(1, json!({ "name": null }))?.to_string(), 7),
            ),
            check(
                "absent-netns",
                "ADD into a namespace that does not exist fails, and nothing is touched",
                ADD,
                |bed| refused_in(bed, "/absent/netns"),
            ),
            check(
                "no-netns-file",
                "ADD into a file that is no namespace fails, and nothing is touched",
                ADD,
                |bed| refused_in(bed, "/etc/passwd"),
            ),
            check(
                "own-netns",
                "ADD into the node's own namespace fails, and nothing is touched: the NIC would be renamed on the node",
                ADD,
                |bed| refused_in(bed, &path_of(&bed.node)),
            ),
            check(
                "absent-device",
                "ADD of a NIC that does not exist fails, and nothing is touched",
                ADD,
                |bed| {
                    let before = bed.picture()?;
                    bed.verb("ADD", "c1", &bed.pod, &bed.config_for(77, json!({}))?)?.error()?;
                    bed.is_again(&before, "after the refused ADD")
                },
            ),
            check(
                "no-device",
                "a configuration that names no NIC fails, and nothing is touched",
                ERROR,
                |bed| {
                    let before = bed.picture()?;
                    let mut config = bed.config()?;
                    for (key, _) in bed.subject.keys("eth1", "") {
                        config.as_object_mut().map(|object| object.remove(&key));
                    }
                    bed.verb("ADD", "c1", &bed.pod, &config)?.error()?;
                    bed.is_again(&before, "after the refused ADD")
                },
            ),
        ],
    }
}

/// An ADD with a fault in its environment; into the pod where no other namespace is given.
fn environment(bed: &Bed<'_>, container: &str, if_name: &str, netns: Option<&str>) -> Verdict {
    let before = bed.picture()?;
    let path = bed.pod.path();
    let call = Call { verb: "ADD", container, netns: netns.unwrap_or(&path), if_name };
    let code = bed.call(call, &bed.config()?)?.error()?;
    hold!(code == 4, "the code is {code}");
    bed.is_again(&before, "after the refused ADD")
}

fn unknown_verb(bed: &Bed<'_>) -> Verdict {
    let code = bed.verb("FROBNICATE", "c1", &bed.pod, &bed.config()?)?.error()?;
    hold!(code == 4, "the code is {code}");
    Ok(())
}

fn configuration(bed: &Bed<'_>, stdin: &str, wanted: u64) -> Verdict {
    let before = bed.picture()?;
    let path = bed.pod.path();
    let variables =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &path), ("CNI_IFNAME", IF_NAME)];
    let code = bed.raw(&variables, stdin.as_bytes())?.error()?;
    hold!(code == wanted, "the code is {code}");
    bed.is_again(&before, "after the refused ADD")
}

fn refused_in(bed: &Bed<'_>, netns: &str) -> Verdict {
    let before = bed.picture()?;
    let call = Call { verb: "ADD", container: "c1", netns, if_name: IF_NAME };
    bed.call(call, &bed.config()?)?.error()?;
    bed.is_again(&before, "after the refused ADD")
}
