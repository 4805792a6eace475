//! Writes a bundle of the model's evidence and the anchor to believe it by:
//! `cargo run -p casemate-model --example golden_bundle FOLDER`.
//!
//! The pair in `model/tests/data` was made so, once. It is not made again: the
//! test shows that what was written then still verifies.

#![expect(clippy::unwrap_used, reason = "a tool of the tests stops at the first surprise")]

use casemate_attestation::{
    Binding, Bundle, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Policy,
    ReferenceValues, TrustAnchors, UnixTime, appraise, verify,
};
use casemate_model::{PspConfig, PspModel};

const START: UnixTime = UnixTime(1_790_000_000);
const NOW: UnixTime = UnixTime(1_795_000_000);

fn main() {
    let folder = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let model = PspModel::generate(PspConfig::milan(START)).unwrap();
    let binding = Binding {
        nonce: vec![1; 32],
        identity_key: [2; 32],
        sealing_key: [3; 32],
        channel: [4; 32],
        epoch: 1,
        devices: None,
    };
    let report = model.report(&binding.report_data(), &[9; 48]).unwrap();
    let item = EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: report.to_vec(),
        endorsements: vec![(EndorsementKind::CertificateChain, model.vek_der().to_vec())],
    };
    let evidence = Evidence { items: vec![item] };
    let crl = model.crl(&[], START, NOW.plus_seconds(1)).unwrap();
    let endorsements = Endorsements { items: vec![(EndorsementKind::Crl, crl)] };
    let toml = format!("vendor = []\n{}", model.anchor_toml("golden"));
    let anchors = TrustAnchors::from_toml(&toml).unwrap();
    let claims = verify(&evidence, &anchors, &endorsements, NOW).unwrap();
    let policy = Policy::from_toml("name = \"golden\"\n[snp]\nrequire_crl = true\n").unwrap();
    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"golden\"\nsnp_measurements = [\"{}\"]\n",
        "09".repeat(48)
    ))
    .unwrap();
    let appraisal = appraise(&claims, &policy, &references, &binding, NOW);
    let bundle = Bundle::new(&evidence, &binding, &endorsements, &policy, &references, &appraisal);
    std::fs::write(folder.join("bundle-v1.cbor"), bundle.encode()).unwrap();
    std::fs::write(folder.join("bundle-v1.anchors.toml"), toml).unwrap();
}
