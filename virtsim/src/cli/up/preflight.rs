//! What would keep a node from starting, said before anything is touched.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use linux::Netns;

use crate::api::validate;
use crate::control::{self, Connection, Request, Status};
use crate::options::Options;

pub(super) fn check(options: &Options) -> Result<()> {
    another_node(&options.dir)?;
    if !validate::is_node_name(&options.node_name) {
        bail!(
            "--node-name {:?} is no name of a node: it has at most 253 lower case letters, digits, '-' and '.'",
            options.node_name
        );
    }
    may_make_namespaces()?;
    real_kubelet(options)
}

fn another_node(dir: &Path) -> Result<()> {
    match Connection::open(dir, &Request::Status).and_then(Connection::answer::<Status>) {
        Ok(status) => bail!(
            "a node runs in {} already, it is process {}: `virtsim down` ends it, and `--dir` starts another one elsewhere",
            dir.display(),
            status.pid
        ),
        Err(control::Error::NoNode { .. }) => Ok(()),
        Err(error) => Err(error).context("a node runs there already, and does not answer"),
    }
}

fn may_make_namespaces() -> Result<()> {
    // It ends with its handle.
    let outcome = Netns::create().map(drop);
    outcome.context(
        "a node must be able to make network namespaces and mounts: run it as root (`sudo virtsim up`), or in namespaces \
         of your own (`unshare --map-root-user --net --mount --pid --fork --mount-proc`)",
    )
}

/// Another kubelet's sockets are not ours to remove.
fn real_kubelet(options: &Options) -> Result<()> {
    let kubelet = options.kubelet();
    for socket in [kubelet.registration_socket(), kubelet.pod_resources_socket()] {
        // A socket that nobody serves was left behind.
        if UnixStream::connect(&socket).is_ok() {
            bail!(
                "a kubelet serves {} already: stop it, or give this node another folder with --kubelet-dir (and device \
                 plugins, too)",
                socket.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_kubelet_that_serves_keeps_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::at(dir.path().join("node"));
        options.kubelet_dir = dir.path().join("kubelet");
        assert!(real_kubelet(&options).is_ok());
        let socket = options.kubelet().registration_socket();
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let error = real_kubelet(&options).unwrap_err().to_string();
        assert!(error.contains("kubelet.sock") && error.contains("--kubelet-dir"), "{error}");
        drop(listener);
        assert!(real_kubelet(&options).is_ok(), "a socket that was left behind keeps a node from starting");
    }

    #[test]
    fn a_node_that_does_not_answer_is_one_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        assert!(another_node(dir.path()).is_ok());
        let listener = UnixListener::bind(crate::options::control_socket(dir.path())).unwrap();
        let answering = std::thread::spawn(move || drop(listener.accept()));
        assert!(another_node(dir.path()).is_err());
        answering.join().unwrap();
    }
}
