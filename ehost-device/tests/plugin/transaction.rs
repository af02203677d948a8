//! ADD is a transaction: each of its steps fails once, and every time node, pod, ledger and IPAM are as before, byte for byte. Where the undoing
//! fails, too, the next DEL makes all good; so it does after a DEL that failed anywhere.

use linux::testing::bpf;
use serde_json::{Value, json};

use crate::bench::{ANSWERS, Answer};
use crate::rich::Rich;

/// Steps whose failure is told and no more: the neighbours find out by themselves.
const TOLD: [&str; 6] = [
    "announce ",
    "forget neighbour ",
    "open a packet socket",
    "gratuitous ARP",
    "open a ICMPv6 socket",
    "neighbour advertisement",
];

/// A call one of whose steps is to fail.
struct Trial {
    answer: Answer,
    /// All steps, by name, in order.
    steps: Vec<String>,
}

impl Trial {
    fn run(rich: &Rich, verb: &str, config: &Value, fault: &str) -> Trial {
        let list = rich.bench.folder.path().join("steps");
        let _ = std::fs::remove_file(&list);
        let variables = [format!("VIRTNET_FAULT={fault}"), format!("VIRTNET_STEPS={}", list.display())];
        let program = ["env", &variables[0], &variables[1]];
        let answer = rich.bench.run_through(&program, verb, config);
        let steps = std::fs::read_to_string(&list).unwrap_or_default();
        Trial { answer, steps: steps.lines().map(str::to_owned).collect() }
    }

    /// In what the answer of an ADD whose `step` failed is not good enough.
    fn wrong(&self, step: &str) -> Option<String> {
        let text = self.answer.text();
        let named = ["eth1", "default/testpod1", step].into_iter().find(|word| !text.contains(word))?;
        Some(format!("{named:?} is not in {text:?}"))
    }
}

/// Makes the steps from the `first` on fail one after the other, as `how` has it: `trial` returns the call and what is wrong after it, or
/// nothing where there are no so many steps. Returns how many there are.
fn every_step(
    first: usize,
    how: &str,
    mut trial: impl FnMut(&str, usize) -> Option<(Trial, Vec<String>)>,
) -> usize {
    let mut all_wrong = Vec::new();
    for number in first.. {
        let Some((trial, wrong)) = trial(&format!("{number}{how}"), number) else {
            assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n\n"));
            return number - first;
        };
        let step = trial.steps[number - 1].clone();
        all_wrong.extend(wrong.into_iter().map(|wrong| format!("{number}{how}, {step}: {wrong}")));
    }
    unreachable!()
}

fn variants(rich: &Rich) -> [Value; 2] {
    [rich.network(json!({})), rich.network(json!({"keepAddresses": true}))]
}

fn an_add_fails(how: &str) {
    let rich = Rich::new();
    for config in variants(&rich) {
        let count = every_step(1, how, |fault, number| {
            let trial = Trial::run(&rich, "ADD", &config, fault);
            if trial.steps.len() < number {
                assert!(trial.answer.ok, "{}", trial.answer.text());
                rich.bench.run("DEL", &config).expect();
                return None;
            }
            let step = &trial.steps[number - 1];
            let mut wrong = Vec::new();
            if trial.answer.ok {
                // One that was done, or that the kernel refused as it may, need not make the ADD fail.
                if how.is_empty() && !TOLD.iter().any(|told| step.starts_with(told)) {
                    wrong.push("it is not told".to_owned());
                }
                let mut check = config.clone();
                check["prevResult"] = trial.answer.json.clone();
                rich.bench.run("CHECK", &check).expect();
                rich.bench.run("DEL", &config).expect();
            } else {
                wrong.extend(trial.wrong(step));
            }
            if let Some(amiss) = rich.amiss() {
                wrong.push(format!("{amiss}; {}; {:#?}", trial.answer.json, trial.steps));
                rich.bench.run("DEL", &config).expect();
                assert_eq!(rich.amiss(), None, "{fault}, {step}: after DEL {wrong:?}");
            }
            Some((trial, wrong))
        });
        println!("{count} steps of an ADD, failing as \"N{how}\"");
    }
}

#[test]
fn each_step_of_an_add_fails_and_all_is_as_it_was() {
    an_add_fails("");
}

#[test]
fn each_step_of_an_add_is_done_and_told_as_failed_and_all_is_as_it_was() {
    an_add_fails(" done");
}

/// Either all is as it was, or there is a lease, and one DEL puts all right.
fn undoing_fails(first: usize, how: &str, of: &str, rich: &Rich, config: &Value) {
    let count = every_step(first, how, |fault, number| {
        let trial = Trial::run(rich, "ADD", config, fault);
        if trial.steps.len() < number {
            rich.bench.run("DEL", config).expect();
            return None;
        }
        let mut wrong = Vec::new();
        if !rich.bench.lease().exists() {
            wrong.extend(rich.amiss().map(|amiss| format!("without a lease {amiss}")));
        }
        let deleted = rich.bench.run("DEL", config);
        if !deleted.ok {
            wrong.push(format!("DEL: {}", deleted.text()));
        }
        wrong.extend(rich.amiss());
        Some((trial, wrong))
    });
    println!("{count} steps of {of}, failing as \"N{how}\"");
}

#[test]
fn while_ipam_is_owed_addresses_the_lease_is_never_off_the_disk() {
    let rich = Rich::new();
    rich.bench.ipam("fails", "exit 1");
    let config = rich.network(json!({"ipam": {"type": "fails"}}));
    let trial = Trial::run(&rich, "ADD", &config, "0");
    assert!(!trial.answer.ok && rich.bench.lease().exists());
    let of_lease = |verb: &str| {
        let is = |step: &&String| step.starts_with(verb) && step.ends_with("/leases/link:eth1.json");
        trial.steps.iter().filter(is).count()
    };
    assert_eq!((of_lease("replace "), of_lease("remove ")), (2, 0), "{:#?}", trial.steps);
    rich.bench.ipam("fails", ANSWERS);
    rich.bench.run("DEL", &config).expect();
    assert_eq!(rich.amiss(), None);
}

#[test]
fn each_step_of_an_add_fails_with_all_that_would_undo_it_and_one_del_puts_all_right() {
    let rich = Rich::new();
    for config in variants(&rich) {
        undoing_fails(1, " on", "an ADD", &rich, &config);
    }
}

#[test]
fn each_step_that_undoes_an_add_fails_and_one_del_puts_all_right() {
    let rich = Rich::new();
    // The kernel refuses the last one.
    let routes = json!([{"dst": "192.0.3.0/24"}, {"dst": "fd01::/64", "gw": "10.0.0.9"}]);
    // Or the VLAN, if it knows none.
    let refusals = ["add route fd01::/64", "add VLAN 5"];
    for (keys, refusals) in
        [(json!({"routes": routes}), &refusals[..1]), (json!({"routes": routes, "vlan": 5}), &refusals[..])]
    {
        let config = rich.network(keys);
        let refused = Trial::run(&rich, "ADD", &config, "");
        let text = refused.answer.text();
        let refusal = refusals.iter().find(|refusal| text.contains(**refusal)).expect(&text);
        assert_eq!(rich.amiss(), None);
        let last = refused.steps.iter().rposition(|step| step.starts_with(refusal)).unwrap() + 1;
        for how in ["", " done", " on"] {
            undoing_fails(last + 1, how, "undoing an ADD", &rich, &config);
        }
    }
}

/// `deeds` are the pod's, and what it gives is kept until all is over. `left` tells what of them is on the node afterwards.
fn a_del_fails<T>(rich: &Rich, of: &str, deeds: impl Fn() -> T, left: impl Fn() -> Option<String>) {
    let config = rich.network(json!({}));
    for how in ["", " done", " on"] {
        let count = every_step(1, how, |fault, number| {
            rich.bench.run("ADD", &config).expect();
            let kept = deeds();
            let amiss = || rich.amiss().or_else(&left);
            let trial = Trial::run(rich, "DEL", &config, fault);
            if trial.steps.len() < number {
                assert!(trial.answer.ok, "{}", trial.answer.text());
                return None;
            }
            let mut wrong = Vec::new();
            if trial.answer.ok {
                wrong.extend(amiss().map(|amiss| format!("a success, but {amiss}")));
            }
            let deleted = rich.bench.run("DEL", &config);
            if !deleted.ok {
                wrong.push(format!("DEL: {}", deleted.text()));
            }
            wrong.extend(amiss());
            drop(kept);
            Some((trial, wrong))
        });
        println!("{count} steps of {of}, failing as \"N{how}\"");
    }
}

#[test]
fn each_step_of_a_del_fails_and_the_next_del_puts_all_right() {
    a_del_fails(&Rich::new(), "a DEL", || (), || None);
}

#[test]
fn each_step_of_a_del_that_takes_bpf_programs_off_fails_and_the_next_del_puts_all_right() {
    if !bpf::can_attach() {
        return;
    }
    let rich = Rich::new();
    let bench = &rich.bench;
    let deeds = || {
        let index = bench.pod_link("net1").unwrap().index;
        let attach = || {
            bpf::attach_tcx(index).unwrap();
            [bpf::link_tcx(index).unwrap(), bpf::link_xdp(index).unwrap()]
        };
        bench.pod.run(attach).unwrap()
    };
    let left = || {
        let index = bench.node_link("eth1")?.index;
        let left = bench.node.run(|| linux::bpf::tcx(index)).unwrap().unwrap().unwrap();
        (!left.is_empty()).then(|| format!("there are {left:?}"))
    };
    a_del_fails(&rich, "a DEL with BPF programs", deeds, left);
}
