//! Intel's collateral: TCB info, QE identity, chains and revocation lists.
#![no_main]

use std::sync::LazyLock;

use casemate_attestation::TrustAnchors;
use casemate_attestation::tdx::Collateral;
use libfuzzer_sys::fuzz_target;

/// Made once: checking the vendors' roots takes longer than an input.
static VENDOR: LazyLock<TrustAnchors> = LazyLock::new(TrustAnchors::vendor);

fuzz_target!(|bytes: &[u8]| {
    if let Ok(collateral) = Collateral::decode(bytes) {
        assert_eq!(collateral.encode(), bytes);
    }
    // The same readers, past the signature that a fuzzer cannot make.
    casemate_attestation::tdx::fuzz_collateral_bodies(bytes);
    for anchor in &VENDOR.intel {
        let _ = anchor.prepare(bytes);
    }
});
