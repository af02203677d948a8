use std::collections::BTreeSet;

use super::*;
use crate::api::kinds::{Kind, built_in};
use crate::client::{self, Kinds};

/// A cluster with one node, which has these resources, and these objects.
#[derive(Default)]
struct Fake {
    resources: &'static [&'static str],
    objects: Vec<Value>,
}

impl Cluster for Fake {
    fn has(&self, kind: &Kind, namespace: &str, name: &str) -> Result<bool, client::Error> {
        let is = |object: &Value| {
            object.text("/kind") == kind.kind && object.namespace() == namespace && object.name() == name
        };
        Ok(self.objects.iter().any(is))
    }

    fn resources(&self) -> Result<BTreeMap<String, BTreeSet<String>>, client::Error> {
        let names = self.resources.iter().map(|name| (*name).to_owned()).collect();
        Ok(BTreeMap::from([("node1".to_owned(), names)]))
    }

    fn definitions(&self, kind: &Kind) -> Result<Vec<Value>, client::Error> {
        Ok(self.objects.iter().filter(|object| object.text("/kind") == kind.kind).cloned().collect())
    }
}

const DEFINITION: &str = include_str!("../../../deployments/crdnetwork.yaml");
const NETWORK: &str = include_str!("../../../deployments/virt-crd.yaml");
const POD: &str = include_str!("../../../deployments/pod-tc1.yaml");

fn kinds() -> Kinds {
    let mut kinds = Kinds::default();
    built_in().iter().for_each(|kind| kinds.add(kind.as_ref().clone()));
    kinds
}

/// A cluster that has what the walkthrough needs.
fn furnished() -> (Fake, Kinds) {
    let definition = parse("-", DEFINITION).unwrap().remove(0).object;
    let mut kinds = kinds();
    kinds.add(Kind::from_definition(&definition).unwrap());
    let mut network = parse("-", NETWORK).unwrap().remove(0).object;
    network.put("/metadata/namespace", "default");
    (Fake { resources: &["kernel.org/virt"], objects: vec![network] }, kinds)
}

fn faults_in(cluster: &Fake, mut kinds: Kinds, text: &str, checks: Checks) -> Vec<String> {
    let mut manifests = match parse("pod.yaml", text) {
        Ok(manifests) => manifests,
        Err(fault) => return vec![fault.to_string()],
    };
    let faults = check(&mut manifests, &mut kinds, cluster, None, checks).unwrap();
    faults.iter().map(ToString::to_string).collect()
}

fn faults(text: &str) -> Vec<String> {
    let (cluster, kinds) = furnished();
    faults_in(&cluster, kinds, text, Checks::All)
}

#[test]
fn the_manifests_of_the_walkthrough_are_taken_as_they_are() {
    assert_eq!(faults(POD), Vec::<String>::new());
    assert_eq!(faults(include_str!("../../../deployments/pod-virtdp.yaml")), Vec::<String>::new());
}

#[test]
fn what_is_in_the_same_call_counts_as_there_and_so_does_a_plugin_that_is_yet_to_come() {
    let all = format!("{DEFINITION}\n---\n{NETWORK}\n---\n{POD}");
    assert_eq!(faults_in(&Fake::default(), kinds(), &all, Checks::All), Vec::<String>::new());
}

#[test]
fn a_resource_of_which_the_node_has_none_left_is_known_all_the_same() {
    let (mut cluster, kinds) = furnished();
    cluster.objects.clear();
    let pod = POD.replace("    k8s.v1.cni.cncf.io/networks: virt-net1\n", "").replace("  annotations:\n", "");
    assert_eq!(faults_in(&cluster, kinds, &pod, Checks::All), Vec::<String>::new());
}

#[test]
fn each_bad_manifest_is_told_with_file_line_column_and_remedy() {
    let cases = [
        (POD.replace("kind: Pod", "kind: Pot"), "pod.yaml:2:1: unknown kind Pot in v1: did you mean Pod?"),
        (
            POD.replace("apiVersion: v1", "apiVersion: v2"),
            "pod.yaml:1:1: kind Pod is not served as apiVersion v2: use v1",
        ),
        (
            POD.replace("networks: virt-net1", "networks: virt-net9"),
            "pod.yaml:8:5: pod testpod1 asks for network virt-net9, but there is no NetworkAttachmentDefinition \
             default/virt-net9: apply one first or in the same command, or leave the check out with --no-check",
        ),
        (
            POD.replace("kernel.org/virt", "kernel.org/vrit"),
            "pod.yaml:22:9: container appcntr1 asks for kernel.org/vrit, which no node has and no network is tied to (node1 \
             has kernel.org/virt): start its device plugin first, or leave the check out with --no-check",
        ),
        (
            POD.replace("memory: 128Mi", "memory: 128MiB"),
            "pod.yaml:18:9: Pod testpod1: spec.containers[0].resources.requests.memory: Invalid value:",
        ),
        (
            POD.replace("kernel.org/virt: \"1\"", "kernel.org/virt: \"1.5\""),
            "pod.yaml:19:9: Pod testpod1: spec.containers[0].resources.requests[kernel.org/virt]: Invalid value:",
        ),
        (
            POD.replace("name: testpod1", "name: Test_Pod"),
            "pod.yaml:4:3: Pod Test_Pod: metadata.name: Invalid value:",
        ),
        (
            POD.replace("  name: testpod1\n", ""),
            "pod.yaml:3:1: the object has no name: add `name: ...` below `metadata:`",
        ),
        (
            POD.replace("kind: Pod\n", ""),
            "pod.yaml:1:1: the object has no kind: add a line such as `kind: Pod`",
        ),
        (POD.replace("kind: Pod", "kind: [Pod]"), "pod.yaml:2:1: kind is [\"Pod\"], but it must be a word"),
        (
            POD.replace("  name: testpod1", "  name: testpod1\n  namespace: nowhere"),
            "pod.yaml:5:3: there is no namespace nowhere: put a Namespace of that name before it",
        ),
        (POD.replace("networks: virt-net1", "networks: a/b/c"), "pod.yaml:8:5: "),
        (
            POD.replace(
                "networks: virt-net1",
                "networks: '[{\"name\": \"virt-net1\", \"deviceID\": \"0000:00:09.0\"}]'",
            ),
            "pod.yaml:8:5: ",
        ),
        (
            format!("{POD}---\n{POD}"),
            "pod.yaml:24:1: Pod testpod1 stands at pod.yaml:1:1 already: leave out one of the two",
        ),
        (
            "apiVersion: k8s.cni.cncf.io/v1\nkind: Pod\nmetadata: {name: a}\n".to_owned(),
            "pod.yaml:1:1: kind Pod is not served as apiVersion k8s.cni.cncf.io/v1: use v1",
        ),
    ];
    for (text, says) in cases {
        let found = faults(&text);
        assert!(found.iter().any(|fault| fault.starts_with(says)), "no {says:?} in {found:#?}");
    }
}

#[test]
fn a_network_before_its_definition_says_which_file_has_it() {
    let found = faults_in(&Fake::default(), kinds(), NETWORK, Checks::All);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("pod.yaml:4:1: unknown kind NetworkAttachmentDefinition"), "{found:?}");
    assert!(found[0].contains("deployments/crdnetwork.yaml"), "{found:?}");
}

#[test]
fn every_fault_of_every_manifest_is_told_at_once() {
    let text = format!(
        "{}---\n{}",
        POD.replace("kind: Pod", "kind: Pot"),
        POD.replace("memory: 128Mi", "memory: much")
    );
    let found = faults(&text);
    assert_eq!(found.len(), 3, "{found:#?}");
}

#[test]
fn without_the_checks_a_pod_may_ask_for_what_nobody_knows() {
    let pod = POD.replace("virt-net1", "elsewhere").replace("kernel.org/virt", "example.com/other");
    assert_eq!(faults_in(&Fake::default(), kinds(), &pod, Checks::FormOnly), Vec::<String>::new());
    assert_eq!(faults_in(&Fake::default(), kinds(), &pod, Checks::All).len(), 2);
}

#[test]
fn text_that_is_no_manifest_is_refused_where_it_goes_wrong() {
    for (text, says) in [
        ("metadata:\n  name: testpod1\n name: [oops\n", "bad.yaml:3:"),
        ("a: b\n\tc: d\n", "bad.yaml:1:4: "),
        ("a: 1\na: 2\n", "bad.yaml:2:"),
        ("{\"kind\": \"Pod\",\n \"metadata\": {\"name\": \"a\"\n", "bad.yaml:"),
        ("- a\n- b\n", "bad.yaml:1:1: expected an object with apiVersion, kind and metadata"),
        ("just words\n", "bad.yaml:1:1: expected an object with apiVersion, kind and metadata"),
        ("", "bad.yaml: no object is in it"),
        ("# nothing\n---\n---\n", "bad.yaml: no object is in it"),
    ] {
        let fault = parse("bad.yaml", text).unwrap_err().to_string();
        assert!(fault.starts_with(says), "{text:?}: {fault}");
        assert_eq!(fault.lines().count(), 1, "{fault}");
    }
}

#[test]
fn documents_json_and_lists_become_objects_with_their_places() {
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "A"}, {"kind": "B"}]}).to_string();
    let read = |text: &str| -> Vec<String> {
        let manifests = parse("f", text).unwrap();
        manifests
            .iter()
            .map(|manifest| format!("{} {}", manifest.object.text("/kind"), manifest.place("")))
            .collect()
    };
    assert_eq!(read("kind: A\n---\n# note\nkind: B\n"), ["A f:1:1", "B f:4:1"]);
    assert_eq!(read("{\"kind\": \"A\"}"), ["A f:1:1"]);
    let kinds: Vec<_> = read(&list).iter().map(|found| found.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["A", "B"]);
    let places = parse("f", "kind: List\nitems:\n- kind: A\n  metadata:\n    name: a\n").unwrap();
    assert_eq!(places[0].place("/metadata/name").to_string(), "f:5:5");
    assert_eq!(places[0].place("/metadata/labels/x").to_string(), "f:4:3");
}

#[test]
fn words_that_only_look_like_booleans_stay_words() {
    let object = &parse("f", "a: yes\nb: true\nc: 'true'\nd: 1.5\ne: 0x10\nf: ~\ng: on\n").unwrap()[0].object;
    assert_eq!(object.text("/a"), "yes");
    assert_eq!(object["b"], json!(true));
    assert_eq!(object.text("/c"), "true");
    assert_eq!(object["d"], json!(1.5));
    assert_eq!(object["f"], Value::Null);
    assert_eq!(object.text("/g"), "on");
}

#[test]
fn folders_are_read_by_name_and_what_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in
        [("b.yaml", "kind: B"), ("a.json", "{\"kind\": \"A\"}"), ("note.txt", "{"), ("c.yml", "kind: C")]
    {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let read: Vec<_> = super::read(&[dir.path().to_owned()]).unwrap();
    assert_eq!(
        read.iter().map(|manifest| manifest.object.text("/kind")).collect::<Vec<_>>(),
        ["A", "B", "C"]
    );
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(dir.path().join("latin"), [0xff, 0xfe]).unwrap();
    let names = [empty, dir.path().join("none.yaml"), dir.path().join("latin")];
    let faults: Vec<_> = super::read(&names).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(
        faults[0].contains("no .yaml") && faults[1].contains("No such file") && faults[2].contains("UTF-8"),
        "{faults:?}"
    );
}
