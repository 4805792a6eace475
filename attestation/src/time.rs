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
        let days = days_since_1970(number(0..4)?, number(4..6)?, number(6..8)?)?;
        let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
        let in_range = hour < 24 && minute < 60 && second < 60;
        in_range.then_some(Self(days * 86_400 + hour * 3_600 + minute * 60 + second))
    }

    /// The time written exactly as `YYYY-MM-DDThh:mm:ssZ` (RFC 3339).
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let (date, time) = text.split_once('T')?;
        let at = |text: &str, separator: char, positions: [usize; 2]| {
            positions.into_iter().eq(text.match_indices(separator).map(|(at, _)| at))
        };
        if !at(date, '-', [4, 7]) || !at(time, ':', [2, 5]) {
            return None;
        }
        Self::from_generalized(&[date.replace('-', ""), time.replace(':', "")].concat())
    }

    /// The time as `YYYY-MM-DDThh:mm:ssZ` (RFC 3339); what lies after the year
    /// 9999 is written as its last second.
    pub fn rfc3339(self) -> String {
        let seconds = self.0.min(END_OF_9999);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Years of 400 have the same days; March begins the year, so that the
        // leap day ends it.
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

const END_OF_9999: u64 = 253_402_300_799;

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

/// Days since 1970-01-01 in the Gregorian calendar, if there is such a day.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let february = if leap { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let index = usize::try_from(month.checked_sub(1)?).ok()?;
    if day == 0 || day > *months.get(index)? {
        return None;
    }
    // Leap days before `year`, counted from year 0 of the calendar.
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    let past_years = year.checked_sub(1970)? * 365 + leap_days(year - 1) - leap_days(1969);
    Some(past_years + months.iter().take(index).sum::<u64>() + day - 1)
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
            "20250229000000Z",
            "20250100000000Z",
            "19691231235959Z",
            "20250101240000Z",
        ] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn rfc3339_times_read_back() {
        for seconds in (0..200).map(|n| n * 1_267_011_503 + n * n).chain([951_825_601, 951_782_399])
        {
            assert_eq!(
                UnixTime::from_rfc3339(&UnixTime(seconds).rfc3339()),
                Some(UnixTime(seconds))
            );
        }
        assert_eq!(UnixTime(951_825_601).rfc3339(), "2000-02-29T12:00:01Z");
        assert_eq!(UnixTime(u64::MAX).rfc3339(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn rfc3339_times_are_read_in_one_form() {
        let time = |text| UnixTime::from_rfc3339(text).map(|time| time.0);
        assert_eq!(time("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(time("2000-02-29T12:00:01Z"), Some(951_825_601));
        assert_eq!(time("2025-09-29T18:29:22Z"), Some(1_759_170_562));
        assert_eq!(time("2049-12-31T23:59:59Z"), Some(2_524_607_999));
        for bad in [
            "2025-09-29T18:29:22",
            "2025-09-29 18:29:22Z",
            "20250929T182922Z",
            "2025-9-029T18:29:22Z",
            "2025-02-29T00:00:00Z",
            "+025-01-01T00:00:00Z",
            "2025-01-01T00:00:00.5Z",
        ] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }
}
