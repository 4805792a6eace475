//! NVIDIA SPDM reports with their opaque data, and OCSP responses.
#![no_main]

use casemate_attestation::gpu::{Opaque, Report, ocsp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Report::parse(bytes);
    if let Ok(opaque) = Opaque::parse(bytes) {
        let _ = opaque.fields().count();
        let _ = (opaque.firmware_version(), opaque.nvdec0(), opaque.fwid(), opaque.mode());
        let _ = (opaque.switches_of_gpu(), opaque.pdi_of_switch(), opaque.gpus_of_switch());
    }
    let _ = ocsp::Response::parse(bytes);
});
