//! Evidence of real Azure machines, where the directory of evidence vectors is
//! there (CASEMATE_VECTORS).

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::PathBuf;

use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::azure::{HclKind, HclReport, TpmQuote, json, verify_snp, verify_tdx};
use casemate_attestation::snp::PreparedVek;
use casemate_attestation::tdx::{Collateral, Prepared};
use casemate_attestation::x509::{PemLimits, der_or_pem};
use casemate_attestation::{EvidenceItem, Reason, UnixTime};

const NONCE: &[u8] = b"challenge";

#[test]
fn snp_evidence_is_bound_down_to_the_nonce() {
    let Some(dir) = vectors() else { return };
    for name in ["snp-evidence-v0.json", "snp-evidence-v1.json", "snp-evidence-v2.json"] {
        let items = items(&dir, name);
        let report = items[0].evidence.clone();
        let hcl = HclReport::parse(&report).unwrap();
        let tpm = TpmQuote::decode(&items[1].evidence).unwrap();
        let vek = &items[0].endorsements[0].1;
        let vek = der_or_pem(vek, PemLimits::CHAIN).unwrap().remove(0);
        let now = UnixTime::from_rfc3339("2026-01-01T00:00:00Z").unwrap();
        let anchors = TrustAnchors::vendor();
        let vek = PreparedVek::new(vek, &[], &[], &anchors, now).unwrap();
        let nonce = tpm.claimed_nonce().unwrap().to_vec();
        assert!(nonce == NONCE || name.contains("v2"), "{name}");
        let (snp, vtpm) = verify_snp(&hcl, &tpm, &nonce, &vek, now).unwrap();
        assert_eq!(snp.report.report_data, hcl.claimed_report_data().unwrap());
        assert_eq!(vtpm.pcrs.len(), 24);
        assert_eq!(vtpm.configuration["tpm-enabled"], true, "{name}");
        let refused = |tpm: &TpmQuote, nonce: &[u8]| {
            verify_snp(&hcl, tpm, nonce, &vek, now).unwrap_err().reason
        };
        assert_eq!(refused(&tpm, b"another"), Reason::HclQuote);
        let mut other = tpm.clone();
        other.pcrs[23][0] ^= 1;
        assert_eq!(refused(&other, &nonce), Reason::HclQuote);
        let mut other = tpm.clone();
        other.message[9] ^= 1;
        assert_eq!(refused(&other, &nonce), Reason::HclQuote);
        let mut edited = report.clone();
        *edited.iter_mut().rfind(|byte| **byte == b'"').unwrap() = b'x';
        let edited = HclReport::parse(&edited).unwrap();
        let error = verify_snp(&edited, &tpm, &nonce, &vek, now).unwrap_err();
        assert_eq!(error.reason, Reason::HclBinding);
    }
}

#[test]
fn tdx_evidence_is_bound_down_to_the_nonce() {
    let Some(dir) = vectors() else { return };
    let items = items(&dir, "tdx-evidence-v1.json");
    let quote = &items[0].evidence;
    let hcl = HclReport::parse(&items[1].evidence).unwrap();
    let anchors = TrustAnchors::vendor();
    let set = dir.join("tdx/collateral/2025-07-20");
    let read = |name: &str| fs::read(set.join(name)).unwrap();
    let collateral = Collateral {
        tcb_info: read("tcb_info_tdx_00806f050000.json"),
        qe_identity: read("qe_identity_td.json"),
        tcb_signing_chain: read("tcb_signing_chain.pem"),
        root_crl: read("root_ca_crl.der"),
        pck_crls: vec![read("pck_crl_platform.der")],
    };
    let prepared = Prepared::new(&collateral, &anchors.intel[0]).unwrap();
    let now = UnixTime::from_rfc3339("2025-07-20T00:00:00Z").unwrap();
    let tpm = TpmQuote::decode(&items[2].evidence).unwrap();
    let (tdx, vtpm) = verify_tdx(&hcl, quote, &tpm, NONCE, &prepared, now).unwrap();
    assert_eq!(tdx.report.report_data, hcl.claimed_report_data().unwrap());
    assert_eq!(vtpm.user_data, None);
    assert!(verify_tdx(&hcl, quote, &tpm, b"another", &prepared, now).is_err());
}

#[test]
fn hcl_reports_are_bound_to_their_runtime_data() {
    let Some(dir) = vectors() else { return };
    for entry in fs::read_dir(dir.join("snp/azure-hcl")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        let report = fs::read(&path).unwrap();
        let hcl = HclReport::parse(&report).unwrap();
        hcl.check_binding(&hcl.claimed_report_data().unwrap()).unwrap();
        let is_tdx = path.to_string_lossy().contains("tdx");
        assert_eq!(hcl.kind == HclKind::Tdx, is_tdx, "{}", path.display());
        for length in [0, 31, 1215, 1300, report.len() - 600] {
            assert!(HclReport::parse(&report[..length]).is_err(), "{length}");
        }
    }
}

/// Nothing of a real HCL report with its runtime data can be changed. Excepted:
/// the header, which the paravisor writes and nobody signs.
#[test]
fn every_flipped_byte_of_a_real_hcl_report_is_refused() {
    let Some(dir) = vectors() else { return };
    let items = items(&dir, "snp-evidence-v2.json");
    let tpm = TpmQuote::decode(&items[1].evidence).unwrap();
    let nonce = tpm.claimed_nonce().unwrap().to_vec();
    let vek = der_or_pem(&items[0].endorsements[0].1, PemLimits::CHAIN).unwrap().remove(0);
    let now = UnixTime::from_rfc3339("2026-01-01T00:00:00Z").unwrap();
    let vek = PreparedVek::new(vek, &[], &[], &TrustAnchors::vendor(), now).unwrap();
    let report = &items[0].evidence;
    let judge = |bytes: &[u8]| {
        HclReport::parse(bytes)
            .and_then(|hcl| verify_snp(&hcl, &tpm, &nonce, &vek, now).map(|_| ()))
    };
    judge(report).unwrap();
    let (mut bad, mut unseen) = (report.clone(), Vec::new());
    for at in 0..report.len() {
        bad[at] ^= 1 << (at % 8);
        if judge(&bad).is_ok() {
            unseen.push(at);
        }
        bad[at] = report[at];
    }
    let json = 0x4c0 + 20;
    let end = json + hcl_json_length(report);
    let counts = |at: &usize| (0x20..0x4c0).contains(at) || (json..end).contains(at);
    assert_eq!(unseen.iter().copied().find(counts), None, "{unseen:?}");
    assert!(unseen.len() < 0x20 + 20 + report.len() - end, "{unseen:?}");
}

/// The length of the runtime data: the last word of their header.
fn hcl_json_length(report: &[u8]) -> usize {
    let bytes = report.get(0x4d0..0x4d4).unwrap().try_into().unwrap();
    usize::try_from(u32::from_le_bytes(bytes)).unwrap()
}

fn vectors() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    if !dir.join("snp/azure-hcl").is_dir() {
        eprintln!("skipped: no evidence vectors at {}", dir.display());
        return None;
    }
    Some(dir)
}

fn items(dir: &std::path::Path, name: &str) -> Vec<EvidenceItem> {
    let text = fs::read(dir.join("snp/azure-hcl").join(name)).unwrap();
    assert!(json::is_evidence(&text));
    json::items(&text).unwrap()
}
