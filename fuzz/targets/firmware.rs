//! OVMF images: footer table, SEV metadata, hash table area.
#![no_main]

use casemate_attestation::measure::ovmf::Ovmf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(firmware) = Ovmf::parse(bytes) {
        let _ = firmware.reset_eip();
        let _ = firmware.hash_table();
        let _ = firmware.sections();
        let _ = firmware.tdx_metadata_offset();
        let _ = firmware.svsm_entry_offset();
    }
});
