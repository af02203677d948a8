//! `virtsim get`: objects as a table, as JSON, YAML, names, or a part of them.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::Value;

use super::Context;
use super::path_template::{ParseTemplateError, Template};
use super::screen::{self, Grid, Titles};
use super::target::{Target, known, shown, targets};
use crate::api::json::Json;
use crate::api::kinds::Kind;
use crate::client::{self, Change, Client};
use crate::manifest::list_of;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What is shown: `pods`, `pod a b`, `pod/a node/n`, or `all`
    #[arg(required = true, value_name = "KIND [NAME] | KIND/NAME")]
    words: Vec<String>,
    /// wide, json, yaml, name, or jsonpath='{PATH}'
    #[arg(long, short, value_name = "FORM", default_value = "table", hide_default_value = true)]
    output: Form,
    /// As -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// In all namespaces
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Only those with these labels
    #[arg(long, short = 'l', value_name = "LABELS")]
    selector: Option<String>,
    /// Only those with these fields, for example involvedObject.name=a
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,
    /// A column with the labels
    #[arg(long)]
    show_labels: bool,
    /// Go on, and show each change
    #[arg(long, short)]
    watch: bool,
    /// Leave out the titles
    #[arg(long)]
    no_headers: bool,
}

/// How objects are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Table,
    Wide,
    Json,
    Yaml,
    Name,
    Path(Template),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ParseFormError {
    #[error("{0:?} is not wide, json, yaml, name or jsonpath='{{PATH}}'")]
    Unknown(String),
    #[error(transparent)]
    Path(ParseTemplateError),
}

impl FromStr for Form {
    type Err = ParseFormError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "table" => Ok(Form::Table),
            "wide" => Ok(Form::Wide),
            "json" => Ok(Form::Json),
            "yaml" => Ok(Form::Yaml),
            "name" => Ok(Form::Name),
            other => match other.strip_prefix("jsonpath=") {
                Some(template) => template.parse().map(Form::Path).map_err(ParseFormError::Path),
                None => Err(ParseFormError::Unknown(other.to_owned())),
            },
        }
    }
}

/// What `all` means, as in kubectl: what runs, not what describes it.
const ALL: [&str; 3] = ["pods", "services", "daemonsets"];

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let client = context.client()?;
    let kinds = client.kinds()?;
    let targets = match arguments.words.as_slice() {
        [all] if all == "all" => ALL
            .iter()
            .map(|word| Ok(Target { kind: known(&kinds, word)?.clone(), name: None }))
            .collect::<Result<_>>()?,
        words => targets(&kinds, words)?,
    };
    let form = if arguments.json { Form::Json } else { arguments.output.clone() };
    let view = View { context, client: &client, arguments: &arguments, form };
    if arguments.watch {
        return view.watch(&targets);
    }
    match &view.form {
        Form::Table | Form::Wide => view.tables(&targets),
        _ => view.objects(&targets),
    }
}

struct View<'a> {
    context: &'a Context,
    client: &'a Client,
    arguments: &'a Arguments,
    form: Form,
}

impl View<'_> {
    /// The namespace that is asked; none: all of them, or the kind has none.
    fn namespace(&self) -> Option<&str> {
        (!self.arguments.all_namespaces).then(|| self.context.namespace())
    }

    fn query(&self, more: Option<String>) -> String {
        let labels =
            self.arguments.selector.as_deref().map(|s| format!("labelSelector={}", client::segment(s)));
        let fields: Vec<_> = self.arguments.field_selector.iter().cloned().chain(more).collect();
        let fields =
            (!fields.is_empty()).then(|| format!("fieldSelector={}", client::segment(&fields.join(","))));
        labels.into_iter().chain(fields).collect::<Vec<_>>().join("&")
    }

    fn path(&self, Target { kind, name }: &Target) -> Result<String> {
        if let Some(name) = name {
            if self.arguments.all_namespaces && kind.is_namespaced() {
                bail!("{name} is in one namespace, -A means all of them: leave out one of the two");
            }
            return Ok(client::object(kind, self.context.namespace(), name));
        }
        let query = self.query(None);
        let separator = if query.is_empty() { "" } else { "?" };
        Ok(format!("{}{separator}{query}", client::collection(kind, self.namespace())))
    }

    fn tables(&self, targets: &[Target]) -> Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        let several_kinds =
            targets.iter().any(|target| Some(&target.kind) != targets.first().map(|t| &t.kind));
        let mut shown_any = false;
        // Objects of one kind stand in one table, also when each of them was named.
        for of_a_kind in targets.chunk_by(|a, b| a.kind == b.kind) {
            let mut table: Option<Value> = None;
            for target in of_a_kind {
                match self.client.table(&self.path(target)?) {
                    Ok(mut found) => match &mut table {
                        None => table = Some(found),
                        Some(table) => {
                            let rows = found.take_out("/rows");
                            if let (Some(Value::Array(all)), Some(Value::Array(rows))) =
                                (table.pointer_mut("/rows"), rows)
                            {
                                all.extend(rows);
                            }
                        }
                    },
                    Err(error) if target.name.is_some() && error.is_not_found() => {
                        screen::complain(&error.to_string());
                        code = ExitCode::FAILURE;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let (Some(table), Some(first)) = (table, of_a_kind.first()) else { continue };
            if table.items("/rows").is_empty() {
                continue;
            }
            let prefix = several_kinds.then_some(&first.kind);
            let (titles, rows) = self.rows(&table, &first.kind, prefix);
            let separator = if shown_any { "\n" } else { "" };
            screen::print(&format!("{separator}{}", Grid::new(titles).render(&rows, self.titles())))?;
            shown_any = true;
        }
        if !shown_any && code == ExitCode::SUCCESS {
            screen::note(&self.nothing(targets));
        }
        Ok(code)
    }

    fn titles(&self) -> Titles {
        if self.arguments.no_headers { Titles::Hidden } else { Titles::Shown }
    }

    fn nothing(&self, targets: &[Target]) -> String {
        match self.namespace() {
            Some(namespace) if targets.iter().any(|target| target.kind.is_namespaced()) => {
                format!("No resources found in {namespace} namespace.")
            }
            _ => "No resources found".to_owned(),
        }
    }

    /// Titles and cells of a Table. With a kind as prefix the names say what they are of.
    fn rows(&self, table: &Value, kind: &Kind, prefix: Option<&Kind>) -> (Vec<String>, Vec<Vec<String>>) {
        let in_namespaces = self.arguments.all_namespaces && kind.is_namespaced();
        let columns = table.items("/columnDefinitions");
        let is_shown =
            |column: &Value| self.form == Form::Wide || column.integer("/priority").unwrap_or(0) == 0;
        let titles = in_namespaces.then(|| "Namespace".to_owned());
        let own =
            columns.iter().filter(|column| is_shown(column)).map(|column| column.text("/name").to_owned());
        let labels = self.arguments.show_labels.then(|| "Labels".to_owned());
        let titles = titles.into_iter().chain(own).chain(labels).collect();
        let row = |row: &Value| -> Vec<String> {
            let namespace = in_namespaces.then(|| row.text("/object/metadata/namespace").to_owned());
            let cells = row.items("/cells").iter().zip(columns).filter(|(_, column)| is_shown(column));
            let cells = cells.map(|(cell, column)| match (cell, prefix) {
                (Value::String(name), Some(kind)) if column.text("/name") == "Name" => shown(kind, name),
                (Value::String(text), _) => text.clone(),
                (other, _) => other.to_string(),
            });
            let labels = self.arguments.show_labels.then(|| labels_of(row));
            namespace.into_iter().chain(cells).chain(labels).collect()
        };
        (titles, table.items("/rows").iter().map(row).collect())
    }

    fn objects(&self, targets: &[Target]) -> Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        let mut found: Vec<(Kind, Value)> = Vec::new();
        for target in targets {
            match self.client.get(&self.path(target)?) {
                Ok(object) if target.name.is_some() => found.push((target.kind.clone(), object)),
                Ok(mut list) => {
                    let Some(Value::Array(items)) = list.take_out("/items") else { continue };
                    found.extend(items.into_iter().map(|object| (target.kind.clone(), object)));
                }
                Err(error) if target.name.is_some() && error.is_not_found() => {
                    screen::complain(&error.to_string());
                    code = ExitCode::FAILURE;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let is_one = matches!(targets, [Target { name: Some(_), .. }]);
        match (&self.form, found.as_mut_slice()) {
            (Form::Name, found) => {
                for (kind, object) in found {
                    screen::print(&format!("{}\n", shown(kind, object.name())))?;
                }
            }
            // The failure was told already.
            (_, []) if is_one => {}
            (_, [(kind, object)]) if is_one => {
                complete(kind, object);
                self.document(object)?;
            }
            _ => {
                let objects = found.into_iter().map(|(kind, mut object)| {
                    complete(&kind, &mut object);
                    object
                });
                self.document(&list_of(objects.collect()))?;
            }
        }
        Ok(code)
    }

    fn document(&self, value: &Value) -> Result<()> {
        let text = match &self.form {
            Form::Yaml => yaml(value)?,
            Form::Path(template) => template.fill(value),
            _ => format!("{}\n", serde_json::to_string_pretty(value)?),
        };
        Ok(screen::print(&text)?)
    }

    fn watch(&self, targets: &[Target]) -> Result<ExitCode> {
        let [target] = targets else { bail!("only one kind or one object can be watched at a time") };
        let kind = &target.kind;
        let collection = client::collection(kind, self.namespace());
        let query = self.query(target.name.as_ref().map(|name| format!("metadata.name={name}")));
        let as_table = matches!(self.form, Form::Table | Form::Wide);
        let path = format!("{collection}?{query}");
        let mut grid: Option<Grid> = None;
        let mut version;
        let list = if as_table { self.client.table(&path)? } else { self.client.get(&path)? };
        version = list.text("/metadata/resourceVersion").to_owned();
        if as_table {
            self.add_rows(&mut grid, &list, kind)?;
        } else {
            list.items("/items").iter().try_for_each(|object| self.one(kind, object.clone()))?;
        }
        loop {
            let watch = if as_table {
                self.client.watch_table(&collection, &query, &version)?
            } else {
                self.client.watch(&collection, &query, &version)?
            };
            for change in watch {
                let change = change?;
                let object = change.object();
                if as_table {
                    self.add_rows(&mut grid, object, kind)?;
                    version = object.text("/rows/0/object/metadata/resourceVersion").to_owned();
                } else {
                    version = object.text("/metadata/resourceVersion").to_owned();
                    if !matches!(change, Change::Deleted(_)) {
                        self.one(kind, object.clone())?;
                    }
                }
            }
            // The server ended it: if it is gone, the next request says so.
        }
    }

    fn add_rows(&self, grid: &mut Option<Grid>, table: &Value, kind: &Kind) -> Result<()> {
        let (titles, rows) = self.rows(table, kind, None);
        if rows.is_empty() {
            return Ok(());
        }
        let (grid, titles) = match grid {
            Some(grid) => (grid, Titles::Hidden),
            None => (grid.insert(Grid::new(titles)), self.titles()),
        };
        Ok(screen::print(&grid.render(&rows, titles))?)
    }

    fn one(&self, kind: &Kind, mut object: Value) -> Result<()> {
        complete(kind, &mut object);
        match self.form {
            Form::Name => Ok(screen::print(&format!("{}\n", shown(kind, object.name())))?),
            Form::Yaml => {
                screen::print("---\n")?;
                self.document(&object)
            }
            _ => self.document(&object),
        }
    }
}

fn labels_of(row: &Value) -> String {
    let labels = row.texts("/object/metadata/labels");
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "<none>".to_owned() } else { labels.join(",") }
}

/// What a list leaves out of its items.
fn complete(kind: &Kind, object: &mut Value) {
    for (field, value) in [("kind", kind.kind.clone()), ("apiVersion", kind.api_version())] {
        if object.text(&format!("/{field}")).is_empty() {
            object.put(&format!("/{field}"), value);
        }
    }
}

/// An object as YAML.
pub(super) fn yaml(value: &Value) -> Result<String> {
    let mut text = serde_saphyr::to_string(value)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_reads_back_as_the_same_object() {
        let object = json!({
            "metadata": {"name": "a", "annotations": {"x": "{\n  \"type\": \"ehost-device\"\n}\n", "y": "yes", "z": "1"}},
            "spec": {"list": [{"a": 1, "b": [true, null]}, "0000:00:0a.0", "- x", "#", ""], "empty": {}, "none": []},
        });
        let text = yaml(&object).unwrap();
        let manifests = crate::manifest::parse("-", &text).unwrap();
        assert_eq!(
            manifests.iter().map(|manifest| &manifest.object).collect::<Vec<_>>(),
            [&object],
            "{text}"
        );
    }

    #[test]
    fn forms_are_read_as_kubectl_reads_them() {
        assert_eq!("wide".parse(), Ok(Form::Wide));
        assert!(matches!("jsonpath={.a}".parse(), Ok(Form::Path(_))));
        assert!("xml".parse::<Form>().unwrap_err().to_string().contains("yaml"));
    }
}
