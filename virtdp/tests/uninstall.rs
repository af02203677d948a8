//! `virtdp uninstall --stay`, as the pod on each node runs it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

#[test]
fn it_stays_when_all_is_done_and_ends_well_when_it_is_told_to() {
    let node = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_virtdp"))
        .args(["uninstall", "--stay", "--host"])
        .arg(node.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.starts_with("nothing of virtnet is left"), "{line}");
    let told = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    let ended = child.wait().unwrap();
    assert!(told.success());
    assert_eq!(ended.code(), Some(0));
}
