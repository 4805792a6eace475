//! NVIDIA reference manifests: the XML reader, the canonicaliser, the signature profile.
#![no_main]

use casemate_attestation::gpu::Verifier;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let now = casemate_attestation::UnixTime(1_790_000_000);
    assert!(!Verifier::new(&[]).manifest(bytes).findings_at(now).is_empty());
});
