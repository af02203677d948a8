//! `kill-at <point> <program>` kills a program just after the system call of this number that changes something; `kill-at <program>` kills
//! it nowhere. Either prints the calls, one a line, and passes standard input on. For tests in the VM.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env::args_os;
use std::io::Read;
use std::process::Command;

use linux::testing::trace::{Side, run};

fn main() {
    let mut arguments = args_os().skip(1).collect::<Vec<_>>();
    let program = arguments.pop().expect("a program");
    let point = arguments.pop().map(|point| point.to_str().unwrap().parse().unwrap());
    let mut stdin = Vec::new();
    std::io::stdin().read_to_end(&mut stdin).unwrap();
    let traced = run(&mut Command::new(program), &stdin, point.map(|point| (point, Side::After)));
    assert_eq!(traced.code.is_none(), point.is_some(), "{}{}", traced.stdout, traced.stderr);
    for point in traced.points {
        println!("{} {}", point.child.as_deref().unwrap_or("plugin"), point.what);
    }
}
