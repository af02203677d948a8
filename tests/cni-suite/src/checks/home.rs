//! What the NIC was on the node it is again after DEL: moving it loses some of that, so a plugin must remember it.

use super::DEL;
use crate::bed::Bed;
use crate::check::{Area, Check, Verdict, hold};

pub(super) fn area() -> Area {
    let check = |name, expects, run| Check { name, expects, section: DEL, run };
    Area {
        title: "home",
        checks: vec![
            check("was-up", "a NIC that was up comes home up: the kernel sets it down on each move", |bed| {
                comes_home(bed, &["link set eth1 up"])
            }),
            check(
                "had-no-alias",
                "a NIC without an alias comes home without: what a plugin notes there is not left",
                alias_again,
            ),
            check("had-an-alias", "a NIC with an alias (ip link set alias) comes home with it", |bed| {
                bed.ip("link set eth1 alias spare")?;
                alias_again(bed)
            }),
            check("had-alternative-names", "a NIC with alternative names comes home with them", |bed| {
                comes_home(
                    bed,
                    &["link property add dev eth1 altname enp0s10 altname a-rather-long-alternative-name"],
                )
            }),
            check(
                "had-an-address",
                "a NIC with an address comes home with it, though the move drops it; or ADD fails and touches nothing: the node may need it",
                had_an_address,
            ),
            check("was-in-a-bridge", "a NIC that was a bridge's port is one again", |bed| {
                comes_home(bed, &["link add br7 type bridge", "link set eth1 master br7"])
            }),
            check(
                "alternative-name-wanted",
                "a NIC that has the wanted name as alternative name on the node gets it in the pod, or ADD fails; DEL puts all right",
                alternative_name_wanted,
            ),
            check(
                "alternative-name-taken-in-the-pod",
                "an alternative name of the NIC is an interface's name in the pod: ADD succeeds, or fails and touches nothing",
                alternative_name_taken,
            ),
            check(
                "name-taken-at-home",
                "another link has the NIC's name at DEL: it is not touched, and once it has gone a DEL puts all right",
                |bed| taken_at_home(bed, "link add eth1 type bridge", "eth1"),
            ),
            check(
                "alternative-name-taken-at-home",
                "the same where it has the NIC's alternative name",
                |bed| {
                    bed.ip("link property add dev eth1 altname enp0s10")?;
                    taken_at_home(bed, "link add enp0s10 type bridge", "enp0s10")
                },
            ),
        ],
    }
}

fn comes_home(bed: &Bed<'_>, past: &[&str]) -> Verdict {
    for arguments in past {
        bed.ip(arguments)?;
    }
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    bed.del(&config)?;
    bed.is_again(&before, "after DEL")
}

fn had_an_address(bed: &Bed<'_>) -> Verdict {
    bed.ip("link set eth1 up")?;
    bed.ip("addr add 10.77.0.1/24 dev eth1")?;
    let before = bed.picture()?;
    let config = bed.config()?;
    let added = bed.verb("ADD", "c1", &bed.pod, &config)?;
    if !added.succeeded() {
        return bed.is_again(&before, "after the refused ADD");
    }
    bed.del(&config)?;
    bed.is_again(&before, "after DEL")
}

fn alias_again(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    comes_home(bed, &[])?;
    let (now, was) = (bed.picture()?, before.alias("eth1"));
    hold!(now.alias("eth1") == was, "after DEL the alias is {:?}, was {was:?}", now.alias("eth1"));
    Ok(())
}

fn alternative_name_wanted(bed: &Bed<'_>) -> Verdict {
    bed.ip("link property add dev eth1 altname net1")?;
    let before = bed.picture()?;
    let config = bed.config()?;
    let added = bed.verb("ADD", "c1", &bed.pod, &config)?;
    if added.succeeded() {
        let picture = bed.pod.picture()?;
        hold!(picture.names() == ["net1"], "ADD succeeds, and the pod has {}", picture.names().join(", "));
    }
    bed.del(&config)?;
    bed.is_again(&before, "after DEL")
}

fn alternative_name_taken(bed: &Bed<'_>) -> Verdict {
    bed.ip("link property add dev eth1 altname enp0s10")?;
    bed.pod.ip("link add enp0s10 type bridge")?;
    let (node, pod) = (bed.picture()?, bed.pod.picture()?);
    let config = bed.config()?;
    let added = bed.verb("ADD", "c1", &bed.pod, &config)?;
    let when = if added.succeeded() {
        bed.del(&config)?;
        "after DEL"
    } else {
        "after the refused ADD"
    };
    bed.node_is_again(&node, when)?;
    let differences = pod.differences(&bed.pod.picture()?);
    hold!(differences.is_empty(), "{when}, in the pod: {}", differences.join("; "));
    Ok(())
}

fn taken_at_home(bed: &Bed<'_>, thief: &str, name: &str) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    bed.add(&config)?;
    bed.ip(thief)?;
    let theirs = bed.picture()?.link(name).cloned();
    // Whether it succeeds is the plugin's business: it may put the NIC aside, or leave it where it is.
    bed.verb("DEL", "c1", &bed.pod, &config)?;
    hold!(bed.picture()?.link(name).cloned() == theirs, "DEL changed the link that has the name {name} now");
    bed.ip(&format!("link del {name}"))?;
    bed.del(&config)?;
    bed.is_again(&before, &format!("after {name} has gone, and a DEL"))
}
