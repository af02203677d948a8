//! The outcomes side by side: for people, for machines, for documents.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::check::{Area, Outcome};

/// What each check came to, for each plugin in turn.
pub(crate) struct Report<'a> {
    areas: &'a [Area],
    titles: Vec<String>,
    outcomes: BTreeMap<&'static str, Vec<Outcome>>,
}

const HOLDS: Style = AnsiColor::Green.on_default();
const FAILS: Style = AnsiColor::Red.on_default().bold();
const QUIET: Style = Style::new().dimmed();
const TITLE: Style = Style::new().bold();

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Outcome::Holds => "holds",
            Outcome::Fails(_) => "FAILS",
            Outcome::NotChecked(_) => "not checked",
        }
    }

    fn style(&self) -> Style {
        match self {
            Outcome::Holds => HOLDS,
            Outcome::Fails(_) => FAILS,
            Outcome::NotChecked(_) => QUIET,
        }
    }

    fn why(&self) -> Option<&str> {
        match self {
            Outcome::Holds => None,
            Outcome::Fails(why) | Outcome::NotChecked(why) => Some(why),
        }
    }
}

/// One line on a terminal that shows how far we are; gone with the next, and an empty one.
pub(crate) fn tell_progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
    }
}

/// The checks with what they expect.
pub(crate) fn list(areas: &[Area]) {
    for area in areas {
        anstream::println!("{TITLE}{}{TITLE:#}", area.title);
        for check in &area.checks {
            anstream::println!(
                "  {:<34} {}\n  {:<34} {QUIET}{}{QUIET:#}",
                check.name,
                check.expects,
                "",
                check.link()
            );
        }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(areas: &'a [Area], titles: Vec<String>) -> Self {
        Report { areas, titles, outcomes: BTreeMap::new() }
    }

    /// Notes an outcome for the next plugin in turn.
    pub(crate) fn note(&mut self, check: &'static str, outcome: Outcome) {
        self.outcomes.entry(check).or_default().push(outcome);
    }

    pub(crate) fn all_hold(&self) -> bool {
        !self.outcomes.values().flatten().any(|outcome| matches!(outcome, Outcome::Fails(_)))
    }

    fn of(&self, check: &str) -> &[Outcome] {
        self.outcomes.get(check).map_or(&[], Vec::as_slice)
    }

    /// How many checks of a plugin hold, fail, are not checked.
    fn counts(&self, plugin: usize) -> [usize; 3] {
        let count = |word: &str| {
            self.outcomes
                .values()
                .filter_map(|outcomes| outcomes.get(plugin))
                .filter(|each| each.word() == word)
                .count()
        };
        ["holds", "FAILS", "not checked"].map(count)
    }

    /// Every outcome that is not "holds", with why: plugin, check, outcome.
    fn remarks(&self) -> impl Iterator<Item = (&str, &crate::check::Check, &Outcome)> {
        self.areas.iter().flat_map(|area| &area.checks).flat_map(|check| {
            self.titles
                .iter()
                .map(String::as_str)
                .zip(self.of(check.name))
                .filter_map(move |(title, outcome)| outcome.why().map(|_| (title, check, outcome)))
        })
    }

    pub(crate) fn print(&self) {
        let name_width = self.areas.iter().flat_map(|area| &area.checks).map(|check| check.name.len()).max();
        let name_width = name_width.unwrap_or_default() + 4;
        let widths: Vec<usize> =
            self.titles.iter().map(|title| title.len().max("not checked".len()) + 2).collect();
        anstream::print!("{:<name_width$}", "");
        for (title, width) in self.titles.iter().zip(&widths) {
            anstream::print!("{TITLE}{title:<width$}{TITLE:#}");
        }
        anstream::println!("{TITLE}what is expected{TITLE:#}");
        for area in self.areas {
            anstream::println!("{TITLE}{}{TITLE:#}", area.title);
            for check in &area.checks {
                anstream::print!("  {:<width$}", check.name, width = name_width - 2);
                for (outcome, width) in self.of(check.name).iter().zip(&widths) {
                    let style = outcome.style();
                    anstream::print!("{style}{:<width$}{style:#}", outcome.word());
                }
                anstream::println!("{QUIET}{}{QUIET:#}", check.expects);
            }
        }
        for (title, check, outcome) in self.remarks() {
            if let Outcome::Fails(why) = outcome {
                anstream::println!(
                    "\n{FAILS}{title}: {}{FAILS:#}\n  expected: {}\n  seen:     {why}\n  {QUIET}{}{QUIET:#}",
                    check.name,
                    check.expects,
                    check.link()
                );
            }
        }
        anstream::println!();
        for (plugin, title) in self.titles.iter().enumerate() {
            let [holds, fails, not_checked] = self.counts(plugin);
            anstream::println!("{title}: {holds} hold, {fails} fail, {not_checked} not checked");
        }
    }

    pub(crate) fn print_json(&self) {
        let plugin = |(number, title): (usize, &String)| {
            let checks =
                self.areas.iter().flat_map(|area| area.checks.iter().map(move |check| (area, check)));
            let checks: Vec<Value> = checks
                .filter_map(|(area, check)| {
                    let outcome = self.of(check.name).get(number)?;
                    Some(json!({
                        "area": area.title, "check": check.name, "expects": check.expects, "specification": check.link(),
                        "outcome": outcome.word().to_lowercase(), "why": outcome.why(),
                    }))
                })
                .collect();
            let [holds, fails, not_checked] = self.counts(number);
            json!({ "plugin": title, "hold": holds, "fail": fails, "notChecked": not_checked, "checks": checks })
        };
        let plugins: Vec<Value> = self.titles.iter().enumerate().map(plugin).collect();
        println!("{:#}", json!({ "plugins": plugins }));
    }

    pub(crate) fn print_markdown(&self) {
        println!("| check | expected | {} |", self.titles.join(" | "));
        println!("|---|---|{}", "---|".repeat(self.titles.len()));
        for area in self.areas {
            println!("| **{}** | |{}", area.title, " |".repeat(self.titles.len()));
            for check in &area.checks {
                let outcomes: Vec<_> = self.of(check.name).iter().map(Outcome::word).collect();
                println!(
                    "| [{}]({}) | {} | {} |",
                    check.name,
                    check.link(),
                    check.expects,
                    outcomes.join(" | ")
                );
            }
        }
        let counts: Vec<_> = (0..self.titles.len())
            .map(|plugin| {
                let [holds, fails, not_checked] = self.counts(plugin);
                format!("{holds} hold, {fails} fail, {not_checked} not checked")
            })
            .collect();
        println!("| **all** | | {} |\n", counts.join(" | "));
        for (title, check, outcome) in self.remarks() {
            if let Some(why) = outcome.why() {
                println!("* {title}, {}: {}: {}", check.name, outcome.word(), code(why));
            }
        }
    }
}

/// As code, so that nothing in it is taken for Markdown.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'").replace(['\n', '\r', '\t'], " "))
}
