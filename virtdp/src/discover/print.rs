//! `virtdp discover`: every interface of the node, whether it is offered, and why.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use linux::Sysfs;
use nic::{Health, Membership, Standing};
use serde::Serialize;

use super::read::Reader;
use super::survey::{Seen, Survey};
use super::vital;
use crate::cli::Settings;
use crate::repatriate::{self, Stray};

const COLUMNS: usize = 9;

/// Looks once, and prints.
///
/// # Errors
/// The node cannot be read, or standard output is closed.
pub(crate) fn run(settings: &Settings, json: bool) -> Result<()> {
    let config = Arc::new(crate::configure::load(settings)?);
    let mut reader = Reader::new(settings);
    reader.set_peers(vital::resolve(&settings.api_servers));
    let mut survey = reader.read(&config).context("the node cannot be read")?;
    survey.stray = repatriate::stray(settings, &survey);
    let sysfs = Sysfs::at(&settings.sysfs);
    let rows: Vec<Row> = rows(&survey).into_iter().map(|row| row.with_speed(&sysfs)).collect();
    // Colour only on a terminal, and not with NO_COLOR.
    let mut out = anstream::stdout().lock();
    if json {
        let resources = config.pools.iter().map(|pool| pool.resource.as_str()).collect();
        let text = serde_json::to_string_pretty(&Report { resources, interfaces: &rows })?;
        writeln!(out, "{text}")?;
        return Ok(());
    }
    out.write_all(table(&rows).as_bytes())?;
    writeln!(out)?;
    for pool in config.pools.iter() {
        let resource = pool.resource.as_str();
        let counted =
            |row: &&Row| matches!(row.state, State::Offered | State::InUse | State::Stray | State::Insisted);
        let rows = rows.iter().filter(|row| row.pool.as_deref() == Some(resource));
        writeln!(out, "{resource}: {} of {} NICs", rows.filter(counted).count(), survey.nics.len())?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Report<'a> {
    resources: Vec<&'a str>,
    interfaces: &'a [Row],
}

/// One line: a NIC, an interface that is none, or a device that cannot be understood.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// The device's ID, as the kubelet knows it.
    pub(super) device: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) driver: Option<String>,
    /// Vendor and device number.
    pub(super) hardware: Option<String>,
    pub(super) mac: Option<String>,
    /// In Mb/s.
    pub(super) speed: Option<u32>,
    pub(super) numa_node: Option<u16>,
    /// The resource that it is offered as.
    pub(super) pool: Option<String>,
    /// Further pools that would have taken it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) also_wanted_by: Vec<String>,
    /// What the VM's metadata say of it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) network_ids: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) tags: BTreeSet<String>,
    pub(super) state: State,
    pub(super) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// For pods, and at home.
    Offered,
    /// For pods, and away from home.
    InUse,
    /// For pods, but not at home as it was, though nobody has it.
    Stray,
    /// For pods, but ill.
    Unhealthy,
    /// For pods, although it carries the node.
    #[serde(rename = "lifeline-offered")]
    Insisted,
    /// Not for pods.
    Skipped,
    /// Cannot be understood.
    Unreadable,
}

pub(super) fn rows(survey: &Survey) -> Vec<Row> {
    let nics = survey.nics.iter().map(|seen| of_nic(seen, survey));
    let others = survey.others.iter().map(|other| Row {
        interface: Some(other.name.to_string()),
        ..Row::new(State::Skipped, other.why.clone())
    });
    let unreadable = survey.unreadable.iter().map(|device| Row {
        device: Some(device.device.clone()),
        ..Row::new(State::Unreadable, device.why.clone())
    });
    nics.chain(others).chain(unreadable).collect()
}

pub(super) fn of_nic(seen: &Seen, survey: &Survey) -> Row {
    let lease = survey.leases.get(&seen.nic.id);
    let away = seen.nic.interfaces.is_empty();
    let (state, reason) = match (&seen.standing, lease, survey.stray.get(&seen.nic.id)) {
        (Standing::Insisted(health, lifeline), ..) => (
            State::Insisted,
            format!("{lifeline}, and is offered because --offer-lifeline says so ({health})"),
        ),
        (Standing::Skipped(skip), ..) => (State::Skipped, skip.to_string()),
        (Standing::Offered(health @ (Health::NoCarrier(_) | Health::Stranger(_))), ..) => {
            (State::Unhealthy, health.to_string())
        }
        (Standing::Offered(Health::Healthy), _, Some(Stray { name, owner })) => (
            State::Stray,
            format!(
                "back on the node as {name}, and {owner} has it no more: the DEL of that, a GC or the next pod brings it home as it was; \
                 virtdp does, where it has the capability NET_ADMIN"
            ),
        ),
        (Standing::Offered(Health::Healthy), Some(lease), None) if away => {
            (State::InUse, format!("away for {}", lease.owner))
        }
        (Standing::Offered(Health::Healthy), Some(lease), None) => {
            (State::InUse, format!("on the node, though {} has it by the ledger", lease.owner))
        }
        (Standing::Offered(Health::Healthy), None, None) if away => {
            (State::InUse, "its interface is in another network namespace".to_owned())
        }
        (Standing::Offered(Health::Healthy), None, None) => (State::Offered, "free".to_owned()),
    };
    let nic = &seen.nic;
    let told = seen.told.clone().unwrap_or_default();
    let offered = |_: &&Membership| state != State::Skipped;
    let membership = seen.membership.as_ref().filter(offered);
    let also: Vec<String> =
        membership.iter().flat_map(|found| &found.also).map(ToString::to_string).collect();
    let reason =
        if also.is_empty() { reason } else { format!("{reason}; also wanted by {}", also.join(", ")) };
    Row {
        device: Some(nic.id.to_string()),
        interface: Some(seen.interfaces()).filter(|names| !names.is_empty()),
        driver: nic.driver.clone(),
        hardware: nic.hardware.map(|hardware| hardware.to_string()),
        mac: seen.mac().or_else(|| lease?.mac).map(|mac| mac.to_string()),
        numa_node: nic.numa_node,
        pool: membership.map(|found| found.pool.resource.to_string()),
        also_wanted_by: also,
        network_ids: told.network_ids,
        tags: told.tags,
        ..Row::new(state, reason)
    }
}

impl Row {
    fn new(state: State, reason: String) -> Row {
        Row {
            device: None,
            interface: None,
            driver: None,
            hardware: None,
            mac: None,
            speed: None,
            numa_node: None,
            pool: None,
            also_wanted_by: Vec::new(),
            network_ids: BTreeSet::new(),
            tags: BTreeSet::new(),
            state,
            reason,
        }
    }

    /// With what its driver says of its speed, if it is at home.
    pub(super) fn with_speed(self, sysfs: &Sysfs) -> Row {
        let name = self.device.as_ref().and(self.interface.as_ref()).and_then(|name| name.parse().ok());
        Row { speed: name.and_then(|name| sysfs.speed(&name)), ..self }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        [
            text(&self.device),
            text(&self.interface),
            text(&self.driver),
            text(&self.mac),
            self.speed.map_or_else(|| "-".to_owned(), |speed| speed.to_string()),
            self.numa_node.map_or_else(|| "-".to_owned(), |node| node.to_string()),
            text(&self.pool),
            self.state.word().to_owned(),
            self.reason.clone(),
        ]
    }
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            State::Offered => "offered",
            State::InUse => "in use",
            State::Stray => "stray",
            State::Unhealthy => "unhealthy",
            State::Insisted => "LIFELINE OFFERED",
            State::Skipped => "skipped",
            State::Unreadable => "unreadable",
        }
    }

    pub(super) fn style(self) -> Style {
        match self {
            State::Offered => AnsiColor::Green.on_default(),
            State::InUse => AnsiColor::Cyan.on_default(),
            State::Insisted => AnsiColor::Yellow.on_default().bold(),
            State::Stray => AnsiColor::Yellow.on_default(),
            State::Unhealthy | State::Unreadable => AnsiColor::Red.on_default(),
            State::Skipped => Style::new().dimmed(),
        }
    }
}

/// The rows in columns, each line in the colour of its state.
fn table(rows: &[Row]) -> String {
    const HEAD: [&str; COLUMNS] =
        ["DEVICE", "INTERFACE", "DRIVER", "MAC", "SPEED", "NUMA", "POOL", "STATE", "REASON"];
    let cells: Vec<[String; COLUMNS]> = rows.iter().map(Row::cells).collect();
    let mut widths = HEAD.map(str::len);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; COLUMNS], style: Style| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(&format!("{style}{}{style:#}\n", line.trim_end()));
    };
    line(HEAD, Style::new().bold());
    for (row, cells) in rows.iter().zip(&cells) {
        line(cells.each_ref().map(String::as_str), row.state.style());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::survey::{Lease, sample};

    #[test]
    fn a_nic_that_is_back_without_a_del_is_stray_and_not_in_use() {
        let device: nic::DeviceId = "0000:00:0a.0".parse().unwrap();
        let seen = Seen {
            nic: nic::Nic {
                interfaces: vec![nic::Interface { index: 3, name: "net1".parse().unwrap(), hardware: true }],
                ..sample::nic("0000:00:0a.0")
            },
            link: None,
            standing: Standing::Offered(Health::Healthy),
            membership: None,
            told: None,
        };
        let lease = Lease { owner: "pod default/p".into(), mac: None, pod: None };
        let mut survey = Survey { leases: [(device.clone(), lease)].into(), ..Survey::default() };
        assert_eq!(of_nic(&seen, &survey).state, State::InUse);
        survey.stray =
            [(device, Stray { name: "net1".parse().unwrap(), owner: "pod default/p".into() })].into();
        let row = of_nic(&seen, &survey);
        assert_eq!(row.state, State::Stray);
        assert!(
            row.reason.starts_with("back on the node as net1, and pod default/p has it no more: "),
            "{}",
            row.reason
        );
    }
}
