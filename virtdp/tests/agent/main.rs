//! The built agent, on generated sysfs trees and real links in network namespaces, against kubelets on real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod allocate;
mod dashboard;
mod discover;
mod events;
mod explain;
mod kubelet;
mod lifeline;
mod nonsense;
mod observe;
mod offer;
mod openmetrics;
mod pools;
mod register;
mod registry;
mod repatriate;
mod stage;
mod survive;
mod trouble;
mod unprivileged;
