//! The whole of verify(): an envelope of anything, under the vendors' roots.
#![no_main]

use casemate_attestation::{Endorsements, Evidence, EvidenceItem, EvidenceKind};
use casemate_attestation::{TrustAnchors, UnixTime, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let anchors = TrustAnchors::vendor();
    let now = UnixTime(1_790_000_000);
    if let Ok(evidence) = Evidence::decode(bytes) {
        // Nobody signs what a fuzzer makes.
        assert!(verify(&evidence, &anchors, &Endorsements::default(), now).is_err());
    }
    let Some((&first, rest)) = bytes.split_first() else { return };
    let kinds = [
        EvidenceKind::SnpReport,
        EvidenceKind::TdxQuote,
        EvidenceKind::HostClaim,
        EvidenceKind::GpuReport,
        EvidenceKind::EventLog,
        EvidenceKind::AzureHcl,
        EvidenceKind::AzureQuote,
    ];
    let kind = kinds[usize::from(first) % kinds.len()];
    let item = EvidenceItem { kind, evidence: rest.to_vec(), endorsements: Vec::new() };
    let evidence = Evidence { items: vec![item] };
    assert!(verify(&evidence, &anchors, &Endorsements::default(), now).is_err());
});
