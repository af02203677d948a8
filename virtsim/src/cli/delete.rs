//! `virtsim delete`: objects go, and the command ends when they are gone.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::follow::{Named, until};
use super::patience::Patience;
use super::target::{Choice, chosen};
use super::{Context, screen};
use crate::api::json::Json;
use crate::client::{self, Client, Kinds};
use crate::manifest;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What goes: `pod a b`, or `pod/a node/n`
    #[arg(
        required_unless_present = "filename",
        conflicts_with = "filename",
        value_name = "KIND NAME | KIND/NAME"
    )]
    words: Vec<String>,
    /// The objects of these manifests: a file, a folder, or - for standard input
    #[arg(long, short, value_name = "FILE")]
    filename: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// End with the request, or when the objects are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    wait: bool,
    /// Seconds that a pod's processes get to end
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
    /// As --grace-period=0
    #[arg(long)]
    force: bool,
    /// As --grace-period=1
    #[arg(long, conflicts_with_all = ["grace_period", "force"])]
    now: bool,
    /// Longest time to wait
    #[arg(long, default_value = "120s", value_name = "TIME")]
    timeout: Patience,
    /// Objects that do not exist are no failure
    #[arg(long)]
    ignore_not_found: bool,
}

/// After this time somebody wants to know what is being waited for.
const SOON: Duration = Duration::from_secs(2);

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    if !arguments.filename.is_empty() && arguments.choice.is_made() {
        bail!("-f names the objects, and --all or -l chooses as well: leave out one of them");
    }
    let client = context.client()?;
    let kinds = client.kinds()?;
    let objects = if arguments.filename.is_empty() {
        chosen(context, &client, &kinds, &arguments.words, &arguments.choice)?
    } else {
        match by_manifests(context, &kinds, &arguments.filename)? {
            Ok(objects) => objects,
            Err(code) => return Ok(code),
        }
    };
    if objects.is_empty() {
        screen::note("No resources found");
        return Ok(ExitCode::SUCCESS);
    }
    let grace = if arguments.force {
        Some(0)
    } else if arguments.now {
        Some(1)
    } else {
        arguments.grace_period
    };
    let mut code = ExitCode::SUCCESS;
    let mut going = Vec::new();
    for object in objects {
        match ask(&client, &object, grace) {
            Ok(uid) => going.push((object, uid)),
            Err(error) if error.is_not_found() && arguments.ignore_not_found => {}
            Err(error) => {
                screen::complain(&error.to_string());
                code = ExitCode::FAILURE;
            }
        }
    }
    let deadline = arguments.timeout.deadline();
    for (object, uid) in going {
        if arguments.wait && !is_gone(&client, &object, &uid, deadline)? {
            let shown = object.shown();
            screen::complain(&format!(
                "{shown} is not gone after {}: `virtsim describe {shown}` may tell why, `virtsim delete {shown} --force` \
                 does not wait for its processes",
                arguments.timeout
            ));
            code = ExitCode::FAILURE;
            continue;
        }
        screen::print(&format!("{} deleted\n", object.shown()))?;
    }
    Ok(code)
}

/// Asks for the object's end; gives its uid, to tell it from one of the same name that comes after it.
fn ask(client: &Client, object: &Named, grace: Option<u64>) -> Result<String, client::Error> {
    let uid = client.get(&object.path())?.uid().to_owned();
    client.delete(&object.path(), grace)?;
    Ok(uid)
}

fn is_gone(client: &Client, object: &Named, uid: &str, deadline: Instant) -> Result<bool> {
    let gone =
        |found: Option<&serde_json::Value>| Ok(found.is_none_or(|object| object.uid() != uid).then_some(()));
    let soon = Instant::now().checked_add(SOON).map_or(deadline, |soon| soon.min(deadline));
    if until(client, object, soon, gone)?.is_some() {
        return Ok(true);
    }
    if soon < deadline {
        screen::note(&format!("waiting for {} to end", object.shown()));
    }
    Ok(until(client, object, deadline, gone)?.is_some())
}

/// The manifests' objects, the last ones first, since they need the ones before.
fn by_manifests(context: &Context, kinds: &Kinds, files: &[PathBuf]) -> Result<Result<Vec<Named>, ExitCode>> {
    let manifests = match manifest::read(files) {
        Ok(manifests) => manifests,
        Err(faults) => {
            faults.iter().for_each(|fault| screen::complain(&fault.to_string()));
            return Ok(Err(ExitCode::FAILURE));
        }
    };
    let mut objects = Vec::new();
    for manifest in manifests.iter().rev() {
        let (api_version, kind) = (manifest.object.text("/apiVersion"), manifest.object.text("/kind"));
        // A kind that is not served has no objects, as after the definition was deleted.
        let Some(kind) = kinds.find(api_version, kind) else {
            screen::note(&format!(
                "{}: no {kind} in {api_version} is served: nothing to delete",
                manifest.place("/kind")
            ));
            continue;
        };
        let namespace = match manifest.object.namespace() {
            _ if !kind.is_namespaced() => "",
            "" => context.namespace(),
            own => own,
        };
        objects.push(Named {
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            name: manifest.object.name().to_owned(),
        });
    }
    Ok(Ok(objects))
}
