//! The programs that are built from Go modules: Kubernetes with etcd (`tests/kubernetes/programs`), and upstream Multus, containerd 2 and Helm, each in
//! a folder of `tests/kubernetes`. Built once for each set of versions and kept in the build folder.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::image::sha256;
use crate::progress::Progress;

/// The names under which the one file is called.
const NAMES: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

/// Programs of a Go module in this repository.
struct Program {
    name: &'static str,
    /// Folder of the module, below the workspace.
    module: &'static str,
    /// The packages, as `go build` takes them.
    packages: &'static [&'static str],
    /// Files that decide what comes out, below the module.
    sources: &'static [&'static str],
    /// Other names of the first package's program.
    links: &'static [&'static str],
    static_only: bool,
}

const KUBERNETES: Program = Program {
    name: "kubernetes",
    module: "tests/kubernetes",
    packages: &["./programs"],
    sources: &["go.mod", "go.sum", "programs/main.go"],
    links: &NAMES,
    static_only: false,
};

const MULTUS: Program = Program {
    name: "multus",
    module: "tests/kubernetes/multus",
    packages: &["gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus"],
    sources: &["go.mod", "go.sum"],
    links: &[],
    // It is run on the node by a container runtime whose libraries we do not know.
    static_only: true,
};

const CONTAINERD: Program = Program {
    name: "containerd",
    module: "tests/kubernetes/containerd",
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    sources: &["go.mod", "go.sum"],
    links: &[],
    static_only: false,
};

const HELM: Program = Program {
    name: "helm",
    module: "tests/kubernetes/helm",
    packages: &["helm.sh/helm/v3/cmd/helm"],
    sources: &["go.mod", "go.sum"],
    links: &[],
    static_only: false,
};

/// Builds Kubernetes; gives the folder with its programs.
pub(super) fn kubernetes(progress: &Progress, cache: &Path) -> Result<PathBuf> {
    let version = version("tests/kubernetes/go.mod", "k8s.io/kubernetes")?;
    let title = format!("Build Kubernetes {version} and etcd");
    KUBERNETES.built(progress, cache, &title, &version_flags(&version))
}

/// What Kubernetes' own build tells the linker, so that the programs know their version.
fn version_flags(version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
    let flags = packages.map(|package| {
        format!(
            "-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        )
    });
    flags.join(" ")
}

/// Builds upstream Multus; gives the folder with the program `multus`.
pub(super) fn multus(progress: &Progress, cache: &Path) -> Result<PathBuf> {
    let module = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4";
    let title = format!("Build Multus {}", version("tests/kubernetes/multus/go.mod", module)?);
    MULTUS.built(progress, cache, &title, "")
}

/// Builds containerd 2; gives the folder with `containerd`, its shim and `ctr`.
pub(super) fn containerd(progress: &Progress, cache: &Path) -> Result<PathBuf> {
    let module = "github.com/containerd/containerd/v2";
    let version = version("tests/kubernetes/containerd/go.mod", module)?;
    let flags = format!("-X {module}/version.Version={version}");
    CONTAINERD.built(progress, cache, &format!("Build containerd {version}"), &flags)
}

/// Builds Helm; gives the folder with the program `helm`.
pub(super) fn helm(progress: &Progress, cache: &Path) -> Result<PathBuf> {
    let file = "tests/kubernetes/helm/go.mod";
    let title = format!("Build Helm {}", version(file, "helm.sh/helm/v3")?);
    let libraries = version(file, "k8s.io/client-go")?;
    let minor = libraries.split('.').nth(1).unwrap_or_default();
    // As Helm's own build does it: without, it takes a cluster that it cannot ask for one of Kubernetes 1.20.
    let packages = ["helm.sh/helm/v3/pkg/lint/rules", "helm.sh/helm/v3/pkg/chartutil"];
    let flags = packages
        .map(|package| format!("-X {package}.k8sVersionMajor=1 -X {package}.k8sVersionMinor={minor}"));
    HELM.built(progress, cache, &title, &flags.join(" "))
}

impl Program {
    fn built(&self, progress: &Progress, cache: &Path, title: &str, flags: &str) -> Result<PathBuf> {
        let flags = format!("-s -w {flags}");
        let module = build::workspace()?.join(self.module);
        let go = go_version(&module)?;
        let mut inputs = format!("{go}{flags}").into_bytes();
        for source in self.sources {
            let path = module.join(source);
            inputs.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        let key: String = sha256(&inputs).chars().take(16).collect();
        let folder = cache.join(self.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("cannot make the lock file")?;
        lock.lock().context("cannot wait for another xtask")?;
        let done = folder.join(&key);
        if done.is_dir() {
            return Ok(done);
        }

        let step = progress.step(title);
        let staged = folder.join("new");
        for old in fs::read_dir(&folder).context("cannot read the build folder")?.flatten() {
            if old.path().is_dir() {
                fs::remove_dir_all(old.path()).context("cannot remove an older build")?;
            }
        }
        fs::create_dir_all(&staged).context("cannot make a folder")?;
        let mut command = Command::new("go");
        // -v names each package as it is compiled: that is the progress.
        command.args(["build", "-v", "-mod=readonly", "-ldflags", &flags, "-o"]).arg(&staged);
        command.args(self.packages).current_dir(&module);
        if self.static_only {
            command.env("CGO_ENABLED", "0");
        }
        step.run(&mut command).with_context(|| format!("building {} failed", self.name))?;
        let program =
            self.packages.first().and_then(|package| package.rsplit('/').next()).unwrap_or_default();
        for link in self.links {
            symlink(program, staged.join(link)).context("cannot make a link")?;
        }
        fs::rename(&staged, &done).context("cannot move what was built")?;
        step.done("");
        Ok(done)
    }
}

/// What `go version` says, in the module: Go takes the toolchain that the module asks for.
pub(super) fn go_version(module: &Path) -> Result<String> {
    match Command::new("go").arg("version").current_dir(module).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => bail!("go does not run here: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => Err(error).context(
            "Go is missing: kubelet, API server and Multus are built from their source.\n\
             Install Go 1.26 or newer (https://go.dev/dl; an older one from 1.21 on fetches it by itself), so that `go` is in PATH.\n\
             `cargo xtask demo` and `cargo xtask test` do without Go",
        ),
    }
}

/// The version that a go.mod requires of a module.
fn version(file: &str, module: &str) -> Result<String> {
    let path = build::workspace()?.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    required(&text, module).with_context(|| format!("{} does not require {module}", path.display()))
}

fn required(text: &str, module: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split(' ');
        (words.next()? == module).then(|| words.next().map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_required_version_is_found() {
        let text = "module x\n\nrequire (\n\tk8s.io/kubernetes v1.36.3\n\tk8s.io/kubectl v0.36.3 // indirect\n)\nrequire a.b/c v1.2.3\n";
        assert_eq!(required(text, "k8s.io/kubernetes").as_deref(), Some("v1.36.3"));
        assert_eq!(required(text, "a.b/c").as_deref(), Some("v1.2.3"));
        assert_eq!(required(text, "k8s.io"), None);
    }
}
