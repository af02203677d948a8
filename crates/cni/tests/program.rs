//! `plugin::main` in a real process: this program calls itself as a plugin that babbles, panics and runs children.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::env;
use std::io::Write;
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread;

use cni::plugin::{About, Add, Check, Del, Gc, Plugin, Status};
use cni::{Code, Error, Success};
use serde_json::{Value, json};

fn main() -> ExitCode {
    if env::var_os(AS_PLUGIN).is_some() {
        return cni::plugin::main(&Babbler, &About::new("babbler", "1"));
    }
    for (name, test) in TESTS {
        test();
        println!("test {name} ... ok");
    }
    // As libtest says it, for who counts.
    println!("test result: ok. {} passed; 0 failed;", TESTS.len());
    ExitCode::SUCCESS
}

/// Set where this program is to be the plugin.
const AS_PLUGIN: &str = "TEST_AS_PLUGIN";

const TESTS: [(&str, fn()); 4] = [
    ("only_the_result_is_on_stdout", only_the_result_is_on_stdout),
    ("an_error_is_on_stdout_and_in_the_exit_code", an_error_is_on_stdout_and_in_the_exit_code),
    ("a_panic_in_any_thread_is_answered_with_code_999", a_panic_in_any_thread_is_answered_with_code_999),
    ("run_by_hand_it_says_what_it_is", run_by_hand_it_says_what_it_is),
];

/// Does all that a plugin should not.
struct Babbler;

impl Plugin for Babbler {
    fn add(&self, _: &Add) -> Result<Success, Error> {
        println!("debug: adding");
        assert!(Command::new("echo").arg("a child").status().unwrap().success());
        Ok(Success::default())
    }

    fn del(&self, _: &Del) -> Result<(), Error> {
        panic!("no idea")
    }

    fn check(&self, _: &Check) -> Result<(), Error> {
        println!("debug: checking");
        Err(Error::new(Code(123), "the link is down").with_details("it rains"))
    }

    fn gc(&self, _: &Gc) -> Result<(), Error> {
        thread::spawn(|| panic!("in a thread")).join().map_err(|_| Error::new(Code(1), "joined"))
    }

    fn status(&self, _: &Status) -> Result<(), Error> {
        Ok(())
    }
}

fn call(verb: &str) -> Output {
    let mut child = Command::new(env::current_exe().unwrap())
        .env(AS_PLUGIN, "1")
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", "/dev/null")
        .env("CNI_PATH", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let config = json!({"cniVersion": "1.1.0", "name": "n", "cni.dev/valid-attachments": []});
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn only_the_result_is_on_stdout() {
    let output = call("ADD");
    assert!(output.status.success());
    assert_eq!(stdout(&output), json!({"cniVersion": "1.1.0"}));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "debug: adding\na child\n");
    assert_eq!(call("STATUS").stdout, b"");
}

fn an_error_is_on_stdout_and_in_the_exit_code() {
    let output = call("CHECK");
    assert_eq!(output.status.code(), Some(1));
    let expected =
        json!({"cniVersion": "1.1.0", "code": 123, "msg": "the link is down", "details": "it rains"});
    assert_eq!(stdout(&output), expected);
}

fn a_panic_in_any_thread_is_answered_with_code_999() {
    for (verb, words) in [("DEL", "no idea"), ("GC", "in a thread")] {
        let output = call(verb);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stdout(&output)["code"], 999);
        assert!(stdout(&output)["details"].as_str().unwrap().contains(words));
    }
}

fn run_by_hand_it_says_what_it_is() {
    let output = Command::new(env::current_exe().unwrap()).env(AS_PLUGIN, "1").output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "babbler 1, a CNI plugin for versions 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
    );
}
