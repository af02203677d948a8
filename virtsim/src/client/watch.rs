//! The stream of changes that a watch is: one JSON object after the other.

use std::io::{BufRead, BufReader};

use serde_json::Value;

use super::Error;
use crate::api::json::Json;

/// What happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is new, or was there when the watch began.
    Added(Value),
    /// It is now so.
    Modified(Value),
    /// It is gone; this is its last state.
    Deleted(Value),
}

impl Change {
    /// The object.
    #[must_use]
    pub fn object(&self) -> &Value {
        match self {
            Change::Added(object) | Change::Modified(object) | Change::Deleted(object) => object,
        }
    }
}

/// Changes as they come. Ends when the server ends the watch.
pub struct Watch {
    path: String,
    lines: BufReader<ureq::BodyReader<'static>>,
}

impl Watch {
    pub(super) fn new(path: String, body: ureq::BodyReader<'static>) -> Self {
        Watch { path, lines: BufReader::new(body) }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Iterator for Watch {
    type Item = Result<Change, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = String::new();
            match self.lines.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim().is_empty() => {}
                Ok(_) => match change(&line) {
                    Ok(Some(change)) => return Some(Ok(change)),
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                },
                Err(source) => return Some(Err(Error::Watch { path: self.path.clone(), source })),
            }
        }
    }
}

fn change(line: &str) -> Result<Option<Change>, Error> {
    let mut event: Value = serde_json::from_str(line).unwrap_or_default();
    let object = event.take_out("/object").unwrap_or_default();
    match event.text("/type") {
        "ADDED" => Ok(Some(Change::Added(object))),
        "MODIFIED" => Ok(Some(Change::Modified(object))),
        "DELETED" => Ok(Some(Change::Deleted(object))),
        "ERROR" => Err(Error::Refused {
            code: object.integer("/code").and_then(|code| u16::try_from(code).ok()).unwrap_or(500),
            reason: object.text("/reason").to_owned(),
            message: object.text("/message").to_owned(),
        }),
        // Bookmarks, and what later versions may add.
        _ => Ok(None),
    }
}
