//! All checks, in the order of the report.

mod concurrency;
mod errors;
mod home;
mod kill;
mod pod;
mod repeats;
mod transaction;
mod verbs;
mod versions;

use crate::check::Area;

const ADD: &str = "add-add-container-to-network-or-apply-modifications";
const DEL: &str = "del-remove-container-from-network-or-un-apply-modifications";
const CHECK: &str = "check-check-containers-networking-is-as-expected";
const ERROR: &str = "error";
const DELEGATED: &str = "delegated-plugin-execution-procedure";
const LIFECYCLE: &str = "lifecycle--ordering";

/// The checks whose area or name contains `text`; all without one.
pub(crate) fn chosen(text: Option<&str>) -> Vec<Area> {
    let mut areas = vec![
        versions::area(),
        errors::area(),
        transaction::area(),
        home::area(),
        repeats::area(),
        kill::area(),
        pod::area(),
        concurrency::area(),
        verbs::area(),
    ];
    if let Some(text) = text {
        for area in &mut areas {
            if !area.title.contains(text) {
                area.checks.retain(|check| check.name.contains(text));
            }
        }
    }
    areas.retain(|area| !area.checks.is_empty());
    areas
}
