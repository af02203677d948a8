//! What the store promises, without HTTP.

use super::*;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn store() -> Store {
    let mut store = Store::default();
    let kind = store.kind("", "v1", "namespaces").unwrap();
    store.create(&kind, "", json!({"metadata": {"name": "default"}}), NOW).unwrap();
    store
}

fn pods(store: &Store) -> Arc<Kind> {
    store.kind("", "v1", "pods").unwrap()
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn definition() -> Value {
    json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    })
}

#[test]
fn a_new_object_gets_what_the_server_gives() {
    let mut store = store();
    let kind = pods(&store);
    let made = store.create(&kind, "default", pod("a"), NOW).unwrap();
    assert_eq!(made.text("/kind"), "Pod");
    assert_eq!(made.text("/apiVersion"), "v1");
    assert_eq!(made.namespace(), "default");
    assert_eq!(made.text("/metadata/creationTimestamp"), "2027-01-15T08:00:00Z");
    assert_eq!(made.resource_version(), Some(store.version()));
    assert_eq!(made.text("/status/phase"), "Pending");
    assert_eq!(made.uid().len(), 36);
    let other = store.create(&kind, "default", pod("b"), NOW).unwrap();
    assert_ne!(made.uid(), other.uid());
    let taken = store.create(&kind, "default", pod("a"), NOW).unwrap_err();
    assert_eq!(taken.to_string(), "pods \"a\" already exists");
}

#[test]
fn names_are_generated() {
    let mut store = store();
    let kind = pods(&store);
    let mut object = pod("");
    object.take_out("/metadata/name");
    object.put("/metadata/generateName", "agent-");
    let name = store.create(&kind, "default", object, NOW).unwrap().name().to_owned();
    assert!(name.starts_with("agent-") && name.len() == 11, "{name}");
}

#[test]
fn objects_need_a_namespace_and_a_definition_that_exist() {
    let mut store = store();
    let kind = pods(&store);
    let error = store.create(&kind, "nowhere", pod("a"), NOW).unwrap_err();
    assert_eq!(error.to_string(), "namespaces \"nowhere\" not found");
    assert_eq!(store.kind("example.com", "v1", "things"), Err(Error::NoSuchResource));

    let crd = store.kind(CRD_GROUP, "v1", CRDS).unwrap();
    store.create(&crd, "", definition(), NOW).unwrap();
    let things = store.kind("example.com", "v1", "things").unwrap();
    store.create(&things, "default", json!({"metadata": {"name": "t"}}), NOW).unwrap();
    store.delete(&crd, "", "things.example.com", &Deletion::default(), NOW).unwrap();
    assert_eq!(store.kind("example.com", "v1", "things"), Err(Error::NoSuchResource));
    assert_eq!(store.list(&things, None, &Selector::default()).len(), 0);
}

#[test]
fn a_stale_update_is_a_conflict() {
    let mut store = store();
    let kind = pods(&store);
    let first = store.create(&kind, "default", pod("a"), NOW).unwrap();
    let mut labelled = Value::clone(&first);
    labelled.put("/metadata/labels/x", "1");
    store.update(&kind, "default", "a", Part::Main, labelled).unwrap();
    let mut stale = Value::clone(&first);
    stale.put("/metadata/labels/x", "2");
    let error = store.update(&kind, "default", "a", Part::Main, stale).unwrap_err();
    assert_eq!((error.code(), error.reason()), (409, "Conflict"));
    assert_eq!(store.get(&kind, "default", "a").unwrap().labels()["x"], "1");
}

#[test]
fn status_and_the_rest_are_written_apart() {
    let mut store = store();
    let kind = pods(&store);
    store.create(&kind, "default", pod("a"), NOW).unwrap();
    let patch = Patch::Merge(json!({"status": {"phase": "Running"}, "metadata": {"labels": {"x": "1"}}}));
    let main = store.patch(&kind, "default", "a", Part::Main, &patch, NOW).unwrap();
    assert_eq!((main.text("/status/phase"), main.labels()["x"].as_str()), ("Pending", "1"));
    // A CNI plugin writes network-status as an annotation together with the status.
    let patch = Patch::Merge(json!({
        "status": {"phase": "Running"}, "spec": {"nodeName": "x"}, "metadata": {"annotations": {"y": "2"}},
    }));
    let status = store.patch(&kind, "default", "a", Part::Status, &patch, NOW).unwrap();
    assert_eq!(status.text("/status/phase"), "Running");
    assert_eq!(status.annotations()["y"], "2");
    assert_eq!(status.text("/spec/nodeName"), "");
}

#[test]
fn an_update_that_changes_nothing_makes_no_event() {
    let mut store = store();
    let kind = pods(&store);
    let made = store.create(&kind, "default", pod("a"), NOW).unwrap();
    let version = store.version();
    store.update(&kind, "default", "a", Part::Main, Value::clone(&made)).unwrap();
    assert_eq!(store.version(), version);
}

#[test]
fn a_pods_devices_cannot_be_changed_afterwards() {
    let mut store = store();
    let kind = pods(&store);
    store.create(&kind, "default", pod("a"), NOW).unwrap();
    let patch = Patch::Strategic(json!({"spec": {"containers": [
        {"name": "c", "resources": {"limits": {"kernel.org/virt": 1}}},
    ]}}));
    let error = store.patch(&kind, "default", "a", Part::Main, &patch, NOW).unwrap_err();
    assert_eq!(error.code(), 422);
    assert!(error.to_string().contains("pod updates may not change fields"), "{error}");
    let image = Patch::Strategic(json!({"spec": {"containers": [{"name": "c", "image": "j"}]}}));
    assert!(store.patch(&kind, "default", "a", Part::Main, &image, NOW).is_ok());
}

#[test]
fn a_pod_on_a_node_is_marked_first_and_others_go_at_once() {
    let mut store = store();
    let kind = pods(&store);
    store.create(&kind, "default", pod("waiting"), NOW).unwrap();
    store.delete(&kind, "default", "waiting", &Deletion::default(), NOW).unwrap();
    assert!(store.get(&kind, "default", "waiting").is_err());

    store.create(&kind, "default", pod("bound"), NOW).unwrap();
    store.bind("default", "bound", "node", NOW).unwrap();
    assert_eq!(store.bind("default", "bound", "node", NOW).unwrap_err().code(), 409);
    let marked = store.delete(&kind, "default", "bound", &Deletion::default(), NOW).unwrap();
    assert_eq!(marked.text("/metadata/deletionTimestamp"), NOW.after(30).to_string());
    let forced = Deletion { grace: Some(0), ..Deletion::default() };
    store.delete(&kind, "default", "bound", &forced, NOW).unwrap();
    assert!(store.get(&kind, "default", "bound").is_err());
}

#[test]
fn a_deletion_may_insist_on_the_very_object() {
    let mut store = store();
    let kind = pods(&store);
    store.create(&kind, "default", pod("a"), NOW).unwrap();
    let other = Deletion { uid: Some("other".to_owned()), ..Deletion::default() };
    assert_eq!(store.delete(&kind, "default", "a", &other, NOW).unwrap_err().code(), 409);
}

#[test]
fn finalizers_hold_an_object_until_they_are_gone() {
    let mut store = store();
    let kind = store.kind("", "v1", "configmaps").unwrap();
    let object = json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}});
    store.create(&kind, "default", object, NOW).unwrap();
    let held = store.delete(&kind, "default", "a", &Deletion::default(), NOW).unwrap();
    assert!(held.is_terminating());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    store.patch(&kind, "default", "a", Part::Main, &patch, NOW).unwrap();
    assert!(store.get(&kind, "default", "a").is_err());
}

#[test]
fn a_namespace_takes_its_contents_along() {
    let mut store = store();
    let (namespaces, pods) = (store.kind("", "v1", "namespaces").unwrap(), pods(&store));
    store.create(&namespaces, "", json!({"metadata": {"name": "lab"}}), NOW).unwrap();
    store.create(&pods, "lab", pod("a"), NOW).unwrap();
    store.bind("lab", "a", "node", NOW).unwrap();
    let ending = store.delete(&namespaces, "", "lab", &Deletion::default(), NOW).unwrap();
    assert_eq!(ending.text("/status/phase"), "Terminating");
    assert!(store.get(&pods, "lab", "a").unwrap().is_terminating());
    assert_eq!(store.create(&pods, "lab", pod("b"), NOW).unwrap_err().code(), 403);
    let forced = Deletion { grace: Some(0), ..Deletion::default() };
    store.delete(&pods, "lab", "a", &forced, NOW).unwrap();
    assert!(store.get(&namespaces, "", "lab").is_err());
}

#[test]
fn what_an_object_owned_goes_with_it() {
    let mut store = store();
    let (sets, pods) = (store.kind("apps", "v1", "daemonsets").unwrap(), pods(&store));
    let set = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    let set = store.create(&sets, "default", set, NOW).unwrap();
    let mut owned = pod("d-1");
    owned.put("/metadata/ownerReferences", json!([{"kind": "DaemonSet", "name": "d", "uid": set.uid()}]));
    store.create(&pods, "default", owned, NOW).unwrap();
    store.delete(&sets, "default", "d", &Deletion::default(), NOW).unwrap();
    assert!(store.get(&pods, "default", "d-1").is_err());
}

#[test]
fn the_history_is_complete_or_expired() {
    let mut store = store();
    let kind = store.kind("", "v1", "configmaps").unwrap();
    let start = store.version();
    store.create(&kind, "default", json!({"metadata": {"name": "a"}}), NOW).unwrap();
    for round in 0..3 {
        let patch = Patch::Merge(json!({"data": {"round": round.to_string()}}));
        store.patch(&kind, "default", "a", Part::Main, &patch, NOW).unwrap();
    }
    store.delete(&kind, "default", "a", &Deletion::default(), NOW).unwrap();
    let verbs: Vec<_> = store.changes_after(start).unwrap().iter().map(|change| change.verb).collect();
    assert_eq!(verbs, [Verb::Added, Verb::Modified, Verb::Modified, Verb::Modified, Verb::Deleted]);
    assert_eq!(store.changes_after(store.version()).unwrap().len(), 0);

    store.create(&kind, "default", json!({"metadata": {"name": "b"}}), NOW).unwrap();
    for round in 0..HISTORY {
        let patch = Patch::Merge(json!({"data": {"round": round.to_string()}}));
        store.patch(&kind, "default", "b", Part::Main, &patch, NOW).unwrap();
    }
    assert!(matches!(store.changes_after(start), Err(Error::Expired { .. })));
    assert_eq!(store.changes_after(store.version() - 10).unwrap().len(), 10);
}

#[test]
fn a_condition_keeps_its_transition_time_until_its_status_changes() {
    let mut object = json!({});
    set_condition(&mut object, json!({"type": "Ready", "status": "False"}), NOW);
    set_condition(&mut object, json!({"type": "Ready", "status": "False", "reason": "x"}), NOW.after(5));
    assert_eq!(object.text("/status/conditions/0/lastTransitionTime"), NOW.to_string());
    set_condition(&mut object, json!({"type": "Ready", "status": "True"}), NOW.after(9));
    assert_eq!(object.text("/status/conditions/0/lastTransitionTime"), NOW.after(9).to_string());
    assert_eq!(object.items("/status/conditions").len(), 1);
}
