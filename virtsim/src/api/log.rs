//! `pods/NAME/log`: what a container wrote, and what it writes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::json::Json;
use super::rest::Logs;
use super::service::Api;

/// How often a file that is followed is looked at: nothing tells when an ordinary file grows.
const LOOK: Duration = Duration::from_millis(100);

/// What is wanted of a log.
pub(crate) struct Manner {
    /// Goes on until the pod is gone.
    pub(crate) follow: bool,
    /// Only so many of its last lines.
    pub(crate) tail: Option<u64>,
}

/// The log of a pod's container; of its only one, where none is named.
pub(crate) fn file(pod: &Value, container: &str, logs: &dyn Logs) -> Result<PathBuf, Error> {
    let containers = || pod.items("/spec/initContainers").iter().chain(pod.items("/spec/containers"));
    let names: Vec<_> = containers().map(|container| container.text("/name")).collect();
    let name = match (container, names.as_slice()) {
        ("", [only]) => *only,
        ("", _) => {
            let message = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                names.join(" ")
            );
            return Err(Error::BadRequest(message));
        }
        (name, names) if names.contains(&name) => name,
        (name, _) => {
            return Err(Error::BadRequest(format!("container {name} is not valid for pod {}", pod.name())));
        }
    };
    let file = logs.of(pod, name);
    if file.exists() {
        return Ok(file);
    }
    Err(Error::BadRequest(format!("container {name:?} in pod {:?} is waiting to start", pod.name())))
}

/// Sends the log, and what is added to it, until the pod is gone, the client leaves, or `stop`.
pub(crate) async fn stream(
    api: Api,
    pod: Arc<Value>,
    path: PathBuf,
    manner: Manner,
    chunks: mpsc::Sender<Vec<u8>>,
    stop: CancellationToken,
) {
    let Ok(mut file) = tokio::fs::File::open(&path).await else { return };
    if let Some(lines) = manner.tail {
        let Ok(text) = tokio::fs::read(&path).await else { return };
        let from = u64::try_from(last_lines(&text, lines)).unwrap_or_default();
        if file.seek(std::io::SeekFrom::Start(from)).await.is_err() {
            return;
        }
    }
    let mut gone = false;
    loop {
        let mut chunk = vec![0; 32 << 10];
        match file.read(&mut chunk).await {
            Ok(0) if !manner.follow || gone => return,
            Ok(0) => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = chunks.closed() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                // Once more around, for what was written last.
                gone = is_gone(&api, &pod).await;
            }
            Ok(length) => {
                chunk.truncate(length);
                if chunks.send(chunk).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

async fn is_gone(api: &Api, pod: &Arc<Value>) -> bool {
    let (namespace, name, uid) = (pod.namespace().to_owned(), pod.name().to_owned(), pod.uid().to_owned());
    let now = api.run(move |store| Ok(store.core("pods", &namespace, &name))).await.ok().flatten();
    now.is_none_or(|now| now.uid() != uid || ["Succeeded", "Failed"].contains(&now.text("/status/phase")))
}

/// Where the last `lines` lines begin.
fn last_lines(text: &[u8], lines: u64) -> usize {
    if lines == 0 {
        return text.len();
    }
    let mut left = lines;
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    for (index, _) in ends {
        // The end of the last line begins no other.
        if index + 1 == text.len() {
            continue;
        }
        left = left.saturating_sub(1);
        if left == 0 {
            return index + 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let tail = |lines| {
            std::str::from_utf8(&b"one\ntwo\nthree\n"[last_lines(b"one\ntwo\nthree\n", lines)..]).unwrap()
        };
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "three\n");
        assert_eq!(tail(2), "two\nthree\n");
        assert_eq!(tail(9), "one\ntwo\nthree\n");
        assert_eq!(last_lines(b"one\ntwo", 1), 4);
        assert_eq!(last_lines(b"", 5), 0);
    }
}
