//! The cluster's certificate authority and who it vouches for, as kubeadm would make them; keys live only as long as the cluster.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The authority, with a folder in which everything is kept.
pub(super) struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, both as PEM files.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    /// A new authority whose files go into `folder`.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let authority = Self { folder: folder.to_owned(), issuer };
        write(&authority.certificate(), authority.issuer.pem().as_bytes())?;
        Ok(authority)
    }

    /// The authority's own certificate.
    pub(super) fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// A server that answers under these names and addresses, and may call others of its kind.
    pub(super) fn server(&self, name: &str, hosts: &[&str], addresses: &[Ipv4Addr]) -> Result<Identity> {
        let mut params =
            CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|address| SanType::IpAddress(IpAddr::V4(*address))));
        params.distinguished_name.push(DnType::CommonName, name);
        // etcd's gateway calls its own server with this very certificate.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(name, params)
    }

    /// A client: `user` and `group` as the API server reads them from the certificate.
    pub(super) fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, params)
    }

    fn sign(&self, file: &str, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        write(&identity.certificate, certificate.pem().as_bytes())?;
        write(&identity.key, key.serialize_pem().as_bytes())?;
        Ok(identity)
    }

    /// The key pair that signs service accounts' tokens: private and public part.
    pub(super) fn service_account_keys(&self) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let (private, public) = (self.folder.join("sa.key"), self.folder.join("sa.pub"));
        write(&private, key.serialize_pem().as_bytes())?;
        write(&public, key.public_key_pem().as_bytes())?;
        Ok((private, public))
    }

    /// A kubeconfig in which everything is included, for `server`.
    pub(super) fn kubeconfig(&self, server: &str, identity: &Identity) -> Result<String> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (authority, certificate, key) = (
            base64::encode(&read(&self.certificate())?),
            base64::encode(&read(&identity.certificate)?),
            base64::encode(&read(&identity.key)?),
        );
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: virtnet\n\
             clusters:\n- name: virtnet\n  cluster:\n    server: {server}\n    certificate-authority-data: {authority}\n\
             users:\n- name: user\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
             contexts:\n- name: virtnet\n  context:\n    cluster: virtnet\n    user: user\n"
        ))
    }
}

mod base64 {
    use ::base64::Engine as _;
    use ::base64::engine::general_purpose::STANDARD;

    pub(super) fn encode(bytes: &[u8]) -> String {
        STANDARD.encode(bytes)
    }
}

/// Writes a file that only its owner may read.
pub(super) fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(contents));
    written.with_context(|| format!("cannot write {}", path.display()))
}
