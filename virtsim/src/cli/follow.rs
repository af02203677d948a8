//! Waiting for an object to become as it should be: by the API's watch, never by asking again and again.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::api::json::Json;
use crate::api::kinds::Kind;
use crate::client::{self, Change, Client};

/// One object of the cluster, by name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    pub(super) kind: Kind,
    /// "" for an object of the cluster.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Named {
    pub(super) fn path(&self) -> String {
        client::object(&self.kind, &self.namespace, &self.name)
    }

    /// `pod/a`.
    pub(super) fn shown(&self) -> String {
        super::target::shown(&self.kind, &self.name)
    }

    fn collection(&self) -> String {
        client::collection(&self.kind, Some(&self.namespace))
    }

    fn query(&self) -> String {
        format!("fieldSelector=metadata.name%3D{}", client::segment(&self.name))
    }
}

/// Shows `judge` the object (none where it does not exist), now and after each change, until it gives an answer.
/// None when the deadline passes before.
pub(super) fn until<T>(
    client: &Client,
    named: &Named,
    deadline: Instant,
    mut judge: impl FnMut(Option<&Value>) -> Result<Option<T>>,
) -> Result<Option<T>> {
    loop {
        let list = match client.get(&format!("{}?{}", named.collection(), named.query())) {
            Ok(list) => list,
            // With its definition a kind goes, and all its objects.
            Err(error) if error.is_not_found() => return judge(None),
            Err(error) => return Err(error.into()),
        };
        if let Some(answer) = judge(list.items("/items").first())? {
            return Ok(Some(answer));
        }
        let Some(changes) = changes(client, named, list.text("/metadata/resourceVersion"), deadline)? else {
            return Ok(None);
        };
        loop {
            let answer = match changes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(Change::Deleted(_))) => judge(None)?,
                Ok(Ok(change)) => judge(Some(change.object()))?,
                Ok(Err(error)) if error.is_expired() => break,
                Ok(Err(error)) => return Err(error.into()),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                // The server ended the watch: begin anew.
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }
}

/// The changes of the object, read by a thread of its own, so that one can stop waiting for them; none after the deadline.
fn changes(
    client: &Client,
    named: &Named,
    version: &str,
    deadline: Instant,
) -> Result<Option<Receiver<Result<Change, client::Error>>>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    // The server ends the watch, and with it the thread, soon after nobody waits any more.
    let query = format!("{}&timeoutSeconds={}", named.query(), left.as_secs().saturating_add(1));
    let watch = client.watch(&named.collection(), &query, version)?;
    let (sender, receiver) = channel();
    let read = move || {
        for change in watch {
            if sender.send(change).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("watch".to_owned()).spawn(read).context("no thread can be started")?;
    Ok(Some(receiver))
}
