use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, Stream};

use super::*;

/// Answers one request with a fixed response; returns the request's head.
fn server(status: &str, body: &str) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let response = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let head = head.take_while(|line| !line.is_empty()).collect();
        stream.write_all(response.as_bytes()).unwrap();
        head
    });
    (address, thread)
}

fn kubeconfig(folder: &Path, server: &str, user: &str) -> PathBuf {
    let path = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: {server:?}}}}}]\n\
         users: [{{name: u, user: {user}}}]\n"
    );
    fs::write(&path, text).unwrap();
    path
}

fn client(folder: &Path, server: &str) -> Client {
    let path = kubeconfig(folder, server, "{token: secret}");
    Client::from_kubeconfig(&path, Duration::from_secs(10)).unwrap()
}

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

#[test]
fn a_pod_is_asked_for_by_name_with_the_token() {
    let temp = tempfile::tempdir().unwrap();
    let (address, server) =
        server("200 OK", r#"{"metadata":{"name":"p.1","annotations":{"k8s.v1.cni.cncf.io/networks":"a"}}}"#);
    let pod = client(temp.path(), &address).pod("apps", "p.1").unwrap();
    assert_eq!(pod.networks(), Some("a"));
    let head = server.join().unwrap();
    assert_eq!(head[0], "GET /api/v1/namespaces/apps/pods/p.1 HTTP/1.1");
    assert!(head.iter().any(|line| line == "authorization: Bearer secret"), "{head:?}");
}

#[test]
fn what_is_missing_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let (address, server) = server("404 Not Found", "{}");
    let error = client(temp.path(), &address)
        .network_attachment_definition(&label("apps"), &label("virt-net1"))
        .unwrap_err();
    server.join().unwrap();
    assert_eq!(
        error.to_string(),
        format!("API server {address} knows no NetworkAttachmentDefinition apps/virt-net1")
    );
    assert!(!error.is_passing());
}

#[test]
fn refusals_carry_the_servers_words() {
    let temp = tempfile::tempdir().unwrap();
    let (address, thread) = server("403 Forbidden", r#"{"kind":"Status","message":"pods is forbidden"}"#);
    let error = client(temp.path(), &address).pod("a", "b").unwrap_err();
    thread.join().unwrap();
    let expected = format!("API server {address} refused the question for pod a/b: 403: pods is forbidden");
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_passing());
    let (address, thread) = server("503 Service Unavailable", "");
    assert!(client(temp.path(), &address).pod("a", "b").unwrap_err().is_passing());
    thread.join().unwrap();
    let (address, thread) = server("200 OK", "[]");
    let error = client(temp.path(), &address).pod("a", "b").unwrap_err();
    thread.join().unwrap();
    assert!(matches!(error, Error::Answer { .. }), "{error}");
}

#[test]
fn a_server_that_is_down_or_silent_is_named_within_the_deadline() {
    let temp = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let path = kubeconfig(temp.path(), &address, "{}");
    let begin = Instant::now();
    // It accepts, as the backlog does, and never answers.
    let client = Client::from_kubeconfig(&path, Duration::from_millis(200)).unwrap();
    let error = client.pod("a", "b").unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(error.is_passing() && error.to_string().contains(&address), "{error}");
    drop(listener);
    assert!(client.pod("a", "b").unwrap_err().is_passing());
}

#[test]
fn names_cannot_leave_their_place_in_the_path() {
    assert_eq!(segment("../x?y"), "..%2Fx%3Fy");
    assert_eq!(segment(".."), "%2E%2E");
    assert_eq!(segment("web-0.a"), "web-0.a");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("kubeconfig");
    let fault = |text: &str| {
        fs::write(&path, text).unwrap();
        let error = Client::from_kubeconfig(&path, Duration::from_secs(1)).unwrap_err();
        error.to_string().replace(&temp.path().display().to_string(), "")
    };
    insta::assert_snapshot!(fault("a: ["), @"kubeconfig /kubeconfig cannot be used: line 1 column 4: unclosed bracket '['");
    insta::assert_snapshot!(fault("current-context: x\n"), @r#"kubeconfig /kubeconfig cannot be used: it has no context "x""#);
    let with = |server: &str, user: &str| fs::read_to_string(kubeconfig(temp.path(), server, user)).unwrap();
    insta::assert_snapshot!(fault(&with("tcp://1.2.3.4", "{}")), @r#"kubeconfig /kubeconfig cannot be used: server "tcp://1.2.3.4" is neither https:// nor http://"#);
    insta::assert_snapshot!(fault(&with("https://a", "{exec: {command: aws}}")), @"kubeconfig /kubeconfig cannot be used: only tokens and client certificates are supported");
    insta::assert_snapshot!(fault(&with("https://a", "{client-key-data: '!'}")), @"kubeconfig /kubeconfig cannot be used: client-key-data: Invalid symbol 33, offset 0.");
    insta::assert_snapshot!(fault(&with("https://a", "{client-key-data: ''}").replace("server", "x")), @"kubeconfig /kubeconfig cannot be used: line 5 column 32: missing field `server`");
    insta::assert_snapshot!(
        fault(&with("https://a", "{}").replace("{server", "{certificate-authority: nowhere.pem, server")), @"/nowhere.pem cannot be read");
    insta::assert_snapshot!(
        fault(&with("https://a", "{}").replace("{server", "{certificate-authority-data: aGVsbG8=, server")), @"kubeconfig /kubeconfig cannot be used: certificate-authority: there is no certificate in it");
    fs::remove_file(&path).unwrap();
    let error = Client::from_kubeconfig(&path, Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, Error::File { .. }));
}

#[test]
fn a_token_file_is_read_for_each_call_relative_to_the_kubeconfig() {
    let temp = tempfile::tempdir().unwrap();
    let (address, thread) = server("200 OK", r#"{"metadata":{}}"#);
    let path = kubeconfig(temp.path(), &address, "{tokenFile: token}");
    let client = Client::from_kubeconfig(&path, Duration::from_secs(10)).unwrap();
    fs::write(temp.path().join("token"), "fresh\n").unwrap();
    client.pod("a", "b").unwrap();
    assert!(thread.join().unwrap().iter().any(|line| line == "authorization: Bearer fresh"));
}

/// A certificate authority, and certificates of it for the address 127.0.0.1 and for a client.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn certificate(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap(), key)
    }

    /// Answers one request of a client that has a certificate of this authority; says whether it got that far.
    fn serve(&self) -> (String, JoinHandle<bool>) {
        let (certificate, key) = self.certificate("127.0.0.1");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = Stream::new(&mut connection, &mut socket);
            let mut lines = BufReader::new(&mut stream).lines();
            if !lines.by_ref().map_while(Result::ok).any(|line| line.is_empty()) {
                return false;
            }
            drop(lines);
            let body = r#"{"metadata":{"name":"b"}}"#;
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).is_ok()
        });
        (address, thread)
    }
}

#[test]
fn https_needs_the_right_authority_and_shows_the_clients_certificate() {
    let temp = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate("client");
    let user = format!(
        "{{client-certificate-data: {}, client-key-data: {}}}",
        BASE64_STANDARD.encode(certificate.pem()),
        BASE64_STANDARD.encode(key.serialize_pem())
    );
    let ask = |trusted: &Authority, user: &str| {
        let (address, server) = authority.serve();
        let path = kubeconfig(temp.path(), &address, user);
        fs::write(temp.path().join("ca.pem"), trusted.0.pem()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("{server", "{certificate-authority: ca.pem, server")).unwrap();
        let answer = Client::from_kubeconfig(&path, Duration::from_secs(10)).unwrap().pod("a", "b");
        (answer, server.join().unwrap())
    };
    let (answer, served) = ask(&authority, &user);
    assert_eq!(answer.unwrap().metadata.name, "b");
    assert!(served);
    let (answer, served) = ask(&Authority::new(), &user);
    assert!(matches!(answer, Err(Error::Call { .. })) && !served, "{answer:?}");
    let (answer, served) = ask(&authority, "{}");
    assert!(matches!(answer, Err(Error::Call { .. })) && !served, "{answer:?}");
}
