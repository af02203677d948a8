//! virt-meta as a container runtime sees it: the built program, with real delegates, files and sockets around it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
// The kubelet's messages grow fields; those that are not known here keep their defaults.
#![allow(clippy::needless_update)]

mod attachments;
mod bad_input;
mod bench;
mod maintenance;
