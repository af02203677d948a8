//! How figures are shown: a table that a person reads on the screen and in the documents alike, a plot, and the page that keeps both.

use std::fs;

use anyhow::{Context as _, Result};

use crate::build;

/// The page with the figures that were taken last, below the workspace, and the folder of its plots beside it.
const PAGE: &str = "docs/benchmarks.md";
const FIGURES: &str = "docs/figures";

/// A median with the quartiles around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Spread {
    /// The spread of some figures.
    pub(super) fn of(mut figures: Vec<f64>) -> Result<Self> {
        figures.sort_by(f64::total_cmp);
        let at = |part: usize| figures.get(figures.len() * part / 4).copied();
        let found = at(1).zip(at(2)).zip(at(3));
        let ((low, median), high) = found.context("nothing was measured")?;
        Ok(Spread { low, median, high })
    }
}

/// A table in Markdown, its columns as wide as what stands in them.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
        let rule = heads.iter().map(|_| "---".to_owned()).collect();
        Table { rows: vec![heads, rule] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn markdown(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let fill = if cell == "---" { '-' } else { ' ' };
                let rest = width(column) - cell.chars().count();
                format!("| {cell}{} ", fill.to_string().repeat(rest))
            });
            text.extend(cells);
            text.push_str("|\n");
        }
        text
    }
}

/// A bar of a plot.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) spread: Spread,
    /// Whether it is ours.
    pub(super) ours: bool,
}

/// Bars that are measured by one scale.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) bars: Vec<Bar>,
}

const WIDTH: f64 = 860.0;
/// Where bars begin, and the longest one ends.
const LEFT: f64 = 300.0;
const RIGHT: f64 = 760.0;
const LINE: f64 = 24.0;

/// A plot of times in milliseconds: a bar for each median, a thin line from the first quartile to the third.
pub(super) fn plot(panels: &[Panel]) -> String {
    let font = r#"font-family="system-ui,Segoe UI,Helvetica,Arial,sans-serif""#;
    let mut marks = String::new();
    let mut y = 10.0;
    for panel in panels {
        y += LINE;
        let title = &panel.title;
        marks.push_str(&format!(
            "<text x=\"20\" y=\"{y}\" {font} font-size=\"14\" font-weight=\"600\" fill=\"#1f2933\">{title}</text>\n"
        ));
        let longest = panel.bars.iter().map(|bar| bar.spread.high).fold(f64::MIN_POSITIVE, f64::max);
        let scale = |value: f64| LEFT + (RIGHT - LEFT) * value / longest;
        for Bar { label, spread: Spread { low, median, high }, ours } in &panel.bars {
            y += LINE;
            let color = if *ours { "#15803d" } else { "#7b8794" };
            let (top, middle, base) = (y - 14.0, y - 5.0, y - 1.0);
            let (low, end, high) = (scale(*low), scale(*median), scale(*high));
            let length = end - LEFT;
            marks.push_str(&format!(
                "<text x=\"{x}\" y=\"{base}\" {font} font-size=\"13\" fill=\"#1f2933\" text-anchor=\"end\">{label}</text>\n\
                 <rect x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" rx=\"3\" fill=\"{color}\"/>\n\
                 <line x1=\"{low:.1}\" y1=\"{middle}\" x2=\"{high:.1}\" y2=\"{middle}\" stroke=\"#1f2933\" stroke-width=\"1.6\"/>\n\
                 <text x=\"{after:.1}\" y=\"{base}\" {font} font-size=\"13\" fill=\"{color}\">{median:.1} ms</text>\n",
                x = LEFT - 10.0,
                after = high.max(end) + 8.0,
            ));
        }
        y += LINE / 2.0;
    }
    let height = y + 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n{marks}</svg>\n"
    )
}

/// Puts what a part of the benchmark says into its place on the page, and its plot beside it.
pub(super) fn publish(part: &str, alt: &str, text: &str, plot: &str) -> Result<()> {
    let workspace = build::workspace()?;
    let page = workspace.join(PAGE);
    let old = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = format!("![{alt}](figures/bench-{part}.svg)\n\n{text}");
    let new = replaced(&old, part, &text).with_context(|| format!("{PAGE} has no place for {part}"))?;
    fs::write(&page, new).with_context(|| format!("cannot write {}", page.display()))?;
    let figure = workspace.join(FIGURES).join(format!("bench-{part}.svg"));
    fs::write(&figure, plot).with_context(|| format!("cannot write {}", figure.display()))
}

/// `page` with `text` between the comments that mark the part's place.
fn replaced(page: &str, part: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- bench {part} -->\n"), format!("<!-- end of bench {part} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_between_its_quartiles() {
        let figures = [9.0, 1.0, 5.0, 3.0, 7.0].to_vec();
        assert_eq!(Spread::of(figures).unwrap(), Spread { low: 3.0, median: 5.0, high: 7.0 });
        assert!(Spread::of(Vec::new()).is_err());
    }

    #[test]
    fn only_the_place_of_a_part_on_the_page_changes() {
        let page = "# A\n<!-- bench cni -->\nold\n<!-- end of bench cni -->\nmore\n";
        let new = replaced(page, "cni", "new\n").unwrap();
        assert_eq!(new, "# A\n<!-- bench cni -->\nnew\n<!-- end of bench cni -->\nmore\n");
        assert_eq!(replaced(page, "tree", "new\n"), None);
    }

    #[test]
    fn the_page_has_a_place_for_what_is_published() {
        let page = fs::read_to_string(build::workspace().unwrap().join(PAGE)).unwrap();
        assert!(replaced(&page, "cni", "").is_some());
    }
}
