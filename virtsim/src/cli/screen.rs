//! What people see: tables and messages, with colours where there is a terminal that wants them.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use comfy_table::{ColumnConstraint, ContentArrangement, Table, TableStyle, Width};

const GAP: u16 = 3;

/// Columns with their titles. Widths grow and never shrink, so that rows which come later stand below the first ones.
#[derive(Debug, Default)]
pub(super) struct Grid {
    titles: Vec<String>,
    widths: Vec<u16>,
}

impl Grid {
    pub(super) fn new(titles: Vec<String>) -> Self {
        let titles: Vec<_> = titles.into_iter().map(|title| title.to_uppercase()).collect();
        Grid { widths: vec![0; titles.len()], titles }
    }

    /// The rows as text, coloured, with or without the titles above.
    pub(super) fn render(&mut self, rows: &[Vec<String>], titles: Titles) -> String {
        // A line break in an event's message would tear the table apart.
        let clean = |cell: &String| cell.trim().replace(['\n', '\r', '\t'], " ");
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(clean).collect()).collect();
        let mut table = Table::new();
        table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
        if titles == Titles::Shown {
            table.add_row(&self.titles);
        }
        for row in &rows {
            table.add_row(row);
        }
        for (found, width) in table.column_max_content_widths().into_iter().zip(&mut self.widths) {
            *width = (*width).max(found);
        }
        for (column, width) in table.column_iter_mut().zip(&self.widths) {
            column
                .set_padding((0, GAP))
                .set_constraint(ColumnConstraint::Absolute(Width::Fixed(width + GAP)));
        }
        let mut text = String::new();
        for (index, line) in table.lines().enumerate() {
            let line = line.trim_end();
            let row =
                index.checked_sub(usize::from(titles == Titles::Shown)).and_then(|index| rows.get(index));
            text.push_str(&row.map_or_else(|| line.to_owned(), |row| self.coloured(line, row)));
            text.push('\n');
        }
        text
    }

    fn coloured(&self, line: &str, row: &[String]) -> String {
        let mut start = 0_usize;
        for ((title, width), cell) in self.titles.iter().zip(&self.widths).zip(row) {
            let style = if ["STATUS", "TYPE", "REASON"].contains(&title.as_str()) {
                style(cell)
            } else {
                Style::new()
            };
            let end = start + cell.len();
            if let (false, Some(before), Some(inside), Some(after)) =
                (style.is_plain(), line.get(..start), line.get(start..end), line.get(end..))
            {
                return format!("{before}{style}{inside}{style:#}{after}");
            }
            start += usize::from(width + GAP);
        }
        line.to_owned()
    }
}

/// Whether titles are above the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Titles {
    Shown,
    Hidden,
}

/// The colour of a word that tells how something is.
pub(super) fn style(word: &str) -> Style {
    let colour = match word {
        "Running" | "Ready" | "Active" | "True" => AnsiColor::Green,
        "Pending" | "ContainerCreating" | "PodInitializing" | "Terminating" | "Warning" => AnsiColor::Yellow,
        "NotReady" => AnsiColor::Red,
        word if word.contains("Err")
            || word.contains("BackOff")
            || word.contains("Fail")
            || word.starts_with("ExitCode") =>
        {
            AnsiColor::Red
        }
        _ => return Style::new(),
    };
    Style::new().fg_color(Some(colour.into()))
}

/// Writes to standard output; colours are taken out where they are not wanted.
pub(super) fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Says on standard error what went wrong.
pub(super) fn complain(text: &str) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    // Where standard error is gone, nobody can be told.
    let _ = writeln!(anstream::stderr().lock(), "{red}error:{red:#} {text}");
}

/// Says on standard error what is not output.
pub(super) fn note(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_stand_below_their_titles_also_for_rows_that_come_later() {
        let mut grid = Grid::new(row(&["Name", "Ready", "Status", "Age"]));
        let text = grid.render(
            &[row(&["testpod1", "1/1", "Running", "5s"]), row(&["a", "0/1", "", "9m"])],
            Titles::Shown,
        );
        assert_eq!(
            plain(&text),
            "NAME       READY   STATUS    AGE\n\
             testpod1   1/1     Running   5s\n\
             a          0/1               9m\n"
        );
        let text = grid.render(&[row(&["b", "0/1", "Pending\n", "1s"])], Titles::Hidden);
        assert_eq!(plain(&text), "b          0/1     Pending   1s\n");
    }

    #[test]
    fn only_the_status_is_coloured() {
        let mut grid = Grid::new(row(&["Name", "Status"]));
        let text = grid.render(&[row(&["Running", "CrashLoopBackOff"])], Titles::Hidden);
        assert_eq!(text, "Running   \u{1b}[31mCrashLoopBackOff\u{1b}[0m\n");
    }
}
