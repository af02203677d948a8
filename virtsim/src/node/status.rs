//! A pod's status, as it stands in the API, from what the node knows of it: a pure function.
//!
//! Source: `generateAPIPodStatus` in `pkg/kubelet/kubelet_pods.go` and `pkg/kubelet/status/generate.go`.

use std::net::IpAddr;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::containers::{Container, Containers, Ended, State, Success};
use crate::api::json::Json;
use crate::api::status::set_condition;
use crate::api::time::Timestamp;
use crate::kubelet::ContainerKind;

/// What the node knows of a pod.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) containers: Containers,
    /// Since when the node has it.
    pub(super) since: Timestamp,
    pub(super) host: IpAddr,
    /// Its sandbox, while it has one.
    pub(super) sandbox: Option<(String, Vec<IpAddr>)>,
    /// How it ended.
    pub(super) ended: Option<Success>,
    /// Why it was refused: reason and message.
    pub(super) refused: Option<(&'static str, String)>,
}

/// Writes what is known into the pod; what others say there stays.
pub(super) fn write(known: &Known, pod: &mut Value, now: Timestamp) {
    let phase = phase(known);
    pod.put("/status/phase", phase);
    pod.put("/status/startTime", known.since.to_string());
    pod.put("/status/hostIP", known.host.to_string());
    pod.put("/status/hostIPs", json!([{"ip": known.host.to_string()}]));
    if let Some((reason, message)) = &known.refused {
        pod.put("/status/reason", *reason);
        pod.put("/status/message", format!("Pod was rejected: {message}"));
        return;
    }
    if let Some((_, ips)) = &known.sandbox
        && let Some(first) = ips.first()
    {
        pod.put("/status/podIP", first.to_string());
        let all: Vec<_> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        pod.put("/status/podIPs", all);
    }
    let is_init = |container: &Container| container.kind != ContainerKind::App;
    for (list, specs, init) in
        [("initContainerStatuses", "initContainers", true), ("containerStatuses", "containers", false)]
    {
        let here: Vec<_> = known.containers.all.iter().filter(|one| is_init(one) == init).collect();
        if here.is_empty() {
            continue;
        }
        let old = pod.items(&format!("/status/{list}")).to_vec();
        let specs = pod.items(&format!("/spec/{specs}")).to_vec();
        let statuses: Vec<_> = here
            .into_iter()
            .map(|container| {
                let of = |all: &[Value]| all.iter().find(|one| one.text("/name") == container.name).cloned();
                let image = of(&specs).unwrap_or_default().text("/image").to_owned();
                let old = of(&old).unwrap_or_default();
                container_status(known, container, &image, old.text("/containerID"))
            })
            .collect();
        pod.put(&format!("/status/{list}"), statuses);
    }
    for condition in conditions(known, phase) {
        set_condition(pod, condition, now);
    }
}

fn phase(known: &Known) -> &'static str {
    match known.ended {
        _ if known.refused.is_some() => "Failed",
        Some(Success::Yes) => "Succeeded",
        Some(Success::No) => "Failed",
        None => {
            let mut apps = known.containers.of_kind(ContainerKind::App);
            let all_begun = apps.all(Container::was_started);
            if known.containers.are_initialized() && all_begun { "Running" } else { "Pending" }
        }
    }
}

fn container_status(known: &Known, container: &Container, image: &str, old_id: &str) -> Value {
    let id = match &known.sandbox {
        Some((sandbox, _)) if container.was_started() => format!("virtsim://{sandbox}-{}", container.name),
        _ => old_id.to_owned(),
    };
    let ready = match container.kind {
        // An init container is ready when it has done its work.
        ContainerKind::Init => matches!(&container.state, State::Ended(ended) if ended.code == 0),
        ContainerKind::Sidecar | ContainerKind::App => container.is_running(),
    };
    let mut status = json!({
        "name": container.name, "image": image, "imageID": "", "restartCount": container.restarts,
        "ready": ready, "started": container.is_running(), "state": {}, "lastState": {},
    });
    if !id.is_empty() {
        status.put("/containerID", id.as_str());
    }
    let ended = |ended: &Ended| {
        json!({"terminated": {
            "exitCode": ended.code,
            "reason": if ended.code == 0 { "Completed" } else { "Error" },
            "startedAt": at(ended.since), "finishedAt": at(ended.until), "containerID": id,
        }})
    };
    match &container.state {
        State::Waiting { reason, message } => {
            status.put("/state/waiting/reason", *reason);
            if !message.is_empty() {
                status.put("/state/waiting/message", message.as_str());
            }
        }
        State::Running { since } => status.put("/state/running/startedAt", at(*since)),
        State::Ended(this) => status.put("/state", ended(this)),
    }
    if let Some(last) = &container.last {
        status.put("/lastState", ended(last));
    }
    status
}

fn at(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_seconds(i64::try_from(since.as_secs()).unwrap_or_default()).to_string()
}

fn conditions(known: &Known, phase: &str) -> Vec<Value> {
    let condition = |kind: &str, holds: bool, why: Option<(&str, String)>| {
        let mut condition = json!({"type": kind, "status": if holds { "True" } else { "False" }});
        if let Some((reason, message)) = why.filter(|_| !holds) {
            condition.put("/reason", reason);
            if !message.is_empty() {
                condition.put("/message", message);
            }
        }
        condition
    };
    let names = |wrong: &dyn Fn(&Container) -> bool| {
        let names = known.containers.all.iter().filter(|one| wrong(one)).map(|one| one.name.as_str());
        names.collect::<Vec<_>>().join(" ")
    };
    let initialized = known.containers.are_initialized() || phase == "Succeeded";
    let incomplete = names(&|one| match one.kind {
        ContainerKind::Init => !matches!(&one.state, State::Ended(ended) if ended.code == 0),
        ContainerKind::Sidecar => !one.was_started(),
        ContainerKind::App => false,
    });
    let unready = names(&|one| one.kind != ContainerKind::Init && !one.is_running());
    let ready = phase == "Running" && unready.is_empty();
    let why_unready = || match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => ("ContainersNotReady", format!("containers with unready status: [{unready}]")),
    };
    let incomplete =
        ("ContainersNotInitialized", format!("containers with incomplete status: [{incomplete}]"));
    vec![
        condition("PodReadyToStartContainers", known.sandbox.is_some() && known.ended.is_none(), None),
        condition("Initialized", initialized, Some(incomplete)),
        condition("Ready", ready, Some(why_unready())),
        condition("ContainersReady", ready, Some(why_unready())),
        // A pod that names its node itself never saw a scheduler.
        condition("PodScheduled", true, None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerStatus;

    fn pod() -> Value {
        json!({
            "spec": {"initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "c", "image": "busybox"}]},
            "status": {"qosClass": "BestEffort", "conditions": [{"type": "PodScheduled", "status": "True"}]},
        })
    }

    fn known(pod: &Value) -> Known {
        Known {
            containers: Containers::of(pod),
            since: Timestamp::from_seconds(0),
            host: IpAddr::from([192, 0, 2, 7]),
            sandbox: None,
            ended: None,
            refused: None,
        }
    }

    fn written(known: &Known) -> Value {
        let mut pod = pod();
        write(known, &mut pod, Timestamp::from_seconds(60));
        pod.take_out("/status").unwrap()
    }

    fn condition(status: &Value, kind: &str) -> (String, String) {
        let found = status.items("/conditions").iter().find(|one| one.text("/type") == kind).unwrap();
        (found.text("/status").to_owned(), found.text("/message").to_owned())
    }

    #[test]
    fn a_pod_goes_from_pending_to_running_to_its_end() {
        let mut known = known(&pod());
        let status = written(&known);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["qosClass"], "BestEffort");
        assert_eq!(
            status["containerStatuses"][0]["state"],
            json!({"waiting": {"reason": "PodInitializing"}})
        );
        let incomplete = "containers with incomplete status: [i]".to_owned();
        assert_eq!(condition(&status, "Initialized"), ("False".to_owned(), incomplete));
        assert_eq!(condition(&status, "PodReadyToStartContainers").0, "False");

        known.sandbox = Some(("f00".to_owned(), vec![IpAddr::from([10, 1, 0, 5])]));
        let (since, until) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        let init = known.containers.find("i").unwrap();
        init.started(since);
        init.hear(&ContainerStatus::Exited { code: 0, since, until }, tokio::time::Instant::now());
        let unready = "containers with unready status: [c]".to_owned();
        assert_eq!(condition(&written(&known), "Ready"), ("False".to_owned(), unready));

        known.containers.find("c").unwrap().started(since);
        let status = written(&known);
        assert_eq!((status.text("/phase"), status.text("/podIP")), ("Running", "10.1.0.5"));
        assert_eq!(status["podIPs"], json!([{"ip": "10.1.0.5"}]));
        assert_eq!(condition(&status, "Ready").0, "True");
        let running = &status["containerStatuses"][0];
        assert_eq!(running["ready"], true);
        assert_eq!(running["state"]["running"]["startedAt"], "1970-01-01T00:00:00Z");
        assert_eq!(running["containerID"], "virtsim://f00-c");

        let app = known.containers.find("c").unwrap();
        app.hear(&ContainerStatus::Exited { code: 3, since, until }, tokio::time::Instant::now());
        known.ended = Some(Success::No);
        let status = written(&known);
        assert_eq!(status["phase"], "Failed");
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
        assert_eq!(condition(&status, "Ready").0, "False");
    }

    #[test]
    fn a_refused_pod_has_failed_and_says_why() {
        let mut known = known(&pod());
        known.refused = Some(("UnexpectedAdmissionError", "no device".to_owned()));
        let status = written(&known);
        assert_eq!((status.text("/phase"), status.text("/reason")), ("Failed", "UnexpectedAdmissionError"));
        assert_eq!(status["message"], "Pod was rejected: no device");
    }
}
