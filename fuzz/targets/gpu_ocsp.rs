//! Stapled OCSP responses, asked about the certificates of a chain in the same input.
#![no_main]

use casemate_attestation::UnixTime;
use casemate_attestation::gpu::ocsp::Response;
use casemate_attestation::x509::{PemLimits, certificates_from_pem};
use casemate_fuzz::parts;
use libfuzzer_sys::fuzz_target;

const LIMITS: PemLimits = PemLimits { bytes: 16 * 1024, blocks: 8 };
const CHAIN: u8 = 1;

fuzz_target!(|bytes: &[u8]| {
    let _ = Response::parse(bytes);
    let (chains, responses): (Vec<_>, Vec<_>) =
        parts(bytes).into_iter().partition(|part| part.kind == CHAIN);
    let responses: Vec<_> =
        responses.iter().filter_map(|part| Response::parse(part.bytes).ok()).collect();
    if responses.is_empty() {
        return;
    }
    for chain in chains.iter().filter_map(|part| certificates_from_pem(part.bytes, LIMITS).ok()) {
        for (response, pair) in
            responses.iter().flat_map(|one| chain.windows(2).map(move |p| (one, p)))
        {
            let about = response.is_about(&pair[0], &pair[1]);
            if let Ok(verified) = response.verify(&pair[0], &pair[1], UnixTime(1_761_307_200)) {
                assert!(about && verified.this_update <= verified.next_update);
            }
        }
    }
});
