//! A Kubernetes node without Kubernetes, as a library.

pub mod api;
pub mod cli;
pub mod client;
pub mod control;
pub mod kubelet;
pub mod manifest;
pub mod node;
pub mod options;
pub mod runtime;

use linux::chain;
