//! The paths whose instructions are counted (`cargo run -p xtask -- instructions`).
//!
//! `instructions make DIR` writes modelled evidence; `instructions PATH DIR`
//! verifies it once. Keys are made in the first step, so that the second,
//! which runs under callgrind, does nothing else.

#![expect(clippy::unwrap_used, reason = "a measurement stops at the first surprise")]

use std::hint::black_box;
use std::path::Path;

use casemate_attestation::anchors::{AmdAnchor, IntelAnchor, TrustAnchors};
use casemate_attestation::snp::{PreparedVek, Product};
use casemate_attestation::tdx::{BodyKind, Collateral, Prepared};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, UnixTime, verify,
};
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};

const START: UnixTime = UnixTime(1_780_000_000);
const NOW: UnixTime = UnixTime(1_781_000_000);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, dir] = arguments.as_slice() else {
        eprintln!(
            "usage: instructions (make | snp-cold | snp-known | snp-warm | tdx-full | tdx-known | \
             tdx-prepared) DIR"
        );
        std::process::exit(2);
    };
    let dir = Path::new(dir);
    match path.as_str() {
        "make" => make(dir),
        "snp-cold" => {
            let evidence = snp_evidence(dir);
            measured(|| verify(&evidence, &snp_anchors(dir), &Endorsements::default(), NOW));
        }
        "snp-warm" => {
            let vek = Certificate::parse(&read(dir, "vek.der")).unwrap();
            let prepared = PreparedVek::new(vek, &[], &[], &snp_anchors(dir), NOW).unwrap();
            let report = read(dir, "report.bin");
            measured(|| prepared.verify(&report, NOW));
        }
        "snp-known" => {
            let (evidence, anchors) = (snp_evidence(dir), snp_anchors(dir));
            let run = || verify(&evidence, &anchors, &Endorsements::default(), NOW);
            run().unwrap();
            measured(run);
        }
        "tdx-known" => {
            let (quote, collateral, anchor) = tdx(dir);
            let item = EvidenceItem {
                kind: EvidenceKind::TdxQuote,
                evidence: quote,
                endorsements: vec![(EndorsementKind::TdxCollateral, collateral.encode())],
            };
            let evidence = Evidence { items: vec![item] };
            let anchors = TrustAnchors { intel: vec![anchor], ..TrustAnchors::default() };
            let run = || verify(&evidence, &anchors, &Endorsements::default(), NOW);
            run().unwrap();
            measured(run);
        }
        "tdx-full" => {
            let (quote, collateral, anchor) = tdx(dir);
            measured(|| Prepared::new(&collateral, &anchor)?.verify(&quote, NOW));
        }
        "tdx-prepared" => {
            let (quote, collateral, anchor) = tdx(dir);
            let prepared = Prepared::new(&collateral, &anchor).unwrap();
            measured(|| prepared.verify(&quote, NOW));
        }
        other => {
            eprintln!("instructions: no path {other}");
            std::process::exit(2);
        }
    }
}

/// What callgrind counts: it is told to collect inside this function alone.
#[inline(never)]
fn measured<T, E: std::fmt::Debug>(run: impl FnOnce() -> Result<T, E>) {
    drop(black_box(run().unwrap()));
}

fn make(dir: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    let psp = PspModel::generate(PspConfig::milan(START)).unwrap();
    write("ark.der", psp.ark_der());
    write("ask.der", psp.ask_der());
    write("vek.der", psp.vek_der());
    write("report.bin", &psp.report(&[1; 64], &[2; 48]).unwrap());
    let tdx = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let collateral = tdx.collateral(&CollateralSpec::new(&tdx, START)).unwrap();
    write("root.der", tdx.root());
    write("collateral.cbor", &collateral.encode());
    write("quote.bin", &tdx.quote(&QuoteSpec::new(BodyKind::Td15, [9; 64])).unwrap());
}

fn snp_anchors(dir: &Path) -> TrustAnchors {
    let parse = |name: &str| Certificate::parse(&read(dir, name)).unwrap();
    let anchor = AmdAnchor::new("model", Product::Milan, parse("ark.der"), vec![parse("ask.der")]);
    TrustAnchors { amd: vec![anchor.unwrap()], ..TrustAnchors::default() }
}

fn snp_evidence(dir: &Path) -> Evidence {
    let item = EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: read(dir, "report.bin"),
        endorsements: vec![(EndorsementKind::CertificateChain, read(dir, "vek.der"))],
    };
    Evidence { items: vec![item] }
}

fn tdx(dir: &Path) -> (Vec<u8>, Collateral, IntelAnchor) {
    let root = Certificate::parse(&read(dir, "root.der")).unwrap();
    let collateral = Collateral::decode(&read(dir, "collateral.cbor")).unwrap();
    (read(dir, "quote.bin"), collateral, IntelAnchor::new("model", root).unwrap())
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}
