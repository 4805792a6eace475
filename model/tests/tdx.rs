//! Quotes and collateral signed by the software model: every refusal has a
//! case that causes it, and some properties hold of any quote.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::LazyLock;

use casemate_attestation::anchors::{AnchorKind, IntelAnchor, TrustAnchors};
use casemate_attestation::eventlog;
use casemate_attestation::tdx::{BodyKind, Collateral, Prepared, TcbStatus, TdxClaims};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Hardware,
    Outcome, Policy, Reason, ReferenceValues, UnixTime, Verified, VerifyError, appraise, verify,
};
use casemate_model::tdx::{CollateralSpec, QuoteSpec, Role, TdxConfig, TdxModel};
use proptest::prelude::*;

static MODEL: LazyLock<TdxModel> = LazyLock::new(|| model(at("2024-01-01T00:00:00Z")));
static PREPARED: LazyLock<Prepared> = LazyLock::new(|| {
    Prepared::new(&MODEL.collateral(&collateral_spec()).unwrap(), &anchor(&MODEL)).unwrap()
});

/// What must come of a change.
type Change<T> = (Reason, fn(&mut T));

const BODIES: [BodyKind; 3] = [BodyKind::Td10, BodyKind::Td15, BodyKind::Td15Ex];

#[test]
fn every_form_of_quote_verifies_and_is_marked_as_a_model() {
    for body in BODIES {
        for version in [4, 5] {
            if version == 4 && body != BodyKind::Td10 {
                continue;
            }
            let quote = MODEL.quote(&QuoteSpec { version, ..spec(body) }).unwrap();
            for padding in [0, 1, 3000] {
                let padded = [quote.clone(), vec![0; padding]].concat();
                let claims = PREPARED.verify(&padded, now()).unwrap();
                assert_eq!(claims.tcb.status, TcbStatus::UpToDate, "{body:?}");
                assert_eq!(claims.report.report_data, [9; 64]);
                assert_eq!(claims.anchor.kind, AnchorKind::Model);
                assert_eq!(claims.tcb.out_of_date_since(), None);
            }
        }
    }
}

#[test]
fn each_part_of_a_quote_has_its_own_refusal() {
    let cases: [Change<QuoteSpec>; 10] = [
        (Reason::Version, |spec| spec.version = 6),
        (Reason::CertData, |spec| spec.certification_type = 1),
        (Reason::CertData, |spec| spec.pck_chain = Some(vec![])),
        (Reason::CertData, |spec| spec.pck_chain = Some(b"no certificate".to_vec())),
        (Reason::PckCertificate, |spec| spec.pck_chain = Some(MODEL.tcb_signing_chain())),
        (Reason::QeReportSignature, |spec| spec.qe_report_by = Role::TcbSigning),
        (Reason::QeBinding, |spec| spec.bound = Role::Rogue),
        (Reason::QeIdentity, |spec| spec.qe.mrsigner = [0; 32]),
        (Reason::Signature, |spec| spec.quote_by = Role::Rogue),
        (Reason::TdxModule, |spec| spec.report.tee_tcb_svn[1] = 2),
    ];
    for (reason, change) in cases {
        let mut spec = spec(BodyKind::Td15);
        change(&mut spec);
        let error = PREPARED.verify(&MODEL.quote(&spec).unwrap(), now()).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }
}

#[test]
fn each_field_of_header_module_and_qe_is_compared() {
    let quote = MODEL.quote(&spec(BodyKind::Td15)).unwrap();
    for (offset, reason) in [
        (2, Reason::SignatureAlgorithm),
        (4, Reason::TeeType),
        (12, Reason::QeVendor),
        (48, Reason::BodyType),
        (50, Reason::BodyType),
        (54 + 520, Reason::Signature),
    ] {
        let mut changed = quote.clone();
        changed[offset] ^= 0x40;
        let error = PREPARED.verify(&changed, now()).unwrap_err();
        assert_eq!(error.reason, reason, "offset {offset}: {error}");
    }
    let changes: [Change<QuoteSpec>; 6] = [
        (Reason::TdxModule, |spec| spec.report.mrsignerseam = [1; 48]),
        (Reason::TdxModule, |spec| spec.report.seamattributes[7] = 0x80),
        (Reason::QeIdentity, |spec| spec.qe.miscselect = 1),
        (Reason::QeIdentity, |spec| spec.qe.attributes[0] = 0x13),
        (Reason::QeIdentity, |spec| spec.qe.isvprodid = 1),
        (Reason::QeIdentity, |spec| spec.qe.mrsigner[31] ^= 1),
    ];
    for (reason, change) in changes {
        let mut spec = spec(BodyKind::Td10);
        change(&mut spec);
        let error = PREPARED.verify(&MODEL.quote(&spec).unwrap(), now()).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }
}

#[test]
fn lengths_must_be_used_up_exactly() {
    let quote = MODEL.quote(&spec(BodyKind::Td10)).unwrap();
    for length in 0..quote.len() {
        let error = PREPARED.verify(&quote[..length], now()).unwrap_err();
        assert_eq!(error.reason, Reason::Length, "{length}: {error}");
    }
    let trailing = [quote.clone(), vec![0, 0, 7]].concat();
    assert_eq!(PREPARED.verify(&trailing, now()).unwrap_err().reason, Reason::TrailingBytes);
    let huge = [quote, vec![0; 64 * 1024]].concat();
    assert_eq!(PREPARED.verify(&huge, now()).unwrap_err().reason, Reason::Limit);
}

#[test]
fn collateral_is_refused_for_what_is_wrong_with_it() {
    let quote = MODEL.quote(&spec(BodyKind::Td10)).unwrap();
    let cases: [Change<CollateralSpec>; 7] = [
        (Reason::CollateralKind, |spec| spec.tcb_info_id = "SGX".to_owned()),
        (Reason::CollateralKind, |spec| spec.qe_identity_id = "QE".to_owned()),
        (Reason::Fmspc, |spec| spec.fmspc[5] ^= 1),
        (Reason::PceId, |spec| spec.pceid[1] ^= 1),
        (Reason::Revoked, |spec| spec.revoke_pck = true),
        (Reason::Revoked, |spec| spec.revoke_pck_ca = true),
        (Reason::Revoked, |spec| spec.revoke_tcb_signing = true),
    ];
    for (reason, change) in cases {
        let mut spec = collateral_spec();
        change(&mut spec);
        let error = judge(&MODEL.collateral(&spec).unwrap(), &quote).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }
}

#[test]
fn collateral_must_be_whole_and_by_the_right_keys() {
    let quote = MODEL.quote(&spec(BodyKind::Td10)).unwrap();
    let good = MODEL.collateral(&collateral_spec()).unwrap();
    let other = model(at("2024-01-01T00:00:00Z"));
    let foreign = other.collateral(&collateral_spec()).unwrap();
    let cases: [(Reason, Collateral); 9] = [
        (Reason::CollateralMissing, Collateral { tcb_info: vec![], ..good.clone() }),
        (Reason::CollateralMissing, Collateral { pck_crls: vec![], ..good.clone() }),
        (Reason::CollateralMalformed, Collateral { tcb_info: b"{}".to_vec(), ..good.clone() }),
        (Reason::CollateralSignature, Collateral { tcb_info: foreign.tcb_info, ..good.clone() }),
        (
            Reason::CollateralSignature,
            Collateral { qe_identity: foreign.qe_identity, ..good.clone() },
        ),
        (Reason::CrlSignature, Collateral { root_crl: foreign.root_crl, ..good.clone() }),
        (Reason::CrlSignature, Collateral { pck_crls: foreign.pck_crls, ..good.clone() }),
        (Reason::CrlIssuer, Collateral { pck_crls: vec![good.root_crl.clone()], ..good.clone() }),
        (
            Reason::Chain,
            Collateral { tcb_signing_chain: foreign.tcb_signing_chain, ..good.clone() },
        ),
    ];
    for (reason, collateral) in cases {
        let error = judge(&collateral, &quote).unwrap_err();
        let same = error.reason == reason || error.reason.class() == reason.class();
        assert!(same, "expected {reason:?}: {error}");
    }
    let leaf = MODEL.pck_chain();
    let end = leaf.windows(8).skip(1).position(|window| window == b"-----BEG").unwrap() + 1;
    let alone = QuoteSpec { pck_chain: Some(leaf[..end].to_vec()), ..spec(BodyKind::Td10) };
    let error = judge(&good, &MODEL.quote(&alone).unwrap()).unwrap_err();
    assert_eq!(error.reason, Reason::Chain, "{error}");
    let rogue = QuoteSpec { pck_chain: Some(other.pck_chain()), ..spec(BodyKind::Td10) };
    let error = judge(&good, &MODEL.quote(&rogue).unwrap()).unwrap_err();
    assert_eq!(error.reason, Reason::Chain, "{error}");
}

#[test]
fn signed_json_counts_byte_by_byte() {
    let spec = collateral_spec();
    let quote = MODEL.quote(&self::spec(BodyKind::Td10)).unwrap();
    let good = MODEL.collateral(&spec).unwrap();
    let spaced = String::from_utf8(good.tcb_info.clone()).unwrap().replacen("\"id\"", " \"id\"", 1);
    let error = judge(&Collateral { tcb_info: spaced.into_bytes(), ..good.clone() }, &quote);
    assert_eq!(error.unwrap_err().reason, Reason::CollateralSignature);
    // Space outside of the signed member is nobody's.
    let outside = [b" ", good.tcb_info.as_slice(), b"\n"].concat();
    assert!(judge(&Collateral { tcb_info: outside, ..good.clone() }, &quote).is_ok());
    let (tcb_info, identity) = (body(&good.tcb_info), body(&good.qe_identity));
    for (from, to) in [
        ("\"pceId\"", "\"fmspc\":\"000000000000\",\"pceId\""),
        ("\"UpToDate\"", "\"Fine\""),
        ("\"UpToDate\"", "\"TDRelaunchAdvised\""),
        ("{\"svn\":5}", "{\"svn\":256}"),
        ("{\"svn\":5},", ""),
        ("2025-08-13T00:00:00Z", "2025-08-13"),
    ] {
        let changed = tcb_info.replacen(from, to, 1);
        assert_ne!(changed, tcb_info);
        let signed = MODEL.collateral_of(&spec, &changed, &identity).unwrap();
        let error = judge(&signed, &quote).unwrap_err();
        assert_eq!(error.reason, Reason::CollateralMalformed, "{from}: {error}");
    }
    let deep = tcb_info.replacen(
        "\"pceId\"",
        &format!("\"x\":{}{},\"pceId\"", "[".repeat(20), "]".repeat(20)),
        1,
    );
    let error = judge(&MODEL.collateral_of(&spec, &deep, &identity).unwrap(), &quote).unwrap_err();
    assert_eq!(error.reason, Reason::CollateralMalformed, "{error}");
    let type_1 = tcb_info.replacen("\"tcbType\":0", "\"tcbType\":1", 1);
    let error =
        judge(&MODEL.collateral_of(&spec, &type_1, &identity).unwrap(), &quote).unwrap_err();
    assert_eq!(error.reason, Reason::CollateralKind, "{error}");
}

#[test]
fn every_window_must_hold() {
    let quote = MODEL.quote(&spec(BodyKind::Td10)).unwrap();
    let (first, end) = (collateral_spec().issued, collateral_spec().next_update);
    let before = UnixTime(first.0 - 1);
    let last = UnixTime(end.0 - 1);
    for time in [first, last] {
        assert!(PREPARED.verify(&quote, time).is_ok(), "{time}");
    }
    for (time, reason) in [
        (before, Reason::CollateralStale),
        (end, Reason::CollateralStale),
        (at("2023-12-31T23:59:59Z"), Reason::CertValidity),
        (at("2060-01-01T00:00:00Z"), Reason::CertValidity),
    ] {
        let error = PREPARED.verify(&quote, time).unwrap_err();
        assert_eq!(error.reason, reason, "{time}: {error}");
    }
}

#[test]
fn statuses_converge() {
    let status = |change: fn(&mut QuoteSpec, &mut CollateralSpec)| {
        let (mut quote, mut collateral) = (spec(BodyKind::Td15), collateral_spec());
        change(&mut quote, &mut collateral);
        let collateral = MODEL.collateral(&collateral).unwrap();
        judge(&collateral, &MODEL.quote(&quote).unwrap()).unwrap().tcb.clone()
    };
    let old = status(|quote, _| quote.report.tee_tcb_svn[2] = 3);
    assert_eq!(old.status, TcbStatus::OutOfDate);
    assert_eq!(old.advisories, ["INTEL-SA-09002"]);
    assert_eq!(old.out_of_date_since(), Some(at("2025-08-13T00:00:00Z")));
    let module = status(|quote, _| {
        quote.report.tee_tcb_svn[0] = 2;
        quote.report.td15.as_mut().unwrap().tee_tcb_svn_2 = quote.report.tee_tcb_svn;
    });
    assert_eq!(
        (module.status, module.platform.status),
        (TcbStatus::OutOfDate, TcbStatus::UpToDate)
    );
    assert_eq!(module.advisories, ["INTEL-SA-09001"]);
    let relaunch = status(|quote, _| quote.report.tee_tcb_svn[0] = 2);
    assert_eq!(relaunch.status, TcbStatus::TdRelaunchAdvised);
    let configured = status(|quote, collateral| {
        quote.report.tee_tcb_svn[0] = 2;
        collateral.platform[0].status = TcbStatus::ConfigurationNeeded;
    });
    assert_eq!(configured.status, TcbStatus::TdRelaunchAdvisedConfigurationNeeded);
    let qe = status(|quote, _| quote.qe.isvsvn = 5);
    assert_eq!((qe.status, qe.qe.status), (TcbStatus::OutOfDate, TcbStatus::OutOfDate));
    assert_eq!(status(|quote, _| quote.qe.isvsvn = 3).status, TcbStatus::Revoked);
    let module_none = status(|quote, collateral| {
        quote.report.tee_tcb_svn[0] = 1;
        collateral.modules[0].levels.pop();
    });
    assert_eq!(module_none.status, TcbStatus::NotSupported);
    assert_eq!(status(|quote, _| quote.report.tee_tcb_svn[2] = 0).status, TcbStatus::NotSupported);
    // Levels count in their own order, not in the order they came in.
    assert_eq!(status(|_, collateral| collateral.platform.reverse()).status, TcbStatus::UpToDate);
    // From module version 1 on, components 0 and 1 are the module's own.
    let skipped = status(|_, collateral| collateral.platform[0].tcb.2[0] = 200);
    assert_eq!(skipped.status, TcbStatus::UpToDate);
    let version_0 = status(|quote, _| quote.report.tee_tcb_svn[..2].copy_from_slice(&[5, 0]));
    assert_eq!((version_0.status, version_0.module), (TcbStatus::UpToDate, None));
}

#[test]
fn an_envelope_with_quote_and_log_is_a_model_and_never_affirms_hardware() {
    let digests = [[1; 48], [2; 48]];
    let mut spec = spec(BodyKind::Td15);
    let register = digests.iter().fold([0; 48], |rtmr, digest| eventlog::extend(&rtmr, digest));
    spec.report.rtmrs = [[0; 48], register, [0; 48], [8; 48]];
    let mut items = vec![item(EvidenceKind::TdxQuote, MODEL.quote(&spec).unwrap())];
    items.push(item(EvidenceKind::EventLog, event_log(&digests)));
    let claims = check(&items).unwrap();
    assert_eq!(claims.event_log().unwrap().events.len(), 2);
    let appraisal =
        appraise(&claims, &Policy::default(), &references(), Expected::ReportData([9; 64]), now());
    assert_eq!(appraisal.hardware(), Hardware::Model);
    assert!(!appraisal.label().contains("proved by hardware"));
    let asks = Policy::from_toml("[tdx]\nrequire_event_log = true\n").unwrap();
    let rule = |items: &[EvidenceItem], policy: &Policy| {
        let claims = check(items).unwrap();
        let appraisal = appraise(&claims, policy, &references(), Expected::Nothing, now());
        let rule = appraisal.checks().iter().find(|rule| rule.rule == "tdx.event-log").unwrap();
        (rule.outcome, rule.actual.clone())
    };
    let counts = "events that replay: 0 in RTMR0, 2 in RTMR1, 0 in RTMR2, 0 in RTMR3".to_owned();
    assert_eq!(rule(&items, &asks), (Outcome::Pass, counts));
    assert_eq!(rule(&items[..1], &asks), (Outcome::Fail, "none".to_owned()));
    let none = (Outcome::NotApplicable, "none".to_owned());
    assert_eq!(rule(&items[..1], &Policy::default()), none);
    items[1] = item(EvidenceKind::EventLog, event_log(&digests[..1]));
    assert_eq!(check(&items).unwrap_err().reason, Reason::EventLog);
    assert_eq!(check(&items[1..]).unwrap_err().reason, Reason::EventLog);
    items[0].endorsements.clear();
    assert_eq!(check(&items[..1]).unwrap_err().reason, Reason::CollateralMissing);
}

#[test]
fn of_several_sets_the_newest_that_fits_judges() {
    let quote = MODEL.quote(&spec(BodyKind::Td10)).unwrap();
    let set = |change: fn(&mut CollateralSpec)| {
        let mut spec = collateral_spec();
        change(&mut spec);
        let bytes = MODEL.collateral(&spec).unwrap().encode();
        (EndorsementKind::TdxCollateral, bytes)
    };
    let good = || set(|_| ());
    let stale = || set(|spec| spec.next_update = at("2026-06-02T00:00:00Z"));
    let other = || set(|spec| spec.fmspc[0] ^= 1);
    let of_sgx = || set(|spec| "SGX".clone_into(&mut spec.tcb_info_id));
    let newer = || {
        set(|spec| {
            spec.evaluation_number += 1;
            spec.platform[0].status = TcbStatus::SwHardeningNeeded;
        })
    };
    let revoked = || set(|spec| spec.revoke_pck = true);
    let broken = || (EndorsementKind::TdxCollateral, b"no bundle".to_vec());
    let bundle = |set: Collateral| (EndorsementKind::TdxCollateral, set.encode());
    let of_another_root = || {
        let other = model(at("2026-06-01T00:00:00Z"));
        bundle(other.collateral(&CollateralSpec::new(&other, at("2026-06-01T00:00:00Z"))).unwrap())
    };
    // The list of another PCK CA.
    let without_crl = || {
        let set = MODEL.collateral(&collateral_spec()).unwrap();
        bundle(Collateral { pck_crls: vec![set.root_crl.clone()], ..set })
    };
    let judged_with = |items: Vec<_>, sent: Vec<_>| {
        let anchors = TrustAnchors { intel: vec![anchor(&MODEL)], ..TrustAnchors::default() };
        let item = EvidenceItem {
            kind: EvidenceKind::TdxQuote,
            evidence: quote.clone(),
            endorsements: sent,
        };
        verify(&Evidence { items: vec![item] }, &anchors, &Endorsements { items }, now())
            .map(|claims| claims.tdx().unwrap().tcb.status)
            .map_err(|error| error.reason)
    };
    let judged = |items| judged_with(items, vec![]);
    // The attester's set does where the caller's are of other platforms, and only there.
    assert_eq!(judged_with(vec![other()], vec![good()]), Ok(TcbStatus::UpToDate));
    for (unfit, reason) in
        [(stale(), Reason::CollateralStale), (broken(), Reason::CollateralMalformed)]
    {
        assert_eq!(judged_with(vec![unfit, other()], vec![good()]), Err(reason));
    }
    for first in [stale(), other(), broken(), of_another_root(), without_crl()] {
        assert_eq!(judged(vec![first, good()]), Ok(TcbStatus::UpToDate));
    }
    for both in [vec![good(), newer()], vec![newer(), good()]] {
        assert_eq!(judged(both), Ok(TcbStatus::SwHardeningNeeded));
    }
    for both in [vec![of_sgx(), stale()], vec![stale(), of_sgx()]] {
        assert_eq!(judged(both), Err(Reason::CollateralStale));
    }
    assert_eq!(judged(vec![other(), of_sgx()]), Err(Reason::CollateralKind));
    assert_eq!(judged(vec![other(), stale()]), Err(Reason::CollateralStale));
    assert_eq!(judged(vec![stale(), other()]), Err(Reason::CollateralStale));
    assert_eq!(judged(vec![other(), broken()]), Err(Reason::CollateralMalformed));
    for both in [vec![good(), revoked()], vec![revoked(), good()]] {
        assert_eq!(judged(both), Err(Reason::Revoked));
    }
}

/// A list outside of the collateral is asked too, sent or supplied.
#[test]
fn a_list_beside_collateral_counts() {
    let quote = MODEL.quote(&spec(BodyKind::Td10)).unwrap();
    let set = |change: fn(&mut CollateralSpec)| {
        let mut spec = collateral_spec();
        change(&mut spec);
        MODEL.collateral(&spec).unwrap()
    };
    let judged = |list: &[u8], sent: bool| {
        let list = (EndorsementKind::Crl, list.to_vec());
        let whole = (EndorsementKind::TdxCollateral, set(|_| ()).encode());
        let (endorsements, items) =
            if sent { (vec![whole, list], vec![]) } else { (vec![whole], vec![list]) };
        let item =
            EvidenceItem { kind: EvidenceKind::TdxQuote, evidence: quote.clone(), endorsements };
        let anchors = TrustAnchors { intel: vec![anchor(&MODEL)], ..TrustAnchors::default() };
        verify(&Evidence { items: vec![item] }, &anchors, &Endorsements { items }, now())
            .map(|_| ())
            .map_err(|error| error.reason)
    };
    // Of the root's name, by another key.
    let other = model(at("2026-06-01T00:00:00Z"));
    let other_spec = CollateralSpec::new(&other, at("2026-06-01T00:00:00Z"));
    let of_another = other.collateral(&other_spec).unwrap().root_crl;
    let good = set(|_| ());
    let good_pck = good.pck_crls.first().unwrap().clone();
    let mut flipped = good_pck.clone();
    *flipped.last_mut().unwrap() ^= 1;
    // Of an issuer that nobody here is.
    let mut stranger = good_pck.clone();
    let at = stranger.windows(8).position(|word| word == b"Platform").unwrap();
    stranger[at] = b'Q';
    for (list, wanted) in [
        (good.root_crl, Ok(())),
        (good_pck.clone(), Ok(())),
        (set(|spec| spec.revoke_pck = true).pck_crls.remove(0), Err(Reason::Revoked)),
        (set(|spec| spec.revoke_pck_ca = true).root_crl, Err(Reason::Revoked)),
        (set(|spec| spec.revoke_tcb_signing = true).root_crl, Err(Reason::Revoked)),
        (flipped, Err(Reason::CrlSignature)),
        (of_another, Err(Reason::CrlSignature)),
        (stranger, Ok(())),
        (good_pck[1..].to_vec(), Err(Reason::CrlMalformed)),
    ] {
        assert_eq!(judged(&list, false), wanted);
        assert_eq!(judged(&list, true), wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A change anywhere in what is signed, or in a signature, is seen.
    #[test]
    fn a_changed_quote_never_verifies(offset in 0..3000_usize, bit in 0..8_u32, body in 0..3_usize) {
        let mut quote = MODEL.quote(&spec(BODIES[body])).unwrap();
        let chain = quote.windows(11).position(|window| window == b"-----BEGIN ").unwrap();
        let offset = offset % chain;
        quote[offset] ^= 1 << bit;
        prop_assert!(PREPARED.verify(&quote, now()).is_err(), "offset {}", offset);
    }

    /// Higher SVNs never come to a worse status.
    #[test]
    fn higher_svns_are_never_worse(
        low in proptest::array::uniform3(0..8_u8),
        more in proptest::array::uniform3(0..8_u8),
        qe in 0..8_u16,
    ) {
        let status = |svn: [u8; 3], isvsvn: u16| {
            let mut spec = spec(BodyKind::Td10);
            let [module, loader, rest] = svn;
            spec.report.tee_tcb_svn = [0; 16];
            spec.report.tee_tcb_svn[..4].copy_from_slice(&[module, 1, loader, rest]);
            spec.qe.isvsvn = isvsvn;
            PREPARED.verify(&MODEL.quote(&spec).unwrap(), now()).unwrap().tcb.status
        };
        let high = [low[0] + more[0], low[1] + more[1], low[2] + more[2]];
        prop_assert!(status(high, qe + 1) <= status(low, qe));
    }

    /// Nothing that is no quote makes the parser stumble.
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(PREPARED.verify(&bytes, now()).is_err());
        let mut start = MODEL.quote(&spec(BodyKind::Td15)).unwrap();
        let keep = bytes.len() % start.len();
        start.truncate(keep);
        start.extend(&bytes);
        prop_assert!(PREPARED.verify(&start, now()).is_err());
    }
}

fn spec(body: BodyKind) -> QuoteSpec {
    QuoteSpec::new(body, [9; 64])
}

fn collateral_spec() -> CollateralSpec {
    CollateralSpec::new(&MODEL, at("2026-06-01T00:00:00Z"))
}

fn model(not_before: UnixTime) -> TdxModel {
    TdxModel::generate(TdxConfig::new(not_before)).unwrap()
}

fn anchor(model: &TdxModel) -> IntelAnchor {
    IntelAnchor::new("tdx-model", Certificate::parse(model.root()).unwrap()).unwrap()
}

fn judge(collateral: &Collateral, quote: &[u8]) -> Result<Verified<TdxClaims>, VerifyError> {
    Prepared::new(collateral, &anchor(&MODEL))?.verify(quote, now())
}

fn item(kind: EvidenceKind, evidence: Vec<u8>) -> EvidenceItem {
    let collateral = MODEL.collateral(&collateral_spec()).unwrap().encode();
    EvidenceItem {
        kind,
        evidence,
        endorsements: vec![(EndorsementKind::TdxCollateral, collateral)],
    }
}

fn check(items: &[EvidenceItem]) -> Result<Verified<casemate_attestation::Claims>, VerifyError> {
    let anchors = TrustAnchors { intel: vec![anchor(&MODEL)], ..TrustAnchors::default() };
    verify(&Evidence { items: items.to_vec() }, &anchors, &Endorsements::default(), now())
}

fn references() -> ReferenceValues {
    ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"image\"\n[[image.tdx]]\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        "4d".repeat(48),
        "a1".repeat(48),
        "a2".repeat(48),
    ))
    .unwrap()
}

/// A log that measures `digests` into RTMR1.
fn event_log(digests: &[[u8; 48]]) -> Vec<u8> {
    let spec_id =
        [b"Spec ID Event03\0".as_slice(), &[0; 8], &[1, 0, 0, 0, 12, 0, 48, 0, 0]].concat();
    let size = u32::try_from(spec_id.len()).unwrap().to_le_bytes();
    let mut log = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &size, &spec_id].concat();
    for digest in digests {
        log.extend([2, 0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 12, 0]);
        log.extend(digest);
        log.extend([4, 0, 0, 0]);
        log.extend(b"data");
    }
    log.extend([0xff; 64]);
    log
}

/// The signed member of a response, as text.
fn body(response: &[u8]) -> String {
    let text = String::from_utf8(response.to_vec()).unwrap();
    let start = text.find(':').unwrap() + 1;
    let end = text.rfind(",\"signature\"").unwrap();
    text[start..end].to_owned()
}

fn now() -> UnixTime {
    at("2026-06-15T00:00:00Z")
}

fn at(time: &str) -> UnixTime {
    UnixTime::from_rfc3339(time).unwrap()
}
