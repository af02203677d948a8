//! The parts of a kubeconfig that a program on a node needs.
//!
//! <https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, parse_pem};

use super::{Error, read};

/// What the current context of a kubeconfig says.
pub(super) struct Kubeconfig {
    pub(super) server: String,
    /// None: those that web browsers trust.
    pub(super) roots: Option<RootCerts>,
    pub(super) insecure: bool,
    pub(super) token: Option<Token>,
    pub(super) client_certificate: Option<ClientCert>,
}

/// Who we are. A file is read for each call, since the kubelet renews it.
pub(super) enum Token {
    Text(String),
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    pub(super) fn read(&self) -> Result<String, Error> {
        match self {
            Token::Text(text) => Ok(text.clone()),
            Token::File(path) => Ok(String::from_utf8_lossy(&read(path)?).trim().to_owned()),
        }
    }
}

// A kubeconfig is shared with other programs, so keys that are not known here are theirs.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "current-context", default)]
    current: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(default)]
    certificate_authority: Option<PathBuf>,
    #[serde(default)]
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    #[serde(default)]
    token: Option<String>,
    #[serde(default, rename = "tokenFile")]
    token_file: Option<PathBuf>,
    #[serde(default)]
    client_certificate: Option<PathBuf>,
    #[serde(default)]
    client_certificate_data: Option<String>,
    #[serde(default)]
    client_key: Option<PathBuf>,
    #[serde(default)]
    client_key_data: Option<String>,
    #[serde(default)]
    exec: Option<serde_json::Value>,
    #[serde(default, rename = "auth-provider")]
    auth_provider: Option<serde_json::Value>,
    #[serde(default)]
    username: Option<String>,
}

impl Kubeconfig {
    pub(super) fn load(path: &Path) -> Result<Kubeconfig, Error> {
        let (cluster, user) = current(path)?;
        Files { kubeconfig: path }.assemble(cluster, user)
    }
}

/// The URL of the API server alone, whatever the credentials are.
pub(super) fn server(path: &Path) -> Result<String, Error> {
    current(path).map(|(cluster, _)| cluster.server)
}

/// The cluster and the user of the current context.
fn current(path: &Path) -> Result<(Cluster, User), Error> {
    let bytes = read(path)?;
    let unusable = |why: String| Error::Kubeconfig { path: path.to_owned(), why };
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is not UTF-8".to_owned()))?;
    let file: File = serde_saphyr::from_str(&text).map_err(|error| unusable(brief(&error)))?;
    // kubectl insists on a current context; where there is one only, it cannot be another.
    let context = match file.contexts.as_slice() {
        [only] if file.current.is_empty() => Some(only),
        contexts => contexts.iter().find(|context| context.name == file.current),
    };
    let context = context.ok_or_else(|| unusable(format!("it has no context {:?}", file.current)))?;
    let Context { cluster, user } = &context.context;
    let found = file.clusters.into_iter().find(|found| found.name == *cluster);
    let found = found.ok_or_else(|| unusable(format!("it has no cluster {cluster:?}")))?;
    let known = file.users.into_iter().find(|known| known.name == *user);
    if known.is_none() && !user.is_empty() {
        return Err(unusable(format!("it has no user {user:?}")));
    }
    let user = known.and_then(|known| known.user).unwrap_or_default();
    Ok((found.cluster, user))
}

/// The names of the files in the folder of a service account.
const AUTHORITY: &str = "ca.crt";
const TOKEN: &str = "token";

impl Kubeconfig {
    pub(super) fn of_service_account(server: &str, folder: &Path) -> Result<Kubeconfig, Error> {
        let path = folder.join(AUTHORITY);
        let certificates =
            Files { kubeconfig: &path }.certificates("certificate-authority", &read(&path)?)?;
        Ok(Kubeconfig {
            server: server.to_owned(),
            roots: Some(RootCerts::from(certificates.into_iter())),
            insecure: false,
            token: Some(Token::File(folder.join(TOKEN))),
            client_certificate: None,
        })
    }
}

/// Files that a kubeconfig names are relative to its folder.
struct Files<'a> {
    kubeconfig: &'a Path,
}

impl Files<'_> {
    fn assemble(&self, cluster: Cluster, user: User) -> Result<Kubeconfig, Error> {
        let server = cluster.server.trim_end_matches('/');
        if !server.starts_with("https://") && !server.starts_with("http://") {
            return Err(self.unusable(format!("server {server:?} is neither https:// nor http://")));
        }
        if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
            return Err(self.unusable("only tokens and client certificates are supported".to_owned()));
        }
        let authority = self.content(
            "certificate-authority",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
        )?;
        let token = match (user.token, user.token_file) {
            // As kubectl does: the file, since it is renewed.
            (_, Some(file)) => Some(Token::File(self.beside(&file))),
            (Some(token), None) => Some(Token::Text(token)),
            (None, None) => None,
        };
        Ok(Kubeconfig {
            server: server.to_owned(),
            roots: authority
                .map(|pem| self.certificates("certificate-authority", &pem))
                .transpose()?
                .map(|certificates| RootCerts::from(certificates.into_iter())),
            insecure: cluster.insecure_skip_tls_verify,
            token,
            client_certificate: self.client_certificate(
                self.content("client-certificate", user.client_certificate_data, user.client_certificate)?,
                self.content("client-key", user.client_key_data, user.client_key)?,
            )?,
        })
    }

    fn client_certificate(
        &self,
        certificate: Option<Vec<u8>>,
        key: Option<Vec<u8>>,
    ) -> Result<Option<ClientCert>, Error> {
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                let chain = self.certificates("client-certificate", &certificate)?;
                let key = PrivateKey::from_pem(&key)
                    .map_err(|error| self.unusable(format!("client-key: {error}")))?;
                Ok(Some(ClientCert::new_with_certs(&chain, key)))
            }
            _ => Err(self.unusable("client-certificate and client-key need each other".to_owned())),
        }
    }

    fn certificates(&self, key: &str, pem: &[u8]) -> Result<Vec<Certificate<'static>>, Error> {
        let mut certificates = Vec::new();
        for item in parse_pem(pem) {
            if let PemItem::Certificate(certificate) =
                item.map_err(|error| self.unusable(format!("{key}: {error}")))?
            {
                certificates.push(certificate);
            }
        }
        // An empty list would trust nobody, or, worse, be taken for none.
        if certificates.is_empty() {
            return Err(self.unusable(format!("{key}: there is no certificate in it")));
        }
        Ok(certificates)
    }

    /// What stands in the kubeconfig itself, else in the file that it names.
    fn content(
        &self,
        key: &str,
        data: Option<String>,
        file: Option<PathBuf>,
    ) -> Result<Option<Vec<u8>>, Error> {
        match (data.filter(|data| !data.is_empty()), file.filter(|file| !file.as_os_str().is_empty())) {
            (Some(data), _) => BASE64_STANDARD
                .decode(data.trim())
                .map(Some)
                .map_err(|error| self.unusable(format!("{key}-data: {error}"))),
            (None, Some(file)) => read(&self.beside(&file)).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn beside(&self, file: &Path) -> PathBuf {
        self.kubeconfig.parent().map_or_else(|| file.to_owned(), |folder| folder.join(file))
    }

    fn unusable(&self, why: String) -> Error {
        Error::Kubeconfig { path: self.kubeconfig.to_owned(), why }
    }
}

/// The first line: the parser's drawing of the place is of no use within a CNI error.
fn brief(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
