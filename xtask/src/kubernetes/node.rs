//! The node: a VM with real virtio NICs, in it Debian's containerd and runc and the kubelet.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use vm::{Bed, Cable, Child, GUEST_PATH, Nic, Spec, Vm};

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
const KUBELET_CONFIG: &[u8] = include_bytes!("../../../tests/kubernetes/e2e/kubelet.yaml");
const MULTUS_CONFIG: &[u8] = include_bytes!("../../../tests/kubernetes/e2e/00-multus.conf");

/// Drivers that nothing asks the kernel for at the right moment.
const MODULES: [&str; 7] = ["virtio_blk", "ext4", "bridge", "veth", "br_netfilter", "iptable_nat", "xt_nat"];

/// What must be there before the container runtime starts. The machine's own container things are of no concern to this node, and
/// its disk takes all that such a node keeps.
const PREPARE: &str = r"
mount --make-rshared /
mount -t ext4 /dev/vda /var/lib
rm -rf /etc/cni /opt/cni /etc/kubernetes
mkdir -p /etc/cni/net.d /opt/cni/bin /etc/kubernetes/pki /var/lib/kubelet
sysctl -qw net.ipv4.ip_forward=1 2>/dev/null || echo 1 >/proc/sys/net/ipv4/ip_forward
";

const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);

/// What the node is made from.
pub(super) struct Parts<'a> {
    pub(super) bed: &'a Bed,
    /// Folder with the kubelet and kubectl.
    pub(super) kubernetes: &'a Path,
    /// Folder with `multus`.
    pub(super) multus: &'a Path,
    /// Unpacked packages with containerd and runc.
    pub(super) containers: &'a Path,
    /// Folder with our own programs.
    pub(super) programs: &'a Path,
    /// Archives of images.
    pub(super) images: &'a [PathBuf],
    pub(super) folder: &'a Path,
    pub(super) logs: &'a Path,
    pub(super) interrupt: &'a Interrupt,
}

/// The running node. The order of the fields is the order in which they end.
pub(super) struct Node {
    _kubelet: Child,
    _containerd: Child,
    vm: Vm,
    path: String,
    libraries: String,
    /// From the kubelet's start until the node was Ready.
    pub(super) ready_after: Duration,
}

impl Node {
    /// Boots the VM, starts containerd and the kubelet in it, and waits until the cluster says that the node is Ready.
    pub(super) fn start(
        parts: &Parts<'_>,
        control: &ControlPlane,
        meta: Meta,
        see: impl Fn(&str),
    ) -> Result<Self> {
        see("disk");
        let disk = parts.folder.join("disk.img");
        make_disk(&disk)?;
        see("boot");
        let management = management()?;
        let spec = machine(&management, &disk)?.persist(parts.logs);
        let vm = parts.bed.boot(&spec).context("booting the node")?;
        parts.interrupt.ends(vm.qemu_pid());
        parts.interrupt.check()?;
        forward(&vm, &management, control)?;

        let containers = parts.containers.display();
        let path =
            format!("{}:{containers}/usr/bin:{containers}/usr/sbin:{GUEST_PATH}", parts.programs.display());
        let libraries = format!("{containers}/usr/lib/x86_64-linux-gnu");
        see("drivers and folders");
        for module in MODULES {
            vm.modprobe(module)?;
        }
        vm.sh(PREPARE)?;
        place_files(&vm, parts, control, meta)?;
        lead_to_the_service(&vm, control)?;

        see("containerd");
        let background = |name: &str, line: &str| {
            let line = format!("exec {line} >/persist/{name}.log 2>&1");
            vm.command("sh").args(["-c", &line]).env("PATH", &path).env("LD_LIBRARY_PATH", &libraries).spawn()
        };
        let containerd = background("containerd", "containerd --config /etc/containerd/config.toml")?;
        let ctr = |arguments: &[&str]| {
            vm.command("ctr")
                .args(["--namespace", "k8s.io"])
                .args(arguments.iter().copied())
                .env("PATH", &path)
                .env("LD_LIBRARY_PATH", &libraries)
        };
        wait(parts.interrupt, "containerd", || Ok(ctr(&["version"]).output()?.code() == Some(0)))?;
        for image in parts.images {
            see(&format!("image {}", image.file_stem().unwrap_or_default().to_string_lossy()));
            ctr(&["images", "import", &image.display().to_string()]).run().context("importing an image")?;
        }

        see("kubelet");
        let begun = Instant::now();
        let program = parts.kubernetes.join("kubelet");
        let kubelet = background(
            "kubelet",
            &format!(
                "{} --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf \
                 --hostname-override={NAME} --node-ip={ADDRESS} --v=2",
                program.display()
            ),
        )?;
        see("until the node is Ready");
        let kubectl = parts.kubernetes.join("kubectl");
        wait(parts.interrupt, "the node", || {
            let mut command = Command::new(&kubectl);
            command.arg("--kubeconfig").arg(&control.kubeconfig).args(["get", "node", NAME, "--output"]);
            command.arg(r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#);
            let output = command.output().context("cannot run kubectl")?;
            vm.ping(Duration::from_secs(60))?;
            Ok(output.stdout == b"True")
        })?;
        Ok(Self {
            _kubelet: kubelet,
            _containerd: containerd,
            vm,
            path,
            libraries,
            ready_after: begun.elapsed(),
        })
    }

    /// A command in the node, in the project's folder.
    pub(super) fn shell(&self, line: &str, repository: &Path) -> vm::Command {
        self.vm
            .command("sh")
            .args(["-c", line])
            .env("PATH", &self.path)
            .env("LD_LIBRARY_PATH", &self.libraries)
            .env("CONTAINERD_NAMESPACE", "k8s.io")
            .cwd(repository)
    }
}

/// The NIC that the node lives by. The node reaches the API server, and so whatever this machine reaches.
fn management() -> Result<Nic> {
    let nic = Nic::virtio("0000:00:03.0".parse()?, "52:54:00:00:00:03".parse()?).management();
    Ok(nic.cable(Cable::OpenRouter))
}

fn machine(management: &Nic, disk: &Path) -> Result<Spec> {
    let path = disk.display().to_string().replace(',', ",,");
    let drive = format!("file={path},if=none,id=disk,format=raw,cache=unsafe,discard=unmap");
    let spec = Spec::new().memory(MEMORY).nic(management.clone()).qemu_arguments(&[
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=disk,bus=pcie.0,addr=1a.0",
    ]);
    NICS.iter()
        .try_fold(spec, |spec, (address, mac)| Ok(spec.nic(Nic::virtio(address.parse()?, mac.parse()?))))
}

fn make_disk(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"]).arg(path);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let output = command.output().context("cannot run mkfs.ext4; install e2fsprogs")?;
    if !output.status.success() {
        bail!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes QEMU's router forward a port of our loopback interface to the kubelet, and the API server's proxy lead there.
fn forward(vm: &Vm, management: &Nic, control: &ControlPlane) -> Result<()> {
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

fn place_files(vm: &Vm, parts: &Parts<'_>, control: &ControlPlane, meta: Meta) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let serving = control.authority.server(NAME, &[NAME], &[ADDRESS])?;
    let kubelet =
        control.guest_kubeconfig("kubelet-client", &format!("system:node:{NAME}"), Some("system:nodes"))?;
    let mut files = vec![
        ("/etc/containerd/config.toml", 0o644, CONTAINERD_CONFIG.to_vec()),
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
fn lead_to_the_service(vm: &Vm, control: &ControlPlane) -> Result<()> {
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
        let config = String::from_utf8(CONTAINERD_CONFIG.to_vec()).unwrap();
        assert!(config.contains(&format!("sandbox_image = \"{}\"", super::super::images::PAUSE)));
    }
}
