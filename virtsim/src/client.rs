//! A blocking client of the node's API server: plain HTTP, JSON in and out, nothing but what the commands need.

mod discovery;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use ureq::http::Method;

pub use self::discovery::Kinds;
pub use self::watch::{Change, Watch};
use crate::api::json::Json;
use crate::api::kinds::Kind;

/// Larger than any list of a node's objects.
const LARGEST: u64 = 256 << 20;
/// An API server on the same machine answers at once, or not at all.
const DEADLINE: Duration = Duration::from_secs(30);

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A connection to one API server.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    server: String,
}

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no kubeconfig: no node has been started here.
    #[error("no virtsim runs in {}: start one with `virtsim up`", dir.display())]
    NoNode {
        /// Where the kubeconfig should be.
        dir: PathBuf,
    },
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {} cannot be used: {why}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answered.
    #[error(
        "the API server at {server} does not answer: see `virtsim status`, or start a node with `virtsim up`"
    )]
    Call {
        /// Its address.
        server: String,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The answer is an error; its own words are passed on.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// `metav1.StatusReason`.
        reason: String,
        /// The server's words.
        message: String,
    },
    /// The answer is not JSON.
    #[error("the API server at {server} answered {path} with something else than JSON: is it a virtsim?")]
    Answer {
        /// Its address.
        server: String,
        /// What was asked.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A watch broke off.
    #[error("the watch of {path} broke off")]
    Watch {
        /// What was watched.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the object does not exist (any more).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused { code: 404, .. })
    }

    /// Whether a watch must begin anew with a list.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        matches!(self, Error::Refused { code: 410, .. })
    }
}

impl Client {
    /// A client of the server at `http://HOST:PORT`.
    #[must_use]
    pub fn at(server: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(DEADLINE))
            .timeout_recv_response(Some(DEADLINE))
            // A proxy of the environment is not between us and this machine.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Client { agent: config.into(), server: server.trim_end_matches('/').to_owned() }
    }

    /// A client of the node in `dir`, or of the server that `kubeconfig` names.
    ///
    /// # Errors
    /// When there is no such file, or it does not name a server over plain HTTP.
    pub fn of_node(dir: &Path, kubeconfig: Option<&Path>) -> Result<Self, Error> {
        let path = kubeconfig.map_or_else(|| crate::options::kubeconfig(dir), Path::to_owned);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && kubeconfig.is_none() => {
                return Err(Error::NoNode { dir: dir.to_owned() });
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let why = "it belongs to whoever started the node: run this as them (`sudo virtsim ...`)"
                    .to_owned();
                return Err(Error::Kubeconfig { path, why });
            }
            Err(error) => return Err(Error::Kubeconfig { path, why: error.to_string() }),
            Ok(text) => text,
        };
        match server_of(&text) {
            Ok(server) => Ok(Client::at(&server)),
            Err(why) => Err(Error::Kubeconfig { path, why }),
        }
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, JSON, None)
    }

    /// Reads an object or a list as a `meta.k8s.io/v1` Table: what people are shown.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn table(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, TABLE, None)
    }

    /// Reads an object; none where it does not exist.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn find(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.get(path) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an object in the collection at `path`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.call(Method::POST, path, JSON, Some((JSON, object)))
    }

    /// Changes an object by a merge patch (RFC 7396), which every kind understands.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        self.call(Method::PATCH, path, JSON, Some((MERGE_PATCH, patch)))
    }

    /// Deletes an object; what comes back is the object or a `Status`. `grace`: seconds that its processes get to end.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&self, path: &str, grace: Option<u64>) -> Result<Value, Error> {
        let query = grace.map(|seconds| format!("?gracePeriodSeconds={seconds}")).unwrap_or_default();
        self.call(Method::DELETE, &format!("{path}{query}"), JSON, None)
    }

    /// Follows a collection from a resourceVersion on. `query` may select (`fieldSelector=...`).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn watch(&self, path: &str, query: &str, resource_version: &str) -> Result<Watch, Error> {
        self.follow(path, query, resource_version, JSON)
    }

    /// Like [`Client::watch`], with a Table of one row for each object.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn watch_table(&self, path: &str, query: &str, resource_version: &str) -> Result<Watch, Error> {
        self.follow(path, query, resource_version, TABLE)
    }

    fn follow(&self, path: &str, query: &str, resource_version: &str, accept: &str) -> Result<Watch, Error> {
        let separator = if query.is_empty() { "" } else { "&" };
        let path = format!("{path}?watch=true&resourceVersion={resource_version}{separator}{query}");
        let response = self.send(Method::GET, &path, accept, None)?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        Ok(Watch::new(path, response.into_body().into_reader()))
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, Error> {
        let mut response = self.send(method, path, accept, body)?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        let body = response.body_mut().with_config().limit(LARGEST).read_to_vec();
        let body = body.map_err(|source| self.unanswered(source))?;
        serde_json::from_slice(&body).map_err(|source| Error::Answer {
            server: self.server.clone(),
            path: path.to_owned(),
            source,
        })
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<ureq::http::Response<ureq::Body>, Error> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header("accept", accept);
        let sent = match body {
            Some((content_type, value)) => request
                .header("content-type", content_type)
                .body(value.to_string())
                .map_err(ureq::Error::from)
                .and_then(|request| self.agent.run(request)),
            None => request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request)),
        };
        sent.map_err(|source| self.unanswered(source))
    }

    fn unanswered(&self, source: ureq::Error) -> Error {
        Error::Call { server: self.server.clone(), source: Box::new(source) }
    }

    /// The `Status` object of a refusal, as an error.
    fn refused(&self, mut response: ureq::http::Response<ureq::Body>) -> Error {
        let code = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LARGEST).read_to_vec().unwrap_or_default();
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = match status.text("/message") {
            "" => format!("the API server at {} answered with HTTP status {code}", self.server),
            message => message.to_owned(),
        };
        Error::Refused { code, reason: status.text("/reason").to_owned(), message }
    }
}

/// The path of a collection: of one namespace, or of all where there is none (or the kind has none).
#[must_use]
pub fn collection(kind: &Kind, namespace: Option<&str>) -> String {
    let version = kind.api_version();
    let root = if kind.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{version}") };
    match namespace.filter(|_| kind.is_namespaced()) {
        Some(namespace) => format!("{root}/namespaces/{}/{}", segment(namespace), kind.plural),
        None => format!("{root}/{}", kind.plural),
    }
}

/// The path of an object.
#[must_use]
pub fn object(kind: &Kind, namespace: &str, name: &str) -> String {
    format!("{}/{}", collection(kind, Some(namespace)), segment(name))
}

/// What somebody typed, as one segment of a path or one value of a query.
#[must_use]
pub fn segment(text: &str) -> String {
    let only_dots = text.bytes().all(|b| b == b'.');
    text.bytes().fold(String::new(), |mut escaped, b| {
        if b.is_ascii_alphanumeric() || (b"-_.~".contains(&b) && !only_dots) {
            escaped.push(char::from(b));
        } else {
            escaped.push_str(&format!("%{b:02X}"));
        }
        escaped
    })
}

/// The server of a kubeconfig's current context.
fn server_of(text: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(rename = "current-context", default)]
        current: String,
        #[serde(default)]
        contexts: Vec<NamedContext>,
        #[serde(default)]
        clusters: Vec<NamedCluster>,
    }
    #[derive(Deserialize)]
    struct NamedContext {
        name: String,
        context: Context,
    }
    #[derive(Deserialize)]
    struct Context {
        cluster: String,
    }
    #[derive(Deserialize)]
    struct NamedCluster {
        name: String,
        cluster: Cluster,
    }
    #[derive(Deserialize)]
    struct Cluster {
        server: String,
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| first_line(&error.to_string()))?;
    let context = match file.contexts.as_slice() {
        [only] if file.current.is_empty() => Some(only),
        contexts => contexts.iter().find(|context| context.name == file.current),
    };
    let context = context.ok_or_else(|| format!("it has no context {:?}", file.current))?;
    let wanted = &context.context.cluster;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == *wanted);
    let server = cluster.ok_or_else(|| format!("it has no cluster {wanted:?}"))?.cluster.server;
    if server.starts_with("http://") {
        return Ok(server);
    }
    Err(format!(
        "server {server:?} is not http://: only a virtsim node is spoken to, use kubectl for a cluster"
    ))
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests;
