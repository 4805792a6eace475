//! Rules on what Azure's paravisor adds to a CPU report.
//!
//! The CPU report carries the digest of the paravisor's runtime data, so a
//! challenge is answered by what is in there: the user data that the guest
//! chose, or the vTPM whose key is named there.

use super::{Challenge, Expected, Findings};
use crate::azure::{AzureClaims, TpmQuote};
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
            // A quote over nothing answers nobody.
            let passed = !wanted.is_empty() && nonce == Some(wanted);
            answered |= passed;
            findings.checks.compare("azure.nonce", passed, hex(wanted), actual, HINT);
        }
        _ => findings.checks.not_asked("azure.nonce", actual),
    }
    findings.vtpm = Some(quote.map(|quote| quote.pcrs.clone()).unwrap_or_default());
    Challenge::Wrapped(answered)
}
