//! A node for one test: a network namespace with real links, a sysfs that shows them as NICs, the folders, and the agent.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use kubelet_api::KubeletDir;
use linux::Netns;
use linux::testing::Tree;

/// What a loaded machine may take for anything at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The NIC with the default route.
pub(crate) const UPLINK: &str = "0000:00:03.0";

pub(crate) struct Stage {
    folder: tempfile::TempDir,
    pub(crate) netns: Netns,
    pub(crate) tree: Tree,
}

impl Stage {
    /// A node with the loopback interface, and `eth0` at [`UPLINK`] with the default route.
    pub(crate) fn new() -> Stage {
        let stage = Stage {
            folder: tempfile::tempdir().unwrap(),
            netns: Netns::create().unwrap(),
            tree: Tree::new(),
        };
        stage.tree.interface(None, "lo", 1);
        stage.nic(UPLINK, "eth0");
        stage.ip("addr add 192.0.2.2/24 dev eth0");
        stage.ip("link set eth0 up");
        stage.ip("route add default via 192.0.2.1");
        stage
    }

    /// As [`Stage::new`], with spare virtio NICs at these addresses, called eth1, eth2, ...
    pub(crate) fn with_spares(addresses: &[&str]) -> Stage {
        let stage = Stage::new();
        for (number, address) in addresses.iter().enumerate() {
            stage.nic(address, &format!("eth{}", number + 1));
        }
        stage
    }

    /// Plugs a virtio NIC in; gives the virtio device's position.
    pub(crate) fn nic(&self, address: &str, name: &str) -> String {
        let virtio = self.tree.virtio_nic(&position(address), &format!("virtio-{name}"));
        self.link(Some(&virtio), name);
        virtio
    }

    /// A real link (one end of a veth pair, whose other end `<name>-p` is up), shown as the interface of a device.
    pub(crate) fn link(&self, position: Option<&str>, name: &str) {
        self.ip(&format!("link add {name} type veth peer name {name}-p"));
        self.ip(&format!("link set {name}-p up"));
        self.tree.interface(position, name, self.index(name));
        self.tree.interface(None, &format!("{name}-p"), self.index(&format!("{name}-p")));
    }

    /// A bridge, shown in sysfs as what it is.
    pub(crate) fn bridge(&self, name: &str) {
        self.ip(&format!("link add {name} type bridge"));
        self.tree.interface(None, name, self.index(name));
    }

    /// Plugs a NIC in that vfio-pci holds, in this IOMMU group.
    pub(crate) fn vfio_nic(&self, address: &str, group: u32) {
        let position = position(address);
        self.tree.pci(&position, linux::testing::ETHERNET, 0x1af4, 0x1041);
        self.tree.driver("pci", &position, "vfio-pci");
        self.tree.iommu_group(&position, group, None);
    }

    /// Moves a NIC's interface out of the node, as a CNI plugin does.
    pub(crate) fn move_away(&self, name: &str, to: &Netns) {
        let index = self.index(name);
        self.tree.remove_interface(name);
        let mut socket = self.netns.route_socket().unwrap();
        socket
            .change_link(index, &linux::route::LinkChange { netns: Some(to.as_fd()), ..Default::default() })
            .unwrap();
    }

    /// Makes the kernel say that something changed, for what the tree alone shows.
    pub(crate) fn poke(&self) {
        self.ip("link set lo mtu 65535");
        self.ip("link set lo mtu 65536");
    }

    pub(crate) fn index(&self, name: &str) -> u32 {
        self.netns.route_socket().unwrap().link_by_name(name).unwrap().unwrap().index
    }

    pub(crate) fn ip(&self, arguments: &str) {
        let run = || Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
        let output = self.netns.run(run).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn kubelet_dir(&self) -> KubeletDir {
        KubeletDir::at(self.path("kubelet"))
    }

    /// Makes the kubelet's folder, as a kubelet that was here before left it.
    pub(crate) fn make_folder(&self) -> PathBuf {
        let folder = self.kubelet_dir().device_plugins();
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Our sockets in the kubelet's folder.
    pub(crate) fn sockets(&self) -> Vec<String> {
        sockets_in(&self.kubelet_dir().device_plugins())
    }

    /// The agent's command line on this node.
    pub(crate) fn command(&self) -> Vec<String> {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        let sysfs = self.tree.path().to_str().unwrap().to_owned();
        [
            env!("CARGO_BIN_EXE_virtdp").to_owned(),
            "--logtostderr".to_owned(),
            "-v=10".to_owned(),
            "--kubelet-dir".to_owned(),
            path("kubelet"),
            "--state-dir".to_owned(),
            path("state"),
            "--device-info-dir".to_owned(),
            path("devinfo/dp"),
            "--cdi-dir".to_owned(),
            path("cdi"),
            "--sysfs".to_owned(),
            sysfs,
        ]
        .into()
    }

    pub(crate) fn start(&self) -> Agent {
        self.start_as(&self.command())
    }

    pub(crate) fn start_as(&self, command: &[String]) -> Agent {
        let (program, arguments) = command.split_first().unwrap();
        let spawn = || {
            Command::new(program).args(arguments).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap()
        };
        Agent::of(self.netns.run(spawn).unwrap())
    }

    /// Runs `virtdp discover`.
    pub(crate) fn discover(&self, more: &[&str]) -> Output {
        self.discover_in(&[], more)
    }

    /// The same in this environment.
    pub(crate) fn discover_in(&self, environment: &[(&str, &str)], more: &[&str]) -> Output {
        let command = self.command();
        let run = || {
            let mut discover = Command::new(&command[0]);
            discover.envs(environment.iter().copied());
            discover.arg("discover").args(&command[1..]).args(more).output().unwrap()
        };
        self.netns.run(run).unwrap()
    }

    /// Puts a lease into the ledger, as ehost-device does.
    pub(crate) fn lease(&self, device: &str) {
        let ledger = ledger::Ledger::at(self.path("state"));
        let device: nic::DeviceId = device.parse().unwrap();
        let lease = ledger::Lease {
            device: device.clone(),
            permanent_mac: None,
            boot_id: linux::boot_id().unwrap(),
            home: ledger::Home {
                name: "eth1".parse().unwrap(),
                index: 3,
                alt_names: Vec::new(),
                alias: None,
                mac: None,
                mtu: 1500,
                tx_queue_len: 1000,
                up: false,
                flags: nic::Link::MULTICAST,
                master: None,
                xdp: Vec::new(),
                tcx: None,
                channels: None,
                rings: None,
                offloads: None,
                settings: std::collections::BTreeMap::new(),
                addresses: Vec::new(),
                routes: Vec::new(),
            },
            owner: ledger::Owner {
                container_id: "c0ffee".into(),
                if_name: "net1".parse().unwrap(),
                netns: "/var/run/netns/x".into(),
                netns_inode: None,
                network: "virt-net1".into(),
                pod: Some(ledger::Pod {
                    namespace: "default".into(),
                    name: "testpod1".into(),
                    uid: Some("0a1b".into()),
                }),
            },
            stage: ledger::Stage::Plumbed { index: 2 },
        };
        ledger.lock(&device, PATIENCE).unwrap().write(&lease).unwrap();
    }

    pub(crate) fn close_lease(&self, device: &str) {
        let ledger = ledger::Ledger::at(self.path("state"));
        ledger.lock(&device.parse().unwrap(), PATIENCE).unwrap().close().unwrap();
    }
}

/// Where a PCI function on bus 0 of domain 0 sits.
pub(crate) fn position(address: &str) -> String {
    format!("pci0000:00/{address}")
}

/// The running agent and its log. Killed when dropped.
pub(crate) struct Agent {
    child: Child,
    log: Arc<(Mutex<String>, Condvar)>,
}

impl Agent {
    fn of(mut child: Child) -> Agent {
        let log = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let writer = Arc::clone(&log);
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                writer.0.lock().unwrap().push_str(&(line + "\n"));
                writer.1.notify_all();
            }
        });
        Agent { child, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits for a line with all these words; gives it.
    pub(crate) fn says(&self, words: &[&str]) -> String {
        let (log, changed) = &*self.log;
        let find =
            |log: &str| log.lines().find(|line| words.iter().all(|w| line.contains(w))).map(str::to_owned);
        let guard = log.lock().unwrap();
        let (log, _) = changed.wait_timeout_while(guard, PATIENCE, |log| find(log).is_none()).unwrap();
        find(&log).unwrap_or_else(|| panic!("no line with {words:?} in\n{log}"))
    }

    /// How many lines have all these words.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        self.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; gives the exit status.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The agent's sockets in a folder.
pub(crate) fn sockets_in(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("virtNet")).collect()
}

/// A file of the node as text.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
