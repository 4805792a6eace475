//! Evidence of real Azure machines, where the directory of evidence vectors is
//! there (CASEMATE_VECTORS).

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::azure::{HclKind, HclReport, TpmQuote, verify_snp, verify_tdx};
use casemate_attestation::snp::PreparedVek;
use casemate_attestation::tdx::{Collateral, Prepared};
use casemate_attestation::wire::unhex;
use casemate_attestation::x509::{PemLimits, der_or_pem};
use casemate_attestation::{Reason, UnixTime};
use serde_json::Value;

const NONCE: &[u8] = b"challenge";

#[test]
fn snp_evidence_is_bound_down_to_the_nonce() {
    let Some(dir) = vectors() else { return };
    for name in ["snp-evidence-v0.json", "snp-evidence-v1.json", "snp-evidence-v2.json"] {
        let evidence = json(&dir.join("snp/azure-hcl").join(name));
        let report = bytes(&evidence, &["report", "hcl_report"]);
        let hcl = HclReport::parse(&report).unwrap();
        let tpm = tpm_quote(&evidence);
        let vek = match evidence["vcek"].as_str().unwrap() {
            pem if pem.starts_with("-----") => pem.as_bytes().to_vec(),
            der => octets(&Value::from(der)),
        };
        let vek = der_or_pem(&vek, PemLimits::CHAIN).unwrap().remove(0);
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
    let evidence = json(&dir.join("snp/azure-hcl/tdx-evidence-v1.json"));
    let report = bytes(&evidence, &["hcl_report"]);
    let hcl = HclReport::parse(&report).unwrap();
    let quote = bytes(&evidence, &["td_quote"]);
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
    let tpm = tpm_quote(&evidence);
    let (tdx, vtpm) = verify_tdx(&hcl, &quote, &tpm, NONCE, &prepared, now).unwrap();
    assert_eq!(tdx.report.report_data, hcl.claimed_report_data().unwrap());
    assert_eq!(vtpm.user_data, None);
    assert!(verify_tdx(&hcl, &quote, &tpm, b"another", &prepared, now).is_err());
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

fn vectors() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    if !dir.join("snp/azure-hcl").is_dir() {
        eprintln!("skipped: no evidence vectors at {}", dir.display());
        return None;
    }
    Some(dir)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn tpm_quote(evidence: &Value) -> TpmQuote {
    let quote = evidence.get("quote").or(evidence.get("tpm_quote")).unwrap();
    let pcrs = quote["pcrs"].as_array().unwrap();
    TpmQuote {
        message: bytes(quote, &["message"]),
        signature: bytes(quote, &["signature"]),
        pcrs: pcrs.iter().map(|pcr| octets(pcr).try_into().unwrap()).collect(),
    }
}

/// The first of `names` that `value` has: an array of numbers, hex or base64url.
fn bytes(value: &Value, names: &[&str]) -> Vec<u8> {
    octets(names.iter().find_map(|name| value.get(name)).unwrap())
}

fn octets(value: &Value) -> Vec<u8> {
    match value {
        Value::Array(numbers) => {
            numbers.iter().map(|n| u8::try_from(n.as_u64().unwrap()).unwrap()).collect()
        }
        text => {
            let text = text.as_str().unwrap();
            unhex(text)
                .unwrap_or_else(|| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).unwrap())
        }
    }
}
