//! A running cluster as a person types at it: `kubectl` on this machine, everything else on the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::control::ControlPlane;
use super::node::Node;
use super::processes::Interrupt;
use super::{Meta, PATIENCE, PAUSE};
use crate::demo::look::Home;
use crate::demo::screen::Screen;
use crate::demo::walkthrough::{Place, Walk};

pub(super) const ROLLED_OUT: &str =
    "kubectl rollout status --namespace=kube-system daemonset/virtdp --timeout=120s";
const INSTALLED: &str = "kubectl logs --namespace=kube-system daemonset/virtdp --container=install";

/// Lines of the agent's /proc/PID/status.
fn status_of_virtdp(lines: &str) -> String {
    format!(
        r#"for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline)" = 'virtdp --logtostderr ' ] && grep -E '{lines}' $p/status; done; true"#
    )
}

/// Sends a signal to the processes of the node whose command lines begin so.
pub(super) fn signal(signal: &str, beginning: &str) -> String {
    format!(
        r#"for p in /proc/[0-9]*; do case "$(tr '\0\n' '  ' 2>/dev/null <$p/cmdline)" in '{beginning}'*) kill -{signal} ${{p#/proc/}};; esac; done"#
    )
}

/// The cluster and its one node.
pub(super) struct Cluster<'a> {
    pub(super) node: Node<'a>,
    pub(super) control: ControlPlane<'a>,
    pub(super) kubernetes: &'a Path,
    pub(super) meta: Meta,
    pub(super) repository: PathBuf,
}

impl Cluster<'_> {
    /// The agent runs, and there is a network. Gives what the NICs were like before.
    pub(super) fn begin(&self, walk: &mut Walk<'_>) -> Result<Vec<Home>> {
        let before = walk.look_at_the_node()?;
        walk.step(&format!("A Kubernetes node, with {}", self.meta.name()));
        walk.type_in("kubectl get nodes -o wide")?;
        walk.type_in("ls /etc/cni/net.d")?;
        walk.start_virtdp()?;
        // Highest, now, and the part that is its own.
        walk.type_in(&status_of_virtdp("VmHWM|VmRSS|RssAnon"))?;
        let filter = status_of_virtdp("Seccomp:");
        // SECCOMP_MODE_FILTER
        walk.says("virtdp runs under the runtime's seccomp filter", &filter, &["Seccomp:\t2"])?;
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
    pub(super) fn tell_more(&self, screen: &Screen, logs: &Path) {
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

    pub(super) fn keep(&self, interrupt: &Interrupt) {
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
