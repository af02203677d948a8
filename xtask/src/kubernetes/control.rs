//! The control plane on this machine's loopback interface: etcd, API server, controller manager, scheduler.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::certificates::{Authority, Identity, write};
use super::egress::Egress;
use super::processes::{Interrupt, Running};

/// How this machine looks from inside the VM: QEMU's user network leads from there to our loopback interface.
const HOST_IN_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The address of the service `kubernetes`: the first of the range of services.
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICES: &str = "10.96.0.0/16";

/// How long each program may take until it answers.
const PATIENCE: Duration = Duration::from_secs(120);

/// The running control plane. The order of the fields is the order in which they end.
pub(super) struct ControlPlane<'a> {
    scheduler: Option<Running>,
    _controllers: Running,
    server: Option<Running>,
    _etcd: Running,
    server_arguments: Vec<String>,
    scheduler_arguments: Vec<String>,
    place: Place<'a>,
    pub(super) egress: Egress,
    pub(super) authority: Authority,
    /// For the admin on this machine.
    pub(super) kubeconfig: PathBuf,
    port: u16,
}

/// Where everything comes from and goes to.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Folder with the programs.
    pub(super) programs: &'a Path,
    /// Certificates, sockets, etcd's data.
    pub(super) folder: &'a Path,
    pub(super) logs: &'a Path,
    pub(super) interrupt: &'a Interrupt,
}

impl Place<'_> {
    fn start(&self, program: &str, arguments: &[String]) -> Result<Running> {
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments);
        Running::start(program, &command, self.logs, self.interrupt)
    }

    fn start_server(&self, arguments: &[String], kubeconfig: &Path) -> Result<Running> {
        let mut server = self.start("kube-apiserver", arguments)?;
        server.wait_until(PATIENCE, || self.kubectl_answers(kubeconfig, &["get", "--raw", "/readyz"]))?;
        Ok(server)
    }

    fn kubectl_answers(&self, kubeconfig: &Path, arguments: &[&str]) -> bool {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command.output().is_ok_and(|output| output.status.success())
    }
}

impl<'a> ControlPlane<'a> {
    /// Starts all four and waits until they answer; `see` is told what is being waited for.
    pub(super) fn start(place: Place<'a>, see: impl Fn(&str)) -> Result<Self> {
        see("certificates");
        let authority = Authority::new(&place.folder.join("pki"))?;
        let [client_port, peer_port, port] = free_ports()?;

        see("etcd");
        let etcd_identity = authority.server("etcd", &[], &[Ipv4Addr::LOCALHOST])?;
        let mut etcd =
            place.start("etcd", &etcd(&place, &authority, &etcd_identity, client_port, peer_port))?;
        etcd.wait_until(PATIENCE, || listens(client_port))?;

        see("kube-apiserver");
        let socket = place.folder.join("egress.sock");
        let egress = Egress::listen(&socket)?;
        let selector = place.folder.join("egress.yaml");
        write(&selector, egress_selector(&socket).as_bytes())?;
        let keys = authority.service_account_keys()?;
        let server_arguments = server(&authority, &etcd_identity, &keys, &selector, client_port, port)?;
        let address = format!("https://127.0.0.1:{port}");
        let kubeconfig = place.folder.join("kubeconfig");
        let admin = authority.client("admin", "kubernetes-admin", Some("system:masters"))?;
        write(&kubeconfig, authority.kubeconfig(&address, &admin)?.as_bytes())?;
        let server = place.start_server(&server_arguments, &kubeconfig)?;

        see("kube-controller-manager and kube-scheduler");
        let client = |name: &str| -> Result<String> {
            let identity = authority.client(name, &format!("system:{name}"), None)?;
            let path = place.folder.join(format!("{name}.kubeconfig"));
            write(&path, authority.kubeconfig(&address, &identity)?.as_bytes())?;
            Ok(format!("--kubeconfig={}", path.display()))
        };
        let common = ["--leader-elect=false".to_owned(), "--secure-port=0".to_owned()];
        let mut arguments = vec![
            client("kube-controller-manager")?,
            format!("--service-account-private-key-file={}", keys.0.display()),
            format!("--root-ca-file={}", authority.certificate().display()),
            "--use-service-account-credentials=true".to_owned(),
        ];
        arguments.extend(common.clone());
        let mut controllers = place.start("kube-controller-manager", &arguments)?;
        let mut scheduler_arguments = vec![client("kube-scheduler")?];
        scheduler_arguments.extend(common);
        let scheduler = place.start("kube-scheduler", &scheduler_arguments)?;
        // Pods are refused until the controllers have made the account that they run as.
        let account = ["get", "serviceaccount", "default"];
        controllers.wait_until(PATIENCE, || place.kubectl_answers(&kubeconfig, &account))?;
        Ok(Self {
            scheduler: Some(scheduler),
            _controllers: controllers,
            server: Some(server),
            _etcd: etcd,
            server_arguments,
            scheduler_arguments,
            place,
            egress,
            authority,
            kubeconfig,
            port,
        })
    }

    /// Ends the API server: whoever connects to it is refused. The scheduler ends, too: by itself it would (1.36) where a pod was deleted
    /// and made again under its name before it has found its way back.
    pub(super) fn stop_server(&mut self) {
        self.scheduler = None;
        self.server = None;
    }

    /// Starts both again; the API server has all that it knew.
    pub(super) fn start_server(&mut self) -> Result<()> {
        self.server = Some(self.place.start_server(&self.server_arguments, &self.kubeconfig)?);
        self.scheduler = Some(self.place.start("kube-scheduler", &self.scheduler_arguments)?);
        Ok(())
    }

    /// Address and port of the API server as seen from the VM.
    pub(super) fn guest_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(HOST_IN_GUEST, self.port)
    }

    /// A kubeconfig for somebody in the VM.
    pub(super) fn guest_kubeconfig(&self, file: &str, user: &str, group: Option<&str>) -> Result<String> {
        let identity = self.authority.client(file, user, group)?;
        self.authority.kubeconfig(&format!("https://{}", self.guest_address()), &identity)
    }
}

fn etcd(
    place: &Place<'_>,
    authority: &Authority,
    identity: &Identity,
    client: u16,
    peer: u16,
) -> Vec<String> {
    let (client, peer) = (format!("https://127.0.0.1:{client}"), format!("https://127.0.0.1:{peer}"));
    let mut arguments = vec![
        "--name=virtnet".to_owned(),
        format!("--data-dir={}", place.folder.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=virtnet={peer}"),
        // What is in it does not outlive this run.
        "--unsafe-no-fsync".to_owned(),
    ];
    for prefix in ["", "peer-"] {
        arguments.extend([
            format!("--{prefix}cert-file={}", identity.certificate.display()),
            format!("--{prefix}key-file={}", identity.key.display()),
            format!("--{prefix}trusted-ca-file={}", authority.certificate().display()),
            format!("--{prefix}client-cert-auth"),
        ]);
    }
    arguments
}

fn server(
    authority: &Authority,
    etcd: &Identity,
    keys: &(PathBuf, PathBuf),
    selector: &Path,
    etcd_port: u16,
    port: u16,
) -> Result<Vec<String>> {
    let hosts = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let own = authority.server("apiserver", &hosts, &[Ipv4Addr::LOCALHOST, HOST_IN_GUEST, SERVICE])?;
    let kubelet =
        authority.client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters"))?;
    let ca = authority.certificate();
    Ok(vec![
        format!("--etcd-servers=https://127.0.0.1:{etcd_port}"),
        format!("--etcd-cafile={}", ca.display()),
        format!("--etcd-certfile={}", etcd.certificate.display()),
        format!("--etcd-keyfile={}", etcd.key.display()),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--advertise-address={HOST_IN_GUEST}"),
        // No pod calls the API server by its service's address.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--tls-cert-file={}", own.certificate.display()),
        format!("--tls-private-key-file={}", own.key.display()),
        format!("--client-ca-file={}", ca.display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", keys.0.display()),
        format!("--service-account-key-file={}", keys.1.display()),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--kubelet-certificate-authority={}", ca.display()),
        format!("--kubelet-client-certificate={}", kubelet.certificate.display()),
        format!("--kubelet-client-key={}", kubelet.key.display()),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--egress-selector-config-file={}", selector.display()),
    ])
}

fn egress_selector(socket: &Path) -> String {
    format!(
        "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n\
         - name: cluster\n  connection:\n    proxyProtocol: HTTPConnect\n    transport:\n      uds:\n        udsName: {}\n",
        socket.display()
    )
}

fn listens(port: u16) -> bool {
    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Ports of the loopback interface that nobody listens at. All are held until all are found, so that they differ.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on the loopback interface")?,
        );
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr().context("no free port on the loopback interface")?.port();
    }
    Ok(ports)
}

/// Removes a folder with everything in it, if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
