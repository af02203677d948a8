//! Which node a pod fits on, and if none, why: a pure function in the words of kube-scheduler's plugins.
//!
//! Of its plugins there are NodeUnschedulable, NodeName, TaintToleration, NodeAffinity (required terms) and
//! NodeResourcesFit, in this order: the first that objects speaks for the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::requests::{Amounts, add, amounts, of_pod};
use crate::api::json::Json;
use crate::api::quantity::Quantity;

/// The nodes with what is taken on them.
pub(super) struct Cluster {
    nodes: Vec<(Arc<Value>, Amounts)>,
}

/// Why a node does not do.
enum Objection {
    /// Other pods would have to go.
    Resources(Vec<String>),
    /// Whatever goes, it stays so.
    Lasting(String),
}

impl Cluster {
    pub(super) fn new(nodes: &[Arc<Value>], pods: &[Arc<Value>]) -> Self {
        let taken = |node: &Arc<Value>| {
            let mut taken = Amounts::new();
            let here = pods.iter().filter(|pod| pod.text("/spec/nodeName") == node.name());
            for pod in here.filter(|pod| !["Failed", "Succeeded"].contains(&pod.text("/status/phase"))) {
                add(&mut taken, &of_pod(pod));
            }
            taken
        };
        Cluster { nodes: nodes.iter().map(|node| (node.clone(), taken(node))).collect() }
    }

    /// The first node that the pod fits on, where it is counted from now on.
    pub(super) fn place(&mut self, pod: &Value) -> Result<String, String> {
        let wanted = of_pod(pod);
        let mut objections = Vec::new();
        for (node, taken) in &mut self.nodes {
            match judge(pod, &wanted, node, taken) {
                None => {
                    add(taken, &wanted);
                    return Ok(node.name().to_owned());
                }
                Some(objection) => objections.push(objection),
            }
        }
        Err(in_words(self.nodes.len(), &objections))
    }
}

fn judge(pod: &Value, wanted: &Amounts, node: &Value, taken: &Amounts) -> Option<Objection> {
    let lasting = |words: String| Some(Objection::Lasting(words));
    if node.is_true("/spec/unschedulable") {
        return lasting("node(s) were unschedulable".to_owned());
    }
    let taint = node.items("/spec/taints").iter().find(|taint| {
        ["NoSchedule", "NoExecute"].contains(&taint.text("/effect"))
            && !pod.items("/spec/tolerations").iter().any(|toleration| tolerates(toleration, taint))
    });
    if let Some(taint) = taint {
        let (key, value) = (taint.text("/key"), taint.text("/value"));
        return lasting(format!("node(s) had untolerated taint {{{key}: {value}}}"));
    }
    if !is_selected(pod, node) {
        return lasting("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let has = amounts(node.map("/status/allocatable"));
    let lacks = |(name, amount): (&String, &Quantity)| {
        let of = |amounts: &Amounts| amounts.get(name).copied().unwrap_or_default();
        let short = *amount > Quantity::default() && of(&has) - of(taken) < *amount;
        short
            .then(|| if name == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {name}") })
    };
    let lacking: Vec<_> = wanted.iter().filter_map(lacks).collect();
    (!lacking.is_empty()).then_some(Objection::Resources(lacking))
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let key = toleration.text("/key");
    let effect = toleration.text("/effect");
    (effect.is_empty() || effect == taint.text("/effect"))
        && (key.is_empty() || key == taint.text("/key"))
        && match toleration.text("/operator") {
            "Exists" => true,
            _ => !key.is_empty() && toleration.text("/value") == taint.text("/value"),
        }
}

fn is_selected(pod: &Value, node: &Value) -> bool {
    let labels = node.labels();
    let by_labels = pod.texts("/spec/nodeSelector").iter().all(|(key, value)| labels.get(key) == Some(value));
    let terms = pod.pointer(
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
    );
    let fields = BTreeMap::from([("metadata.name".to_owned(), node.name().to_owned())]);
    let holds = |term: &Value| {
        let (by_label, by_field) = (term.items("/matchExpressions"), term.items("/matchFields"));
        !(by_label.is_empty() && by_field.is_empty())
            && by_label.iter().all(|expression| meets(expression, &labels))
            && by_field.iter().all(|expression| meets(expression, &fields))
    };
    by_labels && terms.and_then(Value::as_array).is_none_or(|terms| terms.iter().any(holds))
}

fn meets(expression: &Value, labels: &BTreeMap<String, String>) -> bool {
    let found = labels.get(expression.text("/key"));
    let listed = found
        .is_some_and(|found| expression.items("/values").iter().any(|value| value.as_str() == Some(found)));
    let compare = |order: std::cmp::Ordering| {
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
        let bound = number(expression.text("/values/0").into());
        number(found.map(String::as_str)).zip(bound).is_some_and(|(found, bound)| found.cmp(&bound) == order)
    };
    match expression.text("/operator") {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(std::cmp::Ordering::Greater),
        "Lt" => compare(std::cmp::Ordering::Less),
        _ => false,
    }
}

fn in_words(nodes: usize, objections: &[Objection]) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut fates: BTreeMap<&str, usize> = BTreeMap::new();
    for objection in objections {
        let (reasons, fate) = match objection {
            Objection::Resources(reasons) => {
                (reasons.as_slice(), "No preemption victims found for incoming pod")
            }
            Objection::Lasting(reason) => {
                (std::slice::from_ref(reason), "Preemption is not helpful for scheduling")
            }
        };
        for reason in reasons {
            *counts.entry(reason).or_default() += 1;
        }
        *fates.entry(fate).or_default() += 1;
    }
    let listed = |counts: &BTreeMap<&str, usize>| {
        let mut parts: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        parts.join(", ")
    };
    format!(
        "0/{nodes} nodes are available: {}. preemption: 0/{nodes} nodes are available: {}.",
        listed(&counts),
        listed(&fates)
    )
}

/// The condition of a pod that fits nowhere.
pub(super) fn unschedulable(why: &str) -> Value {
    json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pod_spec: Value, node: Value) -> Result<String, String> {
        let mut whole = json!({"metadata": {"name": "n", "labels": {"zone": "a", "size": "5"}}});
        whole.put("/status/allocatable", json!({"pods": "1", "cpu": "2", "memory": "1Gi"}));
        for (key, value) in node.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Cluster::new(&[Arc::new(whole)], &[]).place(&json!({"spec": pod_spec}))
    }

    fn needs(resources: Value) -> Value {
        json!({"containers": [{"resources": {"requests": resources}}]})
    }

    #[test]
    fn everything_that_lacks_is_named() {
        assert_eq!(place(needs(json!({"cpu": "2"})), json!({})), Ok("n".to_owned()));
        let why =
            place(needs(json!({"cpu": "3", "memory": "2Gi", "example.com/x": 1})), json!({})).unwrap_err();
        assert_eq!(
            why,
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient example.com/x, 1 Insufficient memory. \
             preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
    }

    #[test]
    fn taints_hold_off_what_does_not_tolerate_them() {
        let tainted = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        let why = place(json!({}), tainted.clone()).unwrap_err();
        assert!(
            why.starts_with("0/1 nodes are available: 1 node(s) had untolerated taint {k: v}. "),
            "{why}"
        );
        assert!(why.ends_with("1 Preemption is not helpful for scheduling."), "{why}");
        for toleration in [
            json!({"operator": "Exists"}),
            json!({"key": "k", "operator": "Exists"}),
            json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
        ] {
            assert!(place(json!({"tolerations": [toleration]}), tainted.clone()).is_ok(), "{toleration}");
        }
        for other in [json!({"key": "k"}), json!({"key": "x", "operator": "Exists"}), json!({"value": "v"})] {
            assert!(place(json!({"tolerations": [other]}), tainted.clone()).is_err(), "{other}");
        }
        let cordoned = place(json!({}), json!({"spec": {"unschedulable": true}})).unwrap_err();
        assert!(cordoned.contains("1 node(s) were unschedulable"), "{cordoned}");
    }

    #[test]
    fn selectors_choose_by_labels_and_name() {
        let affinity = |kind: &str, expression: Value| {
            let terms = json!([{kind: [expression]}]);
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        for good in [
            json!({"nodeSelector": {"zone": "a"}}),
            affinity("matchFields", json!({"key": "metadata.name", "operator": "In", "values": ["n"]})),
            affinity("matchExpressions", json!({"key": "zone", "operator": "NotIn", "values": ["b"]})),
            affinity("matchExpressions", json!({"key": "size", "operator": "Gt", "values": ["4"]})),
            affinity("matchExpressions", json!({"key": "none", "operator": "DoesNotExist"})),
        ] {
            assert!(place(good.clone(), json!({})).is_ok(), "{good}");
        }
        for bad in [
            json!({"nodeSelector": {"zone": "b"}}),
            affinity("matchFields", json!({"key": "metadata.name", "operator": "In", "values": ["m"]})),
            affinity("matchExpressions", json!({"key": "size", "operator": "Lt", "values": ["5"]})),
            affinity("matchExpressions", json!({"key": "none", "operator": "Exists"})),
        ] {
            let why = place(bad.clone(), json!({})).unwrap_err();
            assert!(why.contains("1 node(s) didn't match Pod's node affinity/selector"), "{bad}: {why}");
        }
    }

    #[test]
    fn without_nodes_there_is_a_word_for_it() {
        let why = Cluster::new(&[], &[]).place(&json!({})).unwrap_err();
        assert_eq!(why, "no nodes available to schedule pods");
    }
}
