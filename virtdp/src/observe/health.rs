//! Alive and ready: what holds and what does not, in words.
//!
//! Alive: the tasks do what they are for. Ready: pods can be given NICs; that turns false again when it is no longer so. Asked by
//! HTTP (`/healthz`, `/readyz`) on the address of `--listen`, and always on the agent's own socket in the kubelet's folder, so that
//! `virtdp probe` needs no port.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, Response, StatusCode};
use kubelet_api::tonic;
use kubelet_api::tonic::service::{AxumBody, Routes};
use tokio::time::timeout;
use tower::{ServiceExt as _, service_fn};

use super::{View, plain};
use crate::discover::{RESYNC, Sight};

/// The node is looked at every [`RESYNC`]; who has not looked for so long hangs.
const LOOKED_WITHIN: Duration = RESYNC.saturating_mul(3);
/// The desk has nothing to wait for.
const DESK_WITHIN: Duration = Duration::from_secs(1);
/// The paths that are answered on the agent's own socket.
const PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// An answer has a line for each pool.
const LARGEST: usize = 64 * 1024;

/// What holds, and what does not.
#[derive(Debug, Default)]
pub(super) struct Verdict(Vec<Result<String, String>>);

impl Verdict {
    fn of(conditions: impl IntoIterator<Item = Result<String, String>>) -> Self {
        Verdict(conditions.into_iter().collect())
    }

    fn good(&self) -> bool {
        self.0.iter().all(Result::is_ok)
    }

    /// One line for each condition, after one for the whole.
    fn text(&self) -> String {
        let mut text = if self.good() { "ok\n" } else { "not ok\n" }.to_owned();
        for condition in &self.0 {
            let (mark, words) = match condition {
                Ok(words) => ("+", words),
                Err(words) => ("-", words),
            };
            text.push_str(&format!("[{mark}] {}\n", words.replace('\n', "\\n")));
        }
        text
    }

    pub(super) fn answer(&self) -> Response<String> {
        let status = if self.good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        plain(status, self.text())
    }
}

impl View {
    /// Whether the tasks do what they are for.
    pub(super) async fn healthz(&self) -> Verdict {
        Verdict::of([self.looks(), self.desk_answers().await])
    }

    /// Whether pods can be given NICs.
    pub(super) async fn readyz(&self) -> Verdict {
        let alive = [self.looks(), self.desk_answers().await, self.sees(), self.configured()];
        let pools = self.0.metrics.pools();
        let registered = pools.into_iter().map(|(resource, state)| match state.registration {
            Ok(()) => Ok(format!("{resource} is registered with the kubelet")),
            Err(why) => Err(format!("{resource} is not registered: {why}")),
        });
        let mut verdict = Verdict::of(alive.into_iter().chain(registered));
        if self.0.metrics.pools().is_empty() {
            verdict.0.push(Err("nothing is registered with the kubelet yet".to_owned()));
        }
        verdict
    }

    fn looks(&self) -> Result<String, String> {
        let last = self.0.metrics.last_look().map_or(self.0.started, |look| look.at);
        let since = last.elapsed();
        if since <= LOOKED_WITHIN {
            Ok(format!("the node was looked at {} s ago", since.as_secs()))
        } else {
            Err(format!("the node was not looked at for {} s", since.as_secs()))
        }
    }

    async fn desk_answers(&self) -> Result<String, String> {
        // To give nothing is no allocation; whatever the answer is, there is one.
        let Some(resource) = self.0.metrics.pools().into_keys().next() else {
            return Ok("there is nothing to allocate yet".to_owned());
        };
        match timeout(DESK_WITHIN, self.0.desk.allocate(resource, Vec::new())).await {
            Ok(Ok(_)) => Ok("allocations are answered".to_owned()),
            Ok(Err(_)) => Err("the agent stops".to_owned()),
            Err(_) => Err(format!("allocations are not answered within {} ms", DESK_WITHIN.as_millis())),
        }
    }

    fn configured(&self) -> Result<String, String> {
        match &*self.0.configured.borrow() {
            Ok(()) => Ok("the configuration is in force".to_owned()),
            Err(why) => Err(format!("the configuration is bad, what was in force stays in force: {why}")),
        }
    }

    fn sees(&self) -> Result<String, String> {
        match &*self.0.sight.borrow() {
            Sight::Clear(_) => Ok("the node can be read".to_owned()),
            Sight::Blind(why) => Err(format!("the node cannot be read: {why}")),
            Sight::Unknown => Err("the node was not looked at yet".to_owned()),
        }
    }

    /// Answers for the agent's health on a gRPC server of ours, too: HTTP/2, GET, plain text.
    pub(crate) fn beside(&self, mut routes: Routes) -> Routes {
        for path in PATHS {
            let view = self.clone();
            let service = service_fn(move |request: Request<AxumBody>| {
                let view = view.clone();
                async move { Ok::<_, Infallible>(view.answer(request.method(), request.uri().path()).await) }
            });
            let router = std::mem::take(routes.axum_router_mut());
            *routes.axum_router_mut() = router.route_service(path, service);
        }
        routes
    }
}

/// Asks the agent that serves `socket` at `path`; the error is its answer in words.
///
/// # Errors
/// It does not answer within `patience`, or not that all is well.
pub(crate) async fn probe(socket: &Path, path: &'static str, patience: Duration) -> Result<()> {
    let channel = kubelet_api::connect(socket, kubelet_api::LOCALHOST, patience).await?;
    let mut request = Request::new(tonic::body::Body::empty());
    *request.uri_mut() = hyper::Uri::from_static(path);
    let response = channel.oneshot(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("its answer cannot be read")?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    // What speaks gRPC only answers anything with 200, and nothing.
    if status == StatusCode::OK && text.starts_with("ok") {
        return Ok(());
    }
    let failed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("[-] ")).collect();
    if failed.is_empty() {
        bail!("it answers {path} with {status}, and no reason");
    }
    bail!("{}", failed.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_good_when_all_of_it_is_and_each_condition_has_one_line() {
        assert_eq!(Verdict::default().text(), "ok\n");
        let verdict = Verdict::of([Ok("a".to_owned()), Err("b\nc".to_owned())]);
        assert_eq!(verdict.text(), "not ok\n[+] a\n[-] b\\nc\n");
        assert_eq!(verdict.answer().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(Verdict::of([Ok("a".to_owned())]).answer().status(), StatusCode::OK);
    }
}
