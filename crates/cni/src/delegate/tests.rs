use std::fs;
use std::process::Command;
use std::time::Instant;

use super::*;
use crate::testing::Scripts;
use crate::{ContainerId, Object};
use serde_json::json;

fn config(version: &str) -> Config {
    let object: Object = json!({
        "cniVersion": version, "name": "n", "type": "main", "ipam": {"type": "ipam"},
        "prevResult": {"cniVersion": version, "ips": [{"version": "4", "address": "10.0.0.9/24"}]}
    })
    .as_object()
    .cloned()
    .unwrap();
    Config::from_object(object).unwrap()
}

fn environment(scripts: &Scripts) -> Environment {
    Environment {
        container_id: Some("c1".parse::<ContainerId>().unwrap()),
        if_name: Some("net1".parse().unwrap()),
        netns: Some("/var/run/netns/x".into()),
        args: crate::Args::new("A=1"),
        ..Environment::new(Verb::Add, scripts.path())
    }
}

fn kind(name: &str) -> PluginType {
    name.parse().unwrap()
}

#[test]
fn a_delegate_gets_the_environment_and_the_configuration_as_they_are() {
    let scripts = Scripts::new();
    scripts.add("p", r#"env | grep ^CNI_ | sort >&2; cat >&2; echo '{"cniVersion":"1.0.0","code":7,"msg":"no","details":"d"}'; exit 1"#);
    let plugins = Plugins::on(scripts.path());
    let error = plugins.add(&kind("p"), &config("1.0.0"), &environment(&scripts)).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::INVALID_CONFIG, "plugin p: no"));
    let folder = scripts.path();
    let seen = error.details.replace(&folder.as_os_str().display().to_string(), "PATH");
    insta::assert_snapshot!(seen, @r#"
    d; stderr: CNI_ARGS=A=1
    CNI_COMMAND=ADD
    CNI_CONTAINERID=c1
    CNI_IFNAME=net1
    CNI_NETNS=/var/run/netns/x
    CNI_PATH=PATH
    {"cniVersion":"1.0.0","ipam":{"type":"ipam"},"name":"n","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.9/24","version":"4"}]},"type":"main"}
    "#);
}

#[test]
fn an_older_delegate_is_called_again_in_the_newest_version_that_it_speaks() {
    let scripts = Scripts::new();
    scripts.add(
        "old",
        r#"config=$(cat); printf '%s %s\n' "$CNI_COMMAND" "$config" >> "$0.log"
        case "$CNI_COMMAND $config" in
        GC*|STATUS*) echo '{"code":3,"msg":"missing containerID"}'; exit 1;;
        VERSION*) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","7.0.0"]}';;
        *'"cniVersion":"1.1.0"'*) echo '{"code":1,"msg":"incompatible CNI versions"}'; exit 1;;
        *) echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}';;
        esac"#,
    );
    let plugins = Plugins::on(scripts.path());
    let environment = environment(&scripts);
    let success = plugins.add(&kind("old"), &config("1.1.0"), &environment).unwrap();
    assert_eq!(success.ips[0].address, "10.0.0.2/24".parse().unwrap());
    // What came after its version is not its business.
    plugins.gc(&kind("old"), &config("1.1.0"), &environment).unwrap();
    plugins.status(&kind("old"), &config("1.1.0"), &environment).unwrap();
    insta::assert_snapshot!(scripts.log("old"), @r#"
    ADD {"cniVersion":"1.1.0","ipam":{"type":"ipam"},"name":"n","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.9/24","version":"4"}]},"type":"main"}
    VERSION {"cniVersion":"1.1.0"}
    ADD {"cniVersion":"0.4.0","ipam":{"type":"ipam"},"name":"n","prevResult":{"cniVersion":"0.4.0","ips":[{"address":"10.0.0.9/24","version":"4"}]},"type":"main"}
    GC {"cniVersion":"1.1.0","ipam":{"type":"ipam"},"name":"n","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.9/24","version":"4"}]},"type":"main"}
    VERSION {"cniVersion":"1.1.0"}
    STATUS {"cniVersion":"1.1.0","ipam":{"type":"ipam"},"name":"n","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.9/24","version":"4"}]},"type":"main"}
    VERSION {"cniVersion":"1.1.0"}
    "#);
}

#[test]
fn a_delegate_that_hangs_is_killed_with_its_children() {
    let scripts = Scripts::new();
    // The script and its child hold the pipe open: its end is theirs.
    assert!(Command::new("mkfifo").arg(scripts.file("slow.pipe")).status().unwrap().success());
    scripts.add("slow", r#"exec 3> "$0.pipe"; echo busy >&2; sleep 600 & wait"#);
    let pipe = scripts.file("slow.pipe");
    let both_dead = std::thread::spawn(move || fs::read(pipe).unwrap());
    let plugins = Plugins::on(scripts.path()).with_deadline(Duration::from_millis(500));
    let begin = Instant::now();
    let error = plugins.del(&kind("slow"), &config("1.0.0"), &environment(&scripts)).unwrap_err();
    assert_eq!(error.to_string(), "plugin slow did not finish DEL within 0.5 s: busy (code 11)");
    assert_eq!(both_dead.join().unwrap(), b"");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_delegate_that_leaves_a_child_behind_is_not_waited_for() {
    let scripts = Scripts::new();
    scripts.add("daemon", r#"sleep 600 & echo $! > "$0.pid"; echo '{"cniVersion":"1.0.0"}'"#);
    let begin = Instant::now();
    let plugins = Plugins::on(scripts.path());
    let success = plugins.add(&kind("daemon"), &config("1.0.0"), &environment(&scripts)).unwrap();
    let pid = fs::read_to_string(scripts.file("daemon.pid")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert_eq!(success, Success::default());
    assert!(begin.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_delegate_that_floods_or_babbles_is_an_error() {
    let scripts = Scripts::new();
    scripts.add("flood", "exec cat /dev/zero");
    scripts.add("babble", "echo hello; exit 0");
    scripts.add("silent", "exit 3");
    scripts.add("loud", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1");
    scripts.add("dead", "kill -9 $$");
    let plugins = Plugins::on(scripts.path());
    let environment = environment(&scripts);
    let add = |name| plugins.add(&kind(name), &config("1.0.0"), &environment).unwrap_err();
    assert_eq!(add("flood").to_string(), "plugin flood answered ADD with more than 4194304 bytes (code 6)");
    assert_eq!(add("babble").code, Code::DECODE);
    assert_eq!(
        add("silent").to_string(),
        "plugin silent ended with exit code 3 on ADD and gave no reason (code 999)"
    );
    assert_eq!(
        add("dead").to_string(),
        "plugin dead was killed by signal 9 on ADD and gave no reason (code 999)"
    );
    let loud = add("loud");
    assert!(loud.details.ends_with("xend") && loud.details.len() <= 8 << 10, "{}", loud.details.len());
}

#[test]
fn a_plugin_that_is_not_there_or_cannot_be_run_is_named() {
    let scripts = Scripts::new();
    fs::write(scripts.file("text"), "").unwrap();
    let plugins = Plugins::on(SearchPath::new("/nowhere"));
    let error = plugins.find(&kind("text")).unwrap_err();
    assert_eq!(error.to_string(), "plugin text was not found: looked in /nowhere (code 5)");
    assert!(Plugins::on(scripts.path()).find(&kind("text")).is_err());
}

#[test]
fn a_failed_ipam_add_is_followed_by_a_del() {
    let scripts = Scripts::new();
    scripts.add(
        "ipam",
        r#"echo "$CNI_COMMAND" >> "$0.log"; [ "$CNI_COMMAND" = DEL ] || { echo '{"code":11,"msg":"full"}'; exit 1; }"#,
    );
    let plugins = Plugins::on(scripts.path());
    let error = plugins.ipam_add(&config("1.0.0"), &environment(&scripts)).unwrap_err();
    assert_eq!(error.to_string(), "plugin ipam: full (code 11)");
    assert_eq!(scripts.log("ipam"), "ADD\nDEL\n");
}

#[test]
fn a_large_configuration_and_a_large_answer_pass() {
    let scripts = Scripts::new();
    scripts.add(
        "echo",
        r#"cat > "$0.in"; head -c 1000000 /dev/zero | tr '\0' ' '; echo '{"cniVersion":"1.0.0"}'"#,
    );
    let large = config("1.0.0").with("junk", "x".repeat(1_000_000));
    let plugins = Plugins::on(scripts.path());
    plugins.add(&kind("echo"), &large, &environment(&scripts)).unwrap();
    assert_eq!(fs::read(scripts.file("echo.in")).unwrap(), large.to_bytes());
}
