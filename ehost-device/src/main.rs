//! `ehost-device`: the CNI plugin that moves a NIC into a pod and brings it home.
//!
//! ADD is a transaction: it completes, or host, pod and IPAM are as before. Its undo information is on disk before the
//! first change ([`ledger`]), so that whatever process dies at whatever instant, a later DEL, GC or ADD makes good.
//!
//! <https://www.cni.dev/docs/spec/>

mod allocation;
mod check;
mod code;
mod config;
mod identity;
mod owner;
mod plumb;
mod release;
mod select;
mod status;

use std::process::ExitCode;

use cni::plugin::{About, Add, Check, Del, Gc, Plugin, Status};
use cni::{Error, Success};

fn main() -> ExitCode {
    cni::plugin::main(&EhostDevice, &About::new("ehost-device", env!("CARGO_PKG_VERSION")))
}

struct EhostDevice;

impl Plugin for EhostDevice {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        plumb::add(add)
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        release::del(del)
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        check::check(check)
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        release::gc(gc)
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        status::status(status)
    }
}
