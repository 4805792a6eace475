//! SEV-SNP reports and the certificate table that travels with them.
#![no_main]

use casemate_attestation::snp::{Report, table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Report::parse(bytes);
    if let Ok(entries) = table::entries(bytes) {
        let total: usize = entries.iter().map(|(_, content)| content.len()).sum();
        assert!(total <= bytes.len(), "entries overlap");
    }
    let _ = table::CertTable::parse(bytes);
});
