//! What operators write: policies, reference values and trust anchors.
#![no_main]

use casemate_attestation::{Policy, ReferenceValues, TrustAnchors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(policy) = Policy::from_toml(text) {
        assert_eq!(policy.source(), text);
    }
    if let Ok(values) = ReferenceValues::from_toml(text) {
        assert_eq!(values.source(), text);
    }
    let _ = TrustAnchors::from_toml(text);
});
