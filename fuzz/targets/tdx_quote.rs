//! TDX quotes, versions 4 and 5, with their certification data.
#![no_main]

use casemate_attestation::tdx::{Quote, claimed_platform};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(quote) = Quote::parse(bytes) {
        assert!(bytes.starts_with(quote.signed));
        let _ = claimed_platform(bytes);
    }
});
