//! Intel's signed JSON: the exact bytes that were signed, and typed fields.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::value::RawValue;

use super::status::TcbStatus;
use super::tcb_info::Judged;
use crate::UnixTime;
use crate::error::{Reason, VerifyError};
use crate::wire::unhex_array;

/// The largest TCB info or QE identity that is read.
pub(super) const MAX_JSON_BYTES: usize = 64 * 1024;
/// Intel nests six deep.
const MAX_DEPTH: usize = 16;

/// `{"tcbInfo": …, "signature": "…"}`, the member's bytes untouched.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedTcbInfo<'a> {
    #[serde(borrow, rename = "tcbInfo")]
    pub(super) body: &'a RawValue,
    pub(super) signature: Hex<64>,
}

/// `{"enclaveIdentity": …, "signature": "…"}`, the member's bytes untouched.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedQeIdentity<'a> {
    #[serde(borrow, rename = "enclaveIdentity")]
    pub(super) body: &'a RawValue,
    pub(super) signature: Hex<64>,
}

/// Reads a response of Intel's, within the limits of size and depth.
pub(super) fn read_response<'a, T: Deserialize<'a>>(
    what: &'static str,
    text: &'a [u8],
) -> Result<T, VerifyError> {
    super::check_size(what, text, MAX_JSON_BYTES)?;
    let depth = depth(text);
    if depth > MAX_DEPTH {
        let expected = format!("at most {MAX_DEPTH} levels of nesting");
        return Err(VerifyError::new(Reason::CollateralMalformed, what, expected, depth));
    }
    read(what, text)
}

/// Reads part of a response as a `T`. A field given twice is an error; a field
/// that is not known is left alone, because Intel adds some without a new version.
pub(super) fn read<'a, T: Deserialize<'a>>(
    what: &'static str,
    text: &'a [u8],
) -> Result<T, VerifyError> {
    serde_json::from_slice(text).map_err(|error| {
        VerifyError::new(Reason::CollateralMalformed, what, "JSON as Intel's PCS writes it", error)
    })
}

/// How deep brackets nest outside of strings; an upper bound if malformed.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth = depth.saturating_add(1),
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Exactly `N` bytes in hexadecimal of either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hex<const N: usize>(pub(super) [u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format_args!("expected {N} bytes in hexadecimal"));
        unhex_array(&text).map(Self).ok_or_else(wrong)
    }
}

/// A time as Intel writes it: `2025-09-29T18:29:22Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rfc3339(pub(super) UnixTime);

impl<'de> Deserialize<'de> for Rfc3339 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let wrong = || D::Error::custom("expected a time like 2025-09-29T18:29:22Z");
        UnixTime::from_rfc3339(&text).map(Self).ok_or_else(wrong)
    }
}

impl TcbStatus {
    /// For `#[serde(deserialize_with)]`: only the statuses that a level of `T` may have.
    pub(super) fn deserialize_collateral<'de, T: Judged, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        let status = Self::ALL.into_iter().find(|status| status.name() == name);
        status.filter(|status| T::may_have(*status)).ok_or_else(|| {
            D::Error::custom(format_args!("expected a tcbStatus of its kind, got {name:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        assert_eq!(depth(br#"{"a":["[[[\"[["]}"#), 2);
        assert_eq!(depth(&[b'['; 100]), 100);
    }

    #[test]
    fn a_member_given_twice_is_refused() {
        let signature = "00".repeat(64);
        let twice = format!(r#"{{"tcbInfo":{{}},"tcbInfo":{{}},"signature":"{signature}"}}"#);
        assert!(read_response::<SignedTcbInfo<'_>>("TCB info", twice.as_bytes()).is_err());
        let extra = format!(r#"{{"tcbInfo":{{}},"x":1,"signature":"{signature}"}}"#);
        assert!(read_response::<SignedTcbInfo<'_>>("TCB info", extra.as_bytes()).is_err());
        let once = format!(r#"{{"tcbInfo": {{ }} ,"signature":"{signature}"}}"#);
        let signed: SignedTcbInfo<'_> = read_response("TCB info", once.as_bytes()).unwrap();
        assert_eq!(signed.body.get(), "{ }");
    }
}
