//! One line of JSON for each call.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::bench::Bench;

fn lines(path: &PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn steps(line: &Value) -> Vec<&str> {
    line["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect()
}

#[test]
fn each_call_leaves_one_line_with_the_time_of_each_step() {
    let bench = Bench::new();
    let path = bench.folder.path().join("log.json");
    let config = |keys: Value| {
        let mut config = bench.config(json!({"log": path}));
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config
    };
    let added = bench.run("ADD", &config(json!({}))).expect();
    bench.run("CHECK", &config(json!({"prevResult": added.json}))).expect();
    assert_eq!(bench.run("ADD", &config(json!({}))).code(), 103);
    bench.run("DEL", &config(json!({}))).expect();
    bench.run_for("STATUS", "", "", &config(json!({}))).expect();
    bench.run_for("GC", "", "", &config(json!({"cni.dev/valid-attachments": []}))).expect();
    // A key that is wrong elsewhere does not keep a DEL from its line.
    bench.run("DEL", &config(json!({"vlan": "x"}))).expect();

    let lines = lines(&path);
    let said: Vec<_> = lines
        .iter()
        .map(|line| format!("{} {} {}", line["command"], line["outcome"], line["code"]).replace('"', ""))
        .collect();
    assert_eq!(
        said,
        [
            "ADD ok null",
            "CHECK ok null",
            "ADD error 103",
            "DEL ok null",
            "STATUS ok null",
            "GC ok null",
            "DEL ok null"
        ]
    );
    let add = &lines[0];
    let known =
        ["network", "container", "ifname", "netns", "pod", "device"].map(|key| add[key].as_str().unwrap());
    let netns = bench.pod_path().display().to_string();
    assert_eq!(known, ["virt-net1", "one", "net1", netns.as_str(), "default/testpod1", "link:eth1"]);
    assert!(add["time"].as_f64().unwrap() > 1.7e9);
    assert_eq!(
        steps(add),
        ["prepare", "allocation", "lock", "judge", "lease", "move", "ipam", "configure", "lease"]
    );
    let sum: u64 = add["steps"].as_array().unwrap().iter().map(|step| step["us"].as_u64().unwrap()).sum();
    assert!(sum > 0 && sum <= add["us"].as_u64().unwrap(), "{add}");
    // What failed is the last step.
    assert_eq!(steps(&lines[2]).last(), Some(&"judge"));
    assert!(lines[2]["message"].as_str().unwrap().contains("already attached to pod default/testpod1"));
    assert_eq!(steps(&lines[3]), ["prepare", "lock", "ipam", "home"]);
    assert_eq!(lines[3]["device"], "link:eth1");
}

#[test]
fn a_log_that_cannot_be_written_fails_nothing_and_is_told() {
    let bench = Bench::new();
    let before = bench.portrait();
    for log in ["/dev/full", "/no/such/folder/log", "/proc/version"] {
        let config = bench.config(json!({"log": log}));
        for verb in ["ADD", "DEL"] {
            let answer = bench.run(verb, &config).expect();
            assert!(answer.stderr.contains(log), "{log}: {}", answer.stderr);
        }
        bench.assert_untouched(&before);
    }
}

#[test]
fn a_log_on_stderr_has_hostile_strings_on_one_line_and_stdout_is_the_results_alone() {
    let bench = Bench::new();
    bench.ipam(
        "hostile",
        r#"printf '{"cniVersion":"1.1.0","code":142,"msg":"a\\n{\\"command\\":\\"DEL\\"}\\u001b[2J\\u009b2J\\u007f\\u2028\\ud83d\\ude00"}'; exit 1"#,
    );
    let config = bench.config(json!({"log": "stderr", "ipam": {"type": "hostile"}}));
    let failed = bench.run("ADD", &config);
    assert_eq!(failed.code(), 142);
    let logged: Vec<&str> = failed.stderr.lines().filter(|line| line.starts_with('{')).collect();
    let [line] = logged.as_slice() else { panic!("{}", failed.stderr) };
    assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["command"], &line["code"]), (&json!("ADD"), &json!(142)));
    assert!(
        line["message"]
            .as_str()
            .unwrap()
            .contains("\n{\"command\":\"DEL\"}\u{1b}[2J\u{9b}2J\u{7f}\u{2028}\u{1f600}"),
        "{line}"
    );
    assert_eq!(steps(&line).last(), Some(&"undo"));
}

#[test]
fn that_nobody_hears_the_warnings_fails_no_call() {
    let bench = Bench::new();
    let before = bench.portrait();
    // Each ADD here warns of a device that no kubelet knows, each DEL of a key that is wrong.
    for (verb, keys) in [("ADD", json!({})), ("DEL", json!({"ipamTimeout": 0}))] {
        let mut config = bench.config(json!({"log": "stderr"}));
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        bench.run_through(&["sh", "-c", r#"exec "$0" 2>/dev/full"#], verb, &config).expect();
    }
    bench.assert_untouched(&before);
}

#[test]
fn lines_of_many_calls_stay_whole() {
    let bench = Bench::new();
    let path = bench.folder.path().join("log.json");
    let config = bench.config(json!({"log": path}));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (bench, config) = (&bench, &config);
            scope.spawn(move || bench.run_for("DEL", &format!("c{number}"), "", config).expect());
        }
    });
    let mut containers: Vec<_> =
        lines(&path).iter().map(|line| line["container"].as_str().unwrap().to_owned()).collect();
    containers.sort();
    assert_eq!(containers, ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"]);
}
