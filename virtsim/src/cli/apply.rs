//! `virtsim apply`: everything is read, judged and tried before anything is changed; what fails all the same is undone.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use super::follow::Named;
use super::{Context, screen};
use crate::api::json::{Json, escape};
use crate::client::{self, Client, Kinds};
use crate::manifest::{self, Checks, Fault, Manifest};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Manifests: a file, a folder, or - for standard input; may be given more than once
    #[arg(long = "filename", short, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Also take pods whose networks or resources nobody knows
    #[arg(long)]
    no_check: bool,
}

/// Where kubectl and we keep what was applied last, to know what was taken out of a manifest since.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let mut manifests = match manifest::read(&arguments.filename) {
        Ok(manifests) => manifests,
        Err(faults) => return Ok(refuse(&faults)),
    };
    let client = context.client()?;
    let served = client.kinds()?;
    let mut kinds = served.clone();
    let checks = if arguments.no_check { Checks::FormOnly } else { Checks::All };
    let faults = manifest::check(&mut manifests, &mut kinds, &client, context.namespace.as_deref(), checks)?;
    if !faults.is_empty() {
        return Ok(refuse(&faults));
    }
    // Before what needs them: namespaces, and definitions of kinds.
    manifests.sort_by_key(|manifest| match manifest.object.text("/kind") {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    });
    let plan = Plan { client: &client, served: &served, kinds: &kinds, manifests: &manifests };
    let steps = match plan.steps()? {
        Ok(steps) => steps,
        Err(faults) => return Ok(refuse(&faults)),
    };
    if !arguments.dry_run {
        carry_out(&client, &steps)?;
    }
    let note = if arguments.dry_run { " (dry run)" } else { "" };
    for step in &steps {
        screen::print(&format!("{} {}{note}\n", step.object.shown(), step.change.word()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse(faults: &[Fault]) -> ExitCode {
    for fault in faults {
        screen::complain(&fault.to_string());
    }
    screen::note("Nothing was changed.");
    ExitCode::FAILURE
}

/// What is to be done with one object.
#[derive(Debug)]
struct Step {
    object: Named,
    change: Change,
}

#[derive(Debug)]
enum Change {
    Create(Value),
    Configure { before: Value, patch: Value },
    Nothing,
}

impl Change {
    fn word(&self) -> &'static str {
        match self {
            Change::Create(_) => "created",
            Change::Configure { .. } => "configured",
            Change::Nothing => "unchanged",
        }
    }
}

struct Plan<'a> {
    client: &'a Client,
    /// What the server knew before.
    served: &'a Kinds,
    /// With those that the manifests define.
    kinds: &'a Kinds,
    manifests: &'a [Manifest],
}

impl Plan<'_> {
    /// All steps, each of them tried on the server; or whatever it refuses.
    fn steps(&self) -> Result<Result<Vec<Step>, Vec<Fault>>> {
        let mut steps = Vec::new();
        let mut faults = Vec::new();
        for manifest in self.manifests {
            match self.step(manifest) {
                Ok(step) => steps.push(step),
                Err(error) => match error.downcast::<client::Error>() {
                    Ok(client::Error::Refused { message, .. }) => faults.push(manifest.fault("", message)),
                    Ok(other) => return Err(other.into()),
                    Err(other) => faults.push(manifest.fault("", format!("{other:#}"))),
                },
            }
        }
        Ok(if faults.is_empty() { Ok(steps) } else { Err(faults) })
    }

    fn step(&self, manifest: &Manifest) -> Result<Step> {
        let wanted = &manifest.object;
        let (api_version, kind) = (wanted.text("/apiVersion"), wanted.text("/kind"));
        let kind = self.kinds.find(api_version, kind).with_context(|| format!("unknown kind {kind}"))?;
        let (namespace, name) = (wanted.namespace().to_owned(), wanted.name().to_owned());
        let object = Named { kind: kind.clone(), namespace, name };
        let mut complete = wanted.clone();
        complete.put(&format!("/metadata/annotations/{}", escape(LAST_APPLIED)), format!("{wanted}\n"));
        let is_served = self.served.find(api_version, &kind.kind).is_some();
        let current = if is_served { self.client.find(&object.path())? } else { None };
        let Some(current) = current else {
            if is_served && !self.makes_namespace(&object.namespace) {
                let path = client::collection(kind, Some(&object.namespace));
                self.client.create(&format!("{path}?dryRun=All"), &complete)?;
            }
            return Ok(Step { object, change: Change::Create(complete) });
        };
        if current.is_terminating() {
            let shown = object.shown();
            anyhow::bail!(
                "{shown} is being deleted: apply again when `virtsim wait --for=delete {shown}` has ended"
            );
        }
        let last = current.text(&format!("/metadata/annotations/{}", escape(LAST_APPLIED)));
        let patch = patch(&serde_json::from_str(last).unwrap_or_default(), &complete);
        let after = self.client.patch(&format!("{}?dryRun=All", object.path()), &patch)?;
        let change = if essence(&after) == essence(&current) {
            Change::Nothing
        } else {
            Change::Configure { before: current, patch }
        };
        Ok(Step { object, change })
    }

    fn makes_namespace(&self, name: &str) -> bool {
        !name.is_empty()
            && self.manifests.iter().any(|manifest| {
                manifest.object.text("/kind") == "Namespace" && manifest.object.name() == name
            })
    }
}

/// An object without what the server counts.
fn essence(object: &Value) -> Value {
    let mut object = object.clone();
    for counted in ["resourceVersion", "generation"] {
        object.take_out(&format!("/metadata/{counted}"));
    }
    object
}

/// The merge patch (RFC 7396) that makes an object as `wanted`, and takes out what only `last` had.
fn patch(last: &Value, wanted: &Value) -> Value {
    let (Value::Object(last), Value::Object(wanted)) = (last, wanted) else { return wanted.clone() };
    let mut merged = Map::new();
    for key in last.keys().filter(|key| !wanted.contains_key(*key)) {
        merged.insert(key.clone(), Value::Null);
    }
    for (key, value) in wanted {
        merged.insert(key.clone(), patch(last.get(key).unwrap_or(&Value::Null), value));
    }
    Value::Object(merged)
}

/// Does all steps, or undoes those that were done.
fn carry_out(client: &Client, steps: &[Step]) -> Result<()> {
    for (index, step) in steps.iter().enumerate() {
        let outcome = match &step.change {
            Change::Create(object) => {
                client.create(&client::collection(&step.object.kind, Some(&step.object.namespace)), object)
            }
            Change::Configure { patch, .. } => client.patch(&step.object.path(), patch),
            Change::Nothing => continue,
        };
        if let Err(error) = outcome {
            let left: Vec<_> = steps.iter().take(index).rev().filter_map(|step| undo(client, step)).collect();
            let what = match left.as_slice() {
                [] => "nothing was changed".to_owned(),
                left => format!("what was done before could not be undone: {}", left.join("; ")),
            };
            return Err(error).with_context(|| format!("{} was refused, {what}", step.object.shown()));
        }
    }
    Ok(())
}

/// Takes back one step; where that fails, why.
fn undo(client: &Client, step: &Step) -> Option<String> {
    let path = step.object.path();
    let outcome = match &step.change {
        Change::Create(_) => client.delete(&path, Some(0)).map(drop),
        Change::Configure { before, .. } => client
            .get(&path)
            .and_then(|after| client.patch(&path, &patch(&essence(&after), &essence(before))))
            .map(drop),
        Change::Nothing => Ok(()),
    };
    outcome.err().map(|error| format!("{}: {}", step.object.shown(), crate::chain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_takes_out_only_what_was_applied_before() {
        let last = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "data": {"x": "1"}, "list": [1]});
        let wanted = json!({"metadata": {"labels": {"a": "1"}}, "list": [2, 3]});
        assert_eq!(
            patch(&last, &wanted),
            json!({"metadata": {"labels": {"a": "1", "b": null}}, "data": null, "list": [2, 3]})
        );
        assert_eq!(patch(&Value::Null, &wanted), wanted);
    }
}
