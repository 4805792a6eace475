//! Amounts: decimal text with at most six places, never a float.

use core::fmt;
use core::str::FromStr;

use serde_json::Value;

/// A decimal that is not negative, counted in millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(pub u64);

/// Why text is not a [`Decimal`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("decimal: expected digits with at most 6 places, below 10^13, got {0:?}")]
pub struct DecimalError(String);

/// The most places behind the point.
pub(crate) const MAX_PLACES: u32 = 6;
const ONE: u64 = 1_000_000;
/// Longer text is not an amount, whatever its leading zeros say.
const MAX_TEXT: usize = 24;

impl Decimal {
    /// The amount at a place of a call's arguments: a string of digits, or an
    /// integer. A float is none, as it does not say what it is exactly.
    pub fn of_argument(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.as_u64()?.checked_mul(ONE).map(Self),
            _ => None,
        }
    }

    /// The number of places that are needed to write it.
    pub fn places(self) -> u32 {
        (0..MAX_PLACES)
            .find(|places| self.0.is_multiple_of(10_u64.pow(MAX_PLACES - places)))
            .unwrap_or(MAX_PLACES)
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let wrong = || DecimalError(text.chars().take(MAX_TEXT).collect());
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if text.len() > MAX_TEXT || !digits(whole) || !digits(part) {
            return Err(wrong());
        }
        let places = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let scale = 10_u64.checked_pow(MAX_PLACES.checked_sub(places).ok_or_else(wrong)?);
        let part = part.parse::<u64>().ok().zip(scale).and_then(|(part, by)| part.checked_mul(by));
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(ONE));
        let sum = whole.zip(part).and_then(|(whole, part)| whole.checked_add(part));
        sum.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / ONE, self.0 % ONE);
        if part == 0 {
            return write!(out, "{whole}");
        }
        let part = format!("{part:06}");
        write!(out, "{whole}.{}", part.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_and_amount_agree() {
        for (text, millionths, back) in [
            ("0", 0, "0"),
            ("10", 10_000_000, "10"),
            ("10.50", 10_500_000, "10.5"),
            ("0.000001", 1, "0.000001"),
            ("18446744073709.551615", u64::MAX, "18446744073709.551615"),
        ] {
            let decimal: Decimal = text.parse().unwrap();
            assert_eq!((decimal.0, decimal.to_string().as_str()), (millionths, back));
        }
        let places: Vec<u32> =
            ["7", "7.1", "0.01", "0.000001"].map(|t| t.parse::<Decimal>().unwrap().places()).into();
        assert_eq!(places, [0, 1, 2, 6]);
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in
            ["", "-1", "+1", "1.", ".5", "1e3", "1.0000001", "1,5", " 1", "18446744073709.551616"]
        {
            assert!(text.parse::<Decimal>().is_err(), "{text}");
        }
        assert_eq!(Decimal::of_argument(&json!(3)), Some(Decimal(3_000_000)));
        for value in [json!(3.0), json!(-3), json!(null), json!(["3"]), json!(u64::MAX)] {
            assert_eq!(Decimal::of_argument(&value), None, "{value}");
        }
    }
}
