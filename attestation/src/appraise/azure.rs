//! Rules on what Azure's paravisor adds to a CPU report.
//!
//! The CPU report carries the digest of the paravisor's runtime data, so a
//! challenge is answered by what is in there: the user data that the guest
//! chose, or the vTPM whose key is named there.

use super::{Challenge, Expected, Findings};
use crate::azure::{AzureClaims, TpmQuote};
use crate::crypto::sha256;
use crate::wire::hex;

const HINT: &str = "ask the vTPM for a quote over this nonce, or the paravisor for a report with \
                    this user data";

pub(super) fn appraise(
    claims: &AzureClaims,
    quote: Option<&TpmQuote>,
    expected: Expected<'_>,
    findings: &mut Findings,
) -> Challenge {
    let user_data = claims.user_data.map_or_else(|| "none".to_owned(), |data| hex(&data));
    let nonce = quote.and_then(|quote| quote.claimed_nonce().ok());
    let mut answered = false;
    match expected.report_data() {
        None => findings.checks.not_asked("azure.user-data", user_data),
        Some(bytes) => {
            answered |= claims.user_data == Some(bytes);
            findings.checks.compare("azure.user-data", answered, hex(&bytes), user_data, HINT);
        }
    }
    let actual = nonce.map_or_else(|| "no vTPM quote".to_owned(), hex);
    match expected {
        Expected::TpmNonce(wanted) => {
            let passed = nonce.is_some_and(|nonce| answers(nonce, expected));
            answered |= passed;
            findings.checks.compare("azure.nonce", passed, hex(wanted), actual, HINT);
        }
        _ => findings.checks.not_asked("azure.nonce", actual),
    }
    // An old quote tells what was booted once, whatever else here is fresh.
    let quote = quote.filter(|_| nonce.is_some_and(|nonce| answers(nonce, expected)));
    findings.vtpm = Some(quote.map(|quote| quote.pcrs.clone()).unwrap_or_default());
    Challenge::Wrapped(answered)
}

/// Whether a quote over `nonce` answers the challenge (docs/formats/azure.md):
/// a vTPM takes too few bytes for report data, and so their digest.
fn answers(nonce: &[u8], expected: Expected<'_>) -> bool {
    match (expected, expected.report_data()) {
        // A quote over nothing answers nobody.
        (Expected::TpmNonce(wanted), _) => !wanted.is_empty() && nonce == wanted,
        (_, Some(bytes)) => nonce == sha256(&bytes),
        (_, None) => false,
    }
}
