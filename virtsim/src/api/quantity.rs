//! Amounts of a resource: `1`, `100m`, `128Mi`, `1e3`.
//!
//! Source: `k8s.io/apimachinery/pkg/api/resource`, `Quantity`.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde_json::Value;

const UNIT: i128 = 1_000_000_000;

/// An amount, exact to a billionth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nanos: i128,
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity (expected a form such as 1, 500m or 128Mi)")]
pub struct ParseQuantityError(String);

impl Quantity {
    /// So many whole ones.
    #[must_use]
    pub fn whole(count: u64) -> Self {
        Quantity { nanos: i128::from(count) * UNIT }
    }

    /// The whole number that this is; none for a fraction or a negative amount.
    #[must_use]
    pub fn as_whole(self) -> Option<u64> {
        (self.nanos % UNIT == 0).then(|| u64::try_from(self.nanos / UNIT).ok()).flatten()
    }

    /// Below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// A quantity in an object: a string, or a plain number.
    ///
    /// # Errors
    /// What stands there is neither, or is not a quantity.
    pub fn of(value: &Value) -> Result<Self, ParseQuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            other => Err(ParseQuantityError(other.to_string().chars().take(40).collect())),
        }
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseQuantityError(text.chars().take(40).collect()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let digits = digits.checked_mul(scale(suffix)?)?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    // The API rounds up what is finer than a billionth.
    let nanos = digits / divisor + i128::from(digits % divisor != 0);
    Some(Quantity { nanos: nanos.checked_mul(sign)? })
}

fn scale(suffix: &str) -> Option<i128> {
    let binary = |power: u32| 1024_i128.checked_pow(power)?.checked_mul(UNIT);
    let decimal = |power: u32| 10_i128.checked_pow(power);
    match suffix {
        "n" => Some(1),
        "u" => decimal(3),
        "m" => decimal(6),
        "" => decimal(9),
        "k" => decimal(12),
        "M" => decimal(15),
        "G" => decimal(18),
        "T" => decimal(21),
        "P" => decimal(24),
        "E" => decimal(27),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.trim_start_matches(['-', '+']);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let power = exponent.parse::<i32>().ok()?.checked_add(9)?;
            decimal(u32::try_from(power).ok()?)
        }
    }
}

impl fmt::Display for Quantity {
    /// In whole ones, or in thousandths or billionths where it has a fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nanos {
            nanos if nanos % UNIT == 0 => write!(f, "{}", nanos / UNIT),
            nanos if nanos % 1_000_000 == 0 => write!(f, "{}m", nanos / 1_000_000),
            nanos => write!(f, "{nanos}n"),
        }
    }
}

impl Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        Quantity { nanos: self.nanos.saturating_add(other.nanos) }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        Quantity { nanos: self.nanos.saturating_sub(other.nanos) }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(amounts: I) -> Quantity {
        amounts.fold(Quantity::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read_as_the_api_server_reads_them() {
        let nanos = |text: &str| text.parse::<Quantity>().unwrap().nanos;
        assert_eq!(nanos("1"), UNIT);
        assert_eq!(nanos("100m"), UNIT / 10);
        assert_eq!(nanos("0.5"), UNIT / 2);
        assert_eq!(nanos("128Mi"), 128 * 1024 * 1024 * UNIT);
        assert_eq!(nanos("1e3"), 1000 * UNIT);
        assert_eq!(nanos("1E"), UNIT * 10_i128.pow(18));
        assert_eq!(nanos(".5"), UNIT / 2);
        assert_eq!(nanos("-1"), -UNIT);
        for bad in ["", "one", "1 Mi", "1mi", "1.2.3", "-", "1e", "0x10", "1MiB", "1e99"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad:?} was taken");
        }
        assert_eq!("1500m".parse::<Quantity>().unwrap().as_whole(), None);
        assert_eq!("2000m".parse::<Quantity>().unwrap().as_whole(), Some(2));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn a_quantity_survives_its_text(nanos in -10_i128.pow(24)..10_i128.pow(24)) {
            let quantity = Quantity { nanos };
            prop_assert_eq!(quantity.to_string().parse(), Ok(quantity));
        }
    }
}
