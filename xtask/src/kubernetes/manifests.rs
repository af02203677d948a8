//! `deployments/` on the real API server, without a node: everything that people apply is taken, what they get wrong is refused in words that
//! help, and virt-meta may do what it must and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tempfile::TempDir;

use super::control::{self, ControlPlane, Place};
use super::go;
use super::processes::Interrupt;
use crate::build;
use crate::demo::screen::Screen;
use crate::progress::Progress;

/// The overlays, and the plain file that each is rendered to.
const RENDERED: [(&str, &str); 2] = [
    ("deployments/kustomize/overlays/virt-meta", "deployments/virtnet.yaml"),
    ("deployments/kustomize/overlays/multus", "deployments/virtnet-multus.yaml"),
];
/// Where else the definition of networks must lie: kustomize and Helm read nothing outside of their folders.
const DEFINITION: &str = "deployments/crdnetwork.yaml";
const COPIES: [&str; 2] =
    ["deployments/kustomize/definition/crdnetwork.yaml", "deployments/helm/virtnet/crds/crdnetwork.yaml"];

const CHART: &str = "deployments/helm/virtnet";
const ACCOUNT: &str = "system:serviceaccount:kube-system:virt-meta";

/// Edits that the API server refuses: what is edited, how, and what the refusal says.
const WRONG_EDITS: [(&str, &str, &str, &[&str]); 5] = [
    (
        "a misspelt key",
        "deployments/virtnet-multus.yaml",
        "s/hostNetwork:/hostNetwrok:/",
        &["unknown field", "hostNetwrok"],
    ),
    (
        "a text where a number belongs",
        "deployments/virtnet-multus.yaml",
        "s/periodSeconds: .*/periodSeconds: often/",
        &["cannot unmarshal string", "periodSeconds"],
    ),
    (
        "an amount that is none",
        "deployments/pod-tc1.yaml",
        "s#virt: \"1\"#virt: one#",
        &["quantities must match"],
    ),
    (
        "requests and limits that differ",
        "deployments/pod-tc1.yaml",
        "0,/virt: \"1\"/s//virt: \"2\"/",
        &["kernel.org/virt", "must be equal to kernel.org/virt limit"],
    ),
    (
        "a configuration that is not a text any more",
        "deployments/virt-crd.yaml",
        "s/config: |/config:/",
        &["unknown field", "spec.config.cniVersion"],
    ),
];

/// Reads the DaemonSet, and fails unless one container may do one thing more than nothing.
const ONE_CAPABILITY: &str = r#"tr -d ' \n' | grep -o '"add":\[[^]]*\],"drop":\["ALL"\]' | grep -x '"add":\["NET_ADMIN"\],"drop":\["ALL"\]' | wc -l | grep -x 1"#;

/// The components, and what reads the objects and fails unless each did what it is for.
const COMPONENTS: [(&str, &str); 6] = [
    ("repatriate", ONE_CAPABILITY),
    (
        "cdi",
        r#"tr -d ' \n' | grep '"--cdi".*"mountPath":"/var/run/cdi".*"path":"/var/run/cdi"' | wc -l | grep -x 1"#,
    ),
    ("metrics", "grep -e --listen=0.0.0.0:9402"),
    ("pools", "grep -e --config=/etc/virtnet/pools.yaml"),
    ("plugins-registry", r#"grep -c -e '"--registration=plugins-registry"' | grep -x 2"#),
    (
        "events",
        r#"tr -d ' \n' | grep -e '"--events"' | grep -e '"kind":"ServiceAccount","name":"vir' | grep -v no-token"#,
    ),
];

/// Values that the chart refuses, and the key that the refusal names.
const WRONG_VALUES: [(&str, &str); 10] = [
    ("--set registration=registry", "registration"),
    ("--set resource=virt", "resource"),
    ("--set drivers=null", "drivers"),
    ("--set drivers={virtio net}", "drivers"),
    ("--set node.kubeletDir=var/lib/kubelet", "kubeletDir"),
    ("--set image.pullPolicy=Sometimes", "pullPolicy"),
    ("--set verbosity=11", "verbosity"),
    ("--set extraArgs={need-tun}", "extraArgs"),
    ("--set meta.enabeld=false", "enabeld"),
    ("--set-string meta.enabled=yes", "enabled"),
];

/// Make what is made in deployments/: the plain files from the overlays, and the copies of the definition of networks
#[derive(Debug, Args)]
pub(crate) struct Options {}

/// Writes what is made.
pub(crate) fn make(Options {}: &Options, progress: &Progress) -> Result<ExitCode> {
    let kubernetes = go::kubernetes(progress, &build::target_folder()?.join("kubernetes"))?;
    let workspace = build::workspace()?;
    for copy in COPIES {
        let (from, to) = (workspace.join(DEFINITION), workspace.join(copy));
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
        println!("{copy}");
    }
    for (overlay, file) in RENDERED {
        let path = workspace.join(file);
        let text = render(&kubernetes.join("kubectl"), overlay)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{file}");
    }
    Ok(ExitCode::SUCCESS)
}

fn render(kubectl: &Path, overlay: &str) -> Result<String> {
    let output = Command::new(kubectl).args(["kustomize", overlay]).current_dir(build::workspace()?).output();
    let output = output.context("cannot run kubectl")?;
    if !output.status.success() {
        bail!("kubectl kustomize {overlay}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(format!("# Made from {overlay} by `cargo xtask manifests`: change that, not this.\n{text}"))
}

/// Checks everything; false when something was not as it should be.
pub(super) fn check(
    progress: &Progress,
    cache: &Path,
    kubernetes: &Path,
    interrupt: &Interrupt,
) -> Result<bool> {
    let begun = Instant::now();
    let helm = go::helm(progress, cache)?;
    let logs = cache.join("logs/manifests");
    control::remove(&logs)?;
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let folder = TempDir::with_prefix("virtnet-kubernetes-").context("cannot make a folder")?;
    let step = progress.step("Start etcd, API server, controller manager, scheduler, for the manifests");
    let place = Place { programs: kubernetes, folder: folder.path(), logs: &logs, interrupt };
    let control = ControlPlane::start(place, |note| step.note(note))?;
    step.done("");

    let path = std::env::var("PATH").unwrap_or_default();
    let mut desk = Desk {
        screen: Screen::default(),
        kubeconfig: &control.kubeconfig,
        path: format!("{}:{}:{path}", kubernetes.display(), helm.display()),
        workspace: build::workspace()?,
        home: folder.path().join("home"),
        interrupt,
    };
    desk.with_helm()?;
    desk.by_hand()?;
    desk.with_kustomize(&kubernetes.join("kubectl"))?;
    desk.rights()?;
    desk.wrong_edits()?;
    if !desk.screen.all_good() {
        desk.screen.note(&format!("The log of every program is in {}", logs.display()));
    }
    desk.screen.finish_with("the manifests apply, and what is wrong is refused", begun.elapsed());
    Ok(desk.screen.all_good())
}

/// Where an admin types.
struct Desk<'a> {
    screen: Screen,
    kubeconfig: &'a Path,
    path: String,
    workspace: PathBuf,
    /// Helm keeps files in its user's.
    home: PathBuf,
    interrupt: &'a Interrupt,
}

impl Desk<'_> {
    /// First, since the cluster must not have the definition of networks yet.
    fn with_helm(&mut self) -> Result<()> {
        self.screen.step("The Helm chart");
        self.succeeds("it is well made", &format!("helm lint --strict --quiet {CHART}"))?;
        let install = format!("helm install virtnet {CHART} --namespace virtnet --create-namespace");
        self.succeeds("it installs", &install)?;
        let objects = "kubectl get --namespace virtnet daemonset/virtnet-virtdp serviceaccount/virtnet-virt-meta \
                       crd/network-attachment-definitions.k8s.cni.cncf.io --output name";
        self.succeeds("all of it is there", objects)?;
        self.succeeds(
            "virt-meta's account may read networks",
            "kubectl auth can-i get network-attachment-definitions.k8s.cni.cncf.io --as system:serviceaccount:virtnet:virtnet-virt-meta",
        )?;
        self.succeeds(
            "it takes other values",
            &format!(
                "helm upgrade virtnet {CHART} --namespace virtnet --set meta.enabled=false --set node.kubeletDir=/var/lib/k0s/kubelet \
                 --set resource=example.com/nic --set 'drivers={{virtio_net,vmxnet3}}' --set image.repository=registry.example/virtnet \
                 --set repatriate=true --set registration=plugins-registry --set 'extraArgs={{--need-tun}}'"
            ),
        )?;
        self.succeeds(
            "the switch adds one capability, to virtdp alone",
            &format!(
                "kubectl get --namespace virtnet daemonset/virtnet-virtdp --output=json | {ONE_CAPABILITY}"
            ),
        )?;
        self.refused(
            "beside Multus nothing of virt-meta is left",
            "kubectl get --namespace virtnet serviceaccount/virtnet-virt-meta",
            &["NotFound"],
        )?;
        self.succeeds("it goes again", "helm uninstall virtnet --namespace virtnet --wait")?;
        self.succeeds(
            "and leaves the definition, since networks hang on it",
            "kubectl get crd/network-attachment-definitions.k8s.cni.cncf.io --output name",
        )?;
        let page = self.workspace.join("docs/install.md");
        let page = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        for told in page.lines().filter_map(|line| line.trim().strip_prefix("helm install ")) {
            self.succeeds(
                "what install.md says is taken",
                &format!("helm template --dry-run=server {told}"),
            )?;
        }
        for (values, key) in WRONG_VALUES {
            let command = format!("helm template virtnet {CHART} {}", quoted(values));
            self.refused(&format!("the schema refuses it and names {key}"), &command, &[key])?;
        }
        self.quietly("kubectl delete crd/network-attachment-definitions.k8s.cni.cncf.io namespace/virtnet")
    }

    fn by_hand(&mut self) -> Result<()> {
        self.screen.step("Each manifest by itself, strictly");
        // Without it no pod is accepted; the controller manager makes it.
        self.quietly("kubectl wait --for=create serviceaccount/default --timeout=60s")?;
        let mut files = vec![DEFINITION.to_owned()];
        for folder in ["deployments", "deployments/examples"] {
            files.extend(yaml_files(&self.workspace, folder)?.into_iter().filter(|file| file != DEFINITION));
        }
        for file in files {
            self.succeeds("it is taken", &format!("kubectl apply --validate=strict -f {file}"))?;
            if file == DEFINITION {
                self.quietly(
                    "kubectl wait --for=condition=Established crd/network-attachment-definitions.k8s.cni.cncf.io --timeout=60s",
                )?;
            }
        }
        let ours = "kubectl delete daemonset,serviceaccount,clusterrole,clusterrolebinding --namespace=kube-system \
                    --selector=app.kubernetes.io/name=virtnet";
        self.succeeds("it goes again", ours)?;
        let left = "kubectl get daemonset,serviceaccount,clusterrole,clusterrolebinding --namespace=kube-system --output=name | \
                    grep --count virt";
        self.refused("nothing of it is left", left, &["0"])
    }

    fn with_kustomize(&mut self, kubectl: &Path) -> Result<()> {
        self.screen.step("The kustomize overlays");
        for (overlay, file) in RENDERED {
            self.succeeds("it is taken", &format!("kubectl apply --validate=strict -k {overlay}"))?;
            let path = self.workspace.join(file);
            let there =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let outcome = if there == render(kubectl, overlay)? {
                Ok(String::new())
            } else {
                Err("it is not: type cargo xtask manifests".to_owned())
            };
            self.screen.check(&format!("{file} is what the overlay gives"), outcome);
        }
        for (overlay, _) in RENDERED {
            for (component, proof) in COMPONENTS {
                let folder = self.overlay_with(overlay, component)?;
                self.succeeds(
                    &format!("the component {component} does what it says"),
                    &format!(
                        "kubectl apply -k {} --dry-run=server --validate=strict --output=json | {proof}",
                        folder.display()
                    ),
                )?;
            }
        }
        // What the next step is about.
        self.quietly("kubectl apply -k deployments/kustomize/overlays/virt-meta")
    }

    /// An overlay as install.md says, with one component.
    fn overlay_with(&self, overlay: &str, component: &str) -> Result<PathBuf> {
        let folder = self.home.join("overlay");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize().context("cannot find the folder again")?;
        // kustomize takes no absolute paths.
        let up: PathBuf = folder.components().skip(1).map(|_| "..").collect();
        let workspace = up.join(self.workspace.strip_prefix("/").unwrap_or(&self.workspace));
        let text = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n- {workspace}/{overlay}\n\
             components:\n- {workspace}/deployments/kustomize/components/{component}\n",
            workspace = workspace.display()
        );
        fs::write(folder.join("kustomization.yaml"), text).context("cannot write an overlay")?;
        Ok(folder)
    }

    fn rights(&mut self) -> Result<()> {
        self.screen.step("What virt-meta may do");
        let wanted = BTreeSet::from([
            "network-attachment-definitions.k8s.cni.cncf.io [] [] [get]".to_owned(),
            "pods [] [] [get]".to_owned(),
        ]);
        let granted = |account: &str| -> Result<BTreeSet<String>> {
            let (_, text) = self.run(&format!("kubectl auth can-i --list --as {account}"))?;
            Ok(text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
        };
        // Everybody may ask who they are and what the API server can do; that is not ours.
        let everybody = granted("system:serviceaccount:kube-system:nobody")?;
        let found: BTreeSet<String> = granted(ACCOUNT)?.difference(&everybody).cloned().collect();
        let outcome = if found == wanted { Ok(String::new()) } else { Err(format!("{found:?}")) };
        self.screen.check("get pods, get network definitions, and nothing that not everybody may", outcome);
        for verb in [
            "list pods",
            "get secrets",
            "patch pods --subresource=status",
            "delete network-attachment-definitions.k8s.cni.cncf.io",
        ] {
            self.refused("it may not", &format!("kubectl auth can-i {verb} --as {ACCOUNT}"), &["no"])?;
        }
        Ok(())
    }

    fn wrong_edits(&mut self) -> Result<()> {
        self.screen.step("Manifests that were edited wrongly");
        for (what, file, edit, words) in WRONG_EDITS {
            let edit = quoted_word(edit);
            let command =
                format!("sed {edit} {file} | kubectl create --dry-run=server --validate=strict -f -");
            self.refused(what, &command, words)?;
        }
        Ok(())
    }

    fn succeeds(&mut self, what: &str, command: &str) -> Result<()> {
        let (ok, text) = self.shown(command)?;
        let outcome = if ok { Ok(String::new()) } else { Err("the command failed".to_owned()) };
        if !ok {
            self.screen.output(&text);
        }
        self.screen.check(what, outcome);
        Ok(())
    }

    /// It must fail, and say all of `words`.
    fn refused(&mut self, what: &str, command: &str, words: &[&str]) -> Result<()> {
        let (ok, text) = self.shown(command)?;
        self.screen.output(&text);
        let outcome = match words.iter().find(|word| !text.contains(**word)) {
            _ if ok => Err("it was accepted".to_owned()),
            Some(word) => Err(format!("nothing is said of {word}")),
            None => Ok(String::new()),
        };
        self.screen.check(what, outcome);
        Ok(())
    }

    /// What only prepares the ground.
    fn quietly(&mut self, command: &str) -> Result<()> {
        match self.run(command)? {
            (true, _) => Ok(()),
            (false, text) => bail!("`{command}` failed: {text}"),
        }
    }

    fn shown(&mut self, command: &str) -> Result<(bool, String)> {
        self.screen.command(command);
        self.run(command)
    }

    fn run(&self, command: &str) -> Result<(bool, String)> {
        self.interrupt.check()?;
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", &format!("exec 2>&1; {command}")]).current_dir(&self.workspace);
        shell.env("KUBECONFIG", self.kubeconfig).env("PATH", &self.path).env("HOME", &self.home);
        let output = shell.output().context("cannot run bash")?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).trim_end().to_owned()))
    }
}

/// All manifests of a folder, below the workspace, in order of names.
fn yaml_files(workspace: &Path, folder: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(workspace.join(folder)).with_context(|| format!("cannot list {folder}"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut files: Vec<String> =
        names.filter(|name| name.ends_with(".yaml")).map(|name| format!("{folder}/{name}")).collect();
    files.sort();
    if files.is_empty() {
        bail!("there is no manifest in {folder}");
    }
    Ok(files)
}

/// An option and its value, the value in quotes.
fn quoted(option: &str) -> String {
    match option.split_once(' ') {
        Some((option, value)) => format!("{option} {}", quoted_word(value)),
        None => option.to_owned(),
    }
}

fn quoted_word(word: &str) -> String {
    format!("'{word}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copies_of_the_definition_are_the_same() {
        let workspace = build::workspace().unwrap();
        let read = |path: &str| fs::read_to_string(workspace.join(path)).unwrap();
        for copy in COPIES {
            assert_eq!(read(copy), read(DEFINITION), "type cargo xtask manifests");
        }
    }

    #[test]
    fn every_manifest_names_the_version_that_is_built() {
        let workspace = build::workspace().unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let lines = [
            ("deployments/virtnet.yaml", format!("image: virtnet:{version}")),
            ("deployments/virtnet-multus.yaml", format!("image: virtnet:{version}")),
            ("deployments/pod-virtdp.yaml", format!("image: virtnet:{version}")),
            ("deployments/kustomize/base/kustomization.yaml", format!("newTag: {version}")),
            ("deployments/helm/virtnet/Chart.yaml", format!("appVersion: {version}")),
        ];
        for (file, line) in lines {
            let text = fs::read_to_string(workspace.join(file)).unwrap();
            assert!(text.contains(&line), "{file} has no line `{line}`");
        }
    }

    #[test]
    fn a_value_with_spaces_stays_one_word() {
        assert_eq!(quoted("--set drivers={virtio net}"), "--set 'drivers={virtio net}'");
        assert_eq!(quoted("--debug"), "--debug");
    }
}
