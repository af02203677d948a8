//! Linux as we use it: sysfs, netlink, network namespaces, atomic files, locks.
