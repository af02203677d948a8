//! Several pools, from a file that changes while the agent runs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

use nic::ResourceName;
use serde_json::json;
use tokio::time::timeout;
use virtsim::kubelet::{AdmissionError, ContainerKind, ContainerRequest, Kubelet, Options, PodKey};

use crate::stage::{Agent, PATIENCE, Stage, read, until};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";

const ONE_EACH: &str = "
resourcePrefix: example.com
resourceList:
- {resourceName: fast, selectors: {names: [eth1]}}
- {resourceName: rest, selectors: {drivers: [virtio_net]}}
";
const BOTH_FAST: &str = "
resourcePrefix: example.com
resourceList:
- {resourceName: fast, selectors: {names: [\"eth?\"]}}
- {resourceName: rest, selectors: {drivers: [virtio_net]}, exclude: {mtus: [9000]}}
";
const BAD: &str = "
resourceList:
- {resourceName: fast, selectors: {name: [eth1]}}
";
const ONLY_REST: &str = "
resourcePrefix: example.com
resourceList:
- {resourceName: rest, selectors: {drivers: [virtio_net]}}
";

/// A volume as the kubelet mounts a ConfigMap: the file is a link into `..data`, a link that is swapped.
struct ConfigMap {
    folder: PathBuf,
    version: u32,
}

impl ConfigMap {
    fn new(stage: &Stage, text: &str) -> ConfigMap {
        let folder = stage.path("config");
        std::fs::create_dir(&folder).unwrap();
        let mut map = ConfigMap { folder, version: 0 };
        map.change(text);
        symlink("..data/pools.yaml", map.file()).unwrap();
        map
    }

    fn file(&self) -> PathBuf {
        self.folder.join("pools.yaml")
    }

    fn change(&mut self, text: &str) {
        self.version += 1;
        let version = format!("..version{}", self.version);
        std::fs::create_dir(self.folder.join(&version)).unwrap();
        std::fs::write(self.folder.join(&version).join("pools.yaml"), text).unwrap();
        symlink(&version, self.folder.join("..data_tmp")).unwrap();
        std::fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).unwrap();
    }
}

fn start(stage: &Stage, file: &std::path::Path) -> Agent {
    let mut command = stage.command();
    command.extend(["--config".to_owned(), file.to_str().unwrap().to_owned()]);
    stage.start_as(&command)
}

/// Waits until these resources have so many devices that can be allocated.
async fn allocatable(kubelet: &Kubelet, wanted: &[(&str, usize)]) {
    let mut capacity = kubelet.capacity();
    let wanted: Vec<(ResourceName, usize)> =
        wanted.iter().map(|(name, count)| (format!("example.com/{name}").parse().unwrap(), *count)).collect();
    let holds = capacity.wait_for(|all| {
        let is = |(name, count): &(ResourceName, usize)| {
            all.get(name).map_or(0, |one| usize::try_from(one.allocatable).unwrap()) == *count
        };
        wanted.iter().all(is)
    });
    let outcome = timeout(PATIENCE, holds).await;
    assert!(outcome.is_ok(), "not {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_changes_its_pool_with_the_file_and_a_bad_file_changes_nothing() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let mut map = ConfigMap::new(&stage, ONE_EACH);
    let mut agent = start(&stage, &map.file());
    allocatable(&kubelet, &[("fast", 1), ("rest", 1)]).await;
    assert_eq!(stage.sockets().len(), 2);
    agent.says(&["W", "several pools want this NIC", FIRST, "example.com/rest"]);

    map.change(BOTH_FAST);
    allocatable(&kubelet, &[("fast", 2), ("rest", 0)]).await;

    let sent = agent.count(&["ListAndWatch: send"]);
    map.change(BAD);
    agent.says(&["E", "the configuration is bad", "pools.yaml:3:36", "did you mean `names`?"]);
    stage.poke();
    allocatable(&kubelet, &[("fast", 2), ("rest", 0)]).await;
    assert_eq!(agent.count(&["ListAndWatch: send"]), sent);

    // A pod has one of them: its pool stays until it comes back.
    stage.lease(FIRST);
    stage.poke();
    agent.says(&["Offering 0000:00:09.0", "by the ledger"]);
    map.change(ONLY_REST);
    allocatable(&kubelet, &[("fast", 1), ("rest", 1)]).await;
    assert_eq!(agent.count(&["withdrawn", "example.com/fast"]), 0);
    stage.close_lease(FIRST);
    stage.poke();
    allocatable(&kubelet, &[("rest", 2)]).await;
    agent.says(&["withdrawn", "example.com/fast"]);
    until("one socket is left", || stage.sockets().len() == 1);
    assert_eq!(agent.terminate(), Some(0));
    kubelet.stop().await;
}

/// A pod with one NIC of this resource.
async fn admit(kubelet: &Kubelet, uid: &str, resource: &str) -> Result<Vec<String>, AdmissionError> {
    let resource: ResourceName = format!("example.com/{resource}").parse().unwrap();
    let pod = PodKey { uid: uid.into(), namespace: "default".into(), name: uid.into() };
    let limits = BTreeMap::from([(resource.clone(), 1)]);
    let container = ContainerRequest { name: "c".into(), kind: ContainerKind::App, limits };
    let given = timeout(PATIENCE, kubelet.admit(pod, vec![container])).await.unwrap()?;
    Ok(given[0].devices[&resource].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_removed_while_no_agent_runs_stays_until_no_pod_has_a_nic_of_it() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let file = stage.path("pools.yaml");
    std::fs::write(&file, ONE_EACH).unwrap();
    let mut agent = start(&stage, &file);
    allocatable(&kubelet, &[("fast", 1), ("rest", 1)]).await;
    assert_eq!(admit(&kubelet, "one", "fast").await.unwrap(), [FIRST]);
    stage.lease(FIRST);
    agent.kill();

    std::fs::write(&file, ONLY_REST).unwrap();
    let mut agent = start(&stage, &file);
    allocatable(&kubelet, &[("fast", 1), ("rest", 1)]).await;
    // And once more: it is kept for as long as it is of use.
    agent.kill();
    let mut agent = start(&stage, &file);
    allocatable(&kubelet, &[("fast", 1), ("rest", 1)]).await;
    let refused = admit(&kubelet, "three", "fast").await.unwrap_err();
    assert!(refused.to_string().contains("example.com/fast"), "{refused}");

    stage.close_lease(FIRST);
    stage.poke();
    allocatable(&kubelet, &[("fast", 0), ("rest", 1)]).await;
    // The real kubelet writes a pod out of its checkpoint when it allocates something the next time.
    let checkpoint = stage.kubelet_dir().checkpoint();
    let stale = read(&checkpoint);
    kubelet.remove_pod("one").await;
    until("the simulated one has written it out", || read(&checkpoint) != stale);
    std::fs::write(&checkpoint, stale).unwrap();
    allocatable(&kubelet, &[("rest", 2)]).await;
    agent.says(&["No pod has 0000:00:09.0 any more"]);
    agent.says(&["withdrawn", "example.com/fast"]);
    let noted = read(&stage.path("state/resources.json"));
    assert!(noted.contains("example.com/rest") && !noted.contains("example.com/fast"), "{noted}");
    assert_eq!(agent.terminate(), Some(0));
    kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_plugin_gives_away_by_the_same_ids_is_left_to_it() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let entry = |resource: &str, id: &str| json!({"PodUID": "a", "ContainerName": "c", "ResourceName": resource, "DeviceIDs": {"-1": [id]}, "AllocResp": ""});
    let entries = [entry("example.com/fast", FIRST), entry("example.com/theirs", SECOND)];
    let checkpoint = json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1});
    stage.make_folder();
    std::fs::write(stage.kubelet_dir().checkpoint(), checkpoint.to_string()).unwrap();
    let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    let notes = ledger::Notes::at(stage.path("state"));
    notes.write_resources(&names(&["example.com/fast", "example.com/unused"])).unwrap();
    let file = stage.path("pools.yaml");
    std::fs::write(&file, ONLY_REST).unwrap();
    let mut kubelet = crate::kubelet::Kubelet::start(stage.kubelet_dir());
    let _agent = start(&stage, &file);
    let both =
        BTreeSet::from([kubelet.registered().await, kubelet.registered().await].map(|one| one.resource_name));
    assert_eq!(both, BTreeSet::from(["example.com/fast", "example.com/rest"].map(String::from)));
    // All that is offered is noted before the kubelet hears of anything.
    assert_eq!(notes.resources().unwrap(), names(&["example.com/fast", "example.com/rest"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_at_the_start_offers_nothing_until_it_is_good_and_a_signal_reads_it_again() {
    let stage = Stage::with_spares(&[FIRST]);
    let kubelet = Kubelet::start(stage.kubelet_dir(), Options::default()).await.unwrap();
    let file = stage.path("absent.yaml");
    let mut agent = start(&stage, &file);
    agent.says(&["E", "the configuration is bad", "absent.yaml", "No such file"]);
    agent.says(&["Skipping interface of 0000:00:09.0", "no pool is configured"]);
    assert_eq!(stage.sockets(), Vec::<String>::new());
    std::fs::write(&file, ONLY_REST).unwrap();
    allocatable(&kubelet, &[("rest", 1)]).await;
    let hangup = Command::new("kill").args(["-HUP", &agent.id().to_string()]).status().unwrap();
    assert!(hangup.success());
    agent.says(&["SIGHUP"]);
    assert!(agent.is_running());
    assert_eq!(agent.terminate(), Some(0));
    kubelet.stop().await;
}

fn validate(stage: &Stage, text: &str, more: &[&str]) -> Output {
    let file = stage.path("pools.yaml");
    std::fs::write(&file, text).unwrap();
    Command::new(&stage.command()[0]).arg("validate").arg(file).args(more).output().unwrap()
}

#[test]
fn a_file_can_be_checked_and_tried_without_an_agent() {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let good = validate(&stage, BOTH_FAST, &[]);
    let text = String::from_utf8(good.stdout).unwrap();
    assert!(good.status.success());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[1..],
        ["example.com/fast  names eth?", "example.com/rest  drivers virtio_net; not mtus 9000"]
    );
    let bad = validate(&stage, BAD, &[]);
    let said = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(said.contains("pools.yaml:3:36: a selector has no key `name`: did you mean `names`?"), "{said}");
    let bad = validate(&stage, BAD, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!((&json["valid"], &json["fault"]["line"]), (&false.into(), &3.into()));
    assert_eq!(bad.status.code(), Some(1));

    // What it would mean on this node, by names, networks of the VM, and what cannot be told.
    let metadata = stage.path("network_data.json");
    let mac = stage.netns.route_socket().unwrap().link_by_name("eth2").unwrap().unwrap().mac.unwrap();
    let links = format!(
        r#"{{"links": [{{"id": "a", "ethernet_mac_address": "{mac}"}}],
            "networks": [{{"link": "a", "network_id": "net-a"}}]}}"#
    );
    std::fs::write(&metadata, links).unwrap();
    let text = format!(
        "metadata: {}\nresourcePrefix: example.com\nresourceList:\n\
         - {{resourceName: net-a, selectors: {{networkIds: [net-a]}}}}\n",
        metadata.display()
    );
    std::fs::write(stage.path("pools.yaml"), text).unwrap();
    let shown = stage.discover(&["--config", stage.path("pools.yaml").to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let row = |device: &str| shown.lines().find(|line| line.starts_with(device)).unwrap();
    assert!(row(SECOND).contains("example.com/net-a"), "{shown}");
    assert!(row(FIRST).contains("skipped  no network is not in the pool's list (net-a)"), "{shown}");
    assert!(shown.ends_with("example.com/net-a: 1 of 3 NICs\n"), "{shown}");
}
