//! The node: a VM with real virtio NICs, in it containerd and runc and the kubelet. It can be rebooted: what a node keeps, this one
//! has on its disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use vm::{Bed, Cable, Child, Chipset, GUEST_PATH, Nic, Spec, Vm};

use super::Meta;
use super::control::{self, ControlPlane, free_ports};
use super::processes::Interrupt;
use crate::demo::NICS;

/// The Node object's name: the VM's host name.
pub(super) const NAME: &str = "node";

/// QEMU's user network gives this address to the only guest.
const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 15);
const KUBELET_PORT: u16 = 10250;

const MEMORY: u32 = 2048;
/// The disk is sparse: it takes what is written.
const DISK_BYTES: u64 = 4 << 30;

const CONTAINERD_CONFIG: &[u8] = include_bytes!("../../../tests/kubernetes/e2e/containerd.toml");
const CONTAINERD_2_CONFIG: &[u8] = include_bytes!("../../../tests/kubernetes/e2e/containerd-2.toml");
const KUBELET_CONFIG: &[u8] = include_bytes!("../../../tests/kubernetes/e2e/kubelet.yaml");
const MULTUS_CONFIG: &[u8] = include_bytes!("../../../tests/kubernetes/e2e/00-multus.conf");

/// Drivers that nothing asks the kernel for at the right moment.
const MODULES: [&str; 7] = ["virtio_blk", "ext4", "bridge", "veth", "br_netfilter", "iptable_nat", "xt_nat"];

/// What must be there before the container runtime starts. The machine's own container things are of no concern to this node: its disk takes
/// all that a node keeps.
const PREPARE: &str = r"
mount --make-rshared /
mount -t ext4 /dev/vda /var/lib
for folder in etc/cni opt/cni etc/kubernetes etc/containerd; do
    mkdir -p /$folder /var/lib/.node/$folder
    mount --bind /var/lib/.node/$folder /$folder
done
mkdir -p /etc/cni/net.d /opt/cni/bin /etc/kubernetes/pki /var/lib/kubelet
sysctl -qw net.ipv4.ip_forward=1 2>/dev/null || echo 1 >/proc/sys/net/ipv4/ip_forward
";

const PATIENCE: Duration = Duration::from_secs(180);
/// A guest that does not answer for this long will not answer any more.
const STANDS_STILL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// What the node is made from.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) bed: &'a Bed,
    /// Folder with the kubelet and kubectl.
    pub(super) kubernetes: &'a Path,
    /// Folder with `multus`.
    pub(super) multus: &'a Path,
    /// Unpacked packages with containerd and runc.
    pub(super) containers: &'a Path,
    /// Folder with containerd 2, in place of the one in the packages.
    pub(super) containerd: Option<&'a Path>,
    /// Folder with our own programs.
    pub(super) programs: &'a Path,
    /// Archives of images.
    pub(super) images: &'a [PathBuf],
    pub(super) folder: &'a Path,
    pub(super) logs: &'a Path,
    pub(super) interrupt: &'a Interrupt,
}

/// NICs for pods that are plugged in later: PCI address and MAC.
pub(super) const FURTHER_NICS: [(&str, &str); 6] = [
    ("0000:00:0b.0", "52:54:00:00:00:0b"),
    ("0000:00:0c.0", "52:54:00:00:00:0c"),
    ("0000:00:0d.0", "52:54:00:00:00:0d"),
    ("0000:00:0e.0", "52:54:00:00:00:0e"),
    ("0000:00:0f.0", "52:54:00:00:00:0f"),
    ("0000:00:10.0", "52:54:00:00:00:10"),
];

/// The running node. The order of the fields is the order in which they end.
pub(super) struct Node<'a> {
    kubelet: Child,
    containerd: Child,
    vm: Vm,
    place: Place,
    parts: Parts<'a>,
    /// From the kubelet's start until the node was Ready.
    pub(super) ready_after: Duration,
}

/// Where the node finds programs and what they need.
struct Place {
    path: String,
    libraries: String,
    kubelet: PathBuf,
}

impl<'a> Node<'a> {
    /// Boots the VM, starts containerd and the kubelet in it, and waits until the cluster says that the node is Ready.
    pub(super) fn start(
        parts: Parts<'a>,
        control: &ControlPlane<'_>,
        meta: Meta,
        see: impl Fn(&str),
    ) -> Result<Self> {
        see("disk");
        let disk = parts.folder.join("disk.img");
        make_disk(&disk)?;
        see("boot");
        let vm = parts.bed.boot(&machine(&disk)?.persist(parts.logs)).context("booting the node")?;
        let place = Place::of(&parts);
        see("drivers and folders");
        prepare(&vm, &parts, control)?;
        place_files(&vm, &parts, control, meta)?;
        see("containerd");
        let containerd = place.containerd(&vm, &parts)?;
        for image in parts.images {
            see(&format!("image {}", image.file_stem().unwrap_or_default().to_string_lossy()));
            let import = ["images", "import", &image.display().to_string()];
            place.ctr(&vm, &import).run().context("importing an image")?;
        }
        see("kubelet");
        let begun = Instant::now();
        let kubelet = place.kubelet(&vm)?;
        let mut node = Self { kubelet, containerd, vm, place, parts, ready_after: Duration::ZERO };
        see("until the node is Ready");
        node.wait_until_ready(control)?;
        node.ready_after = begun.elapsed();
        Ok(node)
    }

    /// Kills the kubelet and starts it again, as whoever manages services would.
    pub(super) fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet.kill()?;
        self.kubelet = self.place.kubelet(&self.vm)?;
        Ok(())
    }

    /// Starts containerd again, which has been killed, as whoever manages services would.
    pub(super) fn start_containerd(&mut self) -> Result<()> {
        self.containerd = self.place.containerd(&self.vm, &self.parts)?;
        Ok(())
    }

    /// Shuts the machine down and boots it anew: the same disk and the same NICs, an empty /run, no container. Waits until the cluster says
    /// that this boot is Ready.
    pub(super) fn reboot(&mut self, control: &ControlPlane<'_>) -> Result<()> {
        self.kubelet.kill()?;
        self.containerd.kill()?;
        self.vm.reboot().context("rebooting the node")?;
        prepare(&self.vm, &self.parts, control)?;
        self.containerd = self.place.containerd(&self.vm, &self.parts)?;
        self.kubelet = self.place.kubelet(&self.vm)?;
        self.wait_until_ready(control)
    }

    /// Whether its container runtime adds what CDI files say.
    pub(super) fn knows_cdi(&self) -> bool {
        self.parts.containerd.is_some()
    }

    /// # Errors
    /// [`vm::Error::Hung`] when the machine itself stands still.
    pub(super) fn answers(&self) -> Result<(), vm::Error> {
        self.vm.ping(STANDS_STILL)
    }

    /// Loads a driver, with those that it needs.
    pub(super) fn modprobe(&self, module: &str) -> Result<()> {
        self.vm.modprobe(module).with_context(|| format!("loading {module}"))
    }

    /// Pulls the spare NIC at this PCI address out of the machine.
    pub(super) fn unplug(&self, address: &str) -> Result<()> {
        self.vm.unplug(&spare(address)?).with_context(|| format!("unplugging {address}"))
    }

    /// Plugs it in, or in again, and waits until the node has it.
    pub(super) fn plug(&self, address: &str) -> Result<()> {
        self.vm.plug(&spare(address)?).with_context(|| format!("plugging in {address}"))?;
        wait(self.parts.interrupt, address, || {
            let look = format!("ls -d /sys/bus/pci/devices/{address}/virtio*/net/*");
            Ok(self.vm.run(["sh", "-c", &look])?.code() == Some(0))
        })
    }

    /// A command in the node, in the project's folder.
    pub(super) fn shell(&self, line: &str, repository: &Path) -> vm::Command {
        let shell = self.place.command(&self.vm, "sh").args(["-c", line]);
        shell.env("CONTAINERD_NAMESPACE", "k8s.io").cwd(repository)
    }

    fn wait_until_ready(&self, control: &ControlPlane<'_>) -> Result<()> {
        let kubectl = self.parts.kubernetes.join("kubectl");
        // What the cluster says may be about the boot before.
        let wanted = format!("{} True", self.vm.boot_id());
        wait(self.parts.interrupt, "the node", || {
            let mut command = Command::new(&kubectl);
            command.arg("--kubeconfig").arg(&control.kubeconfig).args(["get", "node", NAME, "--output"]);
            command
                .arg(r#"jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type=="Ready")].status}"#);
            let output = command.output().context("cannot run kubectl")?;
            self.vm.ping(Duration::from_secs(60))?;
            Ok(output.stdout == wanted.as_bytes())
        })
    }
}

impl Place {
    fn of(parts: &Parts<'_>) -> Self {
        let containers = parts.containers.display();
        let containerd = parts.containerd.map_or_else(String::new, |folder| format!("{}:", folder.display()));
        Self {
            path: format!(
                "{}:{containerd}{containers}/usr/bin:{containers}/usr/sbin:{GUEST_PATH}",
                parts.programs.display()
            ),
            libraries: format!("{containers}/usr/lib/x86_64-linux-gnu"),
            kubelet: parts.kubernetes.join("kubelet"),
        }
    }

    fn command(&self, vm: &Vm, program: &str) -> vm::Command {
        vm.command(program).env("PATH", &self.path).env("LD_LIBRARY_PATH", &self.libraries)
    }

    /// Starts a program; one log takes what all its instances say.
    fn background(&self, vm: &Vm, name: &str, line: &str) -> Result<Child> {
        let line = format!("exec {line} >>/persist/{name}.log 2>&1");
        Ok(self.command(vm, "sh").args(["-c", &line]).spawn()?)
    }

    fn ctr(&self, vm: &Vm, arguments: &[&str]) -> vm::Command {
        self.command(vm, "ctr").args(["--namespace", "k8s.io"]).args(arguments.iter().copied())
    }

    /// Starts containerd, and waits until it answers.
    fn containerd(&self, vm: &Vm, parts: &Parts<'_>) -> Result<Child> {
        let line = "containerd --config /etc/containerd/config.toml";
        let child = self.background(vm, "containerd", line)?;
        wait(parts.interrupt, "containerd", || Ok(self.ctr(vm, &["version"]).output()?.code() == Some(0)))?;
        Ok(child)
    }

    fn kubelet(&self, vm: &Vm) -> Result<Child> {
        let line = format!(
            "{} --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf \
             --hostname-override={NAME} --node-ip={ADDRESS} --v=2",
            self.kubelet.display()
        );
        self.background(vm, "kubelet", &line)
    }
}

/// After each boot: the way from the cluster to the kubelet and back, drivers, folders.
fn prepare(vm: &Vm, parts: &Parts<'_>, control: &ControlPlane<'_>) -> Result<()> {
    parts.interrupt.ends(vm.qemu_pid());
    parts.interrupt.check()?;
    forward(vm, &management()?, control)?;
    for module in MODULES {
        vm.modprobe(module)?;
    }
    vm.sh(PREPARE)?;
    lead_to_the_service(vm, control)
}

/// The NIC that the node lives by. The node reaches the API server, and so whatever this machine reaches.
fn management() -> Result<Nic> {
    let nic = Nic::virtio("0000:00:03.0".parse()?, "52:54:00:00:00:03".parse()?).management();
    Ok(nic.cable(Cable::OpenRouter))
}

/// One of the NICs for pods.
fn spare(address: &str) -> Result<Nic> {
    let (address, mac) = NICS
        .iter()
        .chain(&FURTHER_NICS)
        .find(|(known, _)| *known == address)
        .context("no NIC has this address")?;
    Ok(Nic::virtio(address.parse()?, mac.parse()?))
}

/// A machine that hot-plugs on bus 0, where its NICs are.
fn machine(disk: &Path) -> Result<Spec> {
    let path = disk.display().to_string().replace(',', ",,");
    let drive = format!("file={path},if=none,id=disk,format=raw,cache=unsafe,discard=unmap");
    let spec = Spec::new().chipset(Chipset::Pc).memory(MEMORY).nic(management()?).qemu_arguments(&[
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=disk,bus=pci.0,addr=1a.0",
    ]);
    NICS.iter().try_fold(spec, |spec, (address, _)| Ok(spec.nic(spare(address)?)))
}

fn make_disk(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]).arg(path);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let output = command.output().context("cannot run mkfs.ext4; install e2fsprogs")?;
    if !output.status.success() {
        bail!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes QEMU's router forward a port of our loopback interface to the kubelet, and the API server's proxy lead there.
fn forward(vm: &Vm, management: &Nic, control: &ControlPlane<'_>) -> Result<()> {
    let [port] = free_ports()?;
    let line = format!("hostfwd_add cable-{} tcp:127.0.0.1:{port}-{ADDRESS}:{KUBELET_PORT}", management.id());
    let answer = vm.qmp().execute("human-monitor-command", json!({ "command-line": line }))?;
    match answer.as_str() {
        Some("") => {
            control.egress.lead_to(port);
            Ok(())
        }
        _ => bail!("QEMU does not forward port {port} to the kubelet: {answer}"),
    }
}

fn place_files(vm: &Vm, parts: &Parts<'_>, control: &ControlPlane<'_>, meta: Meta) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let serving = control.authority.server(NAME, &[NAME], &[ADDRESS])?;
    let kubelet =
        control.guest_kubeconfig("kubelet-client", &format!("system:node:{NAME}"), Some("system:nodes"))?;
    let containerd = if parts.containerd.is_some() { CONTAINERD_2_CONFIG } else { CONTAINERD_CONFIG };
    let mut files = vec![
        ("/etc/containerd/config.toml", 0o644, containerd.to_vec()),
        ("/etc/kubernetes/kubelet.yaml", 0o644, KUBELET_CONFIG.to_vec()),
        ("/etc/kubernetes/kubelet.conf", 0o600, kubelet.into_bytes()),
        ("/etc/kubernetes/pki/ca.crt", 0o644, read(&control.authority.certificate())?),
        ("/etc/kubernetes/pki/kubelet.crt", 0o644, read(&serving.certificate)?),
        ("/etc/kubernetes/pki/kubelet.key", 0o600, read(&serving.key)?),
    ];
    let cluster = crate::build::workspace()?.join("deployments/cni/10-cluster.conflist");
    files.push(("/etc/cni/net.d/10-cluster.conflist", 0o644, read(&cluster)?));
    let mut programs = format!("{}/*", parts.bed.debian().cni_plugins.display());
    // Our own programs and virt-meta's configuration are put here by the image, as on any node; Multus must be there already.
    if meta == Meta::Multus {
        let kubeconfig = control.guest_kubeconfig("multus", "multus", None)?;
        files.push(("/etc/cni/net.d/00-multus.conf", 0o644, MULTUS_CONFIG.to_vec()));
        files.push(("/etc/cni/net.d/multus.d/kubeconfig", 0o600, kubeconfig.into_bytes()));
        programs.push_str(&format!(" {}/multus", parts.multus.display()));
    }
    for (path, mode, contents) in &files {
        vm.write_file(*path, *mode, contents)?;
    }
    vm.sh(&format!("ln -s {programs} /opt/cni/bin/"))?;
    Ok(())
}

/// What kube-proxy does elsewhere, for the one service that is called: `kubernetes`.
fn lead_to_the_service(vm: &Vm, control: &ControlPlane<'_>) -> Result<()> {
    let (service, server) = (control::SERVICE, control.guest_address());
    let rule = format!("-d {service} -p tcp --dport 443 -j DNAT --to-destination {server}");
    vm.sh(&format!("iptables-legacy -t nat -A OUTPUT {rule}; iptables-legacy -t nat -A PREROUTING {rule}"))
        .context("leading the node to the API server's service")?;
    Ok(())
}

fn wait(interrupt: &Interrupt, what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !ready()? {
        interrupt.check()?;
        if Instant::now() > deadline {
            bail!("{what} is not ready after {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_is_told_the_sandbox_image_that_we_make() {
        let image = super::super::images::PAUSE;
        for (config, key) in [(CONTAINERD_CONFIG, "sandbox_image"), (CONTAINERD_2_CONFIG, "sandbox")] {
            let config = String::from_utf8(config.to_vec()).unwrap();
            assert!(config.contains(&format!("{key} = \"{image}\"")), "{config}");
        }
    }
}
