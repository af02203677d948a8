//! The names of our sockets' files: `virtNet-<mark>-<time>-<number>.sock`, where the mark stands for the resource. Pure.
//!
//! A socket's path has at most 107 bytes and a resource's name up to 317, so the name itself does not fit. Sockets of other
//! resources, in this process or another, are no rivals; a name of another form may be anybody's.

use nic::ResourceName;

use super::way::Way;

/// How the names of our sockets begin, since 2018.
pub(crate) const PREFIX: &str = "virtNet";
const SUFFIX: &str = ".sock";
/// What a name begins with until the socket is served. The kubelet passes such files over.
pub(super) const HIDDEN: &str = ".";

/// What stands for a resource in the name of a socket: eight hexadecimal digits. The agent before and the agent after an
/// update must agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark(String);

impl Mark {
    pub(super) fn of(resource: &ResourceName) -> Mark {
        // FNV-1a, 32 bits. Two resources with the same mark would register once too often, nothing more.
        let hash = resource
            .as_str()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Mark(format!("{hash:08x}"))
    }

    /// A new name. `made` (any clock) tells processes apart, `number` the registrations of one.
    pub(super) fn socket(&self, way: Way, made: u128, number: u32) -> String {
        let joint = match way {
            Way::KubeletSocket => '-',
            // To sockets in plugins_registry the kubelet sends `:authority: %2Fvar%2Flib%2F...`. The h2 library refuses
            // escapes there (PROTOCOL_ERROR) unless an `@` follows, which makes them the part before a host.
            Way::PluginsRegistry => '@',
        };
        format!("{PREFIX}{joint}{}-{made:x}-{number}{SUFFIX}", self.0)
    }

    /// Whether an agent for the same resource may have made a socket of this name.
    pub(super) fn may_have(&self, name: &str) -> bool {
        is_like_ours(name) && mark(name).is_none_or(|other| other == self.0)
    }
}

/// Whether an agent may have made a socket of this name.
pub(super) fn is_like_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

fn mark(name: &str) -> Option<&str> {
    let name = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.strip_prefix(['-', '@'])?;
    let mut parts = name.split('-');
    let (mark, _made, _number) = (parts.next()?, parts.next()?, parts.next()?);
    let is_mark = mark.len() == 8 && mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_mark && parts.next().is_none()).then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resource: &str) -> Mark {
        Mark::of(&resource.parse().unwrap())
    }

    #[test]
    fn a_name_is_the_same_in_every_version() {
        let virt = of("kernel.org/virt");
        assert_eq!(virt.socket(Way::KubeletSocket, 0xabc, 2), "virtNet-d1f973a6-abc-2.sock");
        assert_eq!(virt.socket(Way::PluginsRegistry, 0xabc, 2), "virtNet@d1f973a6-abc-2.sock");
    }

    #[test]
    fn a_name_fits_into_a_sockets_path_below_any_usual_kubelet() {
        // Microseconds until the year 2200.
        let name = of("kernel.org/virt").socket(Way::KubeletSocket, 7_258_118_400_000_000, u32::MAX);
        let folder = "/var/snap/microk8s/common/var/lib/kubelet/plugins_registry/";
        assert!(folder.len() + name.len() <= 107, "{}", folder.len() + name.len());
    }

    #[test]
    fn sockets_of_the_same_resource_and_of_who_knows_whom_are_rivals_and_others_are_not() {
        let (virt, other) = (of("kernel.org/virt"), of("kernel.org/virt2"));
        for way in [Way::KubeletSocket, Way::PluginsRegistry] {
            let name = virt.socket(way, 1, 1);
            assert!(virt.may_have(&name) && !other.may_have(&name) && is_like_ours(&name));
        }
        for unmarked in
            ["virtNet.sock", "virtNet-6a1b2c3d4e5f6-1.sock", "virtNet-old.sock", "virtNet-1-2-3.sock"]
        {
            assert!(virt.may_have(unmarked) && other.may_have(unmarked), "{unmarked}");
        }
        for foreign in ["kubelet.sock", "virt.sock", "virtNet-1.socket"] {
            assert!(!virt.may_have(foreign) && !is_like_ours(foreign), "{foreign}");
        }
    }
}
