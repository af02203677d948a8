//! `virtdp validate FILE`: what a configuration says, or what is wrong with it.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use config::{Config, Fault};
use nic::{Pool, Selector};
use serde_json::{Value, json};

use super::file;

/// Reads the file and prints what it means.
///
/// # Errors
/// It is bad, for the reason given, or standard output is closed.
pub(crate) fn run(path: &Path, as_json: bool) -> Result<()> {
    let mut out = anstream::stdout().lock();
    let text = file::read(path)?;
    let parsed = config::parse(&text, path);
    if as_json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report(&parsed))?)?;
    }
    match parsed {
        Ok(config) if as_json => drop(config),
        Ok(config) => out.write_all(table(&config).as_bytes())?,
        Err(fault) => bail!("{fault}"),
    }
    Ok(())
}

fn texts(selectors: &[Selector]) -> Vec<String> {
    selectors.iter().map(ToString::to_string).collect()
}

fn report(parsed: &std::result::Result<Config, Fault>) -> Value {
    let fault = |fault: &Fault| {
        let place = &fault.place;
        json!({ "file": place.file, "line": place.line, "column": place.column, "message": fault.what })
    };
    let pool = |pool: &Pool| {
        json!({
            "resource": pool.resource,
            "selectors": texts(&pool.selectors),
            "exclude": texts(&pool.exclude),
            "excludeTopology": pool.exclude_topology,
        })
    };
    match parsed {
        Ok(config) => json!({
            "valid": true,
            "pools": config.pools.iter().map(|each| pool(each)).collect::<Vec<_>>(),
            "notes": config.notes.iter().map(fault).collect::<Vec<_>>(),
        }),
        Err(bad) => json!({ "valid": false, "fault": fault(bad) }),
    }
}

fn table(config: &Config) -> String {
    let width = config.pools.iter().map(|pool| pool.resource.as_str().len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {}\n", "POOL", "NICS");
    for pool in config.pools.iter() {
        let selected = texts(&pool.selectors).join("; or ");
        let excluded: Vec<String> = texts(&pool.exclude).iter().map(|each| format!("; not {each}")).collect();
        text.push_str(&format!("{:width$}  {selected}{}\n", pool.resource.as_str(), excluded.concat()));
    }
    for note in &config.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}
