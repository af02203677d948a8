//! What ethtool can set of an interface beside its link: how many queues it uses, and how long they are.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many queues an interface uses, as `struct ethtool_channels` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// Queues that only receive.
    pub rx: u32,
    /// Queues that only send.
    pub tx: u32,
    /// Queues for something else.
    pub other: u32,
    /// Queues, or pairs of them, that do both.
    pub combined: u32,
}

/// How many packets the queues of an interface hold, as `struct ethtool_ringparam` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// Received packets.
    pub rx: u32,
    /// Received packets of the smallest kind.
    pub rx_mini: u32,
    /// Received packets of the largest kind.
    pub rx_jumbo: u32,
    /// Packets to be sent.
    pub tx: u32,
}

/// Which offloads an administrator wants of those that can be switched, a bit for each, as `struct ethtool_get_features_block` has them.
/// Which bit is which is the running kernel's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads(pub [u32; 2]);

/// What is, and what could be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunable<T> {
    /// What is.
    pub now: T,
    /// What the driver allows.
    pub most: T,
}

impl Channels {
    /// These with `queues` of them: of those that do both where there are such, else as many of each direction.
    #[must_use]
    pub fn with_queues(self, queues: u32, most: Channels) -> Channels {
        if most.combined > 0 {
            Channels { combined: queues, ..self }
        } else {
            Channels { rx: queues, tx: queues, ..self }
        }
    }

    /// How many queues [`Channels::with_queues`] may ask for, these being the most of each kind.
    #[must_use]
    pub fn most_queues(self) -> u32 {
        if self.combined > 0 { self.combined } else { self.rx.min(self.tx) }
    }
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rx {} tx {} other {} combined {}", self.rx, self.tx, self.other, self.combined)
    }
}

impl fmt::Display for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rx {} rx-mini {} rx-jumbo {} tx {}", self.rx, self.rx_mini, self.rx_jumbo, self.tx)
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Offloads([low, high]) = self;
        write!(f, "{high:08x}{low:08x}")
    }
}

/// In the order in which the kernel's structure has them.
impl From<[u32; 4]> for Channels {
    fn from([rx, tx, other, combined]: [u32; 4]) -> Self {
        Channels { rx, tx, other, combined }
    }
}

impl From<Channels> for [u32; 4] {
    fn from(Channels { rx, tx, other, combined }: Channels) -> Self {
        [rx, tx, other, combined]
    }
}

/// In the order in which the kernel's structure has them.
impl From<[u32; 4]> for Rings {
    fn from([rx, rx_mini, rx_jumbo, tx]: [u32; 4]) -> Self {
        Rings { rx, rx_mini, rx_jumbo, tx }
    }
}

impl From<Rings> for [u32; 4] {
    fn from(Rings { rx, rx_mini, rx_jumbo, tx }: Rings) -> Self {
        [rx, rx_mini, rx_jumbo, tx]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_those_that_do_both_where_there_are_such() {
        let most = Channels { combined: 8, other: 1, ..Channels::default() };
        let now = Channels { combined: 2, other: 1, ..Channels::default() };
        assert_eq!(now.with_queues(4, most), Channels { combined: 4, ..now });
        assert_eq!(most.most_queues(), 8);
        let most = Channels { rx: 4, tx: 2, ..Channels::default() };
        let now = Channels { rx: 1, tx: 1, ..Channels::default() };
        assert_eq!(now.with_queues(2, most), Channels { rx: 2, tx: 2, ..now });
        assert_eq!(most.most_queues(), 2);
    }
}
