//! The envelope, the bundle, and every COSE record of `attestation`.
#![no_main]

use casemate_attestation::{Binding, Bundle, Evidence, HostClaim, IdentityClaims, ReleaseProof};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What is accepted has exactly one encoding: the bytes that were read.
    if let Ok(evidence) = Evidence::decode(bytes) {
        assert_eq!(evidence.encode(), bytes);
    }
    if let Ok(bundle) = Bundle::decode(bytes) {
        assert_eq!(bundle.encode(), bytes);
        let _ = bundle.reverify(&casemate_attestation::TrustAnchors::vendor());
    }
    if let Ok(binding) = Binding::from_preimage(bytes) {
        assert_eq!(binding.preimage(), bytes);
    }
    let _ = IdentityClaims::decode(bytes);
    let _ = HostClaim::verify(bytes, &[7; 32]);
    let _ = ReleaseProof::verify(bytes, &[7; 32]);
});
