//! Registration through `plugins_registry`, with a kubelet that sends the real one's `:authority`.

use tokio::time::timeout;
use virtsim::kubelet::{Kubelet, Options};

use crate::stage::{Agent, PATIENCE, Stage, sockets_in, until};

const NICS: [&str; 2] = ["0000:00:09.0", "0000:00:0a.0"];

fn start(stage: &Stage) -> Agent {
    let mut command = stage.command();
    command.extend(["--registration", "plugins-registry"].map(String::from));
    stage.start_as(&command)
}

async fn all_are_there(kubelet: &Kubelet) {
    let virt = "kernel.org/virt".parse().unwrap();
    let mut capacity = kubelet.capacity();
    let full = capacity.wait_for(|all| all.get(&virt).is_some_and(|virt| virt.allocatable == 2));
    timeout(PATIENCE, full).await.expect("not all NICs are there").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_finds_the_agent_and_takes_its_answer_whatever_authority_it_sends() {
    let stage = Stage::with_spares(&NICS);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let mut agent = start(&stage);
    all_are_there(&kubelet).await;
    agent.says(&["registered with the Kubelet"]);
    let folder = stage.kubelet_dir().plugins_registry();
    let sockets = sockets_in(&folder);
    assert_eq!(sockets.len(), 1);
    assert_eq!(stage.sockets(), Vec::<String>::new());
    // The agent's own probe looks where the agent is.
    let probe = |way: &str| {
        let kubelet = stage.path("kubelet");
        let mut probe = std::process::Command::new(env!("CARGO_BIN_EXE_virtdp"));
        probe.arg("probe").arg("--kubelet-dir").arg(kubelet).args(["--registration", way]).output().unwrap()
    };
    assert!(probe("plugins-registry").status.success());
    assert!(!probe("kubelet-socket").status.success());
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(sockets_in(&folder), Vec::<String>::new());
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_there_before_the_kubelet_is_found_when_it_starts() {
    let stage = Stage::with_spares(&NICS);
    let agent = start(&stage);
    agent.says(&["waiting for the kubelet", "plugins_registry does not exist"]);
    std::fs::create_dir_all(stage.kubelet_dir().plugins_registry()).unwrap();
    agent.says(&["waiting to be asked"]);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    all_are_there(&kubelet).await;
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_lost_streams_and_wiped_sockets_are_followed_by_a_socket_made_anew() {
    let stage = Stage::with_spares(&NICS);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let agent = start(&stage);
    all_are_there(&kubelet).await;
    let folder = stage.kubelet_dir().plugins_registry();
    let before = sockets_in(&folder);
    kubelet.disconnect(&"kernel.org/virt".parse().unwrap()).await;
    until("another socket", || sockets_in(&folder).len() == 1 && sockets_in(&folder) != before);
    all_are_there(&kubelet).await;
    let before = sockets_in(&folder);
    kubelet.restart().await.unwrap();
    until("another socket", || sockets_in(&folder).len() == 1 && sockets_in(&folder) != before);
    all_are_there(&kubelet).await;
    until("the agent misses its socket", || {
        for socket in sockets_in(&folder) {
            // The agent may be quicker.
            let _ = std::fs::remove_file(folder.join(socket));
        }
        agent.count(&["our socket was removed"]) > 0
    });
    until("another socket", || sockets_in(&folder).len() == 1);
    all_are_there(&kubelet).await;
    kubelet.stop().await;
}
