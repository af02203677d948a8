//! `virtdp explain NAME`: all that is known of one NIC or interface, on one page.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use anstyle::Style;
use anyhow::{Context as _, Result, bail};
use ledger::{Ledger, Stage};
use linux::Sysfs;
use nic::{DeviceId, IfName, MacAddr};
use serde::Serialize;

use super::print::{Row, of_nic, rows};
use super::read::Reader;
use super::survey::{Seen, Survey};
use super::vital;
use crate::allocate::checkpoint;
use crate::cli::Settings;
use crate::repatriate;

/// As many names are suggested to who mistyped one.
const SUGGESTIONS: usize = 3;
/// How alike a name must be to be suggested: 1 is the same.
const ALIKE: f64 = 0.75;

/// Looks once, and prints what `name` is: an interface, a device, a MAC or an alternative name.
///
/// # Errors
/// The node cannot be read, or nothing on it is called so.
pub(crate) fn run(settings: &Settings, name: &str, json: bool) -> Result<()> {
    let config = Arc::new(crate::configure::load(settings)?);
    let mut reader = Reader::new(settings);
    reader.set_peers(vital::resolve(&settings.api_servers));
    let mut survey = reader.read(&config).context("the node cannot be read")?;
    survey.stray = repatriate::stray(settings, &survey);
    let pages = pages(settings, &survey, name);
    if pages.is_empty() {
        let near = suggestions(&survey, name);
        let hint = if near.is_empty() {
            "virtdp discover shows all".to_owned()
        } else {
            format!("did you mean {}?", near.join(", "))
        };
        // What was typed may be anything.
        let shown: String = name.chars().take(63).flat_map(char::escape_debug).collect();
        bail!("no NIC or interface of this node is called {shown}: {hint}");
    }
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&pages)?)?;
        return Ok(());
    }
    let texts: Vec<String> = pages.iter().map(Page::text).collect();
    out.write_all(texts.join("\n").as_bytes())?;
    Ok(())
}

/// All about one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(flatten)]
    row: Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    /// The device that the driver sits on, as its bus calls it.
    bus_name: String,
    place: String,
    alternative_names: Vec<String>,
    current_mac: Option<MacAddr>,
    /// In bytes.
    mtu: Option<u32>,
    up: Option<bool>,
    /// Meaningless while it is not up.
    carrier: Option<bool>,
    receive_queues: Option<usize>,
    transmit_queues: Option<usize>,
    iommu_group: Option<u32>,
    lease: Option<OfLease>,
    /// Why the ledger says nothing.
    ledger_fault: Option<String>,
    /// The UID of the pod that the kubelet gave it to, by its checkpoint.
    kubelet_pod_uid: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfLease {
    owner: String,
    network: String,
    stage: &'static str,
    fault: Option<String>,
    /// What it is called at home, and its MTU there in bytes.
    home: String,
    home_mtu: u32,
}

fn pages(settings: &Settings, survey: &Survey, name: &str) -> Vec<Page> {
    let nics: Vec<&Seen> = survey.nics.iter().filter(|seen| is_called(seen, survey, name)).collect();
    if !nics.is_empty() {
        let page = |seen: &&Seen| Page {
            row: of_nic(seen, survey).with_speed(&Sysfs::at(&settings.sysfs)),
            details: Some(Details::of(seen, survey, settings)),
        };
        return nics.iter().map(page).collect();
    }
    let same = |text: &Option<String>| text.as_deref() == Some(name);
    let others = rows(survey).into_iter().filter(|row| same(&row.device) || same(&row.interface));
    others.map(|row| Page { row, details: None }).collect()
}

fn is_called(seen: &Seen, survey: &Survey, name: &str) -> bool {
    let mac: Option<MacAddr> = name.parse().ok();
    let lease = survey.leases.get(&seen.nic.id);
    let link = seen.link.as_ref();
    let macs = [link.and_then(|link| link.mac), seen.mac(), lease.and_then(|lease| lease.mac)];
    names(seen).contains(&name) || (mac.is_some() && macs.contains(&mac))
}

/// Everything that a NIC is called.
fn names(seen: &Seen) -> Vec<&str> {
    let mut names = vec![seen.nic.id.as_str(), seen.nic.bus_name.as_str()];
    names.extend(seen.nic.interfaces.iter().map(|interface| interface.name.as_str()));
    names.extend(seen.link.iter().flat_map(|link| &link.alt_names).map(String::as_str));
    names
}

/// The names that are most like what was typed.
fn suggestions<'a>(survey: &'a Survey, typed: &str) -> Vec<&'a str> {
    let all = survey.nics.iter().flat_map(names).chain(survey.others.iter().map(|other| other.name.as_str()));
    let mut near: Vec<(f64, &str)> = all
        .map(|name| (strsim::jaro_winkler(typed, name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.dedup_by(|a, b| a.1 == b.1);
    near.into_iter().take(SUGGESTIONS).map(|(_, name)| name).collect()
}

impl Details {
    fn of(seen: &Seen, survey: &Survey, settings: &Settings) -> Details {
        let sysfs = Sysfs::at(&settings.sysfs);
        let interface = seen.nic.interfaces.first().map(|interface| &interface.name);
        let queues = interface.and_then(|name| sysfs.queues(name));
        let link = seen.link.as_ref();
        let (lease, ledger_fault) = match Ledger::at(&settings.state).read(&seen.nic.id) {
            Ok(lease) => (lease.map(|lease| OfLease::of(&lease)), None),
            Err(error) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
        };
        Details {
            bus_name: seen.nic.bus_name.clone(),
            place: place(interface, survey, &seen.nic.id),
            alternative_names: link.map(|link| link.alt_names.clone()).unwrap_or_default(),
            current_mac: link.and_then(|link| link.mac),
            mtu: link.map(|link| link.mtu),
            up: link.map(|link| link.up),
            carrier: link.map(|link| link.carrier),
            receive_queues: queues.map(|(receive, _)| receive),
            transmit_queues: queues.map(|(_, transmit)| transmit),
            iommu_group: seen.nic.pci.and_then(|pci| sysfs.vfio_group(pci).ok()).map(|group| group.number()),
            lease,
            ledger_fault,
            // A hint; without it the page is shorter.
            kubelet_pod_uid: checkpoint::holders(&settings.kubelet.checkpoint())
                .ok()
                .and_then(|mut holders| holders.remove(&seen.nic.id)),
        }
    }
}

fn place(interface: Option<&IfName>, survey: &Survey, id: &DeviceId) -> String {
    let pod = survey.leases.get(id).and_then(|lease| lease.pod.as_ref());
    match (interface, pod) {
        (Some(name), _) => format!("on the node, as {name}"),
        (None, Some((pod, name))) => format!("in pod {}/{}, as {name}", pod.namespace, pod.name),
        (None, None) => "its interface is in another network namespace, or it has none".to_owned(),
    }
}

impl OfLease {
    fn of(lease: &ledger::Lease) -> OfLease {
        let (stage, fault) = match &lease.stage {
            Stage::Prepared => ("prepared", None),
            Stage::Plumbed { .. } => ("plumbed", None),
            Stage::Returning { fault } => ("returning", fault.clone()),
            Stage::Displaced { .. } => ("displaced", None),
        };
        OfLease {
            owner: lease.owner.to_string(),
            network: lease.owner.network.clone(),
            stage,
            fault,
            home: lease.home.name.to_string(),
            home_mtu: lease.home.mtu,
        }
    }
}

impl Page {
    /// A head in the colour of the state, and a line for each thing that is known.
    fn text(&self) -> String {
        let Page { row, details } = self;
        let (style, bold) = (row.state.style(), Style::new().bold());
        let names = [row.device.as_deref(), row.interface.as_deref()];
        let names: Vec<&str> = names.into_iter().flatten().collect();
        let mut text = format!("{bold}{}{bold:#}\n", names.join("  "));
        line(&mut text, "State", Some(format!("{style}{}{style:#}: {}", row.state.word(), row.reason)));
        let Some(details) = details else { return text };
        line(&mut text, "Pool", row.pool.clone());
        line(&mut text, "Networks", joined(&row.network_ids));
        line(&mut text, "Tags", joined(&row.tags));
        line(&mut text, "Place", Some(details.place.clone()));
        let driver = row.driver.as_deref().unwrap_or("none");
        line(&mut text, "Driver", Some(format!("{driver}, bound to {}", details.bus_name)));
        line(&mut text, "Hardware", row.hardware.clone());
        line(&mut text, "MAC", row.mac.clone());
        let current =
            details.current_mac.map(|mac| mac.to_string()).filter(|mac| row.mac.as_ref() != Some(mac));
        line(&mut text, "MAC now", current);
        let alternative = details.alternative_names.join(", ");
        line(&mut text, "Also called", Some(alternative).filter(|names| !names.is_empty()));
        line(&mut text, "Link", details.link(row.speed));
        line(&mut text, "Queues", details.queues());
        line(&mut text, "NUMA node", row.numa_node.map(|node| node.to_string()));
        line(&mut text, "IOMMU group", details.iommu_group.map(|group| group.to_string()));
        line(&mut text, "Lease", details.lease.as_ref().map(OfLease::text).or(details.ledger_fault.clone()));
        let given = |uid: &String| format!("gave it to the pod with UID {uid}");
        line(&mut text, "Kubelet", details.kubelet_pod_uid.as_ref().map(given));
        text
    }
}

impl Details {
    fn link(&self, speed: Option<u32>) -> Option<String> {
        let wire = match (self.up?, self.carrier?) {
            (false, _) => "down",
            (true, true) => "up",
            (true, false) => "up, without carrier",
        };
        let speed = speed.map(|speed| format!(", {speed} Mb/s")).unwrap_or_default();
        Some(format!("{wire}, MTU {}{speed}", self.mtu?))
    }

    fn queues(&self) -> Option<String> {
        Some(format!("{} to receive, {} to send", self.receive_queues?, self.transmit_queues?))
    }
}

impl OfLease {
    fn text(&self) -> String {
        let OfLease { owner, network, stage, fault, home, home_mtu } = self;
        let fault = fault.as_ref().map(|fault| format!(" ({fault})")).unwrap_or_default();
        format!("{stage}{fault}, for {owner}, network {network}; at home it is {home} with MTU {home_mtu}")
    }
}

fn joined(names: &BTreeSet<String>) -> Option<String> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Some(names.join(", ")).filter(|names| !names.is_empty())
}

fn line(text: &mut String, name: &str, value: Option<String>) {
    if let Some(value) = value {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {name:<12} {value}");
    }
}
