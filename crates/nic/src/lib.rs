//! NICs as plain data. Everything here is pure: no files, no sockets, no clock.
//!
//! The types parse at the border and are trusted afterwards: a [`PciAddress`] is one, an [`IfName`] fits the
//! kernel, a [`DeviceId`] can stand in a file name and in the kubelet's device list.

mod address;
mod device;
mod facts;
pub mod identity;
pub mod lifeline;
mod name;
mod node;
mod pattern;
mod pool;
mod preference;
mod selector;
mod tuning;

pub use address::{MacAddr, ParseMacError, ParsePciError, PciAddress};
pub use device::{HardwareId, Interface, Nic, VFIO_PCI};
pub use facts::{Address, Link, Route, Xdp};
pub use lifeline::{Lifeline, Named};
pub use name::{DeviceId, IfName, NameError, ResourceName};
pub use node::{Disagreement, Health, NodeFacts, Skip, Standing, Verdict};
pub use pattern::Pattern;
pub use pool::{Membership, Pool, Pools, Unwanted};
pub use preference::{COOL_DOWN, Candidate, Used, prefer};
pub use selector::{AtHome, Demand, Metadata, Needs, Selector, Told, View};
pub use tuning::{Channels, Offloads, Rings, Tunable};
