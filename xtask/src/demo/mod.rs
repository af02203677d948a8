//! `cargo xtask demo`: the whole walkthrough on real virtio NICs, in one VM that is the node.

pub(crate) mod look;
pub(crate) mod screen;
pub(crate) mod walkthrough;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use vm::{Bed, GUEST_PATH, Nic, Spec, Vm};

use self::screen::Screen;
use self::walkthrough::{Place, Walk};
use crate::progress::Progress;
use crate::{build, packages};

/// The NIC that the node lives by, as the guest's kernel names it.
const MANAGEMENT: &str = "eth0";

/// Longest time in which a node under plain emulation does what it was told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The spare NICs: PCI address and MAC.
pub(crate) const NICS: [(&str, &str); 2] =
    [("0000:00:09.0", "52:54:00:2e:24:f7"), ("0000:00:0a.0", "52:54:00:c4:e6:cd")];

/// Walk through the whole flow on real virtio NICs in a VM, and check every step
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// At the end, a shell in the running node
    #[arg(long)]
    keep: bool,
}

/// Builds, boots, walks. Fails when something was not as it should be.
pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let start = Instant::now();
    let programs = build::programs(progress)?;
    let debian = packages::ensure(progress)?;
    let step = progress.step("Boot the node");
    let bed = Bed::new(debian, &programs.vm_guest)?;
    let vm = bed.boot(&machine()?)?;
    step.done(&format!("Linux {}, {}", vm.kernel(), bed.accelerator()));

    let node = Node {
        vm,
        programs: programs.folder,
        cni_plugins: bed.debian().cni_plugins.clone(),
        repository: build::workspace()?,
    };
    let mut screen = Screen::default();
    if let Err(error) = walk(&node, &mut screen) {
        screen.check("the walkthrough goes on", Err(format!("{error:#}")));
    }
    if !screen.all_good() {
        node.tell_more(&screen);
    }
    screen.finish(start.elapsed());
    if options.keep {
        node.shell(&screen)?;
    }
    Ok(if screen.all_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn walk(node: &Node, screen: &mut Screen) -> Result<()> {
    let mut walk = Walk::new(node, screen);
    let before = walk.look_at_the_node()?;
    start_the_node(node, &mut walk)?;
    walk.start_virtdp()?;
    walk.pods_come_and_go(&before)
}

fn start_the_node(node: &Node, walk: &mut Walk<'_>) -> Result<()> {
    walk.step("Put the CNI programs on the node, start it, define the network");
    let programs = node.programs.display();
    walk.type_in("mkdir -p /opt/cni/bin /etc/cni/net.d /etc/cni/net.d/virt-meta.d")?;
    walk.type_in(&format!("ln -s {programs}/ehost-device {programs}/virt-meta /opt/cni/bin/"))?;
    let cni = node.cni_plugins.display();
    walk.type_in(&format!("ln -s {cni}/bridge {cni}/host-local /opt/cni/bin/"))?;
    walk.type_in("cp deployments/cni/00-virt-meta.conf deployments/cni/10-cluster.conflist /etc/cni/net.d/")?;
    walk.type_in("virtsim up")?;
    walk.type_in("cp /run/virtsim/kubeconfig /etc/cni/net.d/virt-meta.d/kubeconfig")?;
    walk.type_in("virtsim apply -f deployments/crdnetwork.yaml -f deployments/virt-crd.yaml")?;
    Ok(())
}

pub(crate) fn machine() -> Result<Spec> {
    let management = Nic::virtio("0000:00:03.0".parse()?, "52:54:00:00:00:03".parse()?).management();
    NICS.iter().try_fold(Spec::new().memory(1024).nic(management), |spec, (address, mac)| {
        Ok(spec.nic(Nic::virtio(address.parse()?, mac.parse()?)))
    })
}

/// The VM as the walkthrough uses it: a person's shell in the project's folder.
struct Node {
    vm: Vm,
    programs: PathBuf,
    cni_plugins: PathBuf,
    repository: PathBuf,
}

impl Node {
    fn command(&self, program: &str) -> vm::Command {
        let path = format!("{}:{GUEST_PATH}", self.programs.display());
        self.vm.command(program).env("PATH", path).cwd(&self.repository)
    }

    fn shell(&self, screen: &Screen) -> Result<()> {
        screen.note("");
        screen.note("This is a shell in the node. Try: virtdp discover; virtsim get pods; virtsim apply -f deployments/pod-tc1.yaml;");
        screen.note("virtsim exec testpod1 -- ip addr. `exit` ends the shell and the node.");
        self.command("sh").attach().context("the shell in the node")?;
        Ok(())
    }

    /// After a failure: what the programs said.
    fn tell_more(&self, screen: &Screen) {
        screen.note("What the programs said:");
        for line in [
            "virtsim get pods",
            "virtsim get events",
            "virtsim logs virt-device-plugin | tail -n 25",
            "tail -n 25 /run/virtsim/virtsim.log",
        ] {
            screen.command(line);
            match self.run(line) {
                Ok((_, text)) => screen.output(&text),
                Err(error) => {
                    // The node is gone; its other words are, too.
                    screen.output(&format!("{error:#}"));
                    return;
                }
            }
        }
    }
}

impl Place for Node {
    fn run(&self, line: &str) -> Result<(bool, String)> {
        let output = self.command("sh").args(["-c", &format!("exec 2>&1; {line}")]).output()?;
        Ok((output.code() == Some(0), output.text()))
    }

    fn client(&self) -> &'static str {
        "virtsim"
    }

    fn start_agent(&self) -> &'static [&'static str] {
        &["virtsim apply -f deployments/pod-virtdp.yaml"]
    }

    fn agent(&self) -> &'static str {
        "virt-device-plugin"
    }

    fn delete_pods(&self) -> &'static str {
        "virtsim delete pod"
    }

    fn records(&self) -> &'static str {
        "/var/lib/virtnet/leases /var/lib/virtnet/attachments"
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}
