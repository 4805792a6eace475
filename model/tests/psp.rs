//! The model's evidence verifies with the shipped code, as a model's.

use casemate_attestation::{
    AnchorKind, Binding, Boundary, Bundle, EndorsementKind, Endorsements, Evidence, EvidenceItem,
    EvidenceKind, Hardware, Policy, ReferenceValues, Risk, TrustAnchors, UnixTime, appraise,
    verify,
};
use casemate_model::{PspConfig, PspModel};

const NOW: UnixTime = UnixTime(1_795_000_000);

#[test]
fn a_report_verifies_and_is_no_hardware() {
    let directory = tempfile::tempdir().unwrap();
    let config = PspConfig::milan(UnixTime(1_790_000_000));
    let model = PspModel::load_or_create(directory.path(), config.clone()).unwrap();
    let again = PspModel::load_or_create(directory.path(), config).unwrap();
    assert_eq!(model.vek_der(), again.vek_der());

    let binding = Binding {
        nonce: vec![1; 32],
        identity_key: [2; 32],
        sealing_key: [3; 32],
        channel: [4; 32],
        epoch: 1,
        devices: None,
    };
    let report = model.report(&binding.report_data(), &[9; 48]).unwrap();
    let evidence = Evidence {
        items: vec![EvidenceItem {
            kind: EvidenceKind::SnpReport,
            evidence: report.to_vec(),
            endorsements: vec![(EndorsementKind::SnpCertTable, again.cert_table())],
        }],
    };
    let anchors = TrustAnchors::from_toml(&model.anchor_toml("dev model")).unwrap();
    let claims = verify(&evidence, &anchors, &Endorsements::default(), NOW).unwrap();
    assert_eq!(claims.snp().unwrap().anchor.kind, AnchorKind::Model);
    assert!(verify(&evidence, &TrustAnchors::vendor(), &Endorsements::default(), NOW).is_err());

    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"i\"\nproperties = [\"own_kernel\", \"mediated\"]\nsnp_measurements = [\"{}\"]\n",
        "09".repeat(48)
    ))
    .unwrap();
    let policy = Policy::default();
    let appraisal = appraise(&claims, &policy, &references, &binding, NOW);
    assert_eq!(appraisal.failures().count(), 0, "{:?}", appraisal.failures().next());
    assert_eq!(appraisal.hardware(), Hardware::Model);
    assert_eq!(appraisal.boundary(), Boundary::SameHost);
    assert!(appraisal.affirmed(Risk::Low).is_ok());
    let denial = appraisal.affirmed(Risk::High).unwrap_err();
    assert!(denial.hint.contains("model, not hardware"), "{denial}");

    let bundle = Bundle::new(
        &evidence,
        &binding,
        &Endorsements::default(),
        &policy,
        &references,
        &appraisal,
    );
    let read = Bundle::decode(&bundle.encode()).unwrap();
    assert_eq!(read, bundle);
    assert_eq!(read.reverify(&anchors).unwrap(), appraisal);
    assert!(read.reverify(&TrustAnchors::vendor()).is_err());
}
