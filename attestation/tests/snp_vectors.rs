//! Reports of real machines, where the directory of evidence vectors is there
//! (CASEMATE_VECTORS): each verifies, and no byte of it can be flipped.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::PathBuf;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use casemate_attestation::break_list::{BreakList, BrokenGeneration};
use casemate_attestation::snp::{PreparedVek, Product};
use casemate_attestation::wire::hex;
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    AnchorKind, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected,
    Policy, ReferenceValues, Risk, TrustAnchors, UnixTime, appraise, ear, verify,
};

fn vectors() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    let dir = dir.join("snp");
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: no evidence vectors at {}", dir.display());
    None
}

/// Nothing is excepted: the bytes behind the signature must be zero, and a
/// flipped bit of the signature does not make another valid one.
#[test]
fn every_flipped_byte_of_a_real_report_is_refused() {
    let Some(dir) = vectors() else { return };
    let anchors = TrustAnchors::vendor();
    let (mut cases, mut products) = (0, std::collections::BTreeSet::new());
    for entry in fs::read_dir(&dir).unwrap() {
        let case = entry.unwrap().path();
        let (Ok(report), Ok(vek)) =
            (fs::read(case.join("report.bin")), fs::read(case.join("vek.der")))
        else {
            continue;
        };
        let vek = Certificate::parse(&vek).unwrap();
        let now = vek.not_before().plus_seconds(1);
        let prepared = PreparedVek::new(vek, &[], &[], &anchors, now).unwrap();
        let claims = prepared.verify(&report, now).unwrap();
        assert_eq!(claims.anchor.kind, AnchorKind::Hardware);
        products.insert(claims.product);
        for at in 0..report.len() {
            let mut bad = report.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(prepared.verify(&bad, now).is_err(), "{}: byte {at:#x}", case.display());
        }
        cases += 1;
    }
    assert!(cases > 0, "no case in {}", dir.display());
    assert_eq!(products.into_iter().collect::<Vec<_>>(), Product::ALL);
    eprintln!("{cases} real reports, every byte flipped");
}

/// A flipped byte of a VEK certificate breaks its signature or its reading.
#[test]
fn every_flipped_byte_of_a_real_certificate_is_refused() {
    let Some(dir) = vectors() else { return };
    let anchors = TrustAnchors::vendor();
    for case in ["genoa-v3-aci", "turin-v5-aci", "milan-v3-vlek-aws"] {
        let vek = fs::read(dir.join(case).join("vek.der")).unwrap();
        let now = Certificate::parse(&vek).unwrap().not_before().plus_seconds(1);
        for at in 0..vek.len() {
            let mut bad = vek.clone();
            bad[at] ^= 1 << (at % 8);
            let result = Certificate::parse(&bad)
                .and_then(|vek| PreparedVek::new(vek, &[], &[], &anchors, now));
            assert!(result.is_err(), "{case}: byte {at:#x}");
        }
    }
}

/// The table that a real host handed out: a flipped byte of it breaks its
/// structure or a certificate. Excepted: the copy of the root, which counts for
/// nothing, and line ends of PEM.
#[test]
fn every_flipped_byte_of_a_real_certificate_table_is_refused() {
    let Some(dir) = vectors() else { return };
    let table = fs::read(dir.join("cert-tables/veraison-genoa-auxblob.bin")).unwrap();
    let report = fs::read(dir.join("genoa-v3-veraison-tsm/report.bin")).unwrap();
    let vek = fs::read(dir.join("genoa-v3-veraison-tsm/vek.der")).unwrap();
    let now = Certificate::parse(&vek).unwrap().not_before().plus_seconds(86_400);
    let anchors = TrustAnchors::vendor();
    let judge = |table: &[u8]| {
        let item = EvidenceItem {
            kind: EvidenceKind::SnpReport,
            evidence: report.clone(),
            endorsements: vec![(EndorsementKind::SnpCertTable, table.to_vec())],
        };
        verify(&Evidence { items: vec![item] }, &anchors, &Endorsements::default(), now)
    };
    judge(&table).unwrap();
    // Entry 2 is the VCEK: offset and length as the table has them.
    let word = |at: usize| {
        let bytes: [u8; 4] = table[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_le_bytes(bytes)).unwrap()
    };
    let vcek = (0..3).find(|at| table[at * 24] == 0x63).unwrap() * 24;
    let (start, end) = (word(vcek + 16), word(vcek + 16) + word(vcek + 20));
    let (mut seen, mut bad) = (0, table.clone());
    for at in start..end {
        bad[at] ^= 1;
        let refused = judge(&bad).is_err();
        assert!(refused || table[at] == b'\n', "byte {at:#x} ({:#x})", table[at]);
        seen += usize::from(refused);
        bad[at] = table[at];
    }
    assert!(seen > 1000, "{seen}");
}

/// Hardware that an attack is known against, accepted for a while by a signed
/// list's own terms, is a warning in the token and never an affirmation.
#[test]
fn an_accepted_attack_stays_a_warning_in_the_token() {
    let Some(dir) = vectors() else { return };
    let case = dir.join("milan-v3-aci");
    let vek = fs::read(case.join("vek.der")).unwrap();
    let now = Certificate::parse(&vek).unwrap().not_before().plus_seconds(86_400);
    let item = EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: fs::read(case.join("report.bin")).unwrap(),
        endorsements: vec![(EndorsementKind::CertificateChain, vek)],
    };
    let none = Endorsements::default();
    let claims =
        verify(&Evidence { items: vec![item] }, &TrustAnchors::vendor(), &none, now).unwrap();
    let hardware = |policy: &str| {
        let (policy, references) = (Policy::from_toml(policy).unwrap(), ReferenceValues::default());
        let appraisal = appraise(&claims, &policy, &references, Expected::Nothing, now);
        let context = ear::EarContext {
            issuer: "https://verifier.example",
            subject: "spiffe://example/t/sb/1",
            audience: "vault",
            token_id: "1",
            issued_at: now,
            lifetime_seconds: 300,
            nonce: &[1; 32],
            identity_key: &[2; 32],
            risk: Risk::Low,
            bundle: [3; 32],
            task: "t",
            dialect: ear::Dialect::Ietf,
        };
        let token = ear::claims(&appraisal, &context);
        token["submods"]["cpu0"]["ear_trustworthiness_vector"]["hardware"].as_i64().unwrap()
    };
    let listed = break_list("Milan");
    let accept = "accept = [{ id = \"CVE-1\", until = \"2999-01-01T00:00:00Z\" }]\n";
    assert_eq!(hardware(""), 2);
    assert_eq!(hardware(&break_list("Genoa")), 2);
    assert_eq!(hardware(&listed), 96);
    assert_eq!(hardware(&format!("{listed}{accept}")), 32);
}

/// A section of a policy with a signed list that names one generation.
fn break_list(generation: &str) -> String {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public: [u8; 32] = key.public_key().as_ref().try_into().unwrap();
    let entry = BrokenGeneration {
        id: "CVE-1".to_owned(),
        generation: generation.to_owned(),
        fixed_in: None,
        text: "keys can be read out".to_owned(),
    };
    let list = BreakList { sequence: 1, issued_at: UnixTime(1), entries: vec![entry] };
    let bytes = list.sign(&public, |message| key.sign(message).as_ref().try_into().unwrap());
    let list = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("[generations]\nlist = \"{list}\"\nkey = \"{}\"\n", hex(&public))
}
