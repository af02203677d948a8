//! Where a check is made: a node with NICs, pods, an IPAM plugin, and state folders that are empty.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use linux::Netns;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::answer::{Answer, Running, adopt_orphans};
use crate::check::{Stop, Verdict, hold};
use crate::picture::{Picture, ip};
use crate::subject::Subject;

/// The versions of the specification, oldest first.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What the interface is called in pods.
pub(crate) const IF_NAME: &str = "net1";
/// The IPAM plugin of the checks.
const IPAM: &str = "suite-ipam";

pub(crate) struct Bed<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) node: Netns,
    pub(crate) pod: Pod,
    folder: TempDir,
    state: Vec<PathBuf>,
}

/// A pod's network namespace.
pub(crate) struct Pod(pub(crate) Netns);

impl Pod {
    pub(crate) fn new() -> Result<Self> {
        Ok(Pod(namespace()?))
    }

    /// A path that stands for it as long as it lives.
    pub(crate) fn path(&self) -> String {
        path_of(&self.0)
    }

    pub(crate) fn ip(&self, arguments: &str) -> Result<String> {
        ip(&self.0, arguments)
    }

    pub(crate) fn picture(&self) -> Result<Picture> {
        Picture::of(&self.0)
    }

    /// Ends the check where this machine cannot do that to an interface `net1`, whoever put it there.
    pub(crate) fn can(&self, arguments: &str) -> Verdict {
        let tried = Netns::create().map_err(anyhow::Error::from)?;
        ip(&tried, &format!("link add {IF_NAME} type veth peer name other"))?;
        match ip(&tried, arguments) {
            Ok(_) => Ok(()),
            Err(error) => Err(Stop::NotChecked(format!("this machine cannot: {error}"))),
        }
    }
}

/// A path that stands for a namespace as long as its handle lives.
pub(crate) fn path_of(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

/// A namespace in which no address comes by itself.
fn namespace() -> Result<Netns> {
    let netns = Netns::create()?;
    netns.run(|| {
        for of in ["all", "default"] {
            // Absent where the kernel has no IPv6.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1");
        }
    })?;
    Ok(netns)
}

/// Who is called for, and where.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) verb: &'a str,
    pub(crate) container: &'a str,
    pub(crate) netns: &'a str,
    pub(crate) if_name: &'a str,
}

impl<'a> Bed<'a> {
    pub(crate) fn make(subject: &'a Subject, state: &[PathBuf]) -> Result<Self> {
        for folder in state {
            rustix::mount::mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"mode=0755")
                .with_context(|| format!("cannot hide {}", folder.display()))?;
        }
        adopt_orphans()?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        fs::create_dir(folder.path().join("leased")).context("cannot make a folder")?;
        let script = include_str!("ipam.sh").replace("@FOLDER@", &folder.path().display().to_string());
        let path = subject.folder().join(IPAM);
        fs::write(&path, script).context("cannot write the IPAM plugin")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("cannot make it a program")?;
        let bed = Bed { subject, node: namespace()?, pod: Pod::new()?, folder, state: state.to_vec() };
        bed.nic(1)?;
        Ok(bed)
    }

    /// A new bed like this one.
    pub(crate) fn again(&self) -> Result<Self> {
        Bed::make(self.subject, &self.state)
    }

    /// Adds the spare NIC `eth<number>`, down.
    pub(crate) fn nic(&self, number: u8) -> Result<()> {
        let mac = mac(number);
        let name = format!("eth{number}");
        self.ip(&format!("link add {name} mtu 1450 address {mac} type veth peer name wire{number}"))?;
        self.ip(&format!("link set wire{number} up"))?;
        Ok(())
    }

    /// Runs `ip` on the node.
    pub(crate) fn ip(&self, arguments: &str) -> Result<String> {
        ip(&self.node, arguments)
    }

    pub(crate) fn picture(&self) -> Result<Picture> {
        Picture::of(&self.node)
    }

    /// The configuration for `eth1` with the checks' IPAM plugin, in the newest version that the plugin speaks.
    pub(crate) fn config(&self) -> Verdict<Value> {
        self.config_for(1, json!({}))
    }

    /// The same for another NIC, changed by `keys`; null removes a key.
    pub(crate) fn config_for(&self, number: u8, keys: Value) -> Verdict<Value> {
        let mut config = Map::new();
        config.insert("cniVersion".to_owned(), self.newest()?.into());
        config.insert("name".to_owned(), "suite".into());
        config.insert("type".to_owned(), self.subject.kind().into());
        config.insert("ipam".to_owned(), json!({ "type": IPAM }));
        config.extend(self.subject.keys(&format!("eth{number}"), &mac(number)));
        let changes = keys.as_object().cloned().unwrap_or_default();
        config.extend(changes);
        config.retain(|_, value| !value.is_null());
        Ok(Value::Object(config))
    }

    /// The versions that the plugin says it speaks.
    pub(crate) fn versions(&self) -> Verdict<Vec<String>> {
        let answer = self.raw(&[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"1.0.0"}"#)?.result()?;
        let versions = answer.get("supportedVersions").and_then(Value::as_array).cloned();
        let versions = versions.ok_or_else(|| Stop::Fault(format!("VERSION answers {answer}")))?;
        Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    fn newest(&self) -> Verdict<&'static str> {
        let spoken = self.versions()?;
        let newest = VERSIONS.into_iter().rev().find(|version| spoken.iter().any(|each| each == version));
        newest.ok_or_else(|| Stop::Fault(format!("VERSION lists no version that is known here: {spoken:?}")))
    }

    /// Ends the check where the plugin does not say that it speaks this version or a newer one.
    pub(crate) fn needs(&self, version: &str) -> Verdict {
        let newest = self.newest()?;
        let place = |wanted: &str| VERSIONS.iter().position(|version| *version == wanted);
        if place(newest) < place(version) {
            return Err(Stop::NotChecked(format!("VERSION lists nothing newer than {newest}")));
        }
        Ok(())
    }

    /// An ADD for container `c1` into the pod, which must succeed.
    pub(crate) fn add(&self, config: &Value) -> Verdict<Value> {
        self.verb("ADD", "c1", &self.pod, config)?.result()
    }

    /// Its DEL, which must succeed.
    pub(crate) fn del(&self, config: &Value) -> Verdict {
        self.verb("DEL", "c1", &self.pod, config)?.result().map(drop)
    }

    /// Any verb for any container and pod.
    pub(crate) fn verb(&self, verb: &str, container: &str, pod: &Pod, config: &Value) -> Result<Answer> {
        self.call(Call { verb, container, netns: &pod.path(), if_name: IF_NAME }, config)
    }

    pub(crate) fn call(&self, call: Call<'_>, config: &Value) -> Result<Answer> {
        self.start(call, config)?.end(self.subject.limits.call)
    }

    fn start(&self, call: Call<'_>, config: &Value) -> Result<Running> {
        let variables = [
            ("CNI_COMMAND", call.verb),
            ("CNI_CONTAINERID", call.container),
            ("CNI_NETNS", call.netns),
            ("CNI_IFNAME", call.if_name),
        ];
        self.start_raw(&variables, config.to_string().as_bytes())
    }

    /// A call with these variables, those without a value left out, and any bytes.
    pub(crate) fn raw(&self, variables: &[(&str, &str)], stdin: &[u8]) -> Result<Answer> {
        self.start_raw(variables, stdin)?.end(self.subject.limits.call)
    }

    fn start_raw(&self, variables: &[(&str, &str)], stdin: &[u8]) -> Result<Running> {
        let mut command = Command::new(self.subject.program());
        for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            command.env_remove(name);
        }
        command.env("CNI_PATH", self.subject.folder());
        command.envs(variables.iter().filter(|(_, value)| !value.is_empty()).copied());
        let value =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
        let what = match value("CNI_CONTAINERID") {
            "" => value("CNI_COMMAND").to_owned(),
            container => format!("{} for {container}", value("CNI_COMMAND")),
        };
        self.node.run(|| Running::start(command, what, stdin))?
    }

    /// A verb for container `c1` that is killed when it has run for `after`; whether that was before its end.
    pub(crate) fn kill(&self, verb: &str, config: &Value, after: Duration) -> Result<bool> {
        let path = self.pod.path();
        let call = Call { verb, container: "c1", netns: &path, if_name: IF_NAME };
        self.start(call, config)?.kill(after, self.subject.limits.call)
    }

    /// How long a call takes that must succeed.
    pub(crate) fn time(&self, verb: &str, config: &Value) -> Verdict<Duration> {
        let began = Instant::now();
        self.verb(verb, "c1", &self.pod, config)?.result()?;
        Ok(began.elapsed())
    }

    /// What the IPAM plugin does instead of its work, in shell, when it is called for `verb`.
    pub(crate) fn ipam(&self, verb: &str, script: &str) -> Result<()> {
        let path = self.folder.path().join(format!("instead-of-{verb}"));
        fs::write(path, script).context("cannot tell the IPAM plugin what to do")
    }

    /// What the IPAM plugin was called for: `ADD c1`.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default();
        log.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Containers that have an address.
    pub(crate) fn leased(&self) -> Result<Vec<String>> {
        file_names(&self.folder.path().join("leased"))
    }

    /// A folder of the check's own.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything is as it was before: on the node, in the pod, and no address is leased.
    pub(crate) fn is_again(&self, before: &Picture, when: &str) -> Verdict {
        self.node_is_again(before, when)?;
        self.pod_is_empty(&self.pod, when)?;
        let leased = self.leased()?;
        hold!(leased.is_empty(), "{when}: an address stays leased to {}", leased.join(", "));
        Ok(())
    }

    pub(crate) fn node_is_again(&self, before: &Picture, when: &str) -> Verdict {
        let differences = before.differences(&self.picture()?);
        hold!(differences.is_empty(), "{when}, on the node: {}", differences.join("; "));
        Ok(())
    }

    pub(crate) fn pod_is_empty(&self, pod: &Pod, when: &str) -> Verdict {
        let picture = pod.picture()?;
        hold!(picture.names().is_empty(), "{when}: {} is in the pod", picture.names().join(", "));
        Ok(())
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        for folder in &self.state {
            if let Err(error) = rustix::mount::unmount(folder, UnmountFlags::DETACH) {
                eprintln!("cni-suite: cannot show {} again: {error}", folder.display());
            }
        }
    }
}

pub(crate) fn mac(number: u8) -> String {
    format!("52:54:00:c4:e6:{number:02x}")
}

/// The names in a folder, sorted; none if there is no folder.
pub(crate) fn file_names(folder: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
