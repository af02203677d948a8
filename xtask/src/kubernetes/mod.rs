//! `cargo xtask kubernetes`: the walkthrough on the real thing. Control plane on this machine's loopback interface, the node in a VM with
//! real virtio NICs: once with virt-meta, once with upstream Multus in its place.

mod certificates;
mod control;
mod devicemanager;
mod egress;
mod faults;
mod go;
mod images;
pub(crate) mod manifests;
mod node;
mod processes;
mod resilience;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tempfile::TempDir;
use vm::{Bed, Programs};

use self::control::{ControlPlane, Place as ControlPlace};
use self::node::{Node, Parts};
use self::processes::Interrupt;
use crate::demo::look::Home;
use crate::demo::screen::Screen;
use crate::demo::walkthrough::{Place, Walk};
use crate::progress::Progress;
use crate::{build, packages};

/// Longest time in which a real cluster under plain emulation does what it was told.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

const ROLLED_OUT: &str = "kubectl rollout status --namespace=kube-system daemonset/virtdp --timeout=120s";
const INSTALLED: &str = "kubectl logs --namespace=kube-system daemonset/virtdp --container=install";

/// Resident memory of the agent: highest, now, and the part that is its own.
const MEMORY_OF_VIRTDP: &str = r#"for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline)" = 'virtdp --logtostderr ' ] && grep -E 'VmHWM|VmRSS|RssAnon' $p/status; done; true"#;

/// Test against Kubernetes' own code, then walk through the whole flow on a real node in a VM, once with each meta plugin
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only one part
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Only with this meta plugin
    #[arg(long, value_enum)]
    meta: Option<Meta>,

    /// At the end, leave the cluster up until Ctrl-C, and say how to reach it
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// virtdp and virtsim against the kubelet's own device manager, in namespaces on this machine
    Devicemanager,
    /// All manifests of deployments/ on the real API server, without a node
    Manifests,
    /// The whole flow on a real node
    Walkthrough,
    /// What a real node goes through while pods have NICs: restarts, an update, a NIC that is pulled out, a bond, a reboot
    Resilience,
}

/// Who hands the pod's devices over to the CNI plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Meta {
    /// This project's own
    VirtMeta,
    /// Upstream Multus, the thin plugin
    Multus,
}

impl Meta {
    /// What people call it.
    fn name(self) -> &'static str {
        match self {
            Self::VirtMeta => "virt-meta",
            Self::Multus => "multus",
        }
    }
}

/// What does not change from one cluster to the next.
struct Workshop {
    bed: Bed,
    programs: Programs,
    containers: PathBuf,
    kubernetes: PathBuf,
    multus: PathBuf,
    images: Vec<PathBuf>,
    logs: PathBuf,
    interrupt: Interrupt,
}

/// Builds, starts, walks. Fails when something was not as it should be.
pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let cache = build::target_folder()?.join("kubernetes");
    let mut all_good = true;
    // Whoever names a meta plugin or wants to keep the cluster means a real node.
    let on_a_node = options.meta.is_some() || options.keep;
    if on_a_node && matches!(options.only, Some(Part::Devicemanager | Part::Manifests)) {
        bail!("--meta and --keep are for the walks on a real node");
    }
    let wants = |part| match options.only {
        Some(only) => only == part,
        None => !on_a_node || part == Part::Walkthrough,
    };
    if wants(Part::Devicemanager) {
        all_good &= devicemanager::run(progress, &cache)? == ExitCode::SUCCESS;
    }
    let end = |all_good| Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    if options.only == Some(Part::Devicemanager) {
        return end(all_good);
    }
    // First, since it may end here: whoever lacks Go should not have to wait for the rest.
    let kubernetes = go::kubernetes(progress, &cache)?;
    let interrupt = Interrupt::watch()?;
    if wants(Part::Manifests) {
        all_good &= manifests::check(progress, &cache, &kubernetes, &interrupt)?;
    }
    if options.only == Some(Part::Manifests) {
        return end(all_good);
    }
    let multus = go::multus(progress, &cache)?;
    let programs = build::programs(progress)?;
    let debian = packages::ensure(progress)?;
    let containers = packages::containers(progress, &cache.join("debian"))?;
    let step = progress.step("Make the images");
    let images = images::write(&cache.join("images"), &containers, &programs)?;
    let bed = Bed::new(debian, &programs.vm_guest)?;
    step.done("");
    let logs = cache.join("logs");
    let workshop = Workshop { bed, programs, containers, kubernetes, multus, images, logs, interrupt };

    let metas = options.meta.map_or_else(|| vec![Meta::VirtMeta, Meta::Multus], |meta| vec![meta]);
    let walks = [Part::Walkthrough, Part::Resilience].into_iter().filter(|part| wants(*part));
    let walks: Vec<_> = walks.flat_map(|part| metas.iter().map(move |meta| (part, *meta))).collect();
    for (at, (part, meta)) in walks.iter().enumerate() {
        let keep = options.keep && at + 1 == walks.len();
        let mut outcome = workshop.walk(*part, *meta, keep, progress);
        if let Some(hung) = outcome.as_ref().err().filter(|error| stands_still(error)) {
            eprintln!(
                "{hung:#}\nA guest whose kernel stands still says nothing of what ran in it: the same walk once more, from nothing"
            );
            outcome = workshop.walk(*part, *meta, keep, progress);
        }
        if workshop.interrupt.came() {
            eprintln!("interrupted; everything that was started has been ended");
            return Ok(ExitCode::from(130));
        }
        all_good &= outcome.with_context(|| {
            let logs = workshop.logs_of(*part, *meta);
            format!("with {}; the log of every program is in {}", meta.name(), logs.display())
        })?;
    }
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the guest's kernel itself has stopped, as emulation of several processors lets happen now and then: one of them never wakes up.
fn stands_still(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(vm::Error::Hung { .. } | vm::Error::Boot { .. })))
}

impl Workshop {
    fn logs_of(&self, part: Part, meta: Meta) -> PathBuf {
        match part {
            Part::Resilience => self.logs.join(format!("{}-resilience", meta.name())),
            _ => self.logs.join(meta.name()),
        }
    }

    /// One cluster from nothing to nothing. False when something was not as it should be.
    fn walk(&self, part: Part, meta: Meta, keep: bool, progress: &Progress) -> Result<bool> {
        let begun = Instant::now();
        let logs = self.logs_of(part, meta);
        control::remove(&logs)?;
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        // In the system's folder for such things: the name of a socket must be short.
        let folder = TempDir::with_prefix("virtnet-kubernetes-").context("cannot make a folder")?;

        let step = progress.step("Start etcd, API server, controller manager, scheduler");
        let place = ControlPlace {
            programs: &self.kubernetes,
            folder: folder.path(),
            logs: &logs,
            interrupt: &self.interrupt,
        };
        let control = ControlPlane::start(&place, |note| step.note(note))?;
        step.done("");

        let step = progress.step(&format!("Start the node, with {}", meta.name()));
        let parts = Parts {
            bed: &self.bed,
            kubernetes: &self.kubernetes,
            multus: &self.multus,
            containers: &self.containers,
            programs: &self.programs.folder,
            images: &self.images,
            folder: folder.path(),
            logs: &logs,
            interrupt: &self.interrupt,
        };
        let node = Node::start(parts, &control, meta, |note| step.note(note))?;
        step.done(&format!("Ready {:.0} s after the kubelet was started", node.ready_after.as_secs_f64()));

        let mut cluster =
            Cluster { node, control, kubernetes: &self.kubernetes, meta, repository: build::workspace()? };
        let mut screen = Screen::default();
        let walked = match part {
            Part::Resilience => resilience::walk(&mut cluster, &mut screen),
            _ => cluster.walk(&mut screen),
        };
        if let Err(error) = walked {
            screen.check("the walk goes on", Err(format!("{error:#}")));
        }
        if self.interrupt.came() {
            return Ok(false);
        }
        if !screen.all_good() {
            cluster.node.answers()?;
            cluster.tell_more(&screen, &logs);
        }
        match part {
            Part::Resilience => {
                screen.finish_with("the node went through all of it and lost no NIC", begun.elapsed());
            }
            _ => screen.finish(begun.elapsed()),
        }
        if keep {
            cluster.keep(&self.interrupt);
        }
        Ok(screen.all_good())
    }
}

/// As `docs/install.md` says.
fn uninstall(walk: &mut Walk<'_>) -> Result<()> {
    const CLEANER: &str = "--namespace=kube-system daemonset/virtnet-uninstall";
    walk.step("Uninstall, with a pod on each node that cleans it");
    walk.type_in(
        "kubectl delete daemonset,serviceaccount,clusterrole,clusterrolebinding --namespace=kube-system \
         --selector=app.kubernetes.io/name=virtnet",
    )?;
    walk.type_in("kubectl apply -f deployments/virtnet-uninstall.yaml")?;
    walk.type_in(&format!("kubectl rollout status {CLEANER} --timeout=120s"))?;
    walk.type_in(&format!("kubectl logs {CLEANER} --container=uninstall"))?;
    walk.says(
        "the cluster's network is first again",
        "ls /etc/cni/net.d | head -n 1",
        &["10-cluster.conflist"],
    )?;
    for program in ["ehost-device", "virt-meta"] {
        let look = format!("[ -e /opt/cni/bin/{program} ] || echo {program} is not there");
        walk.says("the node is clean", &look, &[program, "is not there"])?;
    }
    walk.type_in("kubectl delete -f deployments/virtnet-uninstall.yaml")?;
    Ok(())
}

/// A running cluster as a person types at it: `kubectl` on this machine, everything else on the node.
struct Cluster<'a> {
    node: Node<'a>,
    control: ControlPlane,
    kubernetes: &'a Path,
    meta: Meta,
    repository: PathBuf,
}

impl Cluster<'_> {
    fn walk(&self, screen: &mut Screen) -> Result<()> {
        let mut walk = Walk::new(self, screen);
        let before = self.begin(&mut walk)?;
        walk.pods_come_and_go(&before)?;
        match self.meta {
            Meta::VirtMeta => {
                faults::of_manifests(&mut walk)?;
                uninstall(&mut walk)
            }
            Meta::Multus => faults::of_meta_plugins(&mut walk),
        }
    }

    /// The agent runs, and there is a network. Gives what the NICs were like before.
    fn begin(&self, walk: &mut Walk<'_>) -> Result<Vec<Home>> {
        let before = walk.look_at_the_node()?;
        walk.step(&format!("A Kubernetes node, with {}", self.meta.name()));
        walk.type_in("kubectl get nodes -o wide")?;
        walk.type_in("ls /etc/cni/net.d")?;
        walk.start_virtdp()?;
        walk.type_in(MEMORY_OF_VIRTDP)?;
        walk.step("Define the network");
        walk.type_in(
            "kubectl wait --for=condition=Established crd/network-attachment-definitions.k8s.cni.cncf.io",
        )?;
        walk.type_in("kubectl apply -f deployments/virt-crd.yaml")?;
        Ok(before)
    }

    fn kubectl(&self, line: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(&self.repository);
        command.env("KUBECONFIG", &self.control.kubeconfig);
        command.env("PATH", format!("{}:{path}", self.kubernetes.display()));
        command
    }

    /// After a failure: what the cluster says, into the folder with the programs' logs, and the most telling part here.
    fn tell_more(&self, screen: &Screen, logs: &Path) {
        let questions = [
            ("pods", "kubectl get pods --all-namespaces -o wide; kubectl describe pods --all-namespaces"),
            ("node", "kubectl describe nodes; kubectl get nodes -o yaml"),
            ("events", "kubectl get events --all-namespaces --sort-by=.lastTimestamp"),
            ("virtdp", "kubectl logs --namespace=kube-system daemonset/virtdp --all-containers"),
            ("links", "ip -details link; ls -R /var/lib/virtnet /etc/cni /var/lib/cni; dmesg | tail -n 50"),
        ];
        for (name, line) in questions {
            let text = match self.run(line) {
                Ok((_, text)) => text,
                Err(error) => format!("{error:#}"),
            };
            // What cannot be written is shown at least, as far as it fits.
            let _ = fs::write(logs.join(format!("{name}.txt")), &text);
            if matches!(name, "events" | "virtdp") {
                screen.command(line);
                let lines: Vec<&str> = text.lines().collect();
                screen.output(
                    &lines
                        .iter()
                        .skip(lines.len().saturating_sub(20))
                        .copied()
                        .collect::<Vec<_>>()
                        .join("\n"),
                );
            }
        }
        screen.note(&format!("The log of every program is in {}", logs.display()));
    }

    fn keep(&self, interrupt: &Interrupt) {
        println!("\nThe cluster is up. In another terminal:\n");
        println!("    export KUBECONFIG={}", self.control.kubeconfig.display());
        println!("    export PATH={}:$PATH", self.kubernetes.display());
        println!("    kubectl get pods --all-namespaces\n\nCtrl-C ends it.");
        while !interrupt.came() {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Place for Cluster<'_> {
    fn run(&self, line: &str) -> Result<(bool, String)> {
        let merged = format!("exec 2>&1; {line}");
        if line.contains("kubectl ") {
            let output = self.kubectl(&merged).output().context("cannot run kubectl")?;
            return Ok((
                output.status.success(),
                String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            ));
        }
        let output = self.node.shell(&merged, &self.repository).output()?;
        if output.code().is_none() {
            bail!("`{line}` was killed");
        }
        Ok((output.code() == Some(0), output.text()))
    }

    fn client(&self) -> &'static str {
        "kubectl"
    }

    fn start_agent(&self) -> &'static [&'static str] {
        match self.meta {
            Meta::VirtMeta => {
                &["kubectl apply -k deployments/kustomize/overlays/virt-meta", ROLLED_OUT, INSTALLED]
            }
            // Whoever has Multus has the definition of networks, too.
            Meta::Multus => &[
                "kubectl apply -f deployments/crdnetwork.yaml -f tests/kubernetes/e2e/multus-rbac.yaml",
                "kubectl apply -k deployments/kustomize/overlays/multus",
                ROLLED_OUT,
                INSTALLED,
            ],
        }
    }

    fn agent(&self) -> &'static str {
        "--namespace=kube-system daemonset/virtdp --container=virtdp"
    }

    fn delete_pods(&self) -> &'static str {
        // Their shell, being process 1, ignores SIGTERM: without this, deleting takes the 30 s that Kubernetes grants.
        "kubectl delete pod --grace-period=1"
    }

    fn records(&self) -> &'static str {
        match self.meta {
            Meta::VirtMeta => "/var/lib/virtnet/leases /var/lib/virtnet/attachments",
            Meta::Multus => "/var/lib/virtnet/leases",
        }
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}
