//! The walkthrough, step by step: what is typed, and what must come of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::look::{self, Home};
use super::screen::Screen;
use super::{MANAGEMENT, NICS, Node};

const RESOURCE: &str = "kernel.org/virt";
const AGENT_POD: &str = "virt-device-plugin";

/// Longest time in which a node under plain emulation does what it was told.
const PATIENCE: Duration = Duration::from_secs(60);

/// Walks through all of it; what is not as it should be is on the screen.
///
/// # Errors
/// When it cannot go on.
pub(super) fn walk(node: &Node, screen: &mut Screen) -> Result<()> {
    let mut walk = Walk { node, screen };
    let before = walk.look_at_the_node()?;
    walk.start_the_node()?;
    walk.start_virtdp()?;
    let first = walk.start_pod("testpod1", 1, &[])?;
    walk.start_pod("testpod2", 2, &[&first.device])?;
    walk.ping(&first)?;
    walk.third_pod_waits()?;
    walk.delete_and_look_again(&before)
}

/// What a pod was given.
struct Attached {
    device: String,
    address: String,
}

struct Walk<'a> {
    node: &'a Node,
    screen: &'a mut Screen,
}

impl Walk<'_> {
    fn look_at_the_node(&mut self) -> Result<Vec<Home>> {
        self.screen.step("A node with a management NIC and two spare virtio NICs");
        self.type_in("ip -brief link")?;
        let route = self.type_in("ip route show default")?;
        self.screen.check(
            "the management NIC carries the default route",
            look::line_with(&route, &["default", MANAGEMENT]),
        );
        self.homes()
    }

    fn start_the_node(&mut self) -> Result<()> {
        self.screen.step("Put the CNI programs on the node, start it, define the network");
        let programs = self.node.programs.display();
        self.type_in("mkdir -p /opt/cni/bin /etc/cni/net.d /etc/cni/net.d/virt-meta.d")?;
        self.type_in(&format!("ln -s {programs}/ehost-device {programs}/virt-meta /opt/cni/bin/"))?;
        let cni = self.node.cni_plugins.display();
        self.type_in(&format!("ln -s {cni}/bridge {cni}/host-local /opt/cni/bin/"))?;
        self.type_in(
            "cp deployments/cni/00-virt-meta.conf deployments/cni/10-cluster.conflist /etc/cni/net.d/",
        )?;
        self.type_in("virtsim up")?;
        self.type_in("cp /run/virtsim/kubeconfig /etc/cni/net.d/virt-meta.d/kubeconfig")?;
        self.type_in("virtsim apply -f deployments/crdnetwork.yaml -f deployments/virt-crd.yaml")?;
        Ok(())
    }

    fn start_virtdp(&mut self) -> Result<()> {
        self.screen.step("Start virtdp");
        self.type_in("virtsim apply -f deployments/pod-virtdp.yaml")?;
        let mut wanted = vec![
            ("it leaves the management NIC alone".to_owned(), vec!["Skipping default interface", MANAGEMENT]),
            ("it registers with the kubelet".to_owned(), vec!["registered with the Kubelet"]),
        ];
        for (address, _) in NICS {
            wanted
                .push((format!("it offers {address} as Healthy"), vec!["ListAndWatch", address, "Healthy"]));
        }
        let log = self.until(&format!("virtsim logs {AGENT_POD}"), |log| {
            wanted.iter().all(|(_, words)| look::line_with(log, words).is_ok())
        })?;
        for (what, words) in &wanted {
            self.screen.check(what, look::line_with(&log, words));
        }
        self.capacity()
    }

    /// The node can give both NICs.
    fn capacity(&mut self) -> Result<()> {
        let command = "virtsim get nodes -o json";
        let node =
            self.wait_for(command, |node| look::amount(node, "allocatable", RESOURCE).as_deref() == Ok("2"))?;
        self.type_in(&format!("{command} | grep {RESOURCE}"))?;
        for kind in ["capacity", "allocatable"] {
            self.screen.check(
                &format!("{kind} of {RESOURCE}"),
                look::amount(&node, kind, RESOURCE).and_then(|found| look::same(Some(&found), "2")),
            );
        }
        Ok(())
    }

    fn start_pod(&mut self, pod: &str, number: u32, taken: &[&str]) -> Result<Attached> {
        self.screen.step(&format!("Create {pod}: it asks for one {RESOURCE} and the network virt-net1"));
        self.type_in(&format!("virtsim apply -f deployments/pod-tc{number}.yaml"))?;
        self.type_in(&format!("virtsim wait --for=condition=Ready pod/{pod} --timeout=60s"))?;
        let pods = self.type_in("virtsim get pods")?;
        self.screen.check(&format!("{pod} runs"), look::line_with(&pods, &[pod, "1/1", "Running"]));

        let log = self.quiet(&format!("virtsim logs {AGENT_POD}"))?;
        let allocations: Vec<&str> =
            log.lines().filter(|line| line.contains("DeviceID in Allocate")).collect();
        self.screen.command(&format!("virtsim logs {AGENT_POD} | grep 'DeviceID in Allocate' | tail -n 1"));
        let last = allocations.last().copied().unwrap_or_default();
        self.screen.output(last);
        let device = look::word_after(last, "Allocate:").unwrap_or_default().to_owned();
        let known = NICS.iter().find(|(address, _)| *address == device);
        let outcome = match known {
            Some(_) if !taken.contains(&device.as_str()) => Ok(device.clone()),
            Some(_) => Err(format!("{device} is another pod's")),
            None => Err(format!("{device:?} is not one of the NICs on offer")),
        };
        self.screen.check("the kubelet allocated a free NIC", outcome);

        let shown = self.type_in(&format!("virtsim exec {pod} -- ip addr show net1"))?;
        let inet = look::word_after(&shown, "inet").map(str::to_owned);
        self.screen.check("net1 has an address of the network", look::in_the_range(inet.as_deref()));
        let mac = known.map(|(_, mac)| *mac).unwrap_or_default();
        self.screen
            .check("net1 has the NIC's own MAC", look::same(look::word_after(&shown, "link/ether"), mac));

        let shown = self.type_in(&format!("virtsim exec {pod} -- ethtool -i net1"))?;
        self.screen.check("driver", look::same(look::value_of(&shown, "driver"), "virtio_net"));
        self.screen.check(
            "bus-info is the allocated device",
            look::same(look::value_of(&shown, "bus-info"), &device),
        );

        let address =
            inet.and_then(|inet| inet.split_once('/').map(|(ip, _)| ip.to_owned())).unwrap_or_default();
        Ok(Attached { device, address })
    }

    fn ping(&mut self, first: &Attached) -> Result<()> {
        self.screen.step("Ping from testpod2 to testpod1 over the virtio NICs");
        let shown = self.type_in(&format!("virtsim exec testpod2 -- ping -c2 -I net1 {}", first.address))?;
        self.screen.check(
            "both answers came",
            look::line_with(&shown, &["2 packets transmitted", "2 received"])
                .or_else(|_| look::line_with(&shown, &["2 packets transmitted", "2 packets received"])),
        );
        Ok(())
    }

    fn third_pod_waits(&mut self) -> Result<()> {
        self.screen.step("A third pod finds no NIC left: it waits, and says why");
        self.type_in("virtsim apply -f deployments/pod-tc3.yaml")?;
        let why = format!("Insufficient {RESOURCE}");
        let said = self.until("virtsim describe pod testpod3", |text| text.contains(&why))?;
        let pods = self.type_in("virtsim get pods")?;
        self.screen.check("testpod3 is Pending", look::line_with(&pods, &["testpod3", "Pending"]));
        self.screen.check("and says why", look::line_with(&said, &[&why]));
        Ok(())
    }

    fn delete_and_look_again(&mut self, before: &[Home]) -> Result<()> {
        self.screen.step("Delete the pods: both NICs come home");
        self.type_in("virtsim delete pod testpod3 testpod2 testpod1")?;
        self.type_in("ip -brief link")?;
        for (home, now) in before.iter().zip(self.homes()?) {
            let outcome =
                if *home == now { Ok(String::new()) } else { Err(format!("{now:?}, but it was {home:?}")) };
            self.screen
                .check(&format!("{} is home with name, MAC, MTU and state as they were", home.name), outcome);
        }
        self.capacity()?;
        self.nothing_in("no address is leased", "find /var/lib/cni/networks/virt-network -name '10.*'")?;
        self.nothing_in(
            "no lease is open",
            "find /var/lib/virtnet/leases /var/lib/virtnet/attachments -name '*.json'",
        )?;
        Ok(())
    }

    /// Runs what must print nothing.
    fn nothing_in(&mut self, what: &str, command: &str) -> Result<()> {
        let shown = self.type_in(command)?;
        let outcome =
            if shown.trim().is_empty() { Ok(String::new()) } else { Err(shown.trim().replace('\n', " ")) };
        self.screen.check(what, outcome);
        Ok(())
    }

    /// What the two NICs look like at home.
    fn homes(&self) -> Result<Vec<Home>> {
        let links: Value =
            serde_json::from_str(&self.quiet("ip -json -details link")?).context("reading the links")?;
        let mut homes = Vec::new();
        for (address, _) in NICS {
            let parent = self.quiet(&format!("ls /sys/bus/pci/devices/{address}"))?;
            let parent = parent.split_whitespace().find(|name| name.starts_with("virtio")).unwrap_or(address);
            homes.push(look::home_of(&links, address, parent).map_err(anyhow::Error::msg)?);
        }
        Ok(homes)
    }

    /// Types a command, shows what it prints, and goes on only if it succeeded.
    fn type_in(&mut self, command: &str) -> Result<String> {
        self.screen.command(command);
        let (ok, text) = self.node.run(command)?;
        self.screen.output(&text);
        if !ok {
            bail!("`{command}` failed in the node:\n{text}");
        }
        Ok(text)
    }

    fn quiet(&self, command: &str) -> Result<String> {
        let (ok, text) = self.node.run(command)?;
        if !ok {
            bail!("`{command}` failed in the node:\n{text}");
        }
        Ok(text)
    }

    /// Repeats a command until its output is as wanted, and shows it.
    fn until(&mut self, command: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.screen.command(command);
        let text = self.wait_for(command, wanted)?;
        self.screen.output(&text);
        Ok(text)
    }

    /// Repeats a command until its output is as wanted. After a while the output is given as it is, for the checks to say what is wrong.
    fn wait_for(&self, command: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, text) = self.node.run(command)?;
            if wanted(&text) || Instant::now() > deadline {
                return Ok(text);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
