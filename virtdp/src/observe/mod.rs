//! Seen from outside: metrics, health, and Events on pods.
//!
//! Nothing here has a clock of its own. State is read from its owners' `watch` channels when somebody asks, so an agent that nobody
//! asks does nothing for it.

mod events;
mod exposition;
mod health;
mod http;
mod metrics;

use std::sync::Arc;

use hyper::{Method, Response, StatusCode, header};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::advertise::{Desk, Lists};
use crate::configure::InForce;
use crate::discover::Sight;

pub(crate) use self::events::{Credentials, tell};
pub(crate) use self::health::probe;
pub(crate) use self::http::{Listen, serve};
pub(crate) use self::metrics::Metrics;

/// What the metrics are written in, <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// All that can be seen of a running agent.
#[derive(Clone)]
pub(crate) struct View(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    registry: Registry,
    sight: watch::Receiver<Sight>,
    desk: Desk,
    configured: watch::Receiver<InForce>,
    started: Instant,
}

impl View {
    pub(crate) fn new(
        metrics: Metrics,
        sight: watch::Receiver<Sight>,
        lists: watch::Receiver<Lists>,
        desk: Desk,
        configured: watch::Receiver<InForce>,
    ) -> Self {
        let registry = exposition::registry(&metrics, sight.clone(), lists, configured.clone());
        View(Arc::new(Inner { metrics, registry, sight, desk, configured, started: Instant::now() }))
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Answers a request, whichever socket it came by.
    async fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        }
        match path {
            "/metrics" => self.exposition(),
            "/healthz" => self.healthz().await.answer(),
            "/readyz" => self.readyz().await.answer(),
            _ => plain(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz\n".to_owned()),
        }
    }

    fn exposition(&self) -> Response<String> {
        let mut text = String::new();
        match text::encode(&mut text, &self.0.registry) {
            Ok(()) => response(StatusCode::OK, OPEN_METRICS, text),
            // Writing to a String does not fail, but a value may not be one that can be written.
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<String> {
    response(status, TEXT, text)
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
