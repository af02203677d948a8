//! The settings of one interface that are files below `/proc/sys/net`. They end when it is moved to another network namespace.
//!
//! Source: Documentation/networking/ip-sysctl.rst.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use nic::IfName;
use rustix::fs::{Mode, OFlags};

use crate::{Error, Netns, files};

/// A setting that each interface has for itself, written as `net.ipv4.conf.IFNAME.rp_filter`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    family: &'static str,
    table: &'static str,
    name: String,
}

/// A text that is no [`Sysctl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not net.ipv4 or net.ipv6, then conf or neigh, then IFNAME, then a name of small letters, digits and _"
)]
pub struct ParseSysctlError;

impl FromStr for Sysctl {
    type Err = ParseSysctlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('.').collect();
        let ["net", family, table, "IFNAME", name] = parts.as_slice() else { return Err(ParseSysctlError) };
        let one_of = |known: [&'static str; 2], found: &str| known.into_iter().find(|known| *known == found);
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        match (one_of(["ipv4", "ipv6"], family), one_of(["conf", "neigh"], table)) {
            (Some(family), Some(table)) if !name.is_empty() && name.bytes().all(good) => {
                Ok(Sysctl { family, table, name: (*name).to_owned() })
            }
            _ => Err(ParseSysctlError),
        }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net.{}.{}.IFNAME.{}", self.family, self.table, self.name)
    }
}

impl Sysctl {
    /// `net.ipv6.conf.IFNAME.disable_ipv6`: runtimes switch IPv6 off in network namespaces of IPv4 clusters.
    #[must_use]
    pub fn disable_ipv6() -> Sysctl {
        Sysctl { family: "ipv6", table: "conf", name: "disable_ipv6".to_owned() }
    }

    /// Whether the kernel may change it for the interfaces that are there already: of IPv4 each that nobody has set for that interface, when it is
    /// changed for new ones (`default`); of IPv6 a few, when they are changed for `all`, which changes them for new ones, too.
    ///
    /// Source: net/ipv4/devinet.c, `devinet_conf_proc`; net/ipv6/addrconf.c, where `devconf_all` is.
    #[must_use]
    pub fn follows(&self) -> bool {
        const OF_IPV6: [&str; 4] =
            ["forwarding", "disable_ipv6", "addr_gen_mode", "ignore_routes_with_linkdown"];
        self.family == "ipv4" || OF_IPV6.contains(&self.name.as_str())
    }

    fn path(&self, interface: &IfName) -> PathBuf {
        // Each is one plain component: neither can hold a slash.
        ["/proc/sys/net", self.family, self.table, interface.as_str(), &self.name].iter().collect()
    }
}

/// The settings that an interface gets that appears now. Their folders are held open, since to look up the whole path of each of a hundred
/// files takes longer than to read them.
#[derive(Debug, Default)]
pub struct NewInterfaces {
    folders: BTreeMap<(&'static str, &'static str), Option<OwnedFd>>,
}

impl NewInterfaces {
    /// The value that a new interface has in the network namespace of the thread that asks first, if that is a number.
    pub fn value(&mut self, sysctl: &Sysctl) -> Option<i64> {
        let Sysctl { family, table, name } = sysctl;
        let open = || {
            let path = format!("/proc/sys/net/{family}/{table}/default");
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        let folder = self.folders.entry((family, table)).or_insert_with(open).as_ref()?;
        let file = rustix::fs::openat(folder, name.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .ok()?;
        // A number and a line feed, which the kernel gives whole.
        let mut text = [0; 24];
        let length = rustix::io::read(file, &mut text).ok()?;
        std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
    }
}

impl Netns {
    /// Sets a sysctl of an interface in this namespace.
    ///
    /// # Errors
    /// [`Error::File`]: there is none of that name, the kernel refuses the value, `/proc/sys` is read-only.
    pub fn set_sysctl(&self, sysctl: &Sysctl, interface: &IfName, value: &str) -> Result<(), Error> {
        let path = sysctl.path(interface);
        self.run(|| files::step("write", &path, || std::fs::write(&path, value)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_of_one_interface_are_known() {
        for text in ["net.ipv4.conf.IFNAME.rp_filter", "net.ipv6.neigh.IFNAME.gc_stale_time"] {
            assert_eq!(text.parse::<Sysctl>().unwrap().to_string(), text);
        }
        let sysctl: Sysctl = "net.ipv4.conf.IFNAME.rp_filter".parse().unwrap();
        let path = sysctl.path(&"net1.5".parse().unwrap());
        assert_eq!(path.to_str(), Some("/proc/sys/net/ipv4/conf/net1.5/rp_filter"));
        for text in [
            "",
            "net.ipv4.ip_forward",
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.eth0.rp_filter",
            "net.ipv4.conf.IFNAME.",
            "net.ipv4.conf.IFNAME.a.b",
            "net.ipv4.conf.IFNAME.../all/rp_filter",
            "net.ipv4.conf.IFNAME.a/b",
            "net.core.conf.IFNAME.x",
            "kernel.panic",
            "net/ipv4/conf/IFNAME/rp_filter",
        ] {
            assert_eq!(text.parse::<Sysctl>(), Err(ParseSysctlError), "{text}");
        }
    }

    #[test]
    fn what_new_interfaces_get_is_read_where_it_is_asked_for() {
        let there = Netns::create().unwrap();
        let sysctl = |name: &str| format!("net.{name}").parse::<Sysctl>().unwrap();
        let set = sysctl("ipv4.conf.IFNAME.arp_notify");
        there.set_sysctl(&set, &"default".parse().unwrap(), "1").unwrap();
        let all = [set, sysctl("ipv6.conf.IFNAME.hop_limit"), sysctl("ipv6.conf.IFNAME.no_such_thing")];
        let read = || {
            let mut new = NewInterfaces::default();
            all.iter().map(|sysctl| new.value(sysctl)).collect::<Vec<_>>()
        };
        assert_eq!(there.run(read).unwrap(), [Some(1), Some(64), None]);
        assert_eq!(Netns::create().unwrap().run(read).unwrap(), [Some(0), Some(64), None]);
    }

    #[test]
    fn a_sysctl_is_set_in_its_namespace_and_no_other() {
        let (one, other) = (Netns::create().unwrap(), Netns::create().unwrap());
        let sysctl: Sysctl = "net.ipv4.conf.IFNAME.arp_notify".parse().unwrap();
        let lo = "lo".parse().unwrap();
        one.set_sysctl(&sysctl, &lo, "1").unwrap();
        let read = || std::fs::read_to_string(sysctl.path(&lo)).unwrap();
        assert_eq!((one.run(read).unwrap().trim(), other.run(read).unwrap().trim()), ("1", "0"));
        let refused = one.set_sysctl(&sysctl, &lo, "many").unwrap_err();
        assert!(refused.to_string().contains("arp_notify"), "{refused}");
        let absent: Sysctl = "net.ipv4.conf.IFNAME.no_such_setting".parse().unwrap();
        assert!(one.set_sysctl(&absent, &lo, "1").unwrap_err().is_absent());
    }
}
