//! Azure's HCL reports and vTPM quotes.
#![no_main]

use casemate_attestation::azure::{HclReport, TpmQuote, json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(hcl) = HclReport::parse(bytes) {
        if let Ok(report_data) = hcl.claimed_report_data() {
            let _ = hcl.check_binding(&report_data);
        }
        let _ = hcl.runtime_claims();
    }
    let tpm = TpmQuote { message: bytes.to_vec(), signature: Vec::new(), pcrs: Vec::new() };
    let _ = tpm.claimed_nonce();
    if let Ok(quote) = TpmQuote::decode(bytes) {
        assert_eq!(quote.encode(), bytes);
    }
    if let Ok(items) = json::items(bytes) {
        assert!(json::is_evidence(bytes) && items.len() >= 2);
    }
});
