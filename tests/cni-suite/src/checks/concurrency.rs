//! Several containers at once, as a runtime may call them, and what a confused one sends.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::json;

use super::{ADD, DEL, LIFECYCLE};
use crate::answer::Answer;
use crate::bed::{Bed, IF_NAME, Pod};
use crate::check::{Area, Check, Stop, Verdict, hold};

pub(super) fn area() -> Area {
    let check = |name, expects, section, run| Check { name, expects, section, run };
    Area {
        title: "concurrency",
        checks: vec![
            check(
                "many",
                "8 ADDs and then 8 DELs at once, each for a NIC of its own: all succeed, all is as before",
                LIFECYCLE,
                many,
            ),
            check(
                "one-nic",
                "8 ADDs at once for one NIC: one wins, the others fail and disturb nobody; after all DELs all is as before",
                ADD,
                one_nic,
            ),
            check(
                "del-during-add",
                "DEL while ADD still runs (a runtime that gave up): a last DEL puts all right",
                DEL,
                del_during_add,
            ),
        ],
    }
}

const COUNT: u8 = 8;

/// Calls a verb for containers `c1`, `c2`, ... at once, each in its pod and for its NIC.
fn at_once(bed: &Bed<'_>, verb: &str, pods: &[(u8, &Pod, u8)]) -> Verdict<Vec<Answer>> {
    let mut configs = Vec::new();
    for (_, _, nic) in pods {
        configs.push(bed.config_for(*nic, json!({}))?);
    }
    let answers: Result<Vec<Answer>> = thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .zip(&configs)
            .map(|((container, pod, _), config)| {
                scope.spawn(move || bed.verb(verb, &format!("c{container}"), pod, config))
            })
            .collect();
        threads.into_iter().map(join).collect()
    });
    Ok(answers.context("cannot call the plugin")?)
}

fn pods() -> Result<Vec<Pod>> {
    (0..COUNT).map(|_| Pod::new()).collect()
}

fn many(bed: &Bed<'_>) -> Verdict {
    for number in 2..=COUNT {
        bed.nic(number)?;
    }
    let before = bed.picture()?;
    let pods = pods()?;
    let calls: Vec<_> = (1..).zip(&pods).map(|(number, pod)| (number, pod, number)).collect();
    for answer in at_once(bed, "ADD", &calls)? {
        answer.result()?;
    }
    for pod in &pods {
        let picture = pod.picture()?;
        hold!(picture.names() == [IF_NAME], "after ADD a pod has {}", picture.names().join(", "));
    }
    for answer in at_once(bed, "DEL", &calls)? {
        answer.result()?;
    }
    bed.is_again(&before, "after all DELs")
}

fn one_nic(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let pods = pods()?;
    let calls: Vec<_> = (1..).zip(&pods).map(|(number, pod)| (number, pod, 1)).collect();
    let answers = at_once(bed, "ADD", &calls)?;
    let winners: Vec<_> =
        calls.iter().zip(&answers).filter(|(_, answer)| answer.succeeded()).map(|(call, _)| *call).collect();
    let [winner] = winners.as_slice() else {
        return Err(Stop::Fault(format!("{} of {COUNT} ADDs succeed", winners.len())));
    };
    let losers: Vec<_> = calls.iter().filter(|(number, ..)| *number != winner.0).copied().collect();
    for answer in answers.iter().filter(|answer| !answer.succeeded()) {
        answer.error()?;
    }
    // That a DEL succeeds where there is nothing to do is what other checks ask for.
    at_once(bed, "DEL", &losers)?;
    for (number, pod, _) in &calls {
        let picture = pod.picture()?;
        let wanted: &[&str] = if *number == winner.0 { &[IF_NAME] } else { &[] };
        hold!(
            picture.names() == wanted,
            "when the losers are gone, the pod of c{number} has {:?}, not {wanted:?}",
            picture.names()
        );
    }
    for answer in at_once(bed, "DEL", &[*winner])? {
        answer.result()?;
    }
    bed.is_again(&before, "after all DELs")
}

fn del_during_add(bed: &Bed<'_>) -> Verdict {
    let before = bed.picture()?;
    let config = bed.config()?;
    // ADD says that it is in the middle, and goes on when DEL has begun.
    let begun = pipe(&bed.folder().join("begun"))?;
    let mut go = pipe(&bed.folder().join("go"))?;
    bed.ipam("ADD", r#"echo begun >"$folder/begun"; read go <"$folder/go""#)?;
    let del = thread::scope(|scope| {
        let add = scope.spawn(|| bed.verb("ADD", "c1", &bed.pod, &config));
        let heard = readable(&begun, bed.subject.limits.call);
        let del = scope.spawn(|| bed.verb("DEL", "c1", &bed.pod, &config));
        // At once: which of the two is done first is left to the machine.
        let gone = go.write_all(b"go\n").context("cannot let ADD go on");
        // Either may fail: the runtime has given up on the one, and will repeat the other.
        join(add).and(heard).and(gone).and(join(del))
    })?;
    hold!(del.ended(), "{del}");
    bed.ipam("ADD", "")?;
    bed.verb("DEL", "c1", &bed.pod, &config)?;
    bed.is_again(&before, "after the last DEL")
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// A named pipe, open at both ends, so that nobody waits for the other.
fn pipe(path: &Path) -> Result<File> {
    mkfifoat(CWD, path, Mode::RWXU).context("cannot make a pipe")?;
    File::options().read(true).write(true).open(path).context("cannot open a pipe")
}

fn readable(pipe: &File, limit: Duration) -> Result<()> {
    let limit = Timespec::try_from(limit).context("the time limit is too long")?;
    poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&limit)).context("cannot wait for ADD")?;
    Ok(())
}
