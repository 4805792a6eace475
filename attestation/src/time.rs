//! Time as the caller passes it: this library never reads a clock.

use core::fmt;

/// Seconds since 1970-01-01T00:00:00Z, leap seconds ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The time `seconds` later, saturating at the end of the range.
    pub fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// The time of a GeneralizedTime in the one form of RFC 5280 4.1.2.5.2:
    /// `YYYYMMDDHHMMSSZ`.
    pub fn from_generalized(text: &str) -> Option<Self> {
        let digits = text.strip_suffix('Z')?;
        if digits.len() != 14 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let number = |range: core::ops::Range<usize>| digits.get(range)?.parse::<u64>().ok();
        let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
        let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
        let in_range = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let seconds = days(year, month, day).saturating_mul(86_400);
        let in_day = hour.saturating_mul(3600).saturating_add(minute.saturating_mul(60));
        in_range.then(|| UnixTime(seconds.saturating_add(in_day).saturating_add(second)))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| x509_parser::time::ASN1Time::from_timestamp(seconds).ok());
        match time {
            Some(time) => write!(f, "{time}"),
            None => write!(f, "@{}", self.0),
        }
    }
}

/// Days since 1970-01-01 in the Gregorian calendar. The year is counted from
/// March, so that the leap day comes last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month.saturating_sub(3))
    } else {
        (year.saturating_sub(1), month.saturating_add(9))
    };
    let leap_days = (year / 4).saturating_sub(year / 100).saturating_add(year / 400);
    let before_month = month.saturating_mul(153).saturating_add(2) / 5;
    let total = year
        .saturating_mul(365)
        .saturating_add(leap_days)
        .saturating_add(before_month)
        .saturating_add(day);
    // 719469 is the same sum for 1970-01-01.
    total.saturating_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generalized_times_are_read_in_one_form() {
        let time = |text| UnixTime::from_generalized(text).map(|time| time.0);
        assert_eq!(time("19700101000000Z"), Some(0));
        assert_eq!(time("20250821064707Z"), Some(1_755_758_827));
        assert_eq!(time("20240229235959Z"), Some(1_709_251_199));
        for bad in [
            "20250821064707",
            "2025082106470Z",
            "20251321064707Z",
            "20250821064707+0",
            "2025082106x707Z",
        ] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }
}
