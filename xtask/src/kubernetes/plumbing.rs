//! What the way of the NICs into pods and home goes through on a real node with eight of them: containers that crash, an API server that is
//! gone, pods that are deleted by force, containerd killed in the middle of ADD, pods in masses. After each, every NIC is home and as it
//! was, no address is leased, no lease is open, and no pod is left.
//!
//! Nothing here is judged by how long it took: what must come is waited for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::cluster::{Cluster, signal};
use super::node::FURTHER_NICS;
use crate::demo::look;
use crate::demo::screen::Screen;
use crate::demo::walkthrough::Walk;

/// Where the manifests are.
const FILES: &str = "tests/kubernetes/e2e/plumbing";
const LEASED: &str = "find /var/lib/cni/networks/virt-network -name '10.*'";
const LEASES: &str = "find /var/lib/virtnet/leases -name '*.json'";
const PODS: &str = "kubectl get pods -o name";
const CONTAINERD: &str = "containerd --config";

/// How many pods of the Job have ended well.
const SUCCEEDED: &str = "kubectl get job many -o jsonpath='{.status.succeeded}'";

const DELETE_ENDED: &str = "kubectl delete pods --selector=batch.kubernetes.io/job-name=many --field-selector=status.phase=Succeeded --wait=false";

/// How often containerd is killed while pods start, and again while they end.
const KILLS: u32 = 2;

/// Walks through all of it, on a node where no pod has a NIC.
pub(super) fn walk(cluster: &mut Cluster<'_>, screen: &mut Screen, pods: u32) -> Result<()> {
    screen.step("Six NICs more are plugged in");
    for (address, _) in FURTHER_NICS {
        cluster.node.plug(address)?;
    }
    let mut walk = Walk::new(cluster, screen);
    walk.amounts("8", "8")?;
    let idle = Idle::look(&walk)?;

    container_crashes(&mut walk)?;
    server_gone(cluster, screen)?;
    let mut walk = Walk::new(cluster, screen);
    deleted_by_force(&mut walk)?;
    idle.again(&mut walk)?;

    walk.type_in(&format!("cp {FILES}/held-ipam /opt/cni/bin/"))?;
    for whole in [false, true] {
        runtime_killed_in_add(cluster, screen, whole)?;
        idle.again(&mut Walk::new(cluster, screen))?;
    }
    runtime_killed_at_random(cluster, screen)?;
    let mut walk = Walk::new(cluster, screen);
    idle.again(&mut walk)?;
    in_masses(&mut walk, pods)?;
    idle.again(&mut walk)
}

/// What the NICs for pods are like while no pod has one.
struct Idle(Value);

impl Idle {
    fn look(walk: &Walk<'_>) -> Result<Self> {
        let ask = |command: &str| -> Result<Value> {
            serde_json::from_str(&walk.quiet(command)?).with_context(|| format!("reading `{command}`"))
        };
        let all = vm::snapshot(ask("ip -d -j addr show")?, ask("ip -d -j route show table all")?);
        Ok(Self(spare(&all)))
    }

    /// Waits until the node is so again.
    fn again(&self, walk: &mut Walk<'_>) -> Result<()> {
        walk.wait_for(PODS, |pods| pods.trim().is_empty())?;
        walk.nothing_in("no pod is left, in Terminating or otherwise", PODS)?;
        let deadline = Instant::now() + super::PATIENCE;
        let mut now = Self::look(walk)?;
        while now.0 != self.0 && Instant::now() < deadline {
            thread::sleep(super::PAUSE);
            now = Self::look(walk)?;
        }
        let outcome = vm::differences(&self.0, &now.0).map_or_else(|| Ok(String::new()), Err);
        walk.check("all eight NICs are home, and as they were", outcome);
        walk.amounts("8", "8")?;
        walk.nothing_is_leased()
    }
}

/// Of a snapshot, what is about NICs of the machine that do not carry the node.
fn spare(all: &Value) -> Value {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let part = |key: &str| all.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let carries = |name: &Option<String>| {
        part("routes")
            .iter()
            .any(|route| text(route, "dst").as_deref() == Some("default") && text(route, "dev") == *name)
    };
    let mut links = part("links");
    links.retain(|link| link.get("parentdev").is_some() && !carries(&text(link, "ifname")));
    let names: Vec<_> = links.iter().map(|link| text(link, "ifname")).collect();
    let mut routes = part("routes");
    routes.retain(|route| names.contains(&text(route, "dev")));
    serde_json::json!({ "links": links, "routes": routes })
}

fn ready(pods: &str) -> String {
    format!("kubectl wait --for=condition=Ready {pods} --timeout={}s", super::PATIENCE.as_secs())
}

/// The lease of a pod's NIC.
fn lease_of(walk: &Walk<'_>, pod: &str) -> Result<String> {
    walk.quiet(&format!("grep -l '\"name\": \"{pod}\"' /var/lib/virtnet/leases/*.json | xargs cat"))
}

/// Where a pod's container was started so often.
fn restarts(pod: &str) -> String {
    format!("kubectl get pod {pod} -o jsonpath='{{.status.containerStatuses[0].restartCount}}'")
}

fn container_crashes(walk: &mut Walk<'_>) -> Result<()> {
    walk.step("A pod's container crashes in a loop: its NIC stays");
    walk.type_in(&format!("kubectl apply -f {FILES}/pods.yaml -f {FILES}/forced.yaml"))?;
    walk.type_in(&ready("pod/deleted pod/evicted pod/forced"))?;
    walk.wait_for(&restarts("crashing"), |count| count.parse::<u32>().is_ok_and(|count| count >= 1))?;
    let lease = lease_of(walk, "crashing")?;
    let count =
        walk.wait_for(&restarts("crashing"), |count| count.parse::<u32>().is_ok_and(|count| count >= 2))?;
    walk.note(&format!("its container was started again {count} times"));
    let address = walk.type_in("kubectl logs crashing | grep -o 'inet 10[^ ]*'")?;
    walk.says("the container before had the same address", "kubectl logs --previous crashing", &[&address])?;
    let now = lease_of(walk, "crashing")?;
    let outcome =
        if now == lease && !lease.is_empty() { Ok(String::new()) } else { Err(format!("{lease}{now}")) };
    walk.check("the NIC has the same lease all the time", outcome);
    Ok(())
}

/// A pod that is being deleted ends while there is no API server, and another is evicted by the kubelet: both NICs come home, and both
/// addresses are free.
fn server_gone(cluster: &mut Cluster<'_>, screen: &mut Screen) -> Result<()> {
    let mut walk = Walk::new(cluster, screen);
    walk.step("The API server is gone while a pod ends and another is evicted");
    walk.type_in("kubectl delete pod deleted --wait=false")?;
    // So the kubelet knows of it.
    walk.says("the pod was told to end", "kubectl logs deleted", &["told to end"])?;
    walk.note("the API server is ended");
    cluster.control.stop_server();
    let mut walk = Walk::new(cluster, screen);
    walk.says("nobody answers", "kubectl get --raw /readyz", &["refused"])?;
    let before = walk.quiet(LEASES)?.lines().count();
    walk.check("four NICs are in pods", look::same(Some(&before.to_string()), "4"));
    walk.type_in(&signal("KILL", "sh -c : deleted "))?;
    walk.type_in(&signal("USR1", "sh -c : evicted "))?;
    for (what, find) in [("NICs are in pods", LEASES), ("addresses are leased", LEASED)] {
        let found = walk.wait_for(find, |found| found.lines().count() == 2)?;
        let count = found.lines().count().to_string();
        walk.check(&format!("without an API server, two {what} from now on"), look::same(Some(&count), "2"));
    }
    walk.says("still nobody answers", "kubectl get --raw /readyz", &["refused"])?;
    walk.note("the API server is started again");
    cluster.control.start_server()?;
    let mut walk = Walk::new(cluster, screen);
    walk.type_in(&format!("kubectl wait --for=delete pod/deleted --timeout={}s", super::PATIENCE.as_secs()))?;
    walk.says(
        "the other was evicted",
        "kubectl get pod evicted -o jsonpath='{.status.phase} {.status.reason}'",
        &["Failed", "Evicted"],
    )?;
    walk.type_in("kubectl delete pod evicted")?;
    Ok(())
}

fn deleted_by_force(walk: &mut Walk<'_>) -> Result<()> {
    const FORCE: &str = "kubectl delete pod --grace-period=0 --force";
    walk.step("A pod is deleted by force, and made again under its name at once");
    walk.type_in(&format!("{FORCE} forced && kubectl apply -f {FILES}/forced.yaml"))?;
    walk.type_in(&ready("pod/forced"))?;
    walk.says("the new one has a NIC", "kubectl exec forced -- ip addr show net1", &["inet 10.56.217."])?;
    walk.says("the old one's NIC is home", &format!("{LEASES} | wc -l"), &["2"])?;
    walk.says(
        "the new one has its NIC still",
        "kubectl exec forced -- ip addr show net1",
        &["inet 10.56.217."],
    )?;
    walk.type_in(&format!("{FORCE} forced crashing"))?;
    Ok(())
}

/// `whole`: with all that it started for the ADD, as where a service manager ends a whole group; otherwise the plugins go on without it.
fn runtime_killed_in_add(cluster: &mut Cluster<'_>, screen: &mut Screen, whole: bool) -> Result<()> {
    let mut walk = Walk::new(cluster, screen);
    walk.step(if whole {
        "containerd is killed in the middle of ADD, and the CNI plugins with it"
    } else {
        "containerd is killed in the middle of ADD, and the CNI plugins go on"
    });
    walk.type_in("touch /run/hold")?;
    walk.type_in(&format!("kubectl apply -f {FILES}/held.yaml"))?;
    let begun = walk.wait_for("ls -d /run/held-*", |found| !found.contains("No such file"))?;
    walk.check(
        "the NIC is moved, and its address is being asked for",
        look::line_with(&begun, &["/run/held-"]),
    );
    walk.type_in(&signal("KILL", CONTAINERD))?;
    if whole {
        walk.type_in(&signal("KILL", "/opt/cni/bin/"))?;
        walk.type_in(&signal("KILL", "/bin/sh /opt/cni/bin/"))?;
    }
    cluster.node.start_containerd()?;
    let mut walk = Walk::new(cluster, screen);
    walk.type_in("rm -f /run/hold /run/held-*")?;
    walk.type_in(&ready("pod/held"))?;
    walk.says("the pod has its NIC", "kubectl exec held -- ip addr show net1", &["inet 10.56.217."])?;
    walk.type_in(&format!("kubectl delete -f {FILES}/held.yaml"))?;
    Ok(())
}

fn runtime_killed_at_random(cluster: &mut Cluster<'_>, screen: &mut Screen) -> Result<()> {
    screen.step("containerd is killed again and again while eight pods start, and while they end");
    let mut walk = Walk::new(cluster, screen);
    walk.type_in(&format!("kubectl apply -f {FILES}/eight.yaml"))?;
    kill_again_and_again(cluster, screen)?;
    let mut walk = Walk::new(cluster, screen);
    walk.type_in(&format!(
        "kubectl rollout status deployment/eight --timeout={}s",
        super::PATIENCE.as_secs()
    ))?;
    let leases = walk.quiet(LEASES)?.lines().count().to_string();
    walk.check("eight NICs are in pods", look::same(Some(&leases), "8"));
    walk.type_in("kubectl delete deployment eight --wait=false")?;
    kill_again_and_again(cluster, screen)
}

fn kill_again_and_again(cluster: &mut Cluster<'_>, screen: &mut Screen) -> Result<()> {
    for _ in 0..KILLS {
        let pause = Duration::from_millis(fastrand::u64(200..3000));
        thread::sleep(pause);
        let mut walk = Walk::new(cluster, screen);
        walk.note(&format!("{:.1} s later", pause.as_secs_f64()));
        walk.type_in(&signal("KILL", CONTAINERD))?;
        cluster.node.start_containerd()?;
    }
    Ok(())
}

fn in_masses(walk: &mut Walk<'_>, pods: u32) -> Result<()> {
    walk.step(&format!("{pods} pods come and go, eight at a time"));
    let begun = Instant::now();
    walk.type_in(&format!(
        "sed 's/completions: .*/completions: {pods}/' {FILES}/many.yaml | kubectl apply -f -"
    ))?;
    // The node must not keep hundreds of pods that have ended: those that have are deleted, as their users would.
    let mut done = 0;
    let mut grown = begun;
    while done < pods && grown.elapsed() < super::PATIENCE {
        walk.quiet("kubectl wait --for=condition=Complete job/many --timeout=10s || true")?;
        walk.quiet(DELETE_ENDED)?;
        let now = walk.quiet(SUCCEEDED)?.parse().unwrap_or(0);
        if now > done {
            (done, grown) = (now, Instant::now());
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    walk.note(&format!("{seconds:.0} s, {:.1} s for each pod", seconds / f64::from(pods.max(1))));
    walk.check("each had its NIC with an address", look::same(Some(&done.to_string()), &pods.to_string()));
    walk.type_in("kubectl delete job many").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_nics_for_pods_are_those_of_the_machine_that_do_not_carry_the_node() {
        let links = json!([
            {"ifname": "lo"}, {"ifname": "cni0"},
            {"ifname": "eth0", "parentdev": "virtio0"}, {"ifname": "eth1", "parentdev": "virtio1"},
        ]);
        let routes = json!([{"dst": "default", "dev": "eth0"}, {"dst": "10.0.0.0/8", "dev": "cni0"}, {"dst": "ff00::/8", "dev": "eth1"}]);
        let spare = spare(&json!({ "links": links, "routes": routes }));
        assert_eq!(
            spare,
            json!({
                "links": [{"ifname": "eth1", "parentdev": "virtio1"}], "routes": [{"dst": "ff00::/8", "dev": "eth1"}],
            })
        );
    }
}
