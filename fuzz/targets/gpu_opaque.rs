//! The opaque data of NVIDIA's reports: the split into fields, and every field's meaning.
#![no_main]

use casemate_attestation::gpu::Opaque;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(opaque) = Opaque::parse(bytes) else { return };
    let mut again = Vec::new();
    for (kind, value) in opaque.fields() {
        assert_eq!(opaque.bytes(kind), Some(value));
        again.extend(kind.to_le_bytes());
        again.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        again.extend(value);
        let _ = (opaque.number(kind), opaque.text(kind));
    }
    // No byte is lost, and the order of the fields means nothing.
    assert_eq!(again.len(), bytes.len());
    assert_eq!(Opaque::parse(&again).as_ref(), Ok(&opaque));
    let _ = (opaque.firmware_version(), opaque.nvdec0(), opaque.fwid(), opaque.version());
    let _ = (opaque.mode(), opaque.stated_mode());
    let _ = (opaque.switches_of_gpu(), opaque.pdi_of_switch(), opaque.gpus_of_switch());
});
