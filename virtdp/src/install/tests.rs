use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

/// A node's root folder, and an image's programs.
struct Bench {
    root: tempfile::TempDir,
}

const CLUSTER: &str = r#"{"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "bridge"}]}"#;

impl Bench {
    fn new() -> Bench {
        let bench = Bench { root: tempfile::tempdir().unwrap() };
        for folder in ["image", "account", "host/opt/cni/bin", "host/etc/cni/net.d"] {
            fs::create_dir_all(bench.path(folder)).unwrap();
        }
        bench.write("image/ehost-device", "ehost-device 1");
        bench.write("image/virt-meta", "virt-meta 1");
        bench.write("account/ca.crt", "CA");
        bench.write("account/token", "token 1");
        bench
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    fn options(&self, meta: bool) -> Options {
        Options {
            from: self.path("image"),
            host: self.path("host"),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            meta,
            namespace_isolation: false,
            wait: 0,
            service_account: self.path("account"),
            server: Some("https://192.0.2.1:6443".into()),
            follow: false,
        }
    }

    fn uninstall(&self, force: bool) -> Result<()> {
        let removal = Removal {
            host: self.path("host"),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            force,
            stay: false,
        };
        uninstall(&removal, Path::new("/var/lib/virtnet"))
    }

    /// Every file of the node, with its content.
    fn node(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("host")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push((path.display().to_string(), fs::read_to_string(&path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }
}

/// On a node whose kubelet is where it usually is.
fn install(options: &Options) -> Result<()> {
    super::install(options, Path::new("/var/lib/kubelet"))
}

#[test]
fn programs_are_executable_and_leave_nothing_behind_when_they_go() {
    let bench = Bench::new();
    let before = bench.node();
    install(&bench.options(false)).unwrap();
    let program = bench.path("host/opt/cni/bin/ehost-device");
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(!bench.path("host/opt/cni/bin/virt-meta").exists());
    bench.uninstall(false).unwrap();
    assert_eq!(bench.node(), before);
    bench.uninstall(false).unwrap();
}

#[test]
fn what_stood_there_before_comes_back_also_after_upgrades() {
    let bench = Bench::new();
    bench.write("host/opt/cni/bin/ehost-device", "the one of 2018");
    let before = bench.node();
    for release in ["ehost-device 1", "ehost-device 2", "ehost-device 2", "ehost-device 1"] {
        bench.write("image/ehost-device", release);
        install(&bench.options(false)).unwrap();
        assert_eq!(bench.read("host/opt/cni/bin/ehost-device").as_deref(), Some(release));
        let kept = bench.read("host/opt/cni/bin/ehost-device.before-virtnet");
        assert_eq!(kept.as_deref(), Some("the one of 2018"));
    }
    bench.uninstall(false).unwrap();
    assert_eq!(bench.node(), before);
}

#[test]
fn a_program_that_somebody_else_replaced_is_left_alone() {
    let bench = Bench::new();
    install(&bench.options(false)).unwrap();
    bench.write("host/opt/cni/bin/ehost-device", "a package's");
    bench.uninstall(false).unwrap();
    assert_eq!(bench.read("host/opt/cni/bin/ehost-device").as_deref(), Some("a package's"));
}

#[test]
fn a_running_program_is_replaced_without_text_file_busy() {
    let bench = Bench::new();
    let program = bench.path("host/opt/cni/bin/ehost-device");
    fs::copy("/bin/cat", &program).unwrap();
    let mut running = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let outcome = install(&bench.options(false));
    drop(running.stdin.take());
    assert!(running.wait().unwrap().success());
    outcome.unwrap();
    assert_eq!(fs::read_to_string(&program).unwrap(), "ehost-device 1");
}

#[test]
fn a_damaged_record_stops_everything_before_anything_is_changed() {
    let bench = Bench::new();
    bench.write("host/opt/cni/bin/.virtnet.json", "{");
    let before = bench.node();
    let error = install(&bench.options(false)).unwrap_err();
    assert!(error.to_string().contains(".virtnet.json is damaged"), "{error:#}");
    assert!(bench.uninstall(true).is_err());
    assert_eq!(bench.node(), before);
}

#[test]
fn a_missing_program_is_named_and_nothing_is_installed() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
    fs::remove_file(bench.path("image/virt-meta")).unwrap();
    let before = bench.node();
    let error = install(&bench.options(true)).unwrap_err();
    assert!(format!("{error:#}").contains("image/virt-meta"), "{error:#}");
    assert_eq!(bench.node(), before);
}

#[test]
fn virt_meta_comes_first_and_names_the_cluster_network_and_the_api_server() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
    bench.write("host/etc/cni/net.d/05-broken.conf", "{");
    let before = bench.node();
    install(&bench.options(true)).unwrap();
    let network = cni::runtime::Network::first(&bench.path("host/etc/cni/net.d")).unwrap();
    assert_eq!(network.name().as_str(), "virt-meta");
    let config: serde_json::Value =
        serde_json::from_str(&bench.read("host/etc/cni/net.d/00-virt-meta.conf").unwrap()).unwrap();
    assert_eq!(config["clusterNetwork"], "/etc/cni/net.d/10-cluster.conflist");
    assert_eq!(config["kubeconfig"], "/etc/cni/net.d/virt-meta.d/kubeconfig");
    let kubeconfig = bench.read("host/etc/cni/net.d/virt-meta.d/kubeconfig").unwrap();
    assert!(
        kubeconfig.contains("https://192.0.2.1:6443")
            && kubeconfig.contains("/etc/cni/net.d/virt-meta.d/token")
    );
    assert_eq!(bench.read("host/etc/cni/net.d/virt-meta.d/token").as_deref(), Some("token 1"));
    for secret in ["kubeconfig", "token"] {
        let path = bench.path("host/etc/cni/net.d/virt-meta.d").join(secret);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let installed = bench.node();
    install(&bench.options(true)).unwrap();
    assert_eq!(bench.node(), installed, "a second time changes nothing");
    bench.uninstall(false).unwrap();
    assert_eq!(bench.node(), before);
}

#[test]
fn virt_meta_is_told_where_the_kubelet_is_if_it_is_elsewhere() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
    super::install(&bench.options(true), Path::new("/var/lib/k0s/kubelet")).unwrap();
    let config = bench.read("host/etc/cni/net.d/00-virt-meta.conf").unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["kubeletDir"], "/var/lib/k0s/kubelet");
}

#[test]
fn a_configuration_that_was_adapted_by_hand_stays() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
    let adapted = r#"{"cniVersion":"1.0.0","name":"m","type":"virt-meta","clusterNetwork":"cluster"}"#;
    bench.write("host/etc/cni/net.d/00-virt-meta.conf", adapted);
    install(&bench.options(true)).unwrap();
    assert_eq!(bench.read("host/etc/cni/net.d/00-virt-meta.conf").as_deref(), Some(adapted));
}

#[test]
fn a_configuration_that_nobody_adapted_follows_the_cluster_network_and_the_flags() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/20-old.conflist", CLUSTER);
    install(&bench.options(true)).unwrap();
    bench.write("host/etc/cni/net.d/10-new.conflist", CLUSTER);
    let isolated = Options { namespace_isolation: true, ..bench.options(true) };
    install(&isolated).unwrap();
    let file = "host/etc/cni/net.d/00-virt-meta.conf";
    let mut config: serde_json::Value = serde_json::from_str(&bench.read(file).unwrap()).unwrap();
    assert_eq!(config["clusterNetwork"], "/etc/cni/net.d/10-new.conflist");
    assert_eq!(config["namespaceIsolation"], true);
    // From here on it is somebody's, whatever we would write.
    config["stateDir"] = "/srv/virtnet".into();
    bench.write(file, &config.to_string());
    install(&bench.options(true)).unwrap();
    install(&isolated).unwrap();
    assert_eq!(bench.read(file), Some(config.to_string()));
}

#[test]
fn what_fights_for_the_first_place_is_named_and_nothing_is_changed() {
    let multus = r#"{"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus-shim"}"#;
    let meta = r#"{"cniVersion": "1.0.0", "name": "m", "type": "virt-meta"}"#;
    for (file, text, told) in [
        ("00-multus.conf", multus, "install without --meta"),
        ("70-multus.conf", multus, "makes multus-shim the node's meta plugin"),
        ("00-aaa.conflist", CLUSTER, "comes before 00-virt-meta.conf"),
        ("01-virt-meta.conf", meta, "a second configuration of virt-meta"),
    ] {
        let bench = Bench::new();
        bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
        bench.write(&format!("host/etc/cni/net.d/{file}"), text);
        let before = bench.node();
        let error = format!("{:#}", install(&bench.options(true)).unwrap_err());
        assert!(error.contains(told) && error.contains(file), "{error}");
        assert_eq!(bench.node(), before);
    }
}

#[test]
fn without_a_cluster_network_it_says_so_and_with_patience_it_waits_for_one() {
    let bench = Bench::new();
    let before = bench.node();
    let error = install(&bench.options(true)).unwrap_err().to_string();
    assert!(error.contains("install the cluster's network first"), "{error}");
    assert_eq!(bench.node(), before);
    let options = Options { wait: 60, ..bench.options(true) };
    thread::scope(|scope| {
        let installing = scope.spawn(|| install(&options));
        bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
        installing.join().unwrap().unwrap();
    });
    assert!(bench.path("host/etc/cni/net.d/00-virt-meta.conf").exists());
}

#[test]
fn a_token_that_the_kubelet_renewed_is_copied_until_the_end() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
    let options = bench.options(true);
    install(&options).unwrap();
    let meta = meta_plugin(&options, &Host::at(&options.host), Path::new("/var/lib/kubelet")).unwrap();
    bench.write("account/token", "token 2");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let renewed = async {
        while bench.read("host/etc/cni/net.d/virt-meta.d/token").as_deref() != Some("token 2") {
            tokio::task::yield_now().await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            outcome = meta.follow(Duration::from_millis(1)) => panic!("it ended: {outcome:?}"),
            () = renewed => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the token was not copied"),
        }
    });
}

#[test]
fn while_pods_need_the_programs_they_stay_and_the_configuration_goes() {
    let bench = Bench::new();
    bench.write("host/etc/cni/net.d/10-cluster.conflist", CLUSTER);
    install(&bench.options(true)).unwrap();
    fs::create_dir_all(bench.path("host/var/lib/virtnet/attachments")).unwrap();
    bench.write("host/var/lib/virtnet/attachments/abc.json", "{}");
    let error = bench.uninstall(false).unwrap_err().to_string();
    assert!(error.contains("1 pods whose networks virt-meta set up") && error.contains("--force"), "{error}");
    assert!(!bench.path("host/etc/cni/net.d/00-virt-meta.conf").exists());
    assert!(bench.path("host/opt/cni/bin/virt-meta").exists());
    bench.uninstall(true).unwrap();
    assert!(!bench.path("host/opt/cni/bin/virt-meta").exists());
}
