//! Waiting until a descriptor of ours is readable.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a socket or the like with the runtime.
///
/// # Errors
/// The kernel's epoll does not take it.
// tokio 1.54 calls this constructor unsound, because `AsRawFd` does not promise that the descriptor stays open and the same. Who
// is `AsFd` promises it, as all that come here do; the constructor that it offers instead is `unsafe` for them, too. This goes
// when tokio has a safe one for `AsFd`.
#[allow(deprecated)]
pub(crate) fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}
