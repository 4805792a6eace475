//! The canonicaliser, over any element with any other left out, beside a second
//! one that follows the recommendation's rules one by one.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[a, b, c, d], text)) = bytes.split_first_chunk() else { return };
    let (apex, without) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    casemate_attestation::gpu::fuzzing::canonical(apex, without, text);
});
