//! The agent as the manifests run it: no capability, no new privileges, a root folder that is read-only but for what it needs; and as
//! another user, where the folders are open to it. (The runtime's seccomp filter is met on the real node: `cargo xtask kubernetes`.)

use std::collections::BTreeMap;

use tokio::time::timeout;
use virtsim::kubelet::{ContainerKind, ContainerRequest, Kubelet, Options, PodKey};

use crate::stage::{Agent, PATIENCE, Stage, read};

const NIC: &str = "0000:00:0a.0";
const NO_CAPABILITY: &str = "setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all";

/// Starts the agent by a script that ends with `exec ... "$@"`.
fn start(stage: &Stage, script: &str) -> Agent {
    let mut agent = stage.command();
    // Another user may not be let into the folder where it was built.
    let program = stage.path("virtdp");
    std::fs::copy(&agent[0], &program).unwrap();
    agent[0] = program.display().to_string();
    let mut command: Vec<String> = ["unshare", "-m", "sh", "-ec", script, "sh"].map(String::from).into();
    command.extend(agent);
    stage.start_as(&command)
}

/// The agent registers, lists, and gives its NIC to a pod.
async fn serves(stage: &Stage, kubelet: &Kubelet, agent: &Agent) {
    let virt: nic::ResourceName = "kernel.org/virt".parse().unwrap();
    let mut capacity = kubelet.capacity();
    let full = capacity.wait_for(|all| all.get(&virt).is_some_and(|virt| virt.allocatable == 1));
    timeout(PATIENCE, full).await.unwrap_or_else(|_| panic!("{}", agent.log())).unwrap();
    let pod = PodKey { uid: "u".into(), namespace: "default".into(), name: "pod".into() };
    let limits = BTreeMap::from([(virt.clone(), 1)]);
    let container = ContainerRequest { name: "c".into(), kind: ContainerKind::App, limits };
    let given = timeout(PATIENCE, kubelet.admit(pod, vec![container])).await.unwrap().unwrap();
    assert_eq!(given[0].devices[&virt], [NIC]);
    let file = stage.path("devinfo/dp").join("kernel.org-virt-0000:00:0a.0-device.json");
    assert!(file.exists(), "{}", agent.log());
}

/// A field of /proc/PID/status.
fn status(agent: &Agent, field: &str) -> String {
    let text = read(format!("/proc/{}/status", agent.id()).as_ref());
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_capability_and_on_a_read_only_root_it_does_all_that_it_does() {
    let stage = Stage::with_spares(&[NIC]);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    for folder in ["state", "devinfo/dp"] {
        std::fs::create_dir_all(stage.path(folder)).unwrap();
    }
    let all = stage.path("").display().to_string();
    let all = all.trim_end_matches('/');
    // All of the stage is read-only, and so is the root folder, but the three that the manifests mount.
    let script = format!(
        "mount --make-rprivate /; mount --rbind {all} {all}
         for each in kubelet/device-plugins devinfo/dp state; do mount --bind {all}/$each {all}/$each; done
         mount -o remount,bind,ro {all}; mount -o remount,bind,ro /
         for each in {all} / ; do if touch $each/x 2>/dev/null; then exit 1; fi; done
         exec {NO_CAPABILITY} \"$@\""
    );
    let mut agent = start(&stage, &script);
    serves(&stage, &kubelet, &agent).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&agent, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&agent, "NoNewPrivs"), "1");
    assert_eq!(agent.terminate(), Some(0));
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_does_it_where_the_folders_are_open() {
    let stage = Stage::with_spares(&[NIC]);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    for folder in ["state", "devinfo/dp"] {
        std::fs::create_dir_all(stage.path(folder)).unwrap();
    }
    // In a user namespace without a second user, the agent has one of its own with the same folders.
    let script = format!(
        "chmod -R a+rwX {} {}
         if setpriv --reuid 65534 --clear-groups true 2>/dev/null
         then exec {NO_CAPABILITY} --reuid 65534 --regid 65534 --clear-groups \"$@\"
         else exec unshare -U --map-user=65534 --map-group=65534 {NO_CAPABILITY} \"$@\"
         fi",
        stage.path("").display(),
        stage.tree.path().display()
    );
    let mut agent = start(&stage, &script);
    serves(&stage, &kubelet, &agent).await;
    assert_eq!(status(&agent, "CapEff"), "0000000000000000");
    let knows_it = read("/proc/self/uid_map".as_ref()).split_whitespace().nth(2) != Some("1");
    assert!(!knows_it || status(&agent, "Uid").starts_with("65534"), "{}", status(&agent, "Uid"));
    assert_eq!(agent.terminate(), Some(0));
    kubelet.stop().await;
}
