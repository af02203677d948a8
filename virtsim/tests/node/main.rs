//! The whole node: real HTTP, real sockets, real processes and network namespaces, a device plugin served by the test and
//! a CNI plugin that is a shell script. It needs root, or `unshare --map-root-user --net --mount` with loopback up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod bench;
mod devices;
mod ends;
mod networks;
mod plugin;
mod pods;
