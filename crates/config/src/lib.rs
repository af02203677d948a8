//! virtdp's configuration file: which NICs are offered as which resource.
//!
//! The keys of sriov-network-device-plugin's `resourceList` mean here what they mean there, so that its ConfigMaps work (source: its
//! README, "Config parameters"); others are ours. The invariant: what is not understood is refused, and what cannot be met here
//! (RDMA, vDPA, ...) selects nothing. Nothing that is written ever widens what is offered by being passed over.

mod metadata;
mod parse;
mod reader;
mod selector;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use located::{Fault, Place};
use nic::{DeviceId, Pool, Pools};

pub use self::metadata::{metadata, metadata_of_drive};
pub use self::parse::parse;

/// The prefix of resources whose configuration names none, as in sriov-network-device-plugin.
pub const DEFAULT_PREFIX: &str = "intel.com";

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The resources, in the order in which they choose their NICs.
    pub pools: Pools,
    /// `offerLifeline`: NICs that are offered though they carry the node.
    pub offer_lifeline: BTreeSet<DeviceId>,
    /// `metadata`: where the VM's metadata are, a config drive or a JSON file.
    pub metadata: Option<PathBuf>,
    /// What is right and worth knowing: what selects nothing here.
    pub notes: Vec<Fault>,
}

impl Config {
    /// What is in force without a file: one pool.
    #[must_use]
    pub fn of_pool(pool: Pool) -> Self {
        Config { pools: Pools::new(vec![pool]), ..Config::default() }
    }
}

#[cfg(test)]
mod tests;
