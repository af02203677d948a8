//! What a node goes through while pods have NICs: kubelet and agent killed, the agent updated, a NIC pulled out, the node's own NIC moved into
//! a bond, the machine rebooted. After each, capacity is right, no NIC is lost, and no pod was turned away, restarted or stuck.
//!
//! Nothing here is judged by how long it took: what must come is waited for, and what must not happen is looked up in what was recorded.

use std::time::Instant;

use anyhow::{Result, bail};

use super::cluster::{Cluster, signal};
use super::{PATIENCE, PAUSE};
use crate::demo::NICS;
use crate::demo::look::{self, Home};
use crate::demo::screen::Screen;
use crate::demo::walkthrough::{Attached, Place as _, Walk};

/// The NIC that the node lives by.
const MANAGEMENT: &str = "0000:00:03.0";
const LOG: &str = "kubectl logs --namespace=kube-system daemonset/virtdp --container=virtdp";
const REGISTERED: &str = "registered with the Kubelet";
const PODS: &str = "kubectl get pods --all-namespaces -o json";
/// How often the node's containers of the agent were restarted.
const RESTARTS: &str = r#"kubectl get pods --namespace=kube-system --selector=app.kubernetes.io/component=virtdp -o jsonpath='{range .items[*].status.containerStatuses[?(@.name=="virtdp")]}{.restartCount}{"\n"}{end}'"#;

/// By the manifest's strategy, the new pod is made ready before the old one is ended: both agents run for a while.
const UPDATE: &str = "kubectl apply -k tests/kubernetes/e2e/events";
const UPDATED: &str = "kubectl rollout status --namespace=kube-system daemonset/virtdp --watch=false";

/// Address and default route go over to a bond whose only port is the management NIC. (bond0 comes by itself, with the driver.)
const BOND: &str = "ip -batch - <<END
link add bond1 type bond mode active-backup miimon 100
link set eth0 down
link set eth0 master bond1
link set bond1 up
address del 10.0.2.15/24 dev eth0
address add 10.0.2.15/24 dev bond1
route add default via 10.0.2.2 dev bond1
END";

/// Walks through all of it, on a node where no pod has a NIC.
pub(super) fn walk(cluster: &mut Cluster<'_>, screen: &mut Screen, before: &[Home]) -> Result<()> {
    let mut walk = Walk::new(cluster, screen);
    let held = Held::start(&mut walk, "testpod1", 1)?;

    kubelet_restarted(cluster, screen, &held)?;
    let mut walk = Walk::new(cluster, screen);
    agent_killed(&mut walk, &held)?;
    agent_updated(cluster, &mut walk, &held)?;
    management_in_a_bond(&mut walk, &held)?;
    nic_pulled_out(cluster, &mut walk, &held)?;
    rebooted(cluster, screen)?;
    all_goes_home(&mut Walk::new(cluster, screen), before)
}

/// A pod with its NIC, as it must stay whatever happens to the node's programs.
struct Held {
    pod: &'static str,
    nic: Attached,
    container: String,
}

impl Held {
    fn start(walk: &mut Walk<'_>, pod: &'static str, number: u32) -> Result<Self> {
        let nic = walk.start_pod(pod, number, &[])?;
        let container = walk.quiet(&container_of(pod))?;
        Ok(Self { pod, nic, container })
    }

    /// The same container has the same NIC with the same address.
    fn is_untouched(&self, walk: &mut Walk<'_>) -> Result<()> {
        let Self { pod, nic, container } = self;
        walk.says(&format!("{pod} runs in the same container"), &container_of(pod), &[container])?;
        walk.says(
            &format!("{pod} has its NIC, with its address"),
            &in_one_line(&format!("kubectl exec {pod} -- sh -c 'ip addr show net1; ethtool -i net1'")),
            &[&format!("inet {}/", nic.address), &format!("bus-info: {}", nic.device)],
        )
    }
}

pub(super) fn container_of(pod: &str) -> String {
    format!("kubectl get pod {pod} -o jsonpath='{{.status.containerStatuses[0].containerID}}'")
}

/// So that one check finds all its words.
pub(super) fn in_one_line(command: &str) -> String {
    format!("{command} | tr -s '\\n ' ' '")
}

/// What holds after everything: the pods run, the one with a NIC noticed nothing, both NICs count, and the free one goes to the next pod.
fn as_ever(walk: &mut Walk<'_>, held: &Held, next: &'static str, number: u32) -> Result<()> {
    all_pods_run(walk)?;
    held.is_untouched(walk)?;
    walk.capacity()?;
    walk.start_pod(next, number, &[&held.nic.device])?;
    walk.delete_pods(next)?;
    all_pods_run(walk)
}

fn all_pods_run(walk: &mut Walk<'_>) -> Result<()> {
    let pods = walk.wait_for(PODS, |pods| look::all_run(pods).is_ok())?;
    walk.check("no pod was turned away or is stuck; all run", look::all_run(&pods));
    Ok(())
}

/// Waits until the agent's log says so more often than before.
fn registers_anew(walk: &mut Walk<'_>, before: usize) -> Result<()> {
    let begun = Instant::now();
    let log = walk.wait_for(LOG, |log| registrations(log) > before)?;
    walk.note(&format!("{:.1} s later", begun.elapsed().as_secs_f64()));
    let last = log.lines().rfind(|line| line.contains(REGISTERED)).unwrap_or_default();
    let outcome = if registrations(&log) > before {
        Ok(last.to_owned())
    } else {
        Err(format!("its log still says so {before} times"))
    };
    walk.check("virtdp registers anew", outcome);
    Ok(())
}

fn registrations(log: &str) -> usize {
    log.lines().filter(|line| line.contains(REGISTERED)).count()
}

fn kubelet_restarted(cluster: &mut Cluster<'_>, screen: &mut Screen, held: &Held) -> Result<()> {
    screen.step("The kubelet is killed, and started again");
    let before = registrations(&Walk::new(cluster, screen).quiet(LOG)?);
    screen.command("kill -KILL $(pidof kubelet); kubelet ...");
    cluster.node.restart_kubelet()?;
    let mut walk = Walk::new(cluster, screen);
    registers_anew(&mut walk, before)?;
    as_ever(&mut walk, held, "testpod2", 2)
}

fn agent_killed(walk: &mut Walk<'_>, held: &Held) -> Result<()> {
    walk.step("virtdp is killed; the kubelet starts its container again");
    let before = walk.quiet(RESTARTS)?;
    // As the kernel does it to a process that has used up its memory.
    walk.type_in(&signal("KILL", "virtdp --logtostderr"))?;
    walk.says("the container is another one", &format!("{RESTARTS} | grep -v '^{before}$'"), &[])?;
    registers_anew(walk, 0)?;
    as_ever(walk, held, "testpod2", 2)
}

fn agent_updated(cluster: &Cluster<'_>, walk: &mut Walk<'_>, held: &Held) -> Result<()> {
    walk.step("virtdp is updated, which turns its Events on; the new one is ready before the old one ends");
    walk.type_in(&format!("{UPDATE}/{}", cluster.meta.name()))?;
    let begun = Instant::now();
    let (mut looks, mut wrong, mut both) = (0, 0, 0);
    let mut said = String::new();
    while !said.contains("successfully rolled out") {
        if begun.elapsed() > PATIENCE {
            bail!("the update does not end: {said}");
        }
        std::thread::sleep(PAUSE);
        (_, said) = cluster.run(UPDATED)?;
        let (_, node) = cluster.run("kubectl get nodes -o json")?;
        let (_, agents) = cluster.run(RESTARTS)?;
        looks += 1;
        wrong += u32::from(look::amount(&node, "allocatable", "kernel.org/virt").as_deref() != Ok("2"));
        both += u32::from(agents.lines().count() > 1);
    }
    walk.note(&format!(
        "{:.0} s; of {looks} looks at the cluster {both} saw both agents, {wrong} another number of NICs than 2",
        begun.elapsed().as_secs_f64()
    ));
    one_agent_is_left(walk)?;
    registers_anew(walk, 0)?;
    as_ever(walk, held, "testpod2", 2)
}

/// After an update: the old one may take its time.
pub(super) fn one_agent_is_left(walk: &mut Walk<'_>) -> Result<()> {
    walk.says("one agent is left", &format!("{RESTARTS} | wc -l | grep -x 1"), &["1"])
}

fn management_in_a_bond(walk: &mut Walk<'_>, held: &Held) -> Result<()> {
    walk.step("The management NIC moves into a bond");
    walk.type_in(BOND)?;
    walk.type_in("ip -brief addr show bond1; ip route show default")?;
    walk.says(
        "virtdp leaves it alone, for the bond's sake",
        "virtdp discover",
        &[MANAGEMENT, "skipped", "bond1"],
    )?;
    walk.says(
        "the node is Ready",
        r#"kubectl get node node -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}'"#,
        &["True"],
    )?;
    as_ever(walk, held, "testpod2", 2)?;
    never_offered(walk)
}

/// By all that this agent ever sent to the kubelet.
fn never_offered(walk: &mut Walk<'_>) -> Result<()> {
    let log = walk.quiet(LOG)?;
    let offered = log.lines().find(|line| line.contains("ListAndWatch") && line.contains(MANAGEMENT));
    let outcome = offered.map_or_else(|| Ok(String::new()), |line| Err(line.to_owned()));
    walk.check("the management NIC was never offered, not for a moment", outcome);
    Ok(())
}

fn nic_pulled_out(cluster: &Cluster<'_>, walk: &mut Walk<'_>, held: &Held) -> Result<()> {
    let device = &held.nic.device;
    walk.step(&format!("{device} is pulled out under {}, and plugged in again", held.pod));
    walk.note("QEMU: device_del");
    cluster.node.unplug(device)?;
    walk.amounts("2", "1")?;
    let told = format!("kubectl get events --field-selector=involvedObject.name={}", held.pod);
    walk.says("its pod has an Event that says so", &told, &["NicUnplugged", device])?;
    walk.says("its pod runs on", &container_of(held.pod), &[&held.container])?;
    walk.note("QEMU: device_add");
    cluster.node.plug(device)?;
    walk.capacity()?;
    walk.says("its pod runs on", &container_of(held.pod), &[&held.container])?;
    // It is the pod's still, though it sits on the node: nobody else gets it.
    walk.start_pod("testpod2", 2, &[device])?;
    walk.delete_pods("testpod1 testpod2")?;
    all_pods_run(walk)
}

/// Pods whose devices the kubelet cannot see yet when it looks at them again fail for good; Kubernetes then makes new ones if somebody wants
/// them. That is the kubelet's rule (v1.36), and both outcomes are right: the same NIC, or a reason.
fn rebooted(cluster: &mut Cluster<'_>, screen: &mut Screen) -> Result<()> {
    let mut walk = Walk::new(cluster, screen);
    let pods = [Held::start(&mut walk, "testpod1", 1)?, Held::start(&mut walk, "testpod2", 2)?];
    walk.step("The node is rebooted while both NICs are in pods");
    let begun = Instant::now();
    cluster.node.reboot(&cluster.control)?;
    let mut walk = Walk::new(cluster, screen);
    walk.note(&format!("Ready after {:.0} s", begun.elapsed().as_secs_f64()));
    registers_anew(&mut walk, 0)?;
    walk.capacity()?;
    let mut failed = Vec::new();
    for held in &pods {
        if !held.is_back_or_failed(&mut walk)? {
            failed.push(held);
        }
    }
    never_offered(&mut walk)?;
    if !failed.is_empty() {
        let names: Vec<&str> = failed.iter().map(|held| held.pod).collect();
        walk.delete_pods(&names.join(" "))?;
    }
    for held in failed {
        let number = if held.pod == "testpod1" { 1 } else { 2 };
        walk.start_pod(held.pod, number, &[])?;
    }
    all_pods_run(&mut walk)
}

impl Held {
    /// After a reboot: whether it has the same NIC again; else it failed, with a reason.
    fn is_back_or_failed(&self, walk: &mut Walk<'_>) -> Result<bool> {
        let Self { pod, nic, container } = self;
        let ask = format!(
            "kubectl get pod {pod} -o jsonpath='{{.status.phase}} {{.status.reason}} {{.status.message}}'"
        );
        let new = format!("{} | grep -v '{container}'", container_of(pod));
        let is_new = |walk: &Walk<'_>| walk.quiet(&format!("{new} || true"));
        let begun = Instant::now();
        loop {
            let said = walk.quiet(&ask)?;
            if said.starts_with("Failed") {
                let outcome = if said.contains("kernel.org/virt") { Ok(said) } else { Err(said) };
                walk.check(&format!("{pod} failed, and says why"), outcome);
                return Ok(false);
            }
            if said.starts_with("Running") && is_new(walk)?.contains("://") {
                break;
            }
            if begun.elapsed() > PATIENCE {
                bail!("after the reboot {pod} is {said}");
            }
            std::thread::sleep(PAUSE);
        }
        walk.says(
            &format!("{pod} runs again, with the same NIC"),
            &in_one_line(&format!("kubectl exec {pod} -- ethtool -i net1")),
            &[&format!("bus-info: {}", nic.device)],
        )?;
        Ok(true)
    }
}

fn all_goes_home(walk: &mut Walk<'_>, before: &[Home]) -> Result<()> {
    walk.step(&format!("Delete the pods: after all this, {} and {} are as they were", NICS[0].0, NICS[1].0));
    walk.delete_pods("testpod1 testpod2")?;
    all_pods_run(walk)?;
    walk.all_as_before(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_are_counted_by_lines() {
        assert_eq!(registrations("Error from server: connection refused"), 0);
        let log = "I1 virtdp] registered with the Kubelet\nI1 virtdp] else\nI1 virtdp] registered with the Kubelet after 0.1 s\n";
        assert_eq!(registrations(log), 2);
    }
}
