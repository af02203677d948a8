//! Lines of `Title:   value`, and tables under a title.

use crate::cli::screen::{Grid, Titles};

const WIDTH: usize = 15;

/// A description as it grows.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    text: String,
    indent: usize,
}

impl Sheet {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn line(&mut self, title: &str, value: &str) {
        let title = format!("{title}:");
        let value = if value.is_empty() { "<none>" } else { value };
        let gap = if title.len() < WIDTH { "" } else { " " };
        self.push(&format!("{title:WIDTH$}{gap}{value}"));
    }

    /// A title with one value on each line.
    pub(super) fn lines(&mut self, title: &str, values: impl IntoIterator<Item = String>) {
        let mut values = values.into_iter();
        self.line(title, &values.next().unwrap_or_default());
        values.for_each(|value| self.push(&format!("{:WIDTH$}{value}", "")));
    }

    pub(super) fn title(&mut self, title: &str) {
        self.push(&format!("{title}:"));
    }

    pub(super) fn block<'a>(&mut self, lines: impl Iterator<Item = &'a str>) {
        lines.for_each(|line| self.push(line));
    }

    /// What `content` adds stands below the title.
    pub(super) fn section(&mut self, title: &str, content: impl FnOnce(&mut Sheet)) {
        self.title(title);
        self.indent += 2;
        content(self);
        self.indent -= 2;
    }

    pub(super) fn table(&mut self, title: &str, titles: &[&str], rows: Vec<Vec<String>>) {
        if rows.is_empty() {
            self.line(title, "");
            return;
        }
        let titles = titles.iter().map(|title| (*title).to_owned()).collect();
        let table = Grid::new(titles).render(&rows, Titles::Shown);
        self.section(title, |sheet| sheet.block(table.lines()));
    }

    fn push(&mut self, line: &str) {
        let line = format!("{:indent$}{line}", "", indent = self.indent);
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_a_column_and_sections_are_indented() {
        let mut sheet = Sheet::default();
        sheet.line("Name", "a");
        sheet.lines("Labels", ["x=1".to_owned(), "y=2".to_owned()]);
        sheet.line("Node", "");
        sheet.section("Containers", |sheet| {
            sheet.section("c", |sheet| sheet.line("Image", "busybox"));
        });
        sheet.table("Events", &["Type"], vec![]);
        sheet.table("Devices", &["Id", "Pod"], vec![vec!["0000:00:0a.0".to_owned(), "a".to_owned()]]);
        assert_eq!(
            sheet.text(),
            "Name:          a\n\
             Labels:        x=1\n               y=2\n\
             Node:          <none>\n\
             Containers:\n  c:\n    Image:         busybox\n\
             Events:        <none>\n\
             Devices:\n  ID             POD\n  0000:00:0a.0   a\n"
        );
    }
}
