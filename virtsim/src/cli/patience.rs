//! How long somebody wants to wait, as it is typed: `30s`, `1m30s`, `500ms`, or plain seconds.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A time span on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience(Duration);

/// Far enough to be never: adding more to an `Instant` could overflow.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Patience {
    pub(super) fn deadline(self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.0).unwrap_or(now)
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_millis() == 0 {
            write!(f, "{} s", self.0.as_secs())
        } else {
            write!(f, "{} ms", self.0.as_millis())
        }
    }
}

/// Not a time span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time span such as 30s, 1m30s or 500ms")]
pub(super) struct ParsePatienceError(String);

impl FromStr for Patience {
    type Err = ParsePatienceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span = parse(text).ok_or_else(|| ParsePatienceError(text.chars().take(40).collect()))?;
        Ok(Patience(span.min(FOREVER)))
    }
}

fn parse(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // kubectl: a negative time means a week.
    if text.strip_prefix('-').is_some_and(|rest| parse(rest).is_some()) {
        return Some(FOREVER);
    }
    let mut whole = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit)?;
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        whole = whole.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_are_read_as_kubectl_reads_them() {
        for (text, millis) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("0", 0), ("7", 7000), ("1h0m1s", 3_601_000)]
        {
            let read: Patience = text.parse().unwrap();
            assert_eq!(read.0, Duration::from_millis(millis), "{text}");
        }
        assert_eq!("-1s".parse::<Patience>().unwrap().0, FOREVER);
        assert_eq!(format!("{}", u64::MAX).parse::<Patience>().unwrap().0, FOREVER);
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in ["", "s", "5x", "1.5s", "5s3", "ä", "-", "99999999999999999999h"] {
            let error = text.parse::<Patience>().unwrap_err();
            assert!(error.to_string().contains("1m30s"), "{text}");
        }
    }
}
