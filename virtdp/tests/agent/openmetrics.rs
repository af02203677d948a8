//! A strict reader of OpenMetrics text: whatever the specification forbids, or Prometheus' linter frowns at, is a panic.
//!
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>, <https://prometheus.io/docs/practices/naming/>

use std::collections::{BTreeMap, BTreeSet};

/// One sample: its name, its labels, its value.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    unit: Option<String>,
}

/// Reads a whole exposition.
pub(crate) fn parse(text: &str) -> Vec<Sample> {
    let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
    let mut families = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut samples = Vec::new();
    let mut family = Family::default();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let [keyword, name, rest]: [&str; 3] =
                comment.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            match keyword {
                "HELP" => {
                    assert!(families.insert(name.to_owned()), "{name} is there twice");
                    assert!(rest.len() > 10 && !rest.ends_with(' '), "help of {name}: {rest:?}");
                    family = Family { name: name.to_owned(), ..Family::default() };
                    check_name(name);
                }
                "TYPE" => {
                    assert_eq!(name, family.name, "{line}");
                    assert!(["gauge", "counter", "info"].contains(&rest), "{line}");
                    family.kind = rest.to_owned();
                }
                "UNIT" => {
                    assert_eq!(name, family.name, "{line}");
                    assert!(name.ends_with(&format!("_{rest}")), "{line}: the unit belongs into the name");
                    family.unit = Some(rest.to_owned());
                }
                _ => panic!("unknown keyword: {line}"),
            }
            continue;
        }
        let sample = sample(line);
        let suffix = sample
            .name
            .strip_prefix(&family.name)
            .unwrap_or_else(|| panic!("{line}: not of {}", family.name));
        match family.kind.as_str() {
            "counter" => {
                assert_eq!(suffix, "_total", "{line}");
                assert!(sample.value >= 0.0, "{line}");
            }
            "info" => assert!(suffix == "_info" && sample.value == 1.0, "{line}"),
            "gauge" => {
                assert_eq!(suffix, "", "{line}");
                for reserved in ["_total", "_info", "_count", "_sum", "_bucket", "_created"] {
                    assert!(!sample.name.ends_with(reserved), "{line}: reserved for other types");
                }
                for (unit, base) in [("seconds", "seconds"), ("bytes", "bytes")] {
                    let named = sample.name.ends_with(&format!("_{unit}"));
                    assert_eq!(named, family.unit.as_deref() == Some(base), "{line}: UNIT");
                }
            }
            other => panic!("{line}: a sample before its type ({other:?})"),
        }
        assert!(series.insert((sample.name.clone(), sample.labels.clone())), "{line}: twice");
        samples.push(sample);
    }
    samples
}

fn check_name(name: &str) {
    assert!(name.starts_with("virtdp_") || name.starts_with("process_"), "{name}");
    assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !name.contains("__"), "{name}");
    for odd in ["_milliseconds", "_ms", "_percent", "_kilobytes"] {
        assert!(!name.ends_with(odd), "{name}: base units only");
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) =
                rest.split_once("=\"").unwrap_or_else(|| panic!("a label without value: {line}"));
            let word = |b: u8| b.is_ascii_lowercase() || b == b'_';
            assert!(!label.is_empty() && label.bytes().all(word), "label {label:?}: {line}");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "label {label} twice: {line}");
            match after.split_at(1) {
                (",", more) => rest = more,
                ("}", more) => {
                    rest = more;
                    break;
                }
                _ => panic!("after a label: {line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space before the value: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    Sample { name: name.to_owned(), labels, value }
}

/// Reads up to the closing quote.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                other => panic!("unknown escape {other:?}: {text}"),
            },
            _ => value.push(character),
        }
    }
    panic!("no closing quote: {text}");
}

#[test]
fn what_the_specification_forbids_is_found() {
    let good =
        "# HELP virtdp_x How many there are\n# TYPE virtdp_x gauge\nvirtdp_x{a=\"b\\\"\\n\"} 1\n# EOF\n";
    assert_eq!(parse(good)[0].labels["a"], "b\"\n");
    for (part, bad) in [
        ("# EOF\n", ""),
        ("gauge", "counter"),
        ("virtdp_x", "virtdp_x_total"),
        ("virtdp_x", "virtdp_X"),
        ("virtdp_x", "virtdp_x_seconds"),
        (" 1\n", " one\n"),
        (" 1\n", "\n"),
        ("\\n", "\\q"),
        ("{a=", "{a b="),
        ("How many there are", ""),
        ("virtdp_x{a=\"b\\\"\\n\"} 1\n", "virtdp_x 1\nvirtdp_x 1\n"),
    ] {
        let torn = good.replace(part, bad);
        assert_ne!(torn, good);
        assert!(std::panic::catch_unwind(|| parse(&torn)).is_err(), "taken: {torn}");
    }
}
