//! The XML reader of NVIDIA's reference manifests, there and back.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| casemate_attestation::gpu::fuzzing::xml(bytes));
