//! NVIDIA SPDM reports: request, response, measurements, signature.
#![no_main]

use casemate_attestation::gpu::Report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(report) = Report::parse(bytes) else { return };
    let (signed, after) = bytes.split_at(report.signed.len());
    assert_eq!(report.signed, signed);
    let (signature, zeros) = after.split_at(96);
    assert_eq!(report.signature, signature);
    assert_eq!((report.trailing_zeros, zeros), (zeros.len(), vec![0; zeros.len()].as_slice()));
    assert!(report.measurements.windows(2).all(|pair| pair[0].index < pair[1].index));
    for one in &report.measurements {
        assert_eq!(report.measurement(one.index), Some(&one.value));
    }
});
