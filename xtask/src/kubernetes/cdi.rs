//! Devices by CDI, on a node whose container runtime knows it: what virtdp's file says is in the container, and the file follows the list.

use anyhow::Result;

use super::cluster::{Cluster, ROLLED_OUT};
use super::resilience::{container_of, in_one_line, one_agent_is_left};
use crate::demo::NICS;
use crate::demo::look::Home;
use crate::demo::walkthrough::{Attached, Walk};

const FILE: &str = "/var/run/cdi/virtnet-kernel.org_virt.json";
/// No container has it unless it is given.
const DEVICE_NODE: &str = "/dev/vhost-net";

/// The folder stays, as it does where virtdp's configuration file says whether CDI is on.
const OFF: &str = r#"kubectl patch daemonset virtdp --namespace=kube-system --type=json --patch='[{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ["--logtostderr", "--need-vhost-net"]}]'"#;

/// Walks through all of it, on a node where no pod has a NIC.
pub(super) fn walk(cluster: &Cluster<'_>, walk: &mut Walk<'_>, before: &[Home]) -> Result<()> {
    let meta = cluster.meta.name();
    cluster.node.modprobe("vhost_net")?;
    walk.step("virtdp is updated: what its containers need comes by CDI");
    update(walk, &format!("kubectl apply -k tests/kubernetes/e2e/cdi/{meta}"))?;
    names_both(walk)?;
    let first = walk.start_pod("testpod1", 1, &[])?;
    has_what_the_file_says(walk, "testpod1", &first)?;
    walk.delete_pods("testpod1")?;

    let [(stays, _), (goes, _)] = NICS;
    walk.step(&format!("{goes} is pulled out, and plugged in again"));
    walk.note("QEMU: device_del");
    cluster.node.unplug(goes)?;
    walk.nothing_in("the CDI file has it no more", &format!("grep -o {goes} {FILE}"))?;
    walk.says("it has the other one", &format!("cat {FILE}"), &[stays])?;
    walk.note("QEMU: device_add");
    cluster.node.plug(goes)?;
    names_both(walk)?;
    walk.capacity()?;
    let held = walk.start_pod("testpod1", 1, &[])?;
    has_what_the_file_says(walk, "testpod1", &held)?;
    let other = walk.start_pod("testpod2", 2, &[&held.device])?;
    has_what_the_file_says(walk, "testpod2", &other)?;
    walk.delete_pods("testpod2")?;

    walk.step("virtdp is updated: without CDI again");
    update(walk, OFF)?;
    let container = walk.quiet(&container_of("testpod1"))?;
    walk.type_in(&format!("ctr task kill --signal KILL {}", container.trim_start_matches("containerd://")))?;
    let started = "kubectl get pod testpod1 --no-headers";
    walk.says("testpod1's container starts again", started, &["1/1", "Running", "1 ("])?;
    has_what_the_file_says(walk, "testpod1", &held)?;
    walk.start_pod("testpod2", 2, &[&held.device])?;
    walk.nothing_in(
        "it has nothing that is in the CDI file alone",
        "kubectl exec testpod2 -- sh -c 'env | grep PCIDEVICE_KERNEL_ORG_VIRT_0000; true'",
    )?;
    walk.delete_pods("testpod1 testpod2")?;
    walk.all_as_before(before)
}

fn update(walk: &mut Walk<'_>, command: &str) -> Result<()> {
    walk.type_in(command)?;
    walk.type_in(ROLLED_OUT)?;
    one_agent_is_left(walk)?;
    walk.capacity()
}

fn names_both(walk: &mut Walk<'_>) -> Result<()> {
    let mut words = vec![DEVICE_NODE];
    words.extend(NICS.map(|(address, _)| address));
    walk.says("the CDI file has both NICs", &format!("cat {FILE}"), &words)
}

fn has_what_the_file_says(walk: &mut Walk<'_>, pod: &str, nic: &Attached) -> Result<()> {
    let name = nic.device.replace([':', '.'], "_").to_uppercase();
    let variable = format!("PCIDEVICE_KERNEL_ORG_VIRT_{name}={}", nic.device);
    walk.says(
        "it has the variable that is in the CDI file alone",
        &format!("kubectl exec {pod} -- env"),
        &[&variable],
    )?;
    let open =
        format!("kubectl exec {pod} -- sh -c 'ls -l {DEVICE_NODE}; exec 3<>{DEVICE_NODE}; echo usable'");
    walk.says("it may use the device node", &in_one_line(&open), &["crw", "usable"])
}
