//! The containers of one pod, and which of them to start next: plain data and pure functions over a clock that is passed in.
//!
//! Source: `computePodActions` in `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::Instant;

use super::requests::is_sidecar;
use crate::api::json::Json;
use crate::kubelet::ContainerKind;
use crate::runtime::ContainerStatus;

/// How long a container that ended once more waits, doubled each time, as the kubelet has it.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A container that ran for so long is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// One container's life.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) kind: ContainerKind,
    pub(super) state: State,
    /// How it ended last time.
    pub(super) last: Option<Ended>,
    /// How often it was started again.
    pub(super) restarts: u32,
    /// Not started again before this.
    not_before: Option<Instant>,
    pause: Option<Duration>,
}

/// What it does now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// Not started, or between two starts: `status.state.waiting`.
    Waiting {
        reason: &'static str,
        message: String,
    },
    Running {
        since: SystemTime,
    },
    Ended(Ended),
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) since: SystemTime,
    pub(super) until: SystemTime,
}

/// All containers of a pod: init containers first.
#[derive(Clone, Debug)]
pub(super) struct Containers {
    pub(super) all: Vec<Container>,
    policy: RestartPolicy,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Names of containers to start, in order.
    pub(super) start: Vec<String>,
    /// When to look again, if nothing happens before.
    pub(super) look_again: Option<Instant>,
    /// The pod has ended, and whether well.
    pub(super) ended: Option<Success>,
}

/// Whether a pod that ended did so with exit codes of 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Success {
    Yes,
    No,
}

impl Containers {
    /// As the pod describes them.
    pub(super) fn of(pod: &Value) -> Self {
        let has_init = !pod.items("/spec/initContainers").is_empty();
        let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
        let container = |container: &Value, kind| Container {
            name: container.text("/name").to_owned(),
            kind,
            state: State::Waiting { reason, message: String::new() },
            last: None,
            restarts: 0,
            not_before: None,
            pause: None,
        };
        let init = pod.items("/spec/initContainers").iter().map(|spec| {
            container(spec, if is_sidecar(spec) { ContainerKind::Sidecar } else { ContainerKind::Init })
        });
        let apps = pod.items("/spec/containers").iter().map(|spec| container(spec, ContainerKind::App));
        let policy = match pod.text("/spec/restartPolicy") {
            "Never" => RestartPolicy::Never,
            "OnFailure" => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        };
        Containers { all: init.chain(apps).collect(), policy }
    }

    pub(super) fn find(&mut self, name: &str) -> Option<&mut Container> {
        self.all.iter_mut().find(|container| container.name == name)
    }

    /// Whether every init container has ended well, and every sidecar was started.
    pub(super) fn are_initialized(&self) -> bool {
        self.all.iter().all(|container| match container.kind {
            ContainerKind::Init => container.ended_well(),
            ContainerKind::Sidecar => container.was_started(),
            ContainerKind::App => true,
        }) || self.of_kind(ContainerKind::App).any(Container::was_started)
    }

    pub(super) fn of_kind(&self, kind: ContainerKind) -> impl Iterator<Item = &Container> {
        self.all.iter().filter(move |container| container.kind == kind)
    }

    /// Has containers that wait for their next start say so; gives those that did not before.
    pub(super) fn back_off(&mut self, pod: &str, now: Instant) -> Vec<String> {
        let mut names = Vec::new();
        for container in self.all.iter_mut().filter(|one| one.will_start_again(self.policy)) {
            let Some(pause) = container.backs_off(now) else { continue };
            let name = container.name.clone();
            let message =
                format!("back-off {}s restarting failed container={name} pod={pod}", pause.as_secs());
            if let State::Ended(ended) = &container.state {
                container.last = Some(ended.clone());
            }
            container.state = State::Waiting { reason: "CrashLoopBackOff", message };
            names.push(name);
        }
        names
    }

    /// Decides what to do at `now`.
    pub(super) fn plan(&self, now: Instant) -> Plan {
        let mut plan = Plan::default();
        let initialized = self.are_initialized();
        for container in &self.all {
            match container.kind {
                ContainerKind::Init if initialized => {}
                ContainerKind::Init => match &container.state {
                    State::Ended(ended) if ended.code == 0 => {}
                    State::Ended(_) if self.policy == RestartPolicy::Never => {
                        plan.ended = Some(Success::No);
                        return plan;
                    }
                    _ => {
                        container.start_into(&mut plan, now);
                        return plan;
                    }
                },
                ContainerKind::Sidecar => {
                    container.start_into(&mut plan, now);
                    if !initialized && !container.was_started() {
                        return plan;
                    }
                }
                ContainerKind::App => {
                    if container.is_wanted(self.policy) {
                        container.start_into(&mut plan, now);
                    }
                }
            }
        }
        let mut apps = self.of_kind(ContainerKind::App);
        if apps.all(|app| matches!(app.state, State::Ended(_)) && !app.is_wanted(self.policy)) {
            let well = self.of_kind(ContainerKind::App).all(Container::ended_well);
            return Plan { ended: Some(if well { Success::Yes } else { Success::No }), ..Plan::default() };
        }
        plan
    }
}

impl Container {
    fn ended_well(&self) -> bool {
        matches!(&self.state, State::Ended(ended) if ended.code == 0)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Now or at any time before.
    pub(super) fn was_started(&self) -> bool {
        self.last.is_some() || !matches!(self.state, State::Waiting { .. })
    }

    fn is_wanted(&self, policy: RestartPolicy) -> bool {
        match (&self.state, policy) {
            (State::Running { .. }, _) => false,
            (State::Waiting { .. }, _) | (State::Ended(_), RestartPolicy::Always) => true,
            (State::Ended(ended), RestartPolicy::OnFailure) => ended.code != 0,
            (State::Ended(_), RestartPolicy::Never) => false,
        }
    }

    fn start_into(&self, plan: &mut Plan, now: Instant) {
        if self.is_running() {
            return;
        }
        match self.not_before.filter(|at| *at > now) {
            Some(at) => plan.look_again = Some(plan.look_again.map_or(at, |other| other.min(at))),
            None => plan.start.push(self.name.clone()),
        }
    }

    /// It runs.
    pub(super) fn started(&mut self, since: SystemTime) {
        if self.was_started() {
            self.restarts += 1;
        }
        if let State::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
        }
        self.state = State::Running { since };
    }

    /// It could not be started: to be tried again after a pause.
    pub(super) fn not_started(&mut self, reason: &'static str, message: String, now: Instant) {
        if let State::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
        }
        self.state = State::Waiting { reason, message };
        self.wait_from(now);
    }

    /// What the runtime says of it; says whether that is new.
    pub(super) fn hear(&mut self, status: &ContainerStatus, now: Instant) -> bool {
        let ContainerStatus::Exited { code, since, until } = *status else { return false };
        // A status of the run before is heard until the next run has one of its own.
        if !matches!(self.state, State::Running { since: known } if known <= since) {
            return false;
        }
        self.state = State::Ended(Ended { code, since, until });
        if until.duration_since(since).is_ok_and(|ran| ran >= FORGIVEN_AFTER) {
            self.pause = None;
        }
        // The first time it is started again at once.
        match self.pause {
            None => self.pause = Some(Duration::ZERO),
            Some(_) => self.wait_from(now),
        }
        true
    }

    fn wait_from(&mut self, now: Instant) {
        let pause = self.pause.map_or(FIRST_PAUSE, |pause| (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE));
        self.pause = Some(pause);
        self.not_before = Some(now + pause);
    }

    /// How long it must wait at `now`, where it is between an end and a start.
    fn backs_off(&self, now: Instant) -> Option<Duration> {
        let waits = self.not_before.is_some_and(|at| at > now) && matches!(self.state, State::Ended(_));
        self.pause.filter(|_| waits)
    }

    fn will_start_again(&self, policy: RestartPolicy) -> bool {
        match self.kind {
            ContainerKind::Init => !self.ended_well() && policy != RestartPolicy::Never,
            ContainerKind::Sidecar => true,
            ContainerKind::App => self.is_wanted(policy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PAUSE: Duration = FIRST_PAUSE;

    fn containers(spec: Value) -> Containers {
        Containers::of(&json!({ "spec": spec }))
    }

    fn run(containers: &mut Containers, name: &str) {
        containers.find(name).unwrap().started(SystemTime::UNIX_EPOCH);
    }

    fn end(containers: &mut Containers, name: &str, code: i32, now: Instant) {
        let (since, until) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        assert!(containers.find(name).unwrap().hear(&ContainerStatus::Exited { code, since, until }, now));
    }

    fn starts(containers: &Containers, now: Instant) -> Vec<String> {
        containers.plan(now).start
    }

    #[test]
    fn init_containers_run_one_after_the_other_and_sidecars_stay() {
        let now = Instant::now();
        let mut all = containers(json!({
            "initContainers": [{"name": "a"}, {"name": "s", "restartPolicy": "Always"}, {"name": "b"}],
            "containers": [{"name": "c"}, {"name": "d"}],
        }));
        for (name, code) in [("a", Some(0)), ("s", None), ("b", Some(0))] {
            assert!(!all.are_initialized());
            assert_eq!(starts(&all, now), [name]);
            run(&mut all, name);
            if let Some(code) = code {
                assert_eq!(starts(&all, now), [""; 0]);
                end(&mut all, name, code, now);
            }
        }
        assert!(all.are_initialized());
        assert_eq!(starts(&all, now), ["c", "d"]);
        run(&mut all, "c");
        run(&mut all, "d");
        end(&mut all, "s", 1, now);
        assert_eq!(starts(&all, now), ["s"]);
        assert!(all.are_initialized());
    }

    #[test]
    fn a_restart_waits_longer_each_time_but_the_first() {
        let mut now = Instant::now();
        let mut all = containers(json!({"containers": [{"name": "c"}]}));
        run(&mut all, "c");
        end(&mut all, "c", 1, now);
        assert_eq!(starts(&all, now), ["c"]);
        for pause in [PAUSE, 2 * PAUSE, 4 * PAUSE] {
            run(&mut all, "c");
            end(&mut all, "c", 1, now);
            let plan = all.plan(now);
            assert_eq!((plan.start.as_slice(), plan.look_again), ([].as_slice(), Some(now + pause)));
            assert_eq!(all.back_off("p", now), ["c"]);
            assert_eq!(all.back_off("p", now), [""; 0]);
            let message = format!("back-off {}s restarting failed container=c pod=p", pause.as_secs());
            assert_eq!(all.all[0].state, State::Waiting { reason: "CrashLoopBackOff", message });
            assert_eq!(starts(&all, now), [""; 0]);
            now += pause;
            assert_eq!(starts(&all, now), ["c"]);
        }
        assert_eq!(all.all[0].restarts, 3);
    }

    #[test]
    fn a_pod_ends_as_its_policy_says() {
        let now = Instant::now();
        for (policy, code, ended) in [
            ("Never", 0, Some(Success::Yes)),
            ("Never", 3, Some(Success::No)),
            ("OnFailure", 0, Some(Success::Yes)),
            ("OnFailure", 3, None),
            ("Always", 0, None),
        ] {
            let mut all = containers(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
            run(&mut all, "c");
            assert_eq!(all.plan(now).ended, None);
            end(&mut all, "c", code, now);
            assert_eq!(all.plan(now).ended, ended, "{policy} {code}");
        }
        let mut all = containers(json!({
            "restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}],
        }));
        run(&mut all, "i");
        end(&mut all, "i", 1, now);
        assert_eq!(all.plan(now).ended, Some(Success::No));
    }

    #[test]
    fn what_cannot_be_started_is_tried_again() {
        let now = Instant::now();
        let mut all = containers(json!({"containers": [{"name": "c"}]}));
        all.find("c").unwrap().not_started("CreateContainerConfigError", "no".to_owned(), now);
        assert_eq!(all.plan(now), Plan { look_again: Some(now + PAUSE), ..Plan::default() });
        assert_eq!(starts(&all, now + PAUSE), ["c"]);
    }

    #[test]
    fn the_end_of_an_earlier_run_is_not_heard_again() {
        let now = Instant::now();
        let mut all = containers(json!({"containers": [{"name": "c"}]}));
        let (first, second) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + PAUSE);
        let container = all.find("c").unwrap();
        container.started(second);
        assert!(!container.hear(&ContainerStatus::Exited { code: 1, since: first, until: first }, now));
        assert!(!container.hear(&ContainerStatus::Running { since: second }, now));
        assert!(container.is_running());
    }
}
