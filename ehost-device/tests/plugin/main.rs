//! The built program, driven as a runtime drives it, in network namespaces of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod add;
mod allocation;
mod any_input;
mod bad_input;
mod bench;
mod concurrency;
mod crash;
mod del;
mod kill;
mod log;
mod network;
mod orphan;
mod rich;
mod transaction;
mod verbs;
