//! What a check is, and how one can end.

use std::path::PathBuf;

use anyhow::Result;

use crate::bed::Bed;
use crate::subject::Subject;

/// Checks that belong together.
pub(crate) struct Area {
    pub(crate) title: &'static str,
    pub(crate) checks: Vec<Check>,
}

/// One promise of a plugin.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// What is expected and why, in one line.
    pub(crate) expects: &'static str,
    /// The heading of the specification that it rests on, as in its address.
    pub(crate) section: &'static str,
    pub(crate) run: fn(&Bed<'_>) -> Verdict,
}

/// The specification that all checks rest on.
pub(crate) const SPECIFICATION: &str = "https://github.com/containernetworking/cni/blob/main/SPEC.md";

impl Check {
    pub(crate) fn link(&self) -> String {
        format!("{SPECIFICATION}#{}", self.section)
    }
}

/// What a check comes to, unless it holds.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The plugin does something else.
    Fault(String),
    /// The plugin does not say that it does this, or the machine has not what it takes.
    NotChecked(String),
    /// The check could not be made.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Stop::Broken(error)
    }
}

pub(crate) type Verdict<T = ()> = Result<T, Stop>;

/// Ends a check where the plugin does not do what is expected.
macro_rules! hold {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::check::Stop::Fault(format!($($why)+)));
        }
    };
}
pub(crate) use hold;

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Holds,
    Fails(String),
    NotChecked(String),
}

impl Outcome {
    /// Makes the check on a bed of its own.
    pub(crate) fn of(check: &Check, subject: &Subject, state: &[PathBuf]) -> Result<Self> {
        let bed = Bed::make(subject, state)?;
        match (check.run)(&bed) {
            Ok(()) => Ok(Outcome::Holds),
            Err(Stop::Fault(why)) => Ok(Outcome::Fails(why)),
            Err(Stop::NotChecked(why)) => Ok(Outcome::NotChecked(why)),
            Err(Stop::Broken(error)) => Err(error),
        }
    }
}
