//! Real quotes against real collateral, and signed synthetic ones, where the
//! directory of evidence vectors is there (CASEMATE_VECTORS).

#![expect(
    clippy::unwrap_used,
    clippy::as_conversions,
    reason = "a test stops at the first surprise"
)]

use std::fs;
use std::path::{Path, PathBuf};

use casemate_attestation::anchors::IntelAnchor;
use casemate_attestation::eventlog::{self, EventLog};
use casemate_attestation::tdx::{Collateral, Prepared, Quote, TdxClaims};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{Reason, UnixTime, Verified, VerifyError};
use serde_json::Value;

#[test]
fn real_quotes_have_the_status_intel_says() {
    let Some(dir) = vectors() else { return };
    let root = root(&dir.join("roots/intel_sgx_root_ca.der"));
    let mut count = 0;
    for case in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(quote) = fs::read(case.join("quote.bin")) else { continue };
        let meta = json(&case.join("meta.json"));
        let Some(dates) = meta["expect"]["tcb_status_at"].as_object() else { continue };
        for (date, expect) in dates {
            let fmspc = meta["pck"]["fmspc"].as_str().unwrap();
            let collateral = collateral(&dir.join("collateral").join(date), fmspc);
            let outcome = Prepared::new(&collateral, &root)
                .and_then(|prepared| prepared.verify(&quote, midnight(date)));
            check(&case, date, expect, outcome);
            count += 1;
        }
    }
    assert!(count > 70, "only {count} quotes were found");
}

fn check(
    case: &Path,
    date: &str,
    expect: &Value,
    outcome: Result<Verified<TdxClaims>, VerifyError>,
) {
    let case = format!("{} at {date}", case.display());
    let wanted = expect["final"].as_str().unwrap();
    match outcome {
        Ok(quote) => {
            assert_eq!(quote.tcb.status.name(), wanted, "{case}");
            if let Some(advisories) = expect["advisories"].as_array() {
                let wanted: Vec<_> = advisories.iter().map(|a| a.as_str().unwrap()).collect();
                assert_eq!(quote.tcb.advisories, wanted, "{case}");
            }
        }
        Err(error) => {
            assert_eq!(wanted, "PckCertNotYetValid", "{case}: {error}");
            assert_eq!(error.reason, Reason::CertValidity, "{case}: {error}");
        }
    }
}

#[test]
fn synthetic_quotes_fail_for_the_reason_they_were_made_for() {
    let Some(dir) = vectors() else { return };
    let dir = dir.join("synthetic");
    let root = root(&dir.join("roots/root_ca.der"));
    for case in json(&dir.join("cases.json")).as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let (kind, wanted) = case["want"].as_str().unwrap().split_once(':').unwrap();
        let fmspc = case["fmspc"].as_str().unwrap();
        let collateral = collateral(&dir.join(id), fmspc);
        let quote = fs::read(dir.join(id).join("quote.bin")).unwrap();
        let now = UnixTime::from_rfc3339(case["verify_at"].as_str().unwrap()).unwrap();
        let outcome =
            Prepared::new(&collateral, &root).and_then(|prepared| prepared.verify(&quote, now));
        match (kind, outcome) {
            ("status", Ok(quote)) => assert_eq!(quote.tcb.status.name(), wanted, "{id}"),
            ("reject", Err(error)) => {
                let wanted = wanted.split("-if-").next().unwrap();
                assert_eq!(error.reason.class(), wanted, "{id}: {error}");
            }
            ("reject", Ok(_)) => assert_eq!(case["layer"], "policy", "{id} was accepted"),
            (_, Err(error)) => panic!("{id}: {error}"),
            _ => panic!("{id}: unknown expectation"),
        }
    }
}

/// A quote of each version and form that hardware is known to make.
#[test]
fn every_flipped_byte_of_a_real_quote_is_seen() {
    let Some(dir) = vectors() else { return };
    let root = root(&dir.join("roots/intel_sgx_root_ca.der"));
    for (case, date, fmspc) in [
        ("v4-gce-cos113", "2025-07-20", "00806f050000"),
        ("v5-gotdx", "2026-02-25", "90c06f000000"),
        ("v5-td15ex", "2026-10-20", "b0c06f000000"),
    ] {
        let quote = fs::read(dir.join(case).join("quote.bin")).unwrap();
        let collateral = collateral(&dir.join("collateral").join(date), fmspc);
        let prepared = Prepared::new(&collateral, &root).unwrap();
        let now = midnight(date);
        prepared.verify(&quote, now).unwrap();
        let chain = Quote::parse(&quote).unwrap().pck_chain;
        let chain_start = chain.as_ptr() as usize - quote.as_ptr() as usize;
        let chain_end = chain_start + chain.len();
        let mut flipped = quote.clone();
        for index in 0..quote.len() {
            flipped[index] ^= 0x01;
            let refused = prepared.verify(&flipped, now).is_err();
            flipped[index] = quote[index];
            // The line ends of the PEM text are not part of any certificate.
            let is_line_end =
                (chain_start..chain_end).contains(&index) && matches!(quote[index], b'\n' | b'\0');
            assert!(refused || is_line_end, "{case}: byte {index} ({:#x})", quote[index]);
        }
    }
}

/// Intel's own collateral, byte by byte. Excepted: line ends of PEM, and blanks
/// and the case of hex digits outside of what is signed.
#[test]
fn every_flipped_byte_of_real_collateral_is_seen() {
    let Some(dir) = vectors() else { return };
    let root = root(&dir.join("roots/intel_sgx_root_ca.der"));
    let quote = fs::read(dir.join("v4-gce-cos113/quote.bin")).unwrap();
    let good = collateral(&dir.join("collateral/2025-07-20"), "00806f050000");
    let now = midnight("2025-07-20");
    type Part = fn(&mut Collateral) -> &mut Vec<u8>;
    let parts: [(&str, Part); 5] = [
        ("TCB info", |all| &mut all.tcb_info),
        ("QE identity", |all| &mut all.qe_identity),
        ("TCB signing chain", |all| &mut all.tcb_signing_chain),
        ("root CRL", |all| &mut all.root_crl),
        ("PCK CRL", |all| all.pck_crls.first_mut().unwrap()),
    ];
    for (name, part) in parts {
        let mut changed = good.clone();
        let bytes = part(&mut changed).clone();
        let signature =
            bytes.windows(11).rposition(|w| w == b"\"signature\"").unwrap_or(bytes.len());
        for (at, byte) in bytes.iter().copied().enumerate() {
            part(&mut changed)[at] ^= 0x20;
            let refused =
                Prepared::new(&changed, &root).and_then(|set| set.verify(&quote, now)).is_err();
            part(&mut changed)[at] = byte;
            let hex = at > signature && byte.is_ascii_alphabetic();
            let blank = byte.is_ascii_whitespace() || byte ^ 0x20 == b'\n';
            assert!(refused || hex || blank, "{name}: byte {at} ({byte:#x})");
        }
    }
}

#[test]
fn event_logs_replay_to_the_registers() {
    let Some(dir) = vectors() else { return };
    for case in json(&dir.join("eventlog/expected.json")).as_array().unwrap() {
        let name = case["log"].as_str().unwrap();
        let bytes = fs::read(dir.join("eventlog").join(name)).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let replayed = log.replay();
        for (index, rtmr) in replayed.0.iter().enumerate() {
            let wanted = case["rtmr"][index.to_string()].as_str().unwrap();
            let actual: String = rtmr.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(actual, wanted, "{name}, rtmr{index}");
        }
    }
}

/// Real logs, byte by byte: what still replays to the same registers measured the
/// same digests in the same order. Excepted is what the replay does not cover: an
/// event's type and data.
#[test]
fn every_flipped_byte_of_a_real_event_log_is_seen() {
    let Some(dir) = vectors() else { return };
    let measured = |log: &EventLog<'_>| -> Vec<_> {
        let extended = log.events.iter().filter(|event| event.kind != eventlog::EV_NO_ACTION);
        extended.map(|event| (event.register, event.digest)).collect()
    };
    for name in ["cos113.ccel", "c8s-live.ccel"] {
        let bytes = fs::read(dir.join("eventlog").join(name)).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let (registers, digests) = (log.replay(), measured(&log));
        let mut flipped = bytes.clone();
        for index in 0..bytes.len() {
            flipped[index] ^= 1;
            if let Ok(log) = EventLog::parse(&flipped)
                && log.replay() == registers
            {
                assert_eq!(measured(&log), digests, "{name}: byte {index}");
            }
            flipped[index] = bytes[index];
        }
    }
}

fn vectors() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    let dir = dir.join("tdx");
    if !dir.is_dir() {
        eprintln!("skipped: no evidence vectors at {}", dir.display());
        return None;
    }
    Some(dir)
}

fn root(path: &Path) -> IntelAnchor {
    let root = Certificate::parse(&fs::read(path).unwrap()).unwrap();
    IntelAnchor::new("test", root).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn collateral(dir: &Path, fmspc: &str) -> Collateral {
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let crls = ["pck_crl_platform.der", "pck_crl_processor.der"];
    Collateral {
        tcb_info: read(&format!("tcb_info_tdx_{fmspc}.json")),
        qe_identity: read("qe_identity_td.json"),
        tcb_signing_chain: read("tcb_signing_chain.pem"),
        root_crl: read("root_ca_crl.der"),
        pck_crls: crls.iter().filter_map(|name| fs::read(dir.join(name)).ok()).collect(),
    }
}

fn midnight(day: &str) -> UnixTime {
    UnixTime::from_rfc3339(&format!("{day}T00:00:00Z")).unwrap()
}
