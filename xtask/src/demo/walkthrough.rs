//! The walkthrough, step by step: what is typed, and what must come of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::look::{self, Home};
use super::screen::Screen;
use super::{MANAGEMENT, NICS};

const RESOURCE: &str = "kernel.org/virt";

/// The node and its cluster as a person types at them: simulated, or Kubernetes.
pub(crate) trait Place {
    /// Whether a command line succeeded, and what it printed, errors included.
    fn run(&self, line: &str) -> Result<(bool, String)>;
    /// The command that talks to the cluster.
    fn client(&self) -> &'static str;
    /// The commands that start the agent.
    fn start_agent(&self) -> &'static [&'static str];
    /// What the client calls the agent when it is asked for its log.
    fn agent(&self) -> &'static str;
    /// The command that deletes the pods whose names follow.
    fn delete_pods(&self) -> &'static str;
    /// Folders of the node that hold a file for each NIC or pod that is out.
    fn records(&self) -> &'static str;
    /// Longest time in which the place does what it was told.
    fn patience(&self) -> Duration;
}

/// What a pod was given.
pub(crate) struct Attached {
    /// The NIC's PCI address.
    pub(crate) device: String,
    /// The IP address, without the prefix's length.
    pub(crate) address: String,
}

/// A walk through the flow; what is not as it should be is on the screen. Every step fails when the walk cannot go on.
pub(crate) struct Walk<'a> {
    place: &'a dyn Place,
    screen: &'a mut Screen,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(place: &'a dyn Place, screen: &'a mut Screen) -> Self {
        Self { place, screen }
    }

    /// Begins a step of the caller's own.
    pub(crate) fn step(&mut self, title: &str) {
        self.screen.step(title);
    }

    /// Says whether something is as it should be, see [`Screen::check`].
    pub(crate) fn check(&mut self, what: &str, outcome: Result<String, String>) {
        self.screen.check(what, outcome);
    }

    /// Says something that is no check.
    pub(crate) fn note(&self, text: &str) {
        self.screen.note(text);
    }

    /// Repeats a command until it says all of `words` in one line. Only that line is shown.
    pub(crate) fn says(&mut self, what: &str, command: &str, words: &[&str]) -> Result<()> {
        self.screen.command(command);
        let text = self.wait_for(command, |text| look::line_with(text, words).is_ok())?;
        self.screen.check(what, look::line_with(&text, words));
        Ok(())
    }

    /// All that comes after the agent is there: the pods get their NICs, one too many waits, and the NICs come home.
    pub(crate) fn pods_come_and_go(&mut self, before: &[Home]) -> Result<()> {
        let first = self.start_pod("testpod1", 1, &[])?;
        self.start_pod("testpod2", 2, &[&first.device])?;
        self.ping(&first)?;
        self.third_pod_waits()?;
        self.delete_and_look_again(before)
    }

    /// What the node has before anything is changed.
    pub(crate) fn look_at_the_node(&mut self) -> Result<Vec<Home>> {
        self.screen.step("A node with a management NIC and two spare virtio NICs");
        self.type_in("ip -brief link")?;
        let route = self.type_in("ip route show default")?;
        self.screen.check(
            "the management NIC carries the default route",
            look::line_with(&route, &["default", MANAGEMENT]),
        );
        self.homes()
    }

    /// The agent comes up, and the node has both NICs to give.
    pub(crate) fn start_virtdp(&mut self) -> Result<()> {
        let (client, agent) = (self.place.client(), self.place.agent());
        self.screen.step("Start virtdp");
        for command in self.place.start_agent() {
            self.type_in(command)?;
        }
        let mut wanted = vec![
            ("it leaves the management NIC alone".to_owned(), vec!["Skipping default interface", MANAGEMENT]),
            ("it registers with the kubelet".to_owned(), vec!["registered with the Kubelet"]),
        ];
        for (address, _) in NICS {
            wanted
                .push((format!("it offers {address} as Healthy"), vec!["ListAndWatch", address, "Healthy"]));
        }
        let log = self.until(&format!("{client} logs {agent}"), |log| {
            wanted.iter().all(|(_, words)| look::line_with(log, words).is_ok())
        })?;
        for (what, words) in &wanted {
            self.screen.check(what, look::line_with(&log, words));
        }
        self.capacity()
    }

    /// The node can give both NICs.
    pub(crate) fn capacity(&mut self) -> Result<()> {
        self.amounts("2", "2")
    }

    /// The node has this many NICs for pods, so many of them well.
    pub(crate) fn amounts(&mut self, capacity: &str, allocatable: &str) -> Result<()> {
        let wanted = [("capacity", capacity), ("allocatable", allocatable)];
        let command = format!("{} get nodes -o json", self.place.client());
        let node = self.wait_for(&command, |node| {
            wanted.iter().all(|(kind, amount)| look::amount(node, kind, RESOURCE).as_deref() == Ok(*amount))
        })?;
        self.type_in(&format!("{command} | grep {RESOURCE}"))?;
        for (kind, amount) in wanted {
            self.screen.check(
                &format!("{kind} of {RESOURCE}"),
                look::amount(&node, kind, RESOURCE).and_then(|found| look::same(Some(&found), amount)),
            );
        }
        Ok(())
    }

    pub(crate) fn start_pod(&mut self, pod: &str, number: u32, taken: &[&str]) -> Result<Attached> {
        let (client, agent) = (self.place.client(), self.place.agent());
        self.screen.step(&format!("Create {pod}: it asks for one {RESOURCE} and the network virt-net1"));
        let begun = Instant::now();
        self.type_in(&format!("{client} apply -f deployments/pod-tc{number}.yaml"))?;
        let patience = self.place.patience().as_secs();
        self.type_in(&format!("{client} wait --for=condition=Ready pod/{pod} --timeout={patience}s"))?;
        self.screen.note(&format!("Ready {:.1} s after it was asked for", begun.elapsed().as_secs_f64()));
        let pods = self.type_in(&format!("{client} get pods"))?;
        self.screen.check(&format!("{pod} runs"), look::line_with(&pods, &[pod, "1/1", "Running"]));

        let log = self.quiet(&format!("{client} logs {agent}"))?;
        let allocations: Vec<&str> =
            log.lines().filter(|line| line.contains("DeviceID in Allocate")).collect();
        self.screen.command(&format!("{client} logs {agent} | grep 'DeviceID in Allocate' | tail -n 1"));
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

        let shown = self.type_in(&format!("{client} exec {pod} -- ip addr show net1"))?;
        let inet = look::word_after(&shown, "inet").map(str::to_owned);
        self.screen.check("net1 has an address of the network", look::in_the_range(inet.as_deref()));
        let mac = known.map(|(_, mac)| *mac).unwrap_or_default();
        self.screen
            .check("net1 has the NIC's own MAC", look::same(look::word_after(&shown, "link/ether"), mac));

        let shown = self.type_in(&format!("{client} exec {pod} -- ethtool -i net1"))?;
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
        let client = self.place.client();
        let shown = self.type_in(&format!("{client} exec testpod2 -- ping -c2 -I net1 {}", first.address))?;
        self.screen.check(
            "both answers came",
            look::line_with(&shown, &["2 packets transmitted", "2 received"])
                .or_else(|_| look::line_with(&shown, &["2 packets transmitted", "2 packets received"])),
        );
        Ok(())
    }

    fn third_pod_waits(&mut self) -> Result<()> {
        self.screen.step("A third pod finds no NIC left: it waits, and says why");
        let client = self.place.client();
        self.type_in(&format!("{client} apply -f deployments/pod-tc3.yaml"))?;
        let why = format!("Insufficient {RESOURCE}");
        let said = self.until(&format!("{client} describe pod testpod3"), |text| text.contains(&why))?;
        let pods = self.type_in(&format!("{client} get pods"))?;
        self.screen.check("testpod3 is Pending", look::line_with(&pods, &["testpod3", "Pending"]));
        self.screen.check("and says why", look::line_with(&said, &[&why]));
        Ok(())
    }

    fn delete_and_look_again(&mut self, before: &[Home]) -> Result<()> {
        self.screen.step("Delete the pods: both NICs come home");
        self.delete_pods("testpod3 testpod2 testpod1")?;
        self.all_as_before(before)
    }

    pub(crate) fn delete_pods(&mut self, pods: &str) -> Result<()> {
        self.type_in(&format!("{} {pods}", self.place.delete_pods())).map(drop)
    }

    /// Without pods, the node is as it was: NICs, capacity, addresses, leases.
    pub(crate) fn all_as_before(&mut self, before: &[Home]) -> Result<()> {
        self.type_in("ip -brief link")?;
        for (home, now) in before.iter().zip(self.homes()?) {
            let outcome =
                if *home == now { Ok(String::new()) } else { Err(format!("{now:?}, but it was {home:?}")) };
            self.screen
                .check(&format!("{} is home with name, MAC, MTU and state as they were", home.name), outcome);
        }
        self.capacity()?;
        self.nothing_is_leased()
    }

    /// No pod has an address of the network, or a NIC.
    pub(crate) fn nothing_is_leased(&mut self) -> Result<()> {
        self.nothing_in("no address is leased", "find /var/lib/cni/networks/virt-network -name '10.*'")?;
        self.nothing_in("no lease is open", &format!("find {} -name '*.json'", self.place.records()))
    }

    /// Repeats what must print nothing in the end.
    pub(crate) fn nothing_in(&mut self, what: &str, command: &str) -> Result<()> {
        let shown = self.until(command, |shown| shown.trim().is_empty())?;
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
    pub(crate) fn type_in(&mut self, command: &str) -> Result<String> {
        self.screen.command(command);
        let (ok, text) = self.place.run(command)?;
        self.screen.output(&text);
        if !ok {
            bail!("`{command}` failed:\n{text}");
        }
        Ok(text)
    }

    /// Runs a command that must succeed, without showing it.
    pub(crate) fn quiet(&self, command: &str) -> Result<String> {
        let (ok, text) = self.place.run(command)?;
        if !ok {
            bail!("`{command}` failed:\n{text}");
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
    pub(crate) fn wait_for(&self, command: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + self.place.patience();
        loop {
            let (_, text) = self.place.run(command)?;
            if wanted(&text) || Instant::now() > deadline {
                return Ok(text);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
