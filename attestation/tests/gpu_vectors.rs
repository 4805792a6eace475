//! Real device evidence, byte by byte, where the directory of evidence vectors
//! is there (CASEMATE_VECTORS). Outcomes and codes of every case are compared
//! by `cargo run -p xtask -- vectors`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use casemate_attestation::UnixTime;
use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::gpu::{DeviceEvidence, Outcome, Source, Verifier};
use casemate_attestation::wire::unhex_array;

/// 2025-10-24T12:00:00Z, when the manifests of the case were current.
const NOW: UnixTime = UnixTime(1_761_307_200);

struct Case {
    report: Vec<u8>,
    chain: Vec<u8>,
    driver: Vec<u8>,
    vbios: Vec<u8>,
    nonce: [u8; 32],
    verifier: Verifier,
}

impl Case {
    fn load() -> Option<Self> {
        let dir = vectors()?.join("hopper-550.90.07-pass");
        let read = |name: &str| fs::read(dir.join(name)).unwrap();
        let nonce = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb";
        Some(Self {
            report: read("report.bin"),
            chain: read("chain.pem"),
            driver: read("driver_rim.xml"),
            vbios: read("vbios_rim.xml"),
            nonce: unhex_array(nonce).unwrap(),
            verifier: Verifier::new(&TrustAnchors::vendor().nvidia),
        })
    }

    fn outcome(&self, report: &[u8], chain: &[u8], driver: &[u8]) -> Outcome {
        let manifests = [(Source::Driver, driver), (Source::Vbios, self.vbios.as_slice())];
        let evidence = DeviceEvidence { report, chain, manifests: &manifests, ocsp: &[] };
        self.verifier.device(&evidence, Some(&self.nonce), NOW).outcome()
    }
}

#[test]
fn every_flipped_byte_of_a_real_report_is_seen() {
    let Some(case) = Case::load() else { return };
    assert_eq!(case.outcome(&case.report, &case.chain, &case.driver), Outcome::Pass);
    for at in (0..case.report.len()).step_by(step(17)) {
        let mut report = case.report.clone();
        report[at] ^= 1;
        assert_eq!(case.outcome(&report, &case.chain, &case.driver), Outcome::Fail, "byte {at}");
    }
}

#[test]
fn every_flipped_byte_of_a_real_chain_is_seen() {
    let Some(case) = Case::load() else { return };
    // The last certificate counts for its key and name alone: the key is pinned,
    // not the certificate. The line ends of the text are part of no certificate.
    let text = std::str::from_utf8(&case.chain).unwrap();
    let root = text.rfind("-----BEGIN").unwrap();
    for at in (0..root).step_by(step(31)).filter(|at| !case.chain[*at].is_ascii_whitespace()) {
        let mut chain = case.chain.clone();
        chain[at] ^= 1;
        assert_eq!(case.outcome(&case.report, &chain, &case.driver), Outcome::Fail, "byte {at}");
    }
}

#[test]
fn every_flipped_byte_of_a_real_manifest_is_seen() {
    let Some(case) = Case::load() else { return };
    let text = std::str::from_utf8(&case.driver).unwrap();
    // Of the certificates, those above the signer are covered by the chain.
    let root = text.rfind("<ds:X509Certificate>").unwrap();
    let white = |at: &usize| case.driver[*at].is_ascii_whitespace();
    for at in (0..root).step_by(step(127)).filter(|at| !white(at)) {
        let mut driver = case.driver.clone();
        driver[at] ^= 1;
        assert_eq!(case.outcome(&case.report, &case.chain, &driver), Outcome::Fail, "byte {at}");
    }
}

#[test]
fn hostile_manifests_cost_no_more_than_their_length() {
    let verifier = Verifier::new(&TrustAnchors::vendor().nvidia);
    let most = 512 * 1024;
    let element = "<a xmlns:p='u:1' p:x='&#65;' y='1'>&amp;</a>";
    let namespaces: String = (0..32).map(|n| format!(" xmlns:p{n}='u:{n}'")).collect();
    let hostile = [
        "<a>".repeat(most / 3),
        format!("<a>{}</a>", element.repeat(most / element.len() - 1)),
        format!("<a>{}", format!("<b{namespaces}>").repeat(most / 1024)),
        format!("<a>{}</a>", "&#13;".repeat(most / 5 - 2)),
        format!("<a b='{}'/>", "\u{9}".repeat(most - 16)),
        format!("<a>{}", "<!---->".repeat(most / 8)),
        format!(
            "<a>{}</a>",
            "<Signature xmlns='http://www.w3.org/2000/09/xmldsig#'/>".repeat(8000)
        ),
        "\r".repeat(most),
        "&".repeat(most),
        "<".repeat(most),
    ];
    for text in hostile {
        let start = Instant::now();
        assert!(!verifier.manifest(text.as_bytes()).findings.is_empty());
        let time = start.elapsed();
        // Debug builds on a loaded machine take tens of milliseconds.
        assert!(time.as_secs() < 3, "{time:?} for {:.40}", text);
    }
}

/// Every byte in a release build; in a slow debug build every `debug`th, a
/// prime, so that every kind of place is met.
fn step(debug: usize) -> usize {
    if cfg!(debug_assertions) { debug } else { 1 }
}

fn vectors() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let default = || root.join("../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(default, PathBuf::from);
    let dir = dir.join("nvgpu");
    if !dir.exists() {
        println!("skipped: no device evidence at {} (CASEMATE_VECTORS)", dir.display());
        return None;
    }
    Some(dir)
}
