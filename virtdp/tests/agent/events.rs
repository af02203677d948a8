//! What a pod hears of its NIC: Events, at an API server on a real socket.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use linux::Netns;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use virtsim::api::{Api, rest};

use crate::kubelet::Kubelet;
use crate::observe::scrape;
use crate::stage::{Agent, Stage, position, until};

const NIC: &str = "0000:00:09.0";

/// The simulator's API server, in the network namespace of the node.
struct Server {
    api: Api,
    stop: CancellationToken,
}

struct NoLogs;

impl rest::Logs for NoLogs {
    fn of(&self, _: &Value, _: &str) -> PathBuf {
        PathBuf::from("/nonexistent")
    }
}

impl Server {
    fn start(stage: &Stage) -> Server {
        stage.ip("link set lo up");
        let (api, _store) = Api::start();
        let listener = stage.netns.run(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let server = kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
        std::fs::write(stage.path("kubeconfig"), server).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(rest::serve(listener, api.clone(), Arc::new(NoLogs), stop.clone()));
        Server { api, stop }
    }

    /// Type, reason, pod and message of all Events.
    async fn events(&self) -> Vec<String> {
        let events = self.api.run(|store| {
            let kind = store.kind("", "v1", "events")?;
            Ok(store.list(&kind, Some("default"), &Default::default()))
        });
        let text =
            |event: &Value, path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or("-").to_owned();
        let mut events: Vec<(String, String)> = events
            .await
            .unwrap()
            .iter()
            .map(|event| {
                let words = ["/type", "/reason", "/involvedObject/name", "/involvedObject/uid", "/message"];
                (text(event, "/metadata/resourceVersion"), words.map(|path| text(event, path)).join(" "))
            })
            .collect();
        events.sort_by_key(|(version, _)| version.parse::<u64>().unwrap());
        events.into_iter().map(|(_, words)| words).collect()
    }

    /// Waits until there are so many.
    async fn has(&self, count: usize) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + crate::stage::PATIENCE;
        loop {
            let events = self.events().await;
            if events.len() >= count {
                return events;
            }
            assert!(tokio::time::Instant::now() < deadline, "{events:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn kubeconfig(server: &str) -> String {
    format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k}}}}]\n\
         clusters: [{{name: k, cluster: {{server: {server:?}}}}}]\n"
    )
}

fn start(stage: &Stage) -> Agent {
    let mut command = stage.command();
    command.push("--events".to_owned());
    command.push(format!("--kubeconfig={}", stage.path("kubeconfig").display()));
    command.push(format!("--listen=unix:{}", stage.path("observe.sock").display()));
    stage.start_as(&command)
}

fn counted(stage: &Stage, outcome: &str) -> f64 {
    let samples = scrape(stage);
    let of = |sample: &&crate::openmetrics::Sample| {
        sample.name == "virtdp_pod_events_total" && sample.labels["outcome"] == outcome
    };
    samples.iter().find(of).unwrap().value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_nic_is_unplugged_hears_of_it_once_also_from_an_agent_that_is_restarted() {
    let stage = Stage::with_spares(&[NIC]);
    let server = Server::start(&stage);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = start(&stage);
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []"]).await;
    let pod = Netns::create().unwrap();
    stage.lease(NIC);
    stage.move_away("eth1", &pod);
    agent.says(&["Offering 0000:00:09.0", "away for pod default/testpod1"]);
    assert_eq!(server.events().await, Vec::<String>::new());
    stage.tree.unplug(&position(NIC));
    stage.poke();
    let told = "Warning NicUnplugged testpod1 0a1b NIC 0000:00:09.0 (net1) was unplugged from the node; the pod has to be \
                replaced to get another one";
    assert_eq!(server.has(1).await, [told]);
    agent.says(&["the NIC of a pod was unplugged", "default/testpod1", NIC]);
    until("it is counted", || counted(&stage, "posted") == 1.0);
    drop(agent);

    let agent = start(&stage);
    agent.says(&["the NIC of a pod was unplugged"]);
    until("it is posted", || counted(&stage, "posted") == 1.0);
    assert_eq!(server.events().await, [told]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_illness_that_comes_again_is_told_again_also_by_an_agent_that_was_restarted() {
    let stage = Stage::with_spares(&[NIC]);
    let server = Server::start(&stage);
    let pod = Netns::create().unwrap();
    stage.lease(NIC);
    stage.move_away("eth1", &pod);
    let virtio = format!("{}/virtio-eth1", position(NIC));
    for times in 1..=2 {
        let agent = start(&stage);
        agent.says(&["Offering 0000:00:09.0", "away for pod default/testpod1"]);
        std::fs::remove_file(stage.tree.folder(&virtio).join("driver")).unwrap();
        stage.poke();
        agent.says(&["the NIC of a pod is ill", "no driver is bound"]);
        let told =
            "Warning NicUnhealthy testpod1 0a1b NIC 0000:00:09.0 (net1) is ill: no driver is bound to it";
        assert_eq!(server.has(times).await, vec![told; times]);
        drop(agent);
        stage.tree.driver("virtio", &virtio, "virtio_net");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_down_is_a_line_in_the_log_and_the_agent_works() {
    let stage = Stage::with_spares(&[NIC]);
    stage.ip("link set lo up");
    // Nobody listens there.
    std::fs::write(stage.path("kubeconfig"), kubeconfig("http://127.0.0.1:1")).unwrap();
    stage.lease(NIC);
    stage.tree.unplug(&position(NIC));
    let pod = Netns::create().unwrap();
    move_link(&stage, &pod);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = start(&stage);
    agent.says(&[
        "no Event is posted",
        "http://127.0.0.1:1",
        "did not answer the question for the Event on pod default/testpod1",
    ]);
    until("it is counted", || counted(&stage, "failed") == 1.0);
    let mut plugin = kubelet.plugin().await;
    stage.nic("0000:00:0b.0", "eth5");
    stage.poke();
    loop {
        let list = plugin.list().await.expect("the stream ends");
        if list.contains(&"0000:00:0b.0 Healthy []".to_owned()) {
            break;
        }
    }
    assert_eq!(agent.count(&["no Event is posted"]), 1);
}

/// Takes eth1 away although its device is gone already.
fn move_link(stage: &Stage, to: &Netns) {
    use std::os::fd::AsFd as _;
    let index = stage.index("eth1");
    let mut socket = stage.netns.route_socket().unwrap();
    let change = linux::route::LinkChange { netns: Some(to.as_fd()), ..Default::default() };
    socket.change_link(index, &change).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_it_is_only_logged() {
    let stage = Stage::with_spares(&[NIC]);
    let agent = stage.start();
    let pod = Netns::create().unwrap();
    stage.lease(NIC);
    stage.move_away("eth1", &pod);
    agent.says(&["Offering 0000:00:09.0", "away for pod default/testpod1"]);
    stage.tree.unplug(&position(NIC));
    stage.poke();
    agent.says(&["W", "the NIC of a pod was unplugged", "default/testpod1"]);
    assert_eq!(agent.count(&["Event"]), 0);
}
