//! `virtsim wait`: until objects are as they should be.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::Value;

use super::follow::{Named, until};
use super::path_template::{ParseTemplateError, Template};
use super::patience::Patience;
use super::target::{Choice, chosen};
use super::{Context, describe, screen};
use crate::api::json::Json;
use crate::client::Client;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What is waited for: `pod/a`, or `pod a b`
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    words: Vec<String>,
    /// condition=NAME[=VALUE], delete, create, or jsonpath='{PATH}'[=VALUE]
    #[arg(long = "for", value_name = "WHAT")]
    wanted: Wanted,
    /// Longest time to wait
    #[arg(long, default_value = "30s", value_name = "TIME")]
    timeout: Patience,
    #[command(flatten)]
    choice: Choice,
}

/// How an object should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Condition { name: String, status: String },
    Deleted,
    Created,
    Path { template: Template, value: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ParseWantedError {
    #[error("{0:?} is not condition=NAME, delete, create or jsonpath='{{PATH}}'=VALUE")]
    Unknown(String),
    #[error(transparent)]
    Path(ParseTemplateError),
}

impl FromStr for Wanted {
    type Err = ParseWantedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text == "delete" => Ok(Wanted::Deleted),
            None if text == "create" => Ok(Wanted::Created),
            Some(("condition", rest)) if !rest.is_empty() => {
                let (name, status) = rest.split_once('=').unwrap_or((rest, "True"));
                Ok(Wanted::Condition { name: name.to_owned(), status: status.to_owned() })
            }
            Some(("jsonpath", rest)) if !rest.is_empty() => {
                // A filter in the braces may hold an equals sign, too.
                let (template, value) = match rest.rsplit_once("}=") {
                    Some((template, value)) => {
                        (format!("{template}}}"), Some(value.trim_matches(['"', '\'']).to_owned()))
                    }
                    None => (rest.to_owned(), None),
                };
                let template = template.parse().map_err(ParseWantedError::Path)?;
                Ok(Wanted::Path { template, value })
            }
            _ => Err(ParseWantedError::Unknown(text.to_owned())),
        }
    }
}

/// What an object's state means to one who waits.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    NotYet,
    /// It does not come any more.
    Never(String),
}

impl Wanted {
    fn judge(&self, object: Option<&Value>) -> Verdict {
        let reached = match (self, object) {
            (Wanted::Deleted, found) => found.is_none(),
            (_, None) => false,
            (Wanted::Created, Some(_)) => true,
            (Wanted::Condition { name, status }, Some(object)) => {
                let found = condition(object, name);
                if found.eq_ignore_ascii_case(status) {
                    return Verdict::Reached;
                }
                let phase = object.text("/status/phase");
                if name == "Ready" && status == "True" && ["Failed", "Succeeded"].contains(&phase) {
                    let why = [object.text("/status/reason"), object.text("/status/message")];
                    let why: Vec<_> = why.into_iter().filter(|word| !word.is_empty()).collect();
                    let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(": ")) };
                    return Verdict::Never(format!("has ended: its phase is {phase}{why}"));
                }
                false
            }
            (Wanted::Path { template, value: None }, Some(object)) => template.finds(object),
            (Wanted::Path { template, value: Some(value) }, Some(object)) => template.fill(object) == *value,
        };
        if reached { Verdict::Reached } else { Verdict::NotYet }
    }

    fn words(&self) -> String {
        match self {
            Wanted::Condition { name, status } if status == "True" => name.clone(),
            Wanted::Condition { name, status } => format!("{name}={status}"),
            Wanted::Deleted => "gone".to_owned(),
            Wanted::Created => "there".to_owned(),
            Wanted::Path { .. } => "as the path says".to_owned(),
        }
    }
}

fn condition<'a>(object: &'a Value, name: &str) -> &'a str {
    let conditions = object.items("/status/conditions");
    let found = conditions.iter().find(|condition| condition.text("/type").eq_ignore_ascii_case(name));
    found.map_or("", |condition| condition.text("/status"))
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Result<ExitCode> {
    let client = context.client()?;
    let deadline = arguments.timeout.deadline();
    let objects = chosen(context, &client, &client.kinds()?, &arguments.words, &arguments.choice)?;
    if objects.is_empty() {
        if arguments.wanted == Wanted::Deleted {
            return Ok(ExitCode::SUCCESS);
        }
        bail!("there is nothing to wait for: no such object exists");
    }
    let mut code = ExitCode::SUCCESS;
    for object in &objects {
        if let Err(why) = wait(&client, object, &arguments, deadline)? {
            screen::complain(&why);
            for line in describe::last_events(&client, object, 3)? {
                screen::note(&format!("  {line}"));
            }
            code = ExitCode::FAILURE;
        } else {
            screen::print(&format!("{} {}\n", object.shown(), met(&arguments.wanted)))?;
        }
    }
    Ok(code)
}

fn met(wanted: &Wanted) -> &'static str {
    match wanted {
        Wanted::Deleted => "deleted",
        _ => "condition met",
    }
}

fn wait(
    client: &Client,
    object: &Named,
    arguments: &Arguments,
    deadline: Instant,
) -> Result<Result<(), String>> {
    let wanted = &arguments.wanted;
    let shown = object.shown();
    let mut was_there = false;
    let outcome = until(client, object, deadline, |found| {
        let vanished = match found {
            None if matches!(wanted, Wanted::Deleted | Wanted::Created) => None,
            None if was_there => Some("was deleted meanwhile"),
            None => Some("does not exist"),
            Some(_) => {
                was_there = true;
                None
            }
        };
        Ok(match (vanished, wanted.judge(found)) {
            (Some(what), _) => Some(Err(format!("{shown} {what}"))),
            (None, Verdict::Reached) => Some(Ok(())),
            (None, Verdict::NotYet) => None,
            (None, Verdict::Never(why)) => Some(Err(format!("{shown} {why}"))),
        })
    })?;
    let late = || Err(format!("timed out: {shown} is not {} after {}", wanted.words(), arguments.timeout));
    Ok(outcome.unwrap_or_else(late))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(wanted: &str, object: Option<&Value>) -> Verdict {
        wanted.parse::<Wanted>().unwrap().judge(object)
    }

    #[test]
    fn conditions_paths_and_existence_are_judged() {
        let pod =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        for (wanted, verdict) in [
            ("condition=Ready", Verdict::Reached),
            ("condition=ready=true", Verdict::Reached),
            ("condition=Ready=False", Verdict::NotYet),
            ("condition=Other", Verdict::NotYet),
            ("jsonpath={.status.phase}=Running", Verdict::Reached),
            ("jsonpath={.status.phase}=Failed", Verdict::NotYet),
            ("jsonpath={.status.phase}", Verdict::Reached),
            ("jsonpath={.status.podIP}", Verdict::NotYet),
            (r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}=True"#, Verdict::Reached),
            ("delete", Verdict::NotYet),
            ("create", Verdict::Reached),
        ] {
            assert_eq!(judge(wanted, Some(&pod)), verdict, "{wanted}");
        }
        assert_eq!(judge("delete", None), Verdict::Reached);
        assert_eq!(judge("create", None), Verdict::NotYet);
    }

    #[test]
    fn a_pod_that_has_ended_is_not_waited_for() {
        let pod = json!({"status": {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"}});
        let Verdict::Never(why) = judge("condition=Ready", Some(&pod)) else { panic!("waits for ever") };
        assert_eq!(why, "has ended: its phase is Failed (UnexpectedAdmissionError: no device)");
        assert_eq!(judge("condition=Ready=False", Some(&pod)), Verdict::NotYet);
    }

    #[test]
    fn what_cannot_be_waited_for_is_refused() {
        for text in ["", "Ready", "condition=", "jsonpath=", "jsonpath={.a", "deleted"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }
}
