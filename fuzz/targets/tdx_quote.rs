//! TDX quotes, versions 4 and 5, with their certification data.
#![no_main]

use casemate_attestation::tdx::Quote;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Quote::parse(bytes);
});
