//! The whole of verify(): an envelope of anything, under the vendors' roots.
#![no_main]

use casemate_attestation::{Endorsements, Evidence, EvidenceItem, EvidenceKind};
use casemate_attestation::{TrustAnchors, UnixTime, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let anchors = TrustAnchors::vendor();
    let now = UnixTime(1_790_000_000);
    // Nobody signs what a fuzzer makes. What is not signed, a list of devices, is
    // nobody's word yet.
    let judge = |evidence: &Evidence| {
        if let Ok(claims) = verify(evidence, &anchors, &Endorsements::default(), now) {
            let signed = claims.snp().is_some() || claims.tdx().is_some();
            assert!(!signed && claims.host().is_none() && claims.devices().next().is_none());
        }
    };
    if let Ok(evidence) = Evidence::decode(bytes) {
        judge(&evidence);
    }
    let Some((&first, rest)) = bytes.split_first() else { return };
    let kinds = [
        EvidenceKind::SnpReport,
        EvidenceKind::TdxQuote,
        EvidenceKind::HostClaim,
        EvidenceKind::GpuReport,
        EvidenceKind::EventLog,
        EvidenceKind::DeviceInventory,
        EvidenceKind::AzureHcl,
        EvidenceKind::AzureQuote,
    ];
    let kind = kinds[usize::from(first) % kinds.len()];
    let item = EvidenceItem { kind, evidence: rest.to_vec(), endorsements: Vec::new() };
    judge(&Evidence { items: vec![item] });
});
