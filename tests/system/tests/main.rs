//! Whole nodes in VMs, and the bed that they stand on.

mod concurrency;
mod identity;
mod interface;
mod ipam;
mod kill;
mod lifeline;
mod node;
mod plumb;
mod pod;
mod repatriate;
mod vfio;
mod vm;
mod workspace;
