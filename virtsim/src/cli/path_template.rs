//! kubectl's `jsonpath`, as far as people type it: `{.status.phase}`, `{.items[*].metadata.name}`, `{..}` and `range` are not
//! understood, and say so.
//!
//! <https://kubernetes.io/docs/reference/kubectl/jsonpath/>

use std::str::FromStr;

use serde_json::Value;

/// Text with expressions in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Path(Vec<Step>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `.name`, `['name']`.
    Field(String),
    /// `[0]`, `[-1]`.
    Index(i64),
    /// `[*]`, `.*`.
    All,
    /// `[?(@.type=="Ready")]`.
    Where(Vec<Step>, String),
}

/// Not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "jsonpath {template:?} is not understood at {rest:?}: write it as {{.status.phase}} or {{.items[*].metadata.name}}"
)]
pub(super) struct ParseTemplateError {
    template: String,
    rest: String,
}

impl FromStr for Template {
    type Err = ParseTemplateError;

    fn from_str(template: &str) -> Result<Self, Self::Err> {
        let wrong = |rest: &str| ParseTemplateError { template: template.to_owned(), rest: rest.to_owned() };
        // kubectl takes an expression without its braces, too.
        if !template.contains('{') {
            let path =
                if template.starts_with(['.', '[']) { template.to_owned() } else { format!(".{template}") };
            return path_of(&path)
                .map(|path| Template(vec![Part::Path(path)]))
                .ok_or_else(|| wrong(template));
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, tail)) = rest.split_once('{') {
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            let (expression, tail) = tail.split_once('}').ok_or_else(|| wrong(rest))?;
            let part = match quoted(expression) {
                Some(text) => Part::Text(text),
                None => Part::Path(path_of(expression.trim()).ok_or_else(|| wrong(expression))?),
            };
            parts.push(part);
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Template(parts))
    }
}

/// `"\n"` and the like.
fn quoted(expression: &str) -> Option<String> {
    let inner = expression.trim();
    let inner = inner.strip_prefix('"')?.strip_suffix('"')?;
    Some(inner.replace("\\n", "\n").replace("\\t", "\t"))
}

fn path_of(text: &str) -> Option<Vec<Step>> {
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    let mut path = Vec::new();
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix('[') {
            let (inner, tail) = bracket(tail)?;
            path.push(step(inner)?);
            rest = tail;
        } else {
            let (name, tail) = field(rest.strip_prefix('.')?);
            match name.as_str() {
                "" if path.is_empty() && tail.is_empty() => {}
                "" => return None,
                "*" => path.push(Step::All),
                _ => path.push(Step::Field(name)),
            }
            rest = tail;
        }
    }
    Some(path)
}

/// A name up to the next dot or bracket; a backslash takes the next character as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '.' | '[' => return (name, text.get(at..).unwrap_or_default()),
            '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
            c => name.push(c),
        }
    }
    (name, "")
}

/// What stands before the closing bracket, which may stand in quotes or parentheses as well.
fn bracket(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some((text.get(..at)?, text.get(at + 1..)?)),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

fn step(inner: &str) -> Option<Step> {
    let inner = inner.trim();
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(name) = word(inner) {
        return Some(Step::Field(name));
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (left, right) = condition.split_once("==")?;
        let path = path_of(left.trim().strip_prefix('@')?)?;
        let right = right.trim();
        return Some(Step::Where(path, word(right).unwrap_or_else(|| right.to_owned())));
    }
    inner.parse().ok().map(Step::Index)
}

fn word(text: &str) -> Option<String> {
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"')).map(str::to_owned)
}

impl Template {
    /// The text with what the expressions find; several values are separated by a space, and nothing found is nothing.
    pub(super) fn fill(&self, object: &Value) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Path(path) => {
                let words: Vec<_> = find(object, path).into_iter().map(text_of).collect();
                words.join(" ")
            }
        };
        self.0.iter().map(part).collect()
    }

    /// Whether the expressions find anything.
    pub(super) fn finds(&self, object: &Value) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Path(path) if !find(object, path).is_empty()))
    }
}

fn find<'a>(object: &'a Value, path: &[Step]) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in path {
        found = found.into_iter().flat_map(|value| take(value, step)).collect();
    }
    found
}

fn take<'a>(value: &'a Value, step: &Step) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), value) => value.get(name).into_iter().collect(),
        (Step::Index(index), Value::Array(items)) => {
            let index = match usize::try_from(*index) {
                Ok(index) => Some(index),
                Err(_) => {
                    usize::try_from(index.unsigned_abs()).ok().and_then(|back| items.len().checked_sub(back))
                }
            };
            index.and_then(|index| items.get(index)).into_iter().collect()
        }
        (Step::All, Value::Array(items)) => items.iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::Where(path, wanted), Value::Array(items)) => items
            .iter()
            .filter(|item| find(item, path).into_iter().any(|value| text_of(value) == *wanted))
            .collect(),
        _ => Vec::new(),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fill(template: &str) -> String {
        let object = json!({
            "metadata": {"name": "a", "annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"}},
            "status": {
                "phase": "Running", "list": [1, 2, 3],
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}],
            },
        });
        template.parse::<Template>().unwrap().fill(&object)
    }

    #[test]
    fn paths_find_what_kubectl_finds() {
        for (template, found) in [
            ("{.status.phase}", "Running"),
            (".status.phase", "Running"),
            ("status.phase", "Running"),
            ("{$.status.list[1]} {.status.list[-1]}", "2 3"),
            ("{.status.list[*]}", "1 2 3"),
            ("{.status.list}", "[1,2,3]"),
            (r#"{.status.conditions[?(@.type=="Ready")].status}"#, "True"),
            (r"{.status.conditions[?(@.type=='Other')].status}", "False"),
            (r"{.metadata.annotations.k8s\.v1\.cni\.cncf\.io/network-status}", "[]"),
            ("{.metadata.annotations['k8s.v1.cni.cncf.io/network-status']}", "[]"),
            (r#"name={.metadata.name}{"\n"}"#, "name=a\n"),
            ("{.none.at.all}", ""),
        ] {
            assert_eq!(fill(template), found, "{template}");
        }
    }

    #[test]
    fn what_is_not_understood_says_so() {
        for template in ["{.a", "{..name}", "{range .items[*]}", "{.a[x]}", "{.a[?(@.b>1)]}"] {
            assert!(template.parse::<Template>().is_err(), "{template}");
        }
    }
}
