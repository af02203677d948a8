//! An index of a kernel's modules, one module per line: `name path depends,depends alias,alias`.
//!
//! It replaces `modules.dep` and `modules.alias`: it is written on the host from the modules themselves (packages do not bring
//! those two files, and depmod may not be there), and holds only aliases without wildcards, which are those that the
//! kernel asks `modprobe` for (`rtnl-link-bridge`, `fs-overlay`, `net-pf-17`). Devices are not matched: their drivers are loaded at boot.

use std::collections::HashMap;
use std::fmt::Write as _;

/// One kernel module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Name, with `_` for each `-`.
    pub name: String,
    /// Path below the folder of the kernel's modules.
    pub path: String,
    /// Names of the modules that must be there first.
    pub depends: Vec<String>,
    /// Other names it answers to, without wildcards.
    pub aliases: Vec<String>,
}

/// All modules of one kernel.
#[derive(Debug, Default)]
pub struct Index {
    modules: Vec<Module>,
    by_name: HashMap<String, Vec<usize>>,
}

/// Name of the index within the folder of a kernel's modules.
pub const INDEX_FILE: &str = "vm-guest.index";

/// The kernel treats `-` and `_` in module names as the same.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

impl Index {
    /// Makes an index of `modules`.
    pub fn new(modules: Vec<Module>) -> Self {
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        // Names first: a module wins over another one's alias of the same name.
        for (at, module) in modules.iter().enumerate() {
            by_name.entry(normal(&module.name)).or_default().push(at);
        }
        for (at, module) in modules.iter().enumerate() {
            for alias in &module.aliases {
                by_name.entry(normal(alias)).or_default().push(at);
            }
        }
        Self { modules, by_name }
    }

    /// Reads what [`Index::to_text`] wrote; lines that it does not understand are left out.
    pub fn parse(text: &str) -> Self {
        let list = |field: &str| -> Vec<String> {
            field.split(',').filter(|item| !item.is_empty() && *item != "-").map(str::to_owned).collect()
        };
        let modules = text.lines().filter_map(|line| {
            let mut fields = line.split(' ');
            Some(Module {
                name: fields.next()?.to_owned(),
                path: fields.next()?.to_owned(),
                depends: list(fields.next()?),
                aliases: list(fields.next()?),
            })
        });
        Self::new(modules.collect())
    }

    /// The index as text.
    pub fn to_text(&self) -> String {
        let list = |items: &[String]| if items.is_empty() { "-".to_owned() } else { items.join(",") };
        let mut text = String::new();
        for module in &self.modules {
            let (depends, aliases) = (list(&module.depends), list(&module.aliases));
            let _ = writeln!(text, "{} {} {depends} {aliases}", module.name, module.path);
        }
        text
    }

    /// What to load, in order, so that the module called `name` (or with that alias) is there. Empty if there is no such module.
    pub fn load_order(&self, name: &str) -> Vec<&Module> {
        let mut order = Vec::new();
        self.add(name, &mut order);
        order.into_iter().filter_map(|at| self.modules.get(at)).collect()
    }

    fn add(&self, name: &str, order: &mut Vec<usize>) {
        let Some(found) = self.by_name.get(&normal(name)) else { return };
        for at in found {
            let Some(module) = self.modules.get(*at) else { continue };
            if order.contains(at) {
                continue;
            }
            // Modules do not depend on each other in circles: modpost refuses that at build time.
            for needed in &module.depends {
                self.add(needed, order);
            }
            order.push(*at);
            // A name means that module; an alias means every module that has it.
            if normal(&module.name) == normal(name) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index::parse(concat!(
            "stp kernel/net/802/stp.ko llc -\n",
            "llc kernel/net/llc/llc.ko - -\n",
            "bridge kernel/net/bridge/bridge.ko stp,llc rtnl-link-bridge\n",
            "virtio_net kernel/drivers/net/virtio_net.ko net-failover,virtio -\n",
            "net_failover kernel/drivers/net/net_failover.ko - -\n",
            "virtio kernel/drivers/virtio/virtio.ko - -\n",
        ))
    }

    fn names(order: &[&Module]) -> Vec<String> {
        order.iter().map(|module| module.name.clone()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(names(&index().load_order("bridge")), ["llc", "stp", "bridge"]);
    }

    #[test]
    fn an_alias_and_either_dash_find_the_module() {
        assert_eq!(names(&index().load_order("rtnl-link-bridge")), ["llc", "stp", "bridge"]);
        assert_eq!(names(&index().load_order("virtio-net")), ["net_failover", "virtio", "virtio_net"]);
        assert!(index().load_order("no-such-module").is_empty());
    }

    #[test]
    fn text_round_trips() {
        let text = index().to_text();
        assert_eq!(Index::parse(&text).to_text(), text);
    }
}
