//! A whole NVIDIA device: report, chain, manifests and OCSP responses together.
#![no_main]

use std::sync::LazyLock;

use casemate_attestation::gpu::{DeviceEvidence, Outcome, Source, Verifier, device_claims};
use casemate_attestation::{TrustAnchors, UnixTime};
use casemate_fuzz::parts;
use libfuzzer_sys::fuzz_target;

/// Made once: checking the vendors' roots takes longer than an input.
static VENDOR: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(&TrustAnchors::vendor().nvidia));
/// When the oldest manifests that are known were valid.
const NOW: UnixTime = UnixTime(1_761_307_200);

fuzz_target!(|bytes: &[u8]| {
    let parts = parts(bytes);
    let first =
        |kind| parts.iter().find(|part| part.kind == kind).map_or(&[][..], |part| part.bytes);
    let source = |kind| match kind {
        2 => Some(Source::Driver),
        3 => Some(Source::Vbios),
        4 => Some(Source::Bios),
        _ => None,
    };
    let manifests: Vec<_> =
        parts.iter().filter_map(|part| Some((source(part.kind)?, part.bytes))).collect();
    let ocsp: Vec<_> = parts.iter().filter(|part| part.kind == 5).map(|part| part.bytes).collect();
    let evidence =
        DeviceEvidence { report: first(0), chain: first(1), manifests: &manifests, ocsp: &ocsp };
    // No device signed this nonce.
    let result = VENDOR.device(&evidence, Some(&[0x5a; 32]), NOW);
    assert_eq!(result.outcome(), Outcome::Fail);
    assert!(!result.codes().is_empty());
    let _ = device_claims(&result, Some(false));
});
