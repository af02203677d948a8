use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::{Api, rest};

struct NoLogs;

impl rest::Logs for NoLogs {
    fn of(&self, _: &Value, _: &str) -> PathBuf {
        PathBuf::from("/nonexistent")
    }
}

/// An API server in this process, for as long as it lives.
struct Server {
    client: Client,
    address: String,
    stop: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let until = stop.clone();
        runtime.spawn(async move {
            let (api, _) = Api::start();
            rest::serve(listener, api, Arc::new(NoLogs), until).await
        });
        Server { client: Client::at(&address), address, stop, _runtime: runtime }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[test]
fn objects_are_made_changed_and_deleted() {
    let server = Server::start();
    let client = &server.client;
    let made = client.create(MAPS, &config_map("m")).unwrap();
    assert!(!made.uid().is_empty());
    let path = format!("{MAPS}/m");
    let changed = client.patch(&path, &json!({"data": {"a": null, "b": "2"}})).unwrap();
    assert_eq!(changed["data"], json!({"b": "2"}));
    assert_eq!(client.get(MAPS).unwrap().items("/items").len(), 1);
    client.delete(&path, None).unwrap();
    assert_eq!(client.find(&path).unwrap(), None);
    assert!(client.get(&path).unwrap_err().is_not_found());
}

#[test]
fn a_dry_run_changes_nothing() {
    let server = Server::start();
    server.client.create(&format!("{MAPS}?dryRun=All"), &config_map("m")).unwrap();
    assert_eq!(server.client.find(&format!("{MAPS}/m")).unwrap(), None);
}

#[test]
fn a_refusal_is_told_in_the_servers_words() {
    let server = Server::start();
    let error = server.client.create(MAPS, &config_map("Not_A_Name")).unwrap_err();
    let Error::Refused { code, reason, message } = &error else { panic!("{error:?}") };
    assert_eq!((*code, reason.as_str()), (422, "Invalid"));
    assert!(message.contains("metadata.name") && message.contains("Not_A_Name"), "{message}");
    // A name that was typed cannot lead to another path.
    let kinds = server.client.kinds().unwrap();
    let pods = kinds.named("po").unwrap();
    assert_eq!(object(pods, "a b", "../x"), "/api/v1/namespaces/a%20b/pods/..%2Fx");
    assert_eq!(object(pods, "default", ".."), "/api/v1/namespaces/default/pods/%2E%2E");
}

#[test]
fn tables_have_a_row_for_each_object() {
    let server = Server::start();
    for name in ["a", "b"] {
        server.client.create(MAPS, &config_map(name)).unwrap();
    }
    let table = server.client.table(MAPS).unwrap();
    assert_eq!(table.text("/kind"), "Table");
    let names: Vec<_> = table.items("/rows").iter().map(|row| row.text("/cells/0")).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn kinds_come_with_their_short_names_and_those_of_definitions_with_a_schema() {
    let server = Server::start();
    let definition = include_str!("../../../deployments/crdnetwork.yaml");
    let definition = crate::manifest::parse("-", definition).unwrap().remove(0).object;
    server.client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).unwrap();
    let kinds = server.client.kinds().unwrap();
    for (word, path) in [
        ("po", "/api/v1/pods"),
        ("no", "/api/v1/nodes"),
        ("ev", "/api/v1/events"),
        ("ds", "/apis/apps/v1/daemonsets"),
        ("net-attach-def", "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions"),
    ] {
        assert_eq!(collection(kinds.named(word).unwrap(), None), path, "{word}");
    }
    assert!(kinds.named("net-attach-def").unwrap().is_custom());
}

#[test]
fn a_watch_tells_changes_as_they_come_and_ends_with_the_server() {
    let server = Server::start();
    let client = &server.client;
    let list = client.get(MAPS).unwrap();
    let mut watch = client.watch(MAPS, "", list.text("/metadata/resourceVersion")).unwrap();
    client.create(MAPS, &config_map("m")).unwrap();
    client.patch(&format!("{MAPS}/m"), &json!({"data": {"a": "2"}})).unwrap();
    client.delete(&format!("{MAPS}/m"), None).unwrap();
    let changes: Vec<_> = watch.by_ref().take(3).map(Result::unwrap).collect();
    assert!(
        matches!(changes.as_slice(), [Change::Added(_), Change::Modified(_), Change::Deleted(_)]),
        "{changes:?}"
    );
    assert!(changes.iter().all(|change| change.object().name() == "m"));
    server.stop.cancel();
    assert!(watch.next().is_none());
}

#[test]
fn a_kubeconfig_names_the_server_and_what_is_wrong_with_it_is_told() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Client::of_node(dir.path(), None), Err(Error::NoNode { .. })));
    let write = |server: &str| {
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": server}}],
        });
        std::fs::write(crate::options::kubeconfig(dir.path()), text.to_string()).unwrap();
    };
    write(&server.address);
    let client = Client::of_node(dir.path(), None).unwrap();
    assert_eq!(client.server(), server.address);
    assert_eq!(client.get("/api/v1/namespaces/default").unwrap().name(), "default");
    write("https://10.0.0.1:6443");
    let error = Client::of_node(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("kubectl"), "{error}");
    let other = dir.path().join("other");
    std::fs::write(&other, "clusters: [").unwrap();
    let error = Client::of_node(dir.path(), Some(&other)).unwrap_err().to_string();
    assert!(error.contains("other") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_server_that_is_gone_is_told_with_what_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::at(&address).get("/api/v1/pods").unwrap_err().to_string();
    assert!(error.contains("virtsim up"), "{error}");
}
