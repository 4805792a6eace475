//! OVMF images: footer table, SEV metadata, hash table area, TDX metadata.
#![no_main]

use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::tdx::{PageOrder, Tdvf};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(firmware) = Tdvf::parse(bytes) {
        let added = firmware.sections().iter().filter(|section| section.added);
        // The limit on memory is the library's; time is spent better here.
        if added.map(|section| section.size).sum::<u64>() <= 1 << 20 {
            let _ = firmware.mrtd(PageOrder::TwoPass);
        }
    }
    if let Ok(firmware) = Ovmf::parse(bytes) {
        let _ = firmware.reset_eip();
        let _ = firmware.hash_table();
        let _ = firmware.sections();
        let _ = firmware.tdx_metadata_offset();
        let _ = firmware.svsm_entry_offset();
    }
});
