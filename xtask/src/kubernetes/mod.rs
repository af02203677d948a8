//! `cargo xtask kubernetes`: the walkthrough on the real thing. Control plane on this machine's loopback interface, the node in a VM with
//! real virtio NICs: once with virt-meta, once with upstream Multus in its place.

mod cdi;
mod certificates;
mod cluster;
mod control;
mod devicemanager;
mod egress;
mod faults;
mod go;
mod images;
pub(crate) mod manifests;
mod node;
mod plumbing;
mod processes;
mod resilience;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tempfile::TempDir;
use vm::{Bed, Programs};

use self::cluster::Cluster;
use self::control::{ControlPlane, Place};
use self::node::{Node, Parts};
use self::processes::Interrupt;
use crate::demo::look::Home;
use crate::demo::screen::Screen;
use crate::demo::walkthrough::Walk;
use crate::progress::Progress;
use crate::{build, packages};

/// Longest time in which a real cluster under plain emulation, on a busy machine, does what it was told.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(200);

/// Test against Kubernetes' own code, then walk through the whole flow on a real node in a VM, once with each meta plugin
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only one part; the last two take long and are done only so
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Only with this meta plugin
    #[arg(long, value_enum)]
    meta: Option<Meta>,

    /// The node's containerd: Debian's, or the newest, with which the walkthrough also sees that devices come by CDI
    #[arg(long, value_enum, value_name = "MAJOR", default_value = "1")]
    containerd: Containerd,

    /// How many pods come and go one after the other in the walk `plumbing`
    #[arg(long, value_name = "NUMBER", default_value_t = 8)]
    pods: u32,

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
    /// What the way of eight NICs into pods and home goes through: no API server, pods deleted by force, containerd killed, pods in masses
    Plumbing,
}

/// The container runtime, by its major version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Containerd {
    /// Debian 12's, which knows no CDI
    #[value(name = "1")]
    One,
    /// Built from its module
    #[value(name = "2")]
    Two,
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
    containerd: Option<PathBuf>,
    images: Vec<PathBuf>,
    logs: PathBuf,
    interrupt: Interrupt,
}

/// Builds, starts, walks. Fails when something was not as it should be.
pub(crate) fn run(options: &Options, progress: &Progress) -> Result<ExitCode> {
    let cache = build::target_folder()?.join("kubernetes");
    let mut all_good = true;
    // Whoever names a meta plugin or another container runtime, or wants to keep the cluster, means a real node.
    let on_a_node = options.meta.is_some() || options.containerd != Containerd::One || options.keep;
    if on_a_node && matches!(options.only, Some(Part::Devicemanager | Part::Manifests)) {
        bail!("--meta, --containerd and --keep are for the walks on a real node");
    }
    let wants = |part| match options.only {
        Some(only) => only == part,
        None => !on_a_node,
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
    let containerd = match options.containerd {
        Containerd::One => None,
        Containerd::Two => Some(go::containerd(progress, &cache)?),
    };
    let programs = build::programs(progress)?;
    let debian = packages::ensure(progress)?;
    let containers = packages::containers(progress, &cache.join("debian"))?;
    let step = progress.step("Make the images");
    let images = images::write(&cache.join("images"), &containers, &programs)?;
    let bed = Bed::new(debian, &programs.vm_guest)?;
    step.done("");
    let logs = cache.join("logs");
    let workshop =
        Workshop { bed, programs, containers, kubernetes, multus, containerd, images, logs, interrupt };

    // The others take long, and are for who asks for them.
    let part = options.only.unwrap_or(Part::Walkthrough);
    let metas = options.meta.map_or_else(|| vec![Meta::VirtMeta, Meta::Multus], |meta| vec![meta]);
    for (at, meta) in metas.iter().enumerate() {
        let keep = options.keep && at + 1 == metas.len();
        let logs = workshop.logs_of(part, *meta);
        let walk = || workshop.walk(part, *meta, options.pods, keep, progress);
        let mut outcome = walk();
        if let Some(hung) = outcome.as_ref().err().filter(|error| stands_still(error)) {
            eprintln!(
                "{hung:#}\nA guest whose kernel stands still says nothing of what ran in it: the same walk once more, from nothing"
            );
            outcome = walk();
        }
        if workshop.interrupt.came() {
            eprintln!("interrupted; everything that was started has been ended");
            return Ok(ExitCode::from(130));
        }
        all_good &= outcome.with_context(|| {
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
            Part::Plumbing => self.logs.join(format!("{}-plumbing", meta.name())),
            Part::Resilience => self.logs.join(format!("{}-resilience", meta.name())),
            _ => self.logs.join(meta.name()),
        }
    }

    /// One cluster from nothing to nothing. False when something was not as it should be.
    fn walk(&self, part: Part, meta: Meta, pods: u32, keep: bool, progress: &Progress) -> Result<bool> {
        let begun = Instant::now();
        let logs = self.logs_of(part, meta);
        control::remove(&logs)?;
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        // In the system's folder for such things: the name of a socket must be short.
        let folder = TempDir::with_prefix("virtnet-kubernetes-").context("cannot make a folder")?;

        let step = progress.step("Start etcd, API server, controller manager, scheduler");
        let place = Place {
            programs: &self.kubernetes,
            folder: folder.path(),
            logs: &logs,
            interrupt: &self.interrupt,
        };
        let control = ControlPlane::start(place, |note| step.note(note))?;
        step.done("");

        let step = progress.step(&format!("Start the node, with {}", meta.name()));
        let node_parts = Parts {
            bed: &self.bed,
            kubernetes: &self.kubernetes,
            multus: &self.multus,
            containers: &self.containers,
            containerd: self.containerd.as_deref(),
            programs: &self.programs.folder,
            images: &self.images,
            folder: folder.path(),
            logs: &logs,
            interrupt: &self.interrupt,
        };
        let node = Node::start(node_parts, &control, meta, |note| step.note(note))?;
        step.done(&format!("Ready {:.0} s after the kubelet was started", node.ready_after.as_secs_f64()));

        let mut cluster =
            Cluster { node, control, kubernetes: &self.kubernetes, meta, repository: build::workspace()? };
        let mut screen = Screen::default();
        if let Err(error) = go_through(&mut cluster, part, pods, &mut screen) {
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
            Part::Walkthrough => screen.finish(begun.elapsed()),
            _ => screen.finish_with("the node went through all of it and lost no NIC", begun.elapsed()),
        }
        if keep {
            cluster.keep(&self.interrupt);
        }
        Ok(screen.all_good())
    }
}

/// A walk, on a node that is as new.
fn go_through(cluster: &mut Cluster<'_>, part: Part, pods: u32, screen: &mut Screen) -> Result<()> {
    let before = cluster.begin(&mut Walk::new(cluster, screen))?;
    match part {
        Part::Walkthrough => walk_through(cluster, screen, &before),
        Part::Resilience => resilience::walk(cluster, screen, &before),
        Part::Plumbing => plumbing::walk(cluster, screen, pods),
        Part::Devicemanager | Part::Manifests => bail!("{part:?} is no walk on a node"),
    }
}

fn walk_through(cluster: &Cluster<'_>, screen: &mut Screen, before: &[Home]) -> Result<()> {
    let mut walk = Walk::new(cluster, screen);
    walk.pods_come_and_go(before)?;
    if cluster.node.knows_cdi() {
        cdi::walk(cluster, &mut walk, before)?;
    }
    match cluster.meta {
        Meta::VirtMeta => {
            faults::of_manifests(&mut walk)?;
            uninstall(&mut walk)
        }
        Meta::Multus => faults::of_meta_plugins(&mut walk),
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
