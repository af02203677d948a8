//! `virtsim describe`: one object with everything that happened to it, for people.

mod devices;
mod node;
mod pod;
mod sheet;

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;

use self::devices::Devices;
use self::sheet::Sheet;
use super::follow::Named;
use super::target::{Choice, Target, chosen, targets};
use super::{Context, get, screen};
use crate::api::json::Json;
use crate::api::time::{Timestamp, span};
use crate::client::{self, Client};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What is described: `pod a`, `node/n`; all of a kind where no name is given
    #[arg(required = true, value_name = "KIND [NAME] | KIND/NAME")]
    words: Vec<String>,
    #[command(flatten)]
    choice: Choice,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let client = context.client()?;
    let kinds = client.kinds()?;
    let names_none = targets(&kinds, &arguments.words)?.iter().any(|Target { name, .. }| name.is_none());
    let choice = if names_none { arguments.choice.or_all() } else { arguments.choice };
    let objects = chosen(context, &client, &kinds, &arguments.words, &choice)?;
    if objects.is_empty() {
        screen::note("No resources found");
    }
    let mut code = ExitCode::SUCCESS;
    let mut devices = None;
    for (index, named) in objects.iter().enumerate() {
        let object = match client.get(&named.path()) {
            Ok(object) => object,
            Err(error) if error.is_not_found() => {
                screen::complain(&error.to_string());
                code = ExitCode::FAILURE;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut sheet = Sheet::default();
        match (named.kind.group.as_str(), named.kind.kind.as_str()) {
            ("", "Pod") => {
                let devices = devices.get_or_insert_with(|| Devices::of(context));
                pod::describe(&mut sheet, &object, devices);
            }
            ("", "Node") => {
                let devices = devices.get_or_insert_with(|| Devices::of(context));
                let pods = client.get(&format!(
                    "/api/v1/pods?fieldSelector=spec.nodeName%3D{}",
                    client::segment(object.name())
                ))?;
                node::describe(&mut sheet, &object, pods.items("/items"), devices);
            }
            _ => other(&mut sheet, &object)?,
        }
        add_events(&mut sheet, &events(&client, named, &object)?);
        let separator = if index == 0 { "" } else { "\n\n" };
        screen::print(&format!("{separator}{}", sheet.text()))?;
    }
    if objects.is_empty() && !names_none {
        bail!("nothing is described");
    }
    Ok(code)
}

/// An object of a kind that nothing more is known about.
fn other(sheet: &mut Sheet, object: &Value) -> Result<()> {
    head(sheet, object);
    let mut rest = object.clone();
    for known in ["/metadata", "/kind", "/apiVersion"] {
        rest.take_out(known);
    }
    if rest.as_object().is_some_and(|rest| !rest.is_empty()) {
        sheet.block(get::yaml(&rest)?.lines());
    }
    Ok(())
}

/// What every object has.
fn head(sheet: &mut Sheet, object: &Value) {
    sheet.line("Name", object.name());
    if !object.namespace().is_empty() {
        sheet.line("Namespace", object.namespace());
    }
    sheet.lines("Labels", object.labels().into_iter().map(|(key, value)| format!("{key}={value}")));
    // What is for programs, and long.
    let long = |key: &str| key.starts_with("kubectl.kubernetes.io/") || key == cluster::NETWORK_STATUS;
    let annotations = object.annotations().into_iter().filter(|(key, _)| !long(key));
    sheet
        .lines("Annotations", annotations.map(|(key, value)| format!("{key}: {}", value.replace('\n', " "))));
    sheet.line("Created", object.text("/metadata/creationTimestamp"));
    if object.is_terminating() {
        sheet.line(
            "Deleted",
            &format!("{} (its processes get until then)", object.text("/metadata/deletionTimestamp")),
        );
    }
}

/// Everything that happened to an object, the oldest first.
fn events(client: &Client, named: &Named, object: &Value) -> Result<Vec<Value>> {
    let namespace = if named.namespace.is_empty() { "default" } else { &named.namespace };
    let selector = client::segment(&format!("involvedObject.name={}", named.name));
    let list = client
        .get(&format!("/api/v1/namespaces/{}/events?fieldSelector={selector}", client::segment(namespace)))?;
    let about = |event: &&Value| {
        let uid = event.text("/involvedObject/uid");
        // A node's events carry its name as uid.
        let same = [object.uid(), object.name(), ""].contains(&uid);
        event.text("/involvedObject/kind") == named.kind.kind && same
    };
    let mut events: Vec<_> = list.items("/items").iter().filter(about).cloned().collect();
    events.sort_by_key(|event| (moment(event).to_owned(), event.resource_version()));
    Ok(events)
}

fn moment(event: &Value) -> &str {
    let moments = ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    moments.into_iter().map(|pointer| event.text(pointer)).find(|text| !text.is_empty()).unwrap_or_default()
}

fn age(text: &str) -> String {
    text.parse::<Timestamp>().map_or("<unknown>".to_owned(), |then| span(Timestamp::now().since(then)))
}

fn add_events(sheet: &mut Sheet, events: &[Value]) {
    let row = |event: &Value| {
        let count = event.integer("/count").unwrap_or(1);
        let first = event.text("/firstTimestamp");
        let age = match count {
            0 | 1 => age(moment(event)),
            count => format!("{} (x{count} over {})", age(moment(event)), age(first)),
        };
        let from = [event.text("/source/component"), event.text("/reportingComponent")];
        vec![
            event.text("/type").to_owned(),
            event.text("/reason").to_owned(),
            age,
            from.into_iter().find(|from| !from.is_empty()).unwrap_or_default().to_owned(),
            event.text("/message").trim().to_owned(),
        ]
    };
    sheet.table("Events", &["Type", "Reason", "Age", "From", "Message"], events.iter().map(row).collect());
}

/// The last warnings about an object, each on a line: why one waits in vain.
pub(super) fn last_events(client: &Client, named: &Named, at_most: usize) -> Result<Vec<String>> {
    let Some(object) = client.find(&named.path())? else { return Ok(Vec::new()) };
    let events = events(client, named, &object)?;
    let warnings = events.iter().rev().filter(|event| event.text("/type") == "Warning").take(at_most);
    Ok(warnings
        .map(|event| format!("{}: {}", event.text("/reason"), event.text("/message").trim()))
        .collect())
}
