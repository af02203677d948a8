//! `virtsim api-resources`: the kinds that the node serves.

use std::process::ExitCode;

use anyhow::Result;

use super::Context;
use super::screen::{self, Grid, Titles};

pub(super) fn run(context: &Context) -> Result<ExitCode> {
    let titles = ["Name", "Shortnames", "APIVersion", "Namespaced", "Kind"];
    let kinds = context.client()?.kinds()?;
    let rows: Vec<_> = kinds
        .iter()
        .map(|kind| {
            vec![
                kind.plural.clone(),
                kind.short_names.join(","),
                kind.api_version(),
                kind.is_namespaced().to_string(),
                kind.kind.clone(),
            ]
        })
        .collect();
    screen::print(&Grid::new(titles.map(str::to_owned).to_vec()).render(&rows, Titles::Shown))?;
    Ok(ExitCode::SUCCESS)
}
