//! Each reason that SNP evidence or a host's claim can be refused for has a
//! case here that causes it, signed by the model with the real formats.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

/// Reasons whose cases are in `model/tests/reasons.rs`, which reads the same list.
#[path = "of_other_evidence/mod.rs"]
mod of_other_evidence;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use casemate_attestation::anchors::HostAnchor;
use casemate_attestation::snp::{IdBlock, REPORT_BYTES, Report, Verifier};
use casemate_attestation::{
    Boundary, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, HostClaim,
    LaunchDigests, Properties, Reason, TrustAnchors, UnixTime, VerifyError, verify,
};
use casemate_model::{
    CertSpec, CrlFault, CrlSpec, Issuer, PspConfig, PspModel, ReportFields, SubjectKey, VekKind,
};

const NOW: UnixTime = UnixTime(1_795_000_000);
const START: UnixTime = UnixTime(1_790_000_000);

/// Models and anchors, made once: RSA keys of 4096 bits take seconds.
struct Bench {
    vcek: PspModel,
    vlek: PspModel,
    other: PspModel,
    anchors: TrustAnchors,
    host: Ed25519KeyPair,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let vcek = PspModel::generate(PspConfig::milan(START)).unwrap();
        let csp = VekKind::Vlek("CN=cc.example".to_owned());
        let vlek = vcek.reissue(PspConfig { kind: csp, ..PspConfig::milan(START) }).unwrap();
        let other = PspModel::generate(PspConfig::milan(START)).unwrap();
        let toml = format!("vendor = []\n{}{}", vcek.anchor_toml("a"), vlek.anchor_toml("b"));
        let mut anchors = TrustAnchors::from_toml(&toml).unwrap();
        let host = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        anchors.hosts.push(HostAnchor::new("h1", public(&host)));
        Bench { vcek, vlek, other, anchors, host }
    })
}

fn public(key: &Ed25519KeyPair) -> [u8; 32] {
    key.public_key().as_ref().try_into().unwrap()
}

fn item(report: &[u8], endorsements: &[(EndorsementKind, &[u8])]) -> EvidenceItem {
    EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: report.to_vec(),
        endorsements: endorsements.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect(),
    }
}

fn run(items: Vec<EvidenceItem>) -> Result<(), VerifyError> {
    let evidence = Evidence { items };
    verify(&evidence, &bench().anchors, &Endorsements::default(), NOW).map(|_| ())
}

/// A report of `model` with `change` applied before signing, and its VEK.
fn changed(model: &PspModel, change: impl FnOnce(&mut ReportFields)) -> EvidenceItem {
    let mut fields = model.fields();
    change(&mut fields);
    let report = model.sign(fields.encode()).unwrap();
    item(&report, &[(EndorsementKind::CertificateChain, model.vek_der())])
}

/// A report whose bytes `change` applies to before signing.
fn patched(change: impl FnOnce(&mut [u8; REPORT_BYTES])) -> EvidenceItem {
    let model = &bench().vcek;
    let mut bytes = model.fields().encode();
    change(&mut bytes);
    let report = model.sign(bytes).unwrap();
    item(&report, &[(EndorsementKind::CertificateChain, model.vek_der())])
}

/// A good report with a VEK certificate that departs from the profile.
fn certified(change: impl FnOnce(&mut CertSpec)) -> EvidenceItem {
    let model = &bench().vcek;
    let mut spec = CertSpec::vek(model.config(), model.chip_id(), model.vek_point());
    change(&mut spec);
    let vek = spec.sign(&Issuer { name: "SEV-Milan", ..model.ask() }).unwrap();
    let report = model.report(&[1; 64], &[2; 48]).unwrap();
    item(&report, &[(EndorsementKind::CertificateChain, &vek)])
}

/// A good report with a VCEK that the CA for VLEKs issued.
fn vcek_from_asvk() -> EvidenceItem {
    let model = &bench().vcek;
    let spec = CertSpec::vek(model.config(), model.chip_id(), model.vek_point());
    let vek = spec.sign(&Issuer { name: "SEV-VLEK-Milan", ..model.ask() }).unwrap();
    let report = model.report(&[1; 64], &[2; 48]).unwrap();
    item(&report, &[(EndorsementKind::CertificateChain, &vek)])
}

/// A good report with a revocation list beside it.
fn with_crl(crl: &[u8]) -> EvidenceItem {
    let mut good = changed(&bench().vcek, |_| {});
    good.endorsements.push((EndorsementKind::Crl, crl.to_vec()));
    good
}

fn crl(model: &PspModel, revoked: &[&[u8]], this: u64, next: u64) -> EvidenceItem {
    with_crl(&model.crl(revoked, UnixTime(this), UnixTime(next)).unwrap())
}

fn host_claim(host: &str, sign_with: &Ed25519KeyPair) -> EvidenceItem {
    let claim = HostClaim {
        host: host.to_owned(),
        machine: [1; 16],
        boundary: Boundary::MicroVm,
        properties: Properties::default(),
        backend: "qemu-tcg".to_owned(),
        launch: LaunchDigests { kernel: [1; 32], initrd: [2; 32], cmdline: [3; 32] },
        report_data: [0; 64],
        issued_at: NOW,
    };
    let evidence = claim
        .sign(&public(sign_with), |message| sign_with.sign(message).as_ref().try_into().unwrap());
    EvidenceItem { kind: EvidenceKind::HostClaim, evidence, endorsements: vec![] }
}

/// An ARK of another product line that signs a list.
fn foreign_crl() -> Vec<u8> {
    let config =
        PspConfig { product: casemate_attestation::snp::Product::Genoa, ..PspConfig::milan(START) };
    let genoa = bench().vcek.reissue(config).unwrap();
    genoa.crl(&[], START, UnixTime(NOW.0 + 10)).unwrap()
}

#[test]
fn the_models_evidence_verifies() {
    let bench = bench();
    run(vec![changed(&bench.vcek, |_| {})]).unwrap();
    run(vec![changed(&bench.vlek, |f| f.chip_id = [0; 64])]).unwrap();
    run(vec![changed(&bench.vcek, |f| f.version = 4)]).unwrap();
    run(vec![changed(&bench.vcek, |f| f.version = 2)]).unwrap();
    run(vec![crl(&bench.vcek, &[&[9]], START.0, NOW.0 + 10)]).unwrap();
    run(vec![host_claim("h1", &bench.host)]).unwrap();
    let table = item(
        &bench.vcek.report(&[1; 64], &[2; 48]).unwrap(),
        &[(EndorsementKind::SnpCertTable, &bench.vcek.cert_table())],
    );
    run(vec![table]).unwrap();
}

/// The reason, and the envelope that causes it.
type Case = (Reason, Vec<EvidenceItem>);

/// Faults of the report itself.
fn faults_of_reports() -> Vec<Case> {
    let bench = bench();
    let good = changed(&bench.vcek, |_| {});
    let chain = EndorsementKind::CertificateChain;
    let mut flipped = good.clone();
    flipped.evidence[0x90] ^= 1;
    let mut high_r = good.clone();
    high_r.evidence[0x2a0 + 48] = 1;
    let mut unsigned_tail = good.clone();
    unsigned_tail.evidence[0x49f] = 1;
    vec![
        (Reason::Malformed, vec![good.clone(), good.clone()]),
        (Reason::Limit, vec![item(&good.evidence, &[(chain, &[b' '; 20_000])])]),
        (Reason::Limit, vec![item(&good.evidence, &[(chain, &[0x30; 5000])])]),
        (Reason::Length, vec![item(&good.evidence[..1183], &[])]),
        (Reason::Length, vec![item(&[&good.evidence[..], &[0]].concat(), &[])]),
        (Reason::Version, vec![changed(&bench.vcek, |f| f.version = 1)]),
        (Reason::Version, vec![changed(&bench.vcek, |f| f.version = 6)]),
        (Reason::SignatureAlgorithm, vec![changed(&bench.vcek, |f| f.signature_algo = 2)]),
        (Reason::Reserved, vec![patched(|b| b[0x4c] = 1)]),
        (Reason::Reserved, vec![patched(|b| b[0x18b] = 1)]),
        (Reason::Reserved, vec![patched(|b| b[0x1eb] = 1)]),
        (Reason::Reserved, vec![patched(|b| b[0x29f] = 1)]),
        (Reason::Reserved, vec![patched(|b| b[0x4b] = 1)]),
        (
            Reason::Reserved,
            vec![changed(&bench.vcek, |f| (f.version, f.launch_mitigations) = (4, 1))],
        ),
        (Reason::Reserved, vec![unsigned_tail]),
        (Reason::Signature, vec![flipped]),
        (Reason::SignatureEncoding, vec![high_r]),
        (Reason::Unsigned, vec![changed(&bench.vcek, |f| f.key_info = 2)]),
        (Reason::Unsigned, vec![changed(&bench.vcek, |f| f.key_info = 7 << 2)]),
        (Reason::SigningKey, vec![changed(&bench.vcek, |f| f.key_info = 1 << 2)]),
        (Reason::SigningKey, vec![changed(&bench.vcek, |f| f.key_info = 3 << 2)]),
        (Reason::SigningKey, vec![changed(&bench.vlek, |f| f.key_info = 0)]),
        (Reason::Product, vec![changed(&bench.vcek, |f| f.cpuid = [0x19, 0x11, 1])]),
        (Reason::Product, vec![changed(&bench.vcek, |f| f.cpuid = [0, 0, 0])]),
        (Reason::ChipId, vec![changed(&bench.vcek, |f| f.chip_id = [5; 64])]),
        (Reason::ChipIdMasked, vec![changed(&bench.vcek, |f| f.chip_id = [0; 64])]),
        (Reason::Tcb, vec![changed(&bench.vcek, |f| f.reported_tcb[6] -= 1)]),
        (Reason::Tcb, vec![changed(&bench.vcek, |f| f.reported_tcb[6] += 1)]),
        (Reason::Tcb, vec![changed(&bench.vcek, |f| f.reported_tcb[3] = 1)]),
    ]
}

/// Faults of certificates, revocation lists and host claims.
fn faults_of_signers() -> Vec<Case> {
    let bench = bench();
    let stranger = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let good = changed(&bench.vcek, |_| {});
    let chain = EndorsementKind::CertificateChain;
    let oid = |suffix: &str| format!("1.3.6.1.4.1.3704.1.{suffix}");
    let mut broken_claim = host_claim("h1", &bench.host);
    *broken_claim.evidence.last_mut().unwrap() ^= 1;
    let late = NOW.0 + 10;
    vec![
        (Reason::CertMissing, vec![item(&good.evidence, &[])]),
        (Reason::CertMalformed, vec![item(&good.evidence, &[(chain, b"no PEM")])]),
        (Reason::CertMalformed, vec![item(&good.evidence, &[(chain, &[0x30, 0])])]),
        (
            Reason::CertAlgorithm,
            vec![certified(|c| {
                c.key = SubjectKey::P256(P256_POINT.to_vec());
            })],
        ),
        (
            Reason::CertExtension,
            vec![certified(|c| {
                c.extensions.push((oid("5"), false, vec![0x16, 1, b'x']));
            })],
        ),
        (Reason::CertExtension, vec![certified(|c| c.extensions.retain(|e| e.0 != oid("3.4")))]),
        (
            Reason::CertExtension,
            vec![certified(|c| {
                let twice = c.extensions[0].clone();
                c.extensions.push(twice);
            })],
        ),
        (Reason::CertValidity, vec![certified(|c| c.not_after = UnixTime(NOW.0 - 1))]),
        (Reason::CertValidity, vec![certified(|c| c.not_before = UnixTime(NOW.0 + 1))]),
        (Reason::CertSignature, vec![changed(&bench.other, |_| {})]),
        (Reason::Chain, vec![vcek_from_asvk()]),
        (Reason::CertMissing, vec![certified(|c| c.subject = "SEV-Other".to_owned())]),
        (Reason::Revoked, vec![crl(&bench.vcek, &[&[1, 0, 1]], START.0, late)]),
        (Reason::Revoked, vec![crl(&bench.vcek, &[&[0]], START.0, late)]),
        (Reason::CrlMalformed, vec![with_crl(&[0x30, 0])]),
        (Reason::CrlStale, vec![crl(&bench.vcek, &[], START.0, NOW.0)]),
        (Reason::CrlStale, vec![crl(&bench.vcek, &[], late, late + 1)]),
        (Reason::CrlSignature, vec![crl(&bench.other, &[], START.0, late)]),
        (Reason::CrlIssuer, vec![with_crl(&foreign_crl())]),
        (Reason::CertTable, vec![item(&good.evidence, &[(EndorsementKind::SnpCertTable, &[1])])]),
        (Reason::HostUnknown, vec![host_claim("h1", &stranger)]),
        (Reason::HostClaim, vec![host_claim("h2", &bench.host)]),
        (Reason::HostClaim, vec![broken_claim]),
    ]
}

#[test]
fn every_reason_is_caused() {
    let mut cases = faults_of_reports();
    cases.extend(faults_of_signers());
    let mut caused = BTreeSet::new();
    for (number, (reason, items)) in cases.into_iter().enumerate() {
        let error = run(items).expect_err("the case must be refused");
        assert_eq!(error.reason, reason, "case {number}: {error}");
        caused.insert(reason);
    }
    caused.insert(id_block());
    for reason in Reason::ALL {
        let elsewhere = of_other_evidence::REASONS.contains(reason);
        assert!(elsewhere || caused.contains(reason), "{} has no case", reason.code());
    }
}

/// An ID block that is no ID block.
fn id_block() -> Reason {
    let report = Report::parse(&bench().vcek.fields().encode()).unwrap();
    IdBlock::verify(&[0; 96], &[0; 4096], &report).unwrap_err().reason
}

/// The base point of P-256: a key that is none of AMD's.
const P256_POINT: [u8; 65] = [
    4, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40,
    0xf2, 0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2,
    0x96, 0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e,
    0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51,
    0xf5,
];

/// Every byte of a signed report counts: flipping any one is seen. Nothing is
/// excepted, because the bytes behind the signature must be zero.
#[test]
fn every_flipped_byte_is_refused() {
    let good = changed(&bench().vcek, |_| {});
    for at in 0..good.evidence.len() {
        let mut bad = good.clone();
        bad.evidence[at] ^= 1;
        assert!(run(vec![bad]).is_err(), "byte {at:#x}");
    }
}

/// A remembered chain is no weaker: time, lists and the report still count.
#[test]
fn a_verifier_that_remembers_refuses_the_same() {
    let bench = bench();
    let verifier = Verifier::new(bench.anchors.clone(), 1);
    let good = changed(&bench.vcek, |_| {}).evidence;
    let list = bench.vcek.crl(&[], START, UnixTime(NOW.0 + 10)).unwrap();
    let listed = bench.vcek.crl(&[&[1, 0, 1]], START, UnixTime(NOW.0 + 10)).unwrap();
    let run = |report: &[u8], crls: &[Vec<u8>], at| {
        verifier.verify(report, bench.vcek.vek_der(), &[], crls, UnixTime(at))
    };
    let reason = |result: Result<_, VerifyError>| result.map(|_| ()).unwrap_err().reason;
    for _ in 0..2 {
        run(&good, &[], NOW.0).unwrap();
        run(&good, std::slice::from_ref(&list), NOW.0).unwrap();
        assert_eq!(reason(run(&good, std::slice::from_ref(&list), NOW.0 + 10)), Reason::CrlStale);
        assert_eq!(reason(run(&good, std::slice::from_ref(&listed), NOW.0)), Reason::Revoked);
        assert_eq!(reason(run(&good, &[], START.0 - 1)), Reason::CertValidity);
        let mut flipped = good.clone();
        flipped[0x50] ^= 1;
        assert_eq!(reason(run(&flipped, &[], NOW.0)), Reason::Signature);
    }
}

/// Every list of the root counts; the newest says whether they are current.
#[test]
fn of_several_lists_every_revocation_counts() {
    let bench = bench();
    let list = |revoked: &[&[u8]], this: u64, next: u64| {
        let der = bench.vcek.crl(revoked, UnixTime(this), UnixTime(next)).unwrap();
        (EndorsementKind::Crl, der)
    };
    let good = || list(&[], NOW.0 - 50, NOW.0 + 10);
    let revokes = || list(&[&[1, 0, 1]], NOW.0 - 100, NOW.0 + 10);
    let stale = || list(&[], START.0, NOW.0 - 60);
    let judged = |items: Vec<_>| {
        let evidence = Evidence { items: vec![changed(&bench.vcek, |_| {})] };
        verify(&evidence, &bench.anchors, &Endorsements { items }, NOW)
            .map(|claims| claims.snp().unwrap().crl.map(|crl| crl.this_update.0))
            .map_err(|error| error.reason)
    };
    for lists in [vec![good(), revokes()], vec![revokes(), good()]] {
        assert_eq!(judged(lists), Err(Reason::Revoked));
    }
    for lists in [vec![good(), stale()], vec![stale(), good()]] {
        assert_eq!(judged(lists), Ok(Some(NOW.0 - 50)));
    }
    assert_eq!(judged(vec![stale()]), Err(Reason::CrlStale));
    // Another root's list is nobody's business here.
    assert_eq!(judged(vec![(EndorsementKind::Crl, foreign_crl())]), Ok(None));
}

/// Whatever clock was asked about before, the answer for a clock is the same.
#[test]
fn what_is_remembered_does_not_depend_on_the_clock_before() {
    let bench = bench();
    let list = |this: u64, next: u64| bench.vcek.crl(&[], UnixTime(this), UnixTime(next)).unwrap();
    let lists = [list(NOW.0 - 100, NOW.0 + 20), list(NOW.0 + 5, NOW.0 + 30)];
    let item = changed(&bench.vcek, |_| {});
    let expected = |at: u64| match () {
        () if (NOW.0 - 100..NOW.0 + 5).contains(&at) => Ok(NOW.0 - 100),
        () if (NOW.0 + 5..NOW.0 + 30).contains(&at) => Ok(NOW.0 + 5),
        () => Err(Reason::CrlStale),
    };
    let of = |claims: &casemate_attestation::snp::SnpClaims| claims.crl.unwrap().this_update.0;
    let verifier = Verifier::new(bench.anchors.clone(), 4);
    let items = lists.clone().map(|list| (EndorsementKind::Crl, list)).to_vec();
    let (evidence, endorsements) = (Evidence { items: vec![item.clone()] }, Endorsements { items });
    for ago in [0, 4, 5, 25, 4, 29, 0, 30, 5, 0] {
        for at in [NOW.0 + ago, NOW.0 - 101, NOW.0 - 100] {
            let now = UnixTime(at);
            let whole = verify(&evidence, &bench.anchors, &endorsements, now);
            let whole = whole.map(|claims| of(claims.snp().unwrap())).map_err(|e| e.reason);
            assert_eq!(whole, expected(at), "{ago}");
            let one = verifier.verify(&item.evidence, bench.vcek.vek_der(), &[], &lists, now);
            let one = one.map(|claims| of(&claims)).map_err(|e| e.reason);
            assert_eq!(one, expected(at), "{ago}");
        }
    }
}

/// Anchors remember chains for every thread, and a remembered chain is no
/// weaker: time, lists and the report still count.
#[test]
fn anchors_that_remember_refuse_the_same() {
    fn shared<T: Send + Sync>(value: &T) -> &T {
        value
    }
    let bench = bench();
    let anchors = shared(&bench.anchors);
    let list = |revoked: &[&[u8]]| {
        let der = bench.vcek.crl(revoked, START, UnixTime(NOW.0 + 10)).unwrap();
        (EndorsementKind::Crl, der)
    };
    let (empty, full) = (list(&[]), list(&[&[1, 0, 1]]));
    let good = changed(&bench.vcek, |_| {});
    let judged = |item: &EvidenceItem, items: &[(EndorsementKind, Vec<u8>)], at: u64| {
        let evidence = Evidence { items: vec![item.clone()] };
        verify(&evidence, anchors, &Endorsements { items: items.to_vec() }, UnixTime(at))
            .map(|_| ())
            .map_err(|error| error.reason)
    };
    let mut sent = good.clone();
    sent.endorsements.push(empty.clone());
    let mut flipped = good.clone();
    flipped.evidence[0x50] ^= 1;
    let other_tcb = changed(&bench.vcek, |f| f.reported_tcb[6] -= 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    assert_eq!(judged(&good, &[], NOW.0), Ok(()));
                    assert_eq!(judged(&good, std::slice::from_ref(&empty), NOW.0), Ok(()));
                    assert_eq!(judged(&sent, &[], NOW.0), Ok(()));
                    assert_eq!(
                        judged(&good, std::slice::from_ref(&full), NOW.0),
                        Err(Reason::Revoked)
                    );
                    assert_eq!(
                        judged(&good, std::slice::from_ref(&empty), NOW.0 + 10),
                        Err(Reason::CrlStale)
                    );
                    assert_eq!(judged(&sent, &[], NOW.0 + 10), Err(Reason::CrlStale));
                    assert_eq!(judged(&good, &[], START.0 - 1), Err(Reason::CertValidity));
                    assert_eq!(judged(&flipped, &[], NOW.0), Err(Reason::Signature));
                    assert_eq!(judged(&other_tcb, &[], NOW.0), Err(Reason::Tcb));
                }
            });
        }
    });
}

fn plain_list() -> CrlSpec<'static> {
    let next_update = UnixTime(NOW.0 + 10);
    CrlSpec { number: &[7], revoked: &[], this_update: START, next_update, fault: None }
}

/// A list that the root signed and that is not in the profile (RFC 5280 5.1.2.1,
/// 5.2.3; AMD 57230).
#[test]
fn lists_outside_the_profile_are_refused() {
    for (fault, reason) in [
        (CrlFault::NoVersion, Reason::CrlMalformed),
        (CrlFault::Version3, Reason::CrlMalformed),
        (CrlFault::NumberTwice, Reason::CrlMalformed),
        (CrlFault::NegativeNumber, Reason::CrlMalformed),
        (CrlFault::UnreadableNumber, Reason::CrlMalformed),
        (CrlFault::Pkcs1, Reason::CrlSignature),
    ] {
        let list = bench().vcek.crl_of(&CrlSpec { fault: Some(fault), ..plain_list() }).unwrap();
        assert_eq!(run(vec![with_crl(&list)]).unwrap_err().reason, reason, "{fault:?}, sent");
        // Also where the verifier has it from elsewhere.
        let items = vec![(EndorsementKind::Crl, list)];
        let evidence = Evidence { items: vec![changed(&bench().vcek, |_| {})] };
        let judged = verify(&evidence, &bench().anchors, &Endorsements { items }, NOW);
        assert_eq!(judged.unwrap_err().reason, reason, "{fault:?}, supplied");
    }
}

/// A verifier keeps certificates of many machines: one that it cannot read takes
/// nothing from the others, and is named where it is missed. Sent, it is refused.
#[test]
fn what_a_verifier_keeps_beside_does_not_hide_what_fits() {
    let bench = bench();
    let report = bench.vcek.report(&[1; 64], &[2; 48]).unwrap();
    let chain = |der: &[u8]| (EndorsementKind::CertificateChain, der.to_vec());
    let judged = |items: Vec<_>| {
        let evidence = Evidence { items: vec![item(&report, &[])] };
        verify(&evidence, &bench.anchors, &Endorsements { items }, NOW)
            .map(|_| ())
            .map_err(|error| error.reason)
    };
    let (large, no_certificate) = (chain(&[0x30; 5000]), chain(b"no certificate"));
    assert_eq!(judged(vec![large.clone(), chain(bench.vcek.vek_der())]), Ok(()));
    assert_eq!(judged(vec![large]), Err(Reason::Limit));
    assert_eq!(judged(vec![no_certificate]), Err(Reason::CertMalformed));
    assert_eq!(judged(vec![]), Err(Reason::CertMissing));
    let mut sent = changed(&bench.vcek, |_| {});
    sent.endorsements.push(chain(b"no certificate"));
    assert_eq!(run(vec![sent]).unwrap_err().reason, Reason::CertMalformed);
}

/// Numbers of 20 octets are read whole (RFC 5280 5.2.3), longer ones not at all.
#[test]
fn numbers_of_lists_may_have_twenty_octets() {
    let bench = bench();
    let numbered = |octets: &[u8]| {
        let list = bench.vcek.crl_of(&CrlSpec { number: octets, ..plain_list() }).unwrap();
        let evidence = Evidence { items: vec![with_crl(&list)] };
        verify(&evidence, &bench.anchors, &Endorsements::default(), NOW)
            .map(|claims| claims.snp().unwrap().crl.unwrap().number.unwrap().to_string())
            .map_err(|error| error.reason)
    };
    assert_eq!(numbered(&[7]), Ok("7".to_owned()));
    assert_eq!(numbered(&[0xff; 8]), Ok(u64::MAX.to_string()));
    let mut large = [0; 20];
    large[0] = 0x40;
    assert_eq!(numbered(&large), Ok(format!("0x40{}", "00".repeat(19))));
    assert_eq!(numbered(&[0x40; 21]), Err(Reason::CrlMalformed));
}
