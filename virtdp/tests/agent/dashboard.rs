//! The dashboard and the alerts ask for what the agent exports, by the labels that it has.

use std::collections::{BTreeMap, BTreeSet};

use crate::kubelet::Kubelet;
use crate::observe::{scrape, start};
use crate::stage::Stage;

const DASHBOARD: &str = include_str!("../../../deployments/grafana/virtnet.json");
const ALERTS: &str = include_str!("../../../deployments/grafana/alerts.yaml");
/// What may stand in an expression besides metrics and their labels.
const WORDS: [&str; 11] =
    ["sum", "count", "rate", "increase", "time", "by", "on", "and", "or", "label_values", "max"];
/// The label that Prometheus adds.
const INSTANCE: &str = "instance";

/// Every expression, with where it is.
fn expressions() -> Vec<(String, String)> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            expressions.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            expressions.push((format!("variable {}", variable["name"]), query.to_owned()));
        }
    }
    let alerts: serde_json::Value = serde_saphyr::from_str(ALERTS).unwrap();
    for rule in alerts["spec"]["groups"][0]["rules"].as_array().unwrap() {
        assert!(
            rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
            "{rule}"
        );
        expressions
            .push((rule["alert"].as_str().unwrap().to_owned(), rule["expr"].as_str().unwrap().to_owned()));
    }
    expressions
}

/// The words of an expression: metrics and the like, and labels, which stand in braces or after `by` and `on`. Ranges, variables and
/// strings are left out; brackets must match.
fn words(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let mut open = Vec::new();
    let mut last = String::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' => rest[1..].find('"').unwrap_or_else(|| panic!("no closing quote: {expression}")) + 2,
            '[' => rest.find(']').unwrap_or_else(|| panic!("no closing bracket: {expression}")) + 1,
            c if c.is_ascii_alphabetic() || c == '_' || c == '$' => rest[1..]
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .map_or(rest.len(), |end| end + 1),
            _ => 1,
        };
        let (word, after) = rest.split_at(end);
        match first {
            '(' if last == "by" || last == "on" => open.push("labels"),
            '(' => open.push("("),
            '{' => open.push("{"),
            ')' => assert!(matches!(open.pop(), Some("(" | "labels")), "{expression}"),
            '}' => assert_eq!(open.pop(), Some("{"), "{expression}"),
            c if c.is_ascii_alphabetic() || c == '_' => {
                let label = matches!(open.last(), Some(&"labels" | &"{"));
                if label { &mut labels } else { &mut names }.insert(word.to_owned());
            }
            _ => {}
        }
        if !first.is_whitespace() {
            last = word.to_owned();
        }
        rest = after;
    }
    assert!(open.is_empty(), "{expression}");
    (names, labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_of_the_dashboard_and_the_alerts_asks_for_what_the_agent_exports() {
    let stage = Stage::with_spares(&["0000:00:09.0"]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = start(&stage);
    kubelet.plugin().await.lists(&["0000:00:09.0 Healthy []"]).await;
    let mut exported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sample in scrape(&stage) {
        exported.entry(sample.name).or_default().extend(sample.labels.into_keys());
    }
    let mut asked = BTreeSet::new();
    for (place, expression) in expressions() {
        let (names, labels) = words(&expression);
        let mut known = BTreeSet::from([INSTANCE.to_owned()]);
        let mut metrics = 0;
        for name in names.iter().filter(|name| !WORDS.contains(&name.as_str())) {
            if place.starts_with("variable") && (name == INSTANCE || known.contains(name)) {
                continue;
            }
            if let Some(labels) = exported.get(name) {
                metrics += 1;
                known.extend(labels.clone());
                asked.insert(name.clone());
            } else {
                let of_variable =
                    place.starts_with("variable") && exported.values().any(|l| l.contains(name));
                assert!(of_variable, "{place}: nothing exports {name}: {expression}");
            }
        }
        assert!(metrics > 0, "{place} asks for nothing: {expression}");
        assert!(labels.is_subset(&known), "{place}: no such label: {expression}, has {known:?}");
    }
    let ours: Vec<&String> = exported.keys().filter(|name| name.starts_with("virtdp_")).collect();
    assert!(asked.len() * 3 > ours.len() * 2, "{asked:?} of {ours:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_in_the_documents_and_every_one_there_is_exported() {
    let stage = Stage::with_spares(&["0000:00:09.0"]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let _agent = start(&stage);
    kubelet.plugin().await.lists(&["0000:00:09.0 Healthy []"]).await;
    let exported: BTreeSet<String> = scrape(&stage).into_iter().map(|sample| sample.name).collect();
    let document = include_str!("../../../docs/operations.md");
    let metric = |word: &&str| word.starts_with("virtdp_") || word.starts_with("process_");
    let told: BTreeSet<String> = document
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(metric)
        .map(str::to_owned)
        .collect();
    assert_eq!(told, exported);
}

#[test]
fn words_are_told_from_labels_and_strings() {
    let (names, labels) =
        words("60 * sum by (a, b) (rate(x_total{c=~\"$d\",e=\"f(\"}[$__rate_interval])) and on (g) y");
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["and", "by", "on", "rate", "sum", "x_total", "y"]);
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "e", "g"]);
    for torn in ["sum(x", "x{a=\"b}", "x[5m", "x)"] {
        assert!(std::panic::catch_unwind(|| words(torn)).is_err(), "{torn}");
    }
}
