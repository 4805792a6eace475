//! NVIDIA device certificate chains in PEM, through the whole chain check.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| casemate_attestation::gpu::fuzzing::chain(bytes));
