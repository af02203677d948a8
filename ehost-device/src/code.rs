//! Our own error codes, from 100 up, and how errors of the crates below become the runtime's.

use cni::{Code, Error};

/// 100: the device is not on this node, or has no interface.
pub(crate) const DEVICE_NOT_FOUND: Code = Code(100);
/// 101: the NIC carries the node's own traffic.
pub(crate) const LIFELINE: Code = Code(101);
/// 102: the interface name, or an alternative name of the NIC, is taken in the pod.
pub(crate) const NAME_TAKEN: Code = Code(102);
/// 103: this container has this interface already.
pub(crate) const ALREADY_ATTACHED: Code = Code(103);
/// 104: the NIC could not be brought home.
pub(crate) const NOT_HOME: Code = Code(104);
/// 105: another host has the address.
pub(crate) const DUPLICATE_ADDRESS: Code = Code(105);
/// 106: CHECK found something missing or different.
pub(crate) const CHECK_FAILED: Code = Code(106);
/// 107: the IPAM plugin gave no address.
pub(crate) const NO_ADDRESS: Code = Code(107);
/// 108: the lease of the device cannot be used, or no lease can be written.
pub(crate) const LEDGER: Code = Code(108);
/// 109: the device ID has gone to another NIC.
pub(crate) const ANOTHER_NIC: Code = Code(109);
/// 110: the kubelet did not give the device to the pod.
pub(crate) const NOT_ALLOCATED: Code = Code(110);

/// An error of the kernel or a file while doing `what`.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(linux::Error) -> Error {
    let what = what.into();
    move |error| Error::new(Code::IO, what).caused_by(&error)
}

/// An error of the ledger. A lock that another process holds is a matter of time.
pub(crate) fn ledger(error: ledger::Error) -> Error {
    let code = if error.is_busy() { Code::TRY_AGAIN } else { LEDGER };
    Error::from_chain(code, &error)
}

/// A NIC that did not come home.
pub(crate) fn not_home(error: ledger::ReturnError) -> Error {
    Error::from_chain(NOT_HOME, &error)
}
