//! Files that people write: each value with its place, so that whatever is wrong with it can be said where it stands, and
//! with what was perhaps meant.
//!
//! Source: YAML 1.2; JSON is a part of it.

mod node;
mod word;

use std::fmt;

pub use self::node::{Content, Node, documents};
pub use self::word::nearest;

/// A line in a file, both counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as it was named, `-` for standard input.
    pub file: String,
    /// 0 where no line is to blame.
    pub line: u64,
    /// Counted in characters.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// Something wrong with a file. Whatever it quotes, it is told in one line that a log can hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{place}: {}", OneLine(what))]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What, and what to do about it.
    pub what: String,
}

impl Fault {
    /// Something wrong with the file as a whole.
    #[must_use]
    pub fn of_file(file: impl Into<String>, what: impl Into<String>) -> Self {
        Fault { place: Place { file: file.into(), line: 0, column: 0 }, what: what.into() }
    }
}

/// In characters. What people wrote fits; what a program made up need not be shown in full.
const LONGEST: usize = 1000;

/// Text without line breaks and other control characters, and not without end.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, char) in self.0.chars().enumerate() {
            match char {
                _ if number == LONGEST => return f.write_str("..."),
                char if char.is_control() => write!(f, "{}", char.escape_debug())?,
                char => write!(f, "{char}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_whatever_it_quotes() {
        let said = |what: &str| Fault::of_file("pools.yaml", what).to_string();
        assert_eq!(said("no key `a\n\u{1b}[31mb`"), "pools.yaml: no key `a\\n\\u{1b}[31mb`");
        assert_eq!(said("äöü: \"b\""), "pools.yaml: äöü: \"b\"");
        assert_eq!(said(&"x".repeat(LONGEST)), format!("pools.yaml: {}", "x".repeat(LONGEST)));
        assert_eq!(said(&"x".repeat(LONGEST + 1)), format!("pools.yaml: {}...", "x".repeat(LONGEST)));
    }
}
