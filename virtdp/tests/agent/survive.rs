//! Whatever is restarted, killed, wiped or hung, in whatever order: soon all NICs are there again, and no pod is refused by
//! the agent. The kubelet is virtsim's, which has the real one's race: the end of an old stream disconnects the new one.
//!
//! What happens next is drawn from a seed. How long anything takes decides nothing; how long allocatable was wrong is printed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use kubelet_api::KubeletDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use virtsim::kubelet::{
    AdmissionError, Capacities, ContainerKind, ContainerRequest, Kubelet, Options, PodKey,
};

use crate::stage::{Agent, PATIENCE, Stage, sockets_in};

const NICS: [&str; 3] = ["0000:00:08.0", "0000:00:09.0", "0000:00:0a.0"];
const VIRT: &str = "kernel.org/virt";
/// Allocatable is right when it stayed so for this long: what was killed is noticed by then.
const STEADY: Duration = Duration::from_millis(30);
const BLINK: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_restarted_or_killed_all_nics_are_there_again_and_no_pod_is_refused() {
    Run::start("kubelet-socket").await.through().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_for_registration_through_the_plugins_registry() {
    Run::start("plugins-registry").await.through().await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    AgentKilled,
    AgentTerminated,
    /// A new agent starts before the old one ends, as in an update.
    HandOver,
    /// A second agent comes and goes.
    SecondAgent,
    KubeletRestarted,
    /// It takes connections and does not answer; then a new one starts.
    KubeletHung,
    BothRestarted,
    SocketsWiped,
    StreamDropped,
}

const EVENTS: [Event; 9] = [
    Event::AgentKilled,
    Event::AgentTerminated,
    Event::HandOver,
    Event::SecondAgent,
    Event::KubeletRestarted,
    Event::KubeletHung,
    Event::BothRestarted,
    Event::SocketsWiped,
    Event::StreamDropped,
];

struct Run {
    // The agent ends before its folders do.
    agent: Agent,
    kubelet: Kubelet,
    gauge: Gauge,
    stage: Stage,
    way: &'static str,
    dice: Rng,
    events: usize,
    /// Which NICs each pod was given, by its UID.
    pods: BTreeMap<String, Vec<String>>,
    pod: u32,
    done: Vec<Event>,
    wrong: BTreeMap<Event, Vec<Duration>>,
    /// Pods that the kubelet refused because it had no device at that moment, as it must.
    waited: usize,
    /// Calls that an agent did not answer though it was not killed.
    unanswered: usize,
}

impl Run {
    async fn start(way: &'static str) -> Run {
        let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
        let seed = number("VIRTDP_SEED").unwrap_or_else(|| fastrand::u64(1..1_000_000));
        let events = number("VIRTDP_RESTARTS").map_or(50, |value| usize::try_from(value).unwrap());
        eprintln!("{way}: {events} events, to be repeated with VIRTDP_SEED={seed}");
        let stage = Stage::with_spares(&NICS);
        let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
        let gauge = Gauge::default();
        gauge.watch(&kubelet);
        let agent = agent(&stage, way);
        Run {
            agent,
            kubelet,
            gauge,
            stage,
            way,
            dice: Rng::with_seed(seed),
            events,
            pods: BTreeMap::new(),
            pod: 0,
            done: Vec::new(),
            wrong: BTreeMap::new(),
            waited: 0,
            unanswered: 0,
        }
    }

    async fn through(mut self) {
        self.settles().await;
        self.gauge.taken();
        for _ in 0..self.events {
            let event = EVENTS[self.dice.usize(..EVENTS.len())];
            self.done.push(event);
            let customer = self.customer(event);
            self.happens(event).await;
            if let Some(customer) = customer {
                let served = timeout(PATIENCE, customer).await;
                let served = served.unwrap_or_else(|_| panic!("a pod waits for ever, {}", self.story()));
                self.note(served.unwrap(), event);
            }
            self.settles().await;
            self.wrong.entry(event).or_default().push(self.gauge.taken());
            self.is_all_in_place().await;
            self.pods_change().await;
        }
        self.ends().await;
        self.report();
    }

    /// A pod that comes while it happens. It needs a NIC that is free and a kubelet that is there.
    fn customer(&mut self, event: Event) -> Option<JoinHandle<Customer>> {
        let wanted = self.free() > 0 && event != Event::KubeletHung && self.dice.bool();
        wanted.then(|| tokio::spawn(Customer::arrives(self.kubelet.clone(), self.next_pod(), 1)))
    }

    fn next_pod(&mut self) -> u32 {
        self.pod += 1;
        self.pod
    }

    fn free(&self) -> usize {
        NICS.len() - self.pods.values().map(Vec::len).sum::<usize>()
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::AgentKilled => {
                self.agent.kill();
                self.agent = agent(&self.stage, self.way);
            }
            Event::AgentTerminated => {
                assert_eq!(self.agent.terminate(), Some(0), "{}", self.story());
                self.agent = agent(&self.stage, self.way);
            }
            Event::HandOver => {
                let next = self.another();
                let mut old = std::mem::replace(&mut self.agent, next);
                self.end(&mut old);
            }
            Event::SecondAgent => {
                let mut second = self.another();
                self.end(&mut second);
            }
            Event::KubeletRestarted => self.kubelet.restart().await.unwrap(),
            Event::KubeletHung => self.kubelet_hangs().await,
            Event::BothRestarted => {
                self.agent.kill();
                self.kubelet.restart().await.unwrap();
                self.agent = agent(&self.stage, self.way);
            }
            Event::SocketsWiped => {
                let folder = self.folder();
                for socket in sockets_in(&folder) {
                    // The agent may be quicker.
                    let _ = std::fs::remove_file(folder.join(socket));
                }
            }
            Event::StreamDropped => self.kubelet.disconnect(&VIRT.parse().unwrap()).await,
        }
    }

    /// One more agent; it may have registered already.
    fn another(&mut self) -> Agent {
        let another = agent(&self.stage, self.way);
        if self.dice.bool() {
            another.says(&["registered with the Kubelet"]);
        }
        another
    }

    fn end(&mut self, agent: &mut Agent) {
        if self.dice.bool() {
            agent.kill();
        } else {
            // One that has just begun may not have its signal handlers yet.
            agent.terminate();
        }
    }

    async fn kubelet_hangs(&mut self) {
        self.kubelet.stop().await;
        self.gauge.nobody_looks();
        let socket = self.stage.kubelet_dir().registration_socket();
        let hung = UnixListener::bind(&socket).unwrap();
        let mut caller = None;
        if self.way == "kubelet-socket" {
            let call = timeout(PATIENCE, hung.accept()).await;
            caller = Some(call.unwrap_or_else(|_| panic!("nobody calls, {}", self.story())).unwrap());
        }
        // Killed, or still there and silent while the next one starts.
        if self.dice.bool() {
            drop(caller.take());
        }
        self.kubelet = Kubelet::start(self.stage.kubelet_dir(), Options::default()).await.unwrap();
        self.gauge.watch(&self.kubelet);
        self.settles().await;
    }

    fn folder(&self) -> std::path::PathBuf {
        let dir: KubeletDir = self.stage.kubelet_dir();
        if self.way == "kubelet-socket" { dir.device_plugins() } else { dir.plugins_registry() }
    }

    /// Waits until all NICs are there.
    async fn settles(&self) {
        let begun = Instant::now();
        while begun.elapsed() < STEADY || !self.gauge.is_steady() {
            assert!(
                begun.elapsed() < PATIENCE,
                "stuck: {:?}, {}",
                self.kubelet.capacity().borrow(),
                self.story()
            );
            sleep(BLINK).await;
        }
    }

    /// Each pod has the NICs that it was given, and nobody else has any.
    async fn is_all_in_place(&self) {
        let given =
            self.pods.iter().flat_map(|(pod, nics)| nics.iter().map(move |nic| (nic.clone(), pod.clone())));
        let given: BTreeMap<String, String> = given.collect();
        let virt = VIRT.parse().unwrap();
        let mut capacities = self.kubelet.capacity();
        // The kubelet says so a moment after a pod has gone.
        let in_place = capacities.wait_for(|all| {
            let devices = all.get(&virt).into_iter().flat_map(|virt| &virt.devices);
            given == devices.filter_map(|(id, status)| Some((id.clone(), status.pod.clone()?))).collect()
        });
        if timeout(PATIENCE, in_place).await.is_err() {
            panic!("{:?} instead of {given:?}, {}", self.kubelet.capacity().borrow(), self.story());
        }
    }

    /// A pod goes, or comes.
    async fn pods_change(&mut self) {
        let free = self.free();
        if free == 0 || !self.pods.is_empty() && self.dice.bool() {
            let names: Vec<String> = self.pods.keys().cloned().collect();
            let gone = &names[self.dice.usize(..names.len())];
            self.kubelet.remove_pod(gone).await;
            self.pods.remove(gone);
        } else if self.dice.bool() {
            let count = self.dice.usize(1..=free);
            self.admit(count).await;
        }
    }

    async fn admit(&mut self, count: usize) {
        let number = self.next_pod();
        let customer = timeout(PATIENCE, Customer::arrives(self.kubelet.clone(), number, count)).await;
        let customer = customer.unwrap_or_else(|_| panic!("a pod waits for ever, {}", self.story()));
        self.note(customer, *self.done.last().unwrap());
    }

    fn note(&mut self, customer: Customer, event: Event) {
        // Who is killed cannot answer. Where two agents were there, a kubelet may go on calling one whose stream has ended (it looks
        // streams up by the resource's name), until that one closes. That is rare.
        let killed = [Event::AgentKilled, Event::HandOver, Event::SecondAgent, Event::BothRestarted];
        if !customer.failed.is_empty() && !killed.contains(&event) {
            self.unanswered += customer.failed.len();
            eprintln!("{:?}, {}", customer.failed, self.story());
        }
        assert!(self.unanswered <= 2 + self.events / 50, "{:?}, {}", customer.failed, self.story());
        self.waited += customer.waited;
        self.pods.insert(customer.pod, customer.nics);
    }

    /// At the end all NICs can be given, and the agent ends in order.
    async fn ends(&mut self) {
        for pod in std::mem::take(&mut self.pods).into_keys() {
            self.kubelet.remove_pod(&pod).await;
        }
        self.admit(NICS.len()).await;
        self.settles().await;
        self.is_all_in_place().await;
        assert_eq!(self.agent.terminate(), Some(0));
        self.kubelet.stop().await;
    }

    fn report(&self) {
        println!("{}: allocatable was wrong for, in ms:", self.way);
        println!("{:<18} {:>6} {:>8} {:>8} {:>8}", "event", "count", "median", "p99", "max");
        let all: Vec<Duration> = self.wrong.values().flatten().copied().collect();
        let lines = self.wrong.iter().map(|(event, times)| (format!("{event:?}"), times.clone()));
        for (name, mut times) in lines.chain([("all".to_owned(), all)]) {
            times.sort();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
            println!("{name:<18} {:>6} {:>8.1} {:>8.1} {:>8.1}", times.len(), at(50), at(99), at(100));
        }
        let (pods, waited, unanswered) = (self.pod, self.waited, self.unanswered);
        println!(
            "{pods} pods; {waited} times the kubelet had no NIC at that moment, {unanswered} times no answer"
        );
    }

    fn story(&self) -> String {
        let last = self.done.len().saturating_sub(10);
        format!("{}: after {} events, the last {:?}", self.way, self.done.len(), &self.done[last..])
    }
}

fn agent(stage: &Stage, way: &str) -> Agent {
    let mut command = stage.command();
    command.extend(["--registration".to_owned(), way.to_owned()]);
    stage.start_as(&command)
}

/// A pod that comes until it is admitted. Each attempt is another pod, as a controller makes them.
struct Customer {
    pod: String,
    nics: Vec<String>,
    /// How often the kubelet had no NIC to give.
    waited: usize,
    /// What the agent did not answer.
    failed: Vec<String>,
}

impl Customer {
    async fn arrives(kubelet: Kubelet, number: u32, count: usize) -> Customer {
        let (mut waited, mut failed) = (0, Vec::new());
        let mut attempt = 0;
        loop {
            let name = format!("pod{number}-{attempt}");
            let key = PodKey { uid: name.clone(), namespace: "default".into(), name: name.clone() };
            let container = ContainerRequest {
                name: "c".into(),
                kind: ContainerKind::App,
                limits: [(VIRT.parse().unwrap(), u64::try_from(count).unwrap())].into(),
            };
            match kubelet.admit(key, vec![container]).await {
                Ok(given) => {
                    let nics = given[0].devices[&VIRT.parse().unwrap()].clone();
                    return Customer { pod: name, nics, waited, failed };
                }
                // The same pod is tried again when the kubelet is back. It may have its NICs.
                Err(AdmissionError::Stopped) => {}
                Err(AdmissionError::Unexpected(why)) => {
                    attempt += 1;
                    kubelet.remove_pod(&name).await;
                    match why.as_str() {
                        // The kubelet's view is all that it asks.
                        _ if ["devices", "unregistered device", "has been stopped"]
                            .iter()
                            .any(|has| why.contains(has)) =>
                        {
                            waited += 1
                        }
                        // It hung up itself.
                        _ if why.contains("the client connection is closing") => waited += 1,
                        _ => failed.push(why),
                    }
                }
            }
            sleep(BLINK).await;
        }
    }
}

/// For how long allocatable is wrong.
#[derive(Clone, Default)]
struct Gauge(Arc<Mutex<Reading>>);

#[derive(Default)]
struct Reading {
    /// Since when it is right, or wrong. Nobody knows where there is no kubelet.
    since: Option<(bool, Instant)>,
    wrong: Duration,
    watching: Option<JoinHandle<()>>,
}

impl Gauge {
    /// From now on this kubelet counts.
    fn watch(&self, kubelet: &Kubelet) {
        let mut capacities = kubelet.capacity();
        let gauge = self.clone();
        let watching = tokio::spawn(async move {
            loop {
                gauge.reads(is_right(&capacities.borrow_and_update()));
                if capacities.changed().await.is_err() {
                    return;
                }
            }
        });
        self.reads(false);
        self.0.lock().unwrap().watching = Some(watching);
    }

    fn nobody_looks(&self) {
        let mut reading = self.0.lock().unwrap();
        if let Some(watching) = reading.watching.take() {
            watching.abort();
        }
        reading.pass();
        reading.since = None;
    }

    fn reads(&self, right: bool) {
        let mut reading = self.0.lock().unwrap();
        reading.pass();
        if reading.since.is_none_or(|(was, _)| was != right) {
            reading.since = Some((right, Instant::now()));
        }
    }

    fn is_steady(&self) -> bool {
        let since = self.0.lock().unwrap().since;
        since.is_some_and(|(right, since)| right && since.elapsed() >= STEADY)
    }

    /// The time since this was asked last.
    fn taken(&self) -> Duration {
        let mut reading = self.0.lock().unwrap();
        reading.pass();
        std::mem::take(&mut reading.wrong)
    }
}

impl Reading {
    /// Counts the time that passed.
    fn pass(&mut self) {
        if let Some((false, since)) = &mut self.since {
            let now = Instant::now();
            self.wrong += now - *since;
            *since = now;
        }
    }
}

fn is_right(capacities: &Capacities) -> bool {
    let nics = u64::try_from(NICS.len()).unwrap();
    let virt = capacities.get(&VIRT.parse().unwrap());
    virt.is_some_and(|virt| (virt.capacity, virt.allocatable) == (nics, nics))
}
