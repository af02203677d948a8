//! `ehost-device`: the CNI plugin that moves a NIC into a pod and brings it home.
//!
//! ADD is a transaction: it completes, or host, pod and IPAM are as before. Its undo information is on disk before the
//! first change ([`ledger`]), so that whatever process dies at whatever instant, a later DEL, GC or ADD makes good.
//!
//! <https://www.cni.dev/docs/spec/>

// `eprintln!` panics where nobody reads stderr any more; `cni::tell!` does not.
#![warn(clippy::print_stderr)]

mod allocation;
mod check;
mod code;
mod config;
mod identity;
mod log;
mod owner;
mod plumb;
mod release;
mod select;
mod status;

use std::process::ExitCode;

use cni::plugin::{About, Add, Check, Del, Gc, Plugin, Status};
use cni::{Error, Success};

use crate::log::logged;

fn main() -> ExitCode {
    cni::plugin::main(&EhostDevice, &About::new("ehost-device", env!("CARGO_PKG_VERSION")))
}

struct EhostDevice;

impl Plugin for EhostDevice {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        logged(&add.config, &add.environment, |steps| plumb::add(add, steps))
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        logged(&del.config, &del.environment, |steps| release::del(del, steps))
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        logged(&check.config, &check.environment, |steps| check::check(check, steps))
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        logged(&gc.config, &gc.environment, |steps| release::gc(gc, steps))
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        logged(&status.config, &status.environment, |steps| status::status(status, steps))
    }
}
