//! NVIDIA reference manifests: reader, signature profile, signer's chain, values.
#![no_main]

use std::sync::LazyLock;

use casemate_attestation::gpu::Verifier;
use casemate_attestation::{TrustAnchors, UnixTime};
use libfuzzer_sys::fuzz_target;

/// Made once: checking the vendors' roots takes longer than an input.
static VENDOR: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(&TrustAnchors::vendor().nvidia));

fuzz_target!(|bytes: &[u8]| {
    let now = UnixTime(1_790_000_000);
    assert!(!Verifier::new(&[]).manifest(bytes).findings_at(now).is_empty());
    let checked = VENDOR.manifest(bytes);
    if checked.findings.is_empty() {
        assert!(checked.manifest.is_some() && checked.anchor.is_some());
        assert_eq!(checked.chain.len(), 4);
    }
});
