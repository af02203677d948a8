//! virtdp's configuration: which NICs are offered as which resource.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nic::{DeviceId, Pool, Pools};

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The resources, in the order in which they choose their NICs.
    pub pools: Pools,
    /// `offerLifeline`: NICs that are offered though they carry the node.
    pub offer_lifeline: BTreeSet<DeviceId>,
    /// `metadata`: where the VM's metadata are, a config drive or a JSON file.
    pub metadata: Option<PathBuf>,
}

impl Config {
    /// What is in force without a file: one pool.
    #[must_use]
    pub fn of_pool(pool: Pool) -> Self {
        Config { pools: Pools::new(vec![pool]), ..Config::default() }
    }
}
