//! The plugin is killed: the runtime calls DEL, as it must after whatever happened to an ADD, and all must be right.

use std::time::Duration;

use super::LIFECYCLE;
use crate::bed::{Bed, Pod};
use crate::check::{Area, Check, Stop, Verdict, hold};

pub(super) fn area() -> Area {
    let check = |name, expects, run| Check { name, expects, section: LIFECYCLE, run };
    Area {
        title: "kill",
        checks: vec![
            check(
                "killed-add",
                "ADD is killed, at instants over its whole run: one DEL, and all is as before and no address leased",
                |bed| {
                    killed(bed, |bed, after| {
                        let config = bed.config()?;
                        Ok(bed.kill("ADD", &config, after)?)
                    })
                },
            ),
            check(
                "killed-del",
                "DEL is killed, at instants over its whole run: one more DEL, and all is as before and no address leased",
                |bed| {
                    killed(bed, |bed, after| {
                        let config = bed.config()?;
                        bed.add(&config)?;
                        Ok(bed.kill("DEL", &config, after)?)
                    })
                },
            ),
            check(
                "killed-in-ipam",
                "ADD is killed while IPAM works, which gives an address to nobody: one DEL, and all is as before",
                killed_in_ipam,
            ),
            check("add-after-kill", "after a killed ADD and its DEL, another pod can have the NIC", |bed| {
                let before = bed.picture()?;
                kill_in_ipam(bed)?;
                let config = bed.config()?;
                bed.del(&config)?;
                let second = Pod::new()?;
                bed.verb("ADD", "c2", &second, &config)?.result()?;
                bed.verb("DEL", "c2", &second, &config)?.result()?;
                bed.is_again(&before, "after the second pod's DEL")
            }),
        ],
    }
}

/// Kills at instants over a run, and sees after each whether a DEL puts all right.
fn killed(bed: &Bed<'_>, act: fn(&Bed<'_>, Duration) -> Verdict<bool>) -> Verdict {
    let config = bed.config()?;
    let length = bed.time("ADD", &config)?.max(bed.time("DEL", &config)?);
    let count = bed.subject.limits.kills;
    let mut faults = Vec::new();
    let mut killed = 0;
    for instant in 0..count {
        // What one kill leaves behind must not be held against the next.
        let bed = bed.again()?;
        let before = bed.picture()?;
        killed += u32::from(act(&bed, length * instant / count)?);
        // Whether it finds anything to do depends on the instant: what counts is how things are then.
        bed.verb("DEL", "c1", &bed.pod, &config)?;
        match bed.is_again(&before, "after DEL") {
            Ok(()) => {}
            Err(Stop::Fault(why)) => faults.push(why),
            Err(other) => return Err(other),
        }
    }
    let first = faults.first().cloned().unwrap_or_default();
    hold!(
        faults.is_empty(),
        "after {} of {count} kills ({killed} of them before its end): {first}",
        faults.len()
    );
    Ok(())
}

/// Its own IPAM plugin kills it, once the address is leased.
fn kill_in_ipam(bed: &Bed<'_>) -> Verdict {
    bed.ipam("ADD", r#": >"$folder/leased/$CNI_CONTAINERID"; kill -9 $PPID; exit 1"#)?;
    let answer = bed.verb("ADD", "c1", &bed.pod, &bed.config()?)?;
    hold!(!answer.succeeded(), "ADD succeeds without its IPAM plugin");
    bed.ipam("ADD", "")?;
    Ok(())
}

fn killed_in_ipam(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    kill_in_ipam(bed)?;
    bed.del(&bed.config()?)?;
    bed.is_again(&before, "after DEL")
}
