//! A bundle that was written once (model/examples/golden_bundle.rs) and must
//! verify in every later release.

use casemate_attestation::{Bundle, BundleError, TrustAnchors};

const BUNDLE: &[u8] = include_bytes!("data/bundle-v1.cbor");
const ANCHORS: &str = include_str!("data/bundle-v1.anchors.toml");

#[test]
fn an_old_bundle_still_verifies() {
    let bundle = Bundle::decode(BUNDLE).unwrap();
    assert_eq!(bundle.encode(), BUNDLE);
    let anchors = TrustAnchors::from_toml(ANCHORS).unwrap();
    let appraisal = bundle.reverify(&anchors).unwrap();
    assert_eq!(appraisal.failures().count(), 0);
    assert_eq!((appraisal.policy(), appraisal.image()), ("golden", Some("golden")));
    assert!(bundle.reverify(&TrustAnchors::vendor()).is_err());
}

#[test]
fn a_record_of_another_verdict_is_refused() {
    let mut bundle = Bundle::decode(BUNDLE).unwrap();
    let anchors = TrustAnchors::from_toml(ANCHORS).unwrap();
    // Rules that a later release adds are not in an old record.
    bundle.verdict.outcomes.retain(|(rule, _)| rule != "snp.tsme");
    bundle.reverify(&anchors).unwrap();
    let (_, outcome) = bundle.verdict.outcomes.first_mut().unwrap();
    outcome.replace_range(.., "fail");
    let error = bundle.reverify(&anchors).unwrap_err();
    assert!(matches!(error, BundleError::Verdict { field: "checks", .. }), "{error}");
}
