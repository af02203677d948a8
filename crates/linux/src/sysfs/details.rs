//! What is told of an interface on request: nothing is decided by it.

use std::fs;

use nic::IfName;

use super::{Sysfs, attribute};

impl Sysfs {
    /// The speed of a link in Mb/s, where the driver knows one. Many virtual NICs know none, and no NIC that is down does.
    #[must_use]
    pub fn speed(&self, interface: &IfName) -> Option<u32> {
        let path = self.root.join("class/net").join(interface.as_str()).join("speed");
        // SPEED_UNKNOWN is -1, and older kernels print it as 4294967295 (include/uapi/linux/ethtool.h).
        attribute(&path).ok()?.parse().ok().filter(|speed| !matches!(*speed, 0 | u32::MAX))
    }

    /// How many queues an interface has to receive and to send.
    #[must_use]
    pub fn queues(&self, interface: &IfName) -> Option<(usize, usize)> {
        let folder = self.root.join("class/net").join(interface.as_str()).join("queues");
        let mut queues = (0, 0);
        for entry in fs::read_dir(folder).ok()?.flatten() {
            match entry.file_name().to_str()?.split_once('-') {
                Some(("rx", _)) => queues.0 += 1,
                Some(("tx", _)) => queues.1 += 1,
                _ => {}
            }
        }
        Some(queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_that_are_none_and_missing_folders_are_not_told() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("class/net/eth1");
        fs::create_dir_all(folder.join("queues/rx-0")).unwrap();
        for queue in ["tx-0", "tx-1"] {
            fs::create_dir(folder.join("queues").join(queue)).unwrap();
        }
        let sysfs = Sysfs::at(root.path());
        let name: IfName = "eth1".parse().unwrap();
        assert_eq!(sysfs.queues(&name), Some((1, 2)));
        assert_eq!(sysfs.queues(&"eth2".parse().unwrap()), None);
        assert_eq!(sysfs.speed(&name), None);
        for (text, speed) in
            [("10000\n", Some(10_000)), ("-1\n", None), ("4294967295\n", None), ("fast", None), ("", None)]
        {
            fs::write(folder.join("speed"), text).unwrap();
            assert_eq!(sysfs.speed(&name), speed, "{text:?}");
        }
    }
}
