//! One blocking call to the API server, for programs that ask a single question.
//!
//! Every call has a deadline for all of it: names resolved, connection made, TLS agreed upon, answer read.

mod kubeconfig;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, StatusCode};
use ureq::tls::TlsConfig;

use self::kubeconfig::{Kubeconfig, Token};
use crate::{Label, NetworkAttachmentDefinition, Pod};

/// The largest object that is read: what etcd would take.
const LARGEST: u64 = 2 << 20;

/// A client with the credentials of a kubeconfig.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    server: String,
    token: Option<Token>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that is needed cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {} cannot be used: {why}", path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong or missing in it.
        why: String,
    },
    /// There was no answer.
    #[error("API server {server} did not answer the question for {what}")]
    Call {
        /// Its address.
        server: String,
        /// What was asked for: `pod default/testpod1`.
        what: String,
        /// Why: connection refused, deadline, TLS.
        #[source]
        source: Box<ureq::Error>,
    },
    /// There is no such object.
    #[error("API server {server} knows no {what}")]
    NotFound {
        /// Its address.
        server: String,
        /// What was asked for.
        what: String,
    },
    /// The answer is an error.
    #[error("API server {server} refused the question for {what}: {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// Its address.
        server: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Its own words.
        message: String,
    },
    /// The answer is not the object.
    #[error("API server {server} answered the question for {what} with something else")]
    Answer {
        /// Its address.
        server: String,
        /// What was asked for.
        what: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// Whether the same question may have an answer later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Call { .. } => true,
            Error::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// The URL of the API server of a kubeconfig's current context.
///
/// # Errors
/// The kubeconfig cannot be read, or names none.
pub fn server(kubeconfig: &Path) -> Result<String, Error> {
    kubeconfig::server(kubeconfig)
}

impl Client {
    /// A client for the current context of a kubeconfig; each call ends within `deadline`.
    ///
    /// # Errors
    /// When the kubeconfig or a file that it names cannot be read, or it asks for what is not supported (`exec`, passwords).
    pub fn from_kubeconfig(path: &Path, deadline: Duration) -> Result<Client, Error> {
        Ok(Client::with(Kubeconfig::load(path)?, deadline))
    }

    /// A client with what a pod has of its service account: a certificate authority, and a token that is read for each call.
    ///
    /// # Errors
    /// When the authority's file cannot be read.
    pub fn from_service_account(server: &str, folder: &Path, deadline: Duration) -> Result<Client, Error> {
        Ok(Client::with(Kubeconfig::of_service_account(server, folder)?, deadline))
    }

    fn with(kubeconfig: Kubeconfig, deadline: Duration) -> Client {
        let tls = TlsConfig::builder()
            .client_cert(kubeconfig.client_certificate)
            .disable_verification(kubeconfig.insecure);
        let tls = match kubeconfig.roots {
            Some(roots) => tls.root_certs(roots),
            None => tls,
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(deadline))
            // A proxy of the environment is not between a node and its API server.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .tls_config(tls.build())
            .build();
        Client { agent: config.into(), server: kubeconfig.server, token: kubeconfig.token }
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A pod.
    ///
    /// # Errors
    /// When there is no answer, or it is not a pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod, Error> {
        // A pod's name may have dots, a label has none; neither has what would end a segment of a path.
        let path = format!("/api/v1/namespaces/{}/pods/{}", segment(namespace), segment(name));
        self.get(&path, format!("pod {namespace}/{name}"))
    }

    /// A network.
    ///
    /// # Errors
    /// When there is no answer, or it is not a network.
    pub fn network_attachment_definition(
        &self,
        namespace: &Label,
        name: &Label,
    ) -> Result<NetworkAttachmentDefinition, Error> {
        let path =
            format!("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}");
        self.get(&path, format!("NetworkAttachmentDefinition {namespace}/{name}"))
    }

    fn get<T: DeserializeOwned>(&self, path: &str, what: String) -> Result<T, Error> {
        let (status, body) = self.call(Method::GET, path, None, &what)?;
        match status {
            StatusCode::OK => {
                let server = self.server.clone();
                serde_json::from_slice(&body).map_err(|source| Error::Answer { server, what, source })
            }
            status => Err(self.refused(status, &body, what)),
        }
    }

    /// One call; the answer, whatever it is.
    pub(crate) fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        what: &str,
    ) -> Result<(StatusCode, Vec<u8>), Error> {
        let failed = |source| Error::Call {
            server: self.server.clone(),
            what: what.to_owned(),
            source: Box::new(source),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.read()?));
        }
        let called = match body {
            None => request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request)),
            Some(body) => request
                .header("content-type", "application/json")
                .body(body)
                .map_err(ureq::Error::from)
                .and_then(|request| self.agent.run(request)),
        };
        let mut response = called.map_err(failed)?;
        let body = response.body_mut().with_config().limit(LARGEST).read_to_vec();
        Ok((response.status(), body.map_err(failed)?))
    }

    /// The error that an answer is.
    pub(crate) fn refused(&self, status: StatusCode, body: &[u8], what: String) -> Error {
        let server = self.server.clone();
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { server, what },
            status => Error::Refused { server, what, status: status.as_u16(), message: message(body) },
        }
    }
}

/// The message of a `Status` object, shortened.
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Status {
        #[serde(default)]
        message: String,
    }
    let text = serde_json::from_slice::<Status>(body).map(|status| status.message).unwrap_or_default();
    text.chars().take(300).collect()
}

/// Escapes what cannot stand in a segment of a path. Names of pods pass as they are.
pub(crate) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, b| {
        if b.is_ascii_alphanumeric() || (b"-_.~".contains(&b) && !text.trim_matches('.').is_empty()) {
            escaped.push(char::from(b));
        } else {
            escaped.push_str(&format!("%{b:02X}"));
        }
        escaped
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LARGEST).read_to_end(&mut bytes))
        .map_err(|source| Error::File { path: path.to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
