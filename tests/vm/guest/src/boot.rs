//! What the host tells init: words on the kernel's command line and names of devices.

use std::path::PathBuf;

/// Name of the virtio-serial port of the command agent.
pub const AGENT_PORT: &str = "virtnet.agent";
/// 9p tag of the host's root folder, read-only.
pub const ROOT_TAG: &str = "root";
/// 9p tag of the folder with unpacked packages, laid over the host's root.
pub const TOOLS_TAG: &str = "tools";
/// 9p tag of the folder that survives a reboot.
pub const PERSIST_TAG: &str = "persist";
/// Where the persistent folder is in the guest.
pub const PERSIST_FOLDER: &str = "/persist";
/// Where init keeps its own program in the guest, for the agent, for `modprobe` and for terminals.
pub const OWN_FOLDER: &str = "/run/vm-guest";
/// Folder of modules and their order in the initial RAM disk.
pub const MODULE_FOLDER: &str = "/modules";
/// What init prints once the agent listens; the accelerator probe waits for it.
pub const READY_LINE: &str = "vm-guest: ready";

/// The words for init, each `vm.<key>[=<value>]` on the kernel's command line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Words {
    /// Power off at once: only to see that the machine works at all.
    pub probe: bool,
    /// Lay the tools' folder over the root.
    pub tools: bool,
    /// Mount the persistent folder.
    pub persist: bool,
    /// Folders of the host that stay visible although they lie below /tmp or /run.
    pub keep: Vec<PathBuf>,
}

impl Words {
    /// Reads the kernel's command line.
    pub fn parse(line: &str) -> Self {
        let mut words = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                None if word == "vm.probe" => words.probe = true,
                None if word == "vm.tools" => words.tools = true,
                None if word == "vm.persist" => words.persist = true,
                Some(("vm.keep", path)) => words.keep.push(PathBuf::from(path)),
                _ => {}
            }
        }
        words
    }

    /// The words to append to the kernel's command line. Paths must not contain white space.
    pub fn to_arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (wanted, word) in
            [(self.probe, "vm.probe"), (self.tools, "vm.tools"), (self.persist, "vm.persist")]
        {
            if wanted {
                words.push(word.to_owned());
            }
        }
        words.extend(self.keep.iter().map(|path| format!("vm.keep={}", path.display())));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_command_line() {
        let words =
            Words { probe: false, tools: true, persist: true, keep: vec!["/tmp/a".into(), "/run/b".into()] };
        let line = format!("console=ttyS0 quiet {}", words.to_arguments().join(" "));
        assert_eq!(Words::parse(&line), words);
        assert_eq!(Words::parse("quiet vm.probe"), Words { probe: true, ..Words::default() });
    }
}
