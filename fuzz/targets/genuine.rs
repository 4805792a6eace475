//! Signed evidence of the models with bytes changed, in all that travels with it:
//! what still verifies says what was signed.
#![no_main]

use std::sync::LazyLock;

use casemate_attestation::anchors::{AmdAnchor, IntelAnchor, TrustAnchors};
use casemate_attestation::eventlog;
use casemate_attestation::seen::Seen;
use casemate_attestation::snp::Product;
use casemate_attestation::tdx::{BodyKind, Collateral};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Policy,
    ReferenceValues, UnixTime, Verified, VerifyError, appraise, verify,
};
use casemate_fuzz::parts;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};
use libfuzzer_sys::fuzz_target;

const START: UnixTime = UnixTime(1_780_000_000);
const NOW: UnixTime = UnixTime(1_781_000_000);
/// The objects of a machine with a quote start here.
const TDX: usize = 5;

struct Bench {
    anchors: TrustAnchors,
    /// Report, VEK, ASK, table, list; quote, five parts of collateral, log.
    objects: [Vec<u8>; 12],
    snp: Claims,
    tdx: Claims,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let psp = PspModel::generate(PspConfig::milan(START)).expect("a model");
    let tdx = TdxModel::generate(TdxConfig::new(START)).expect("a model");
    let ark = Certificate::parse(psp.ark_der()).expect("a root");
    let amd = AmdAnchor::new("model", Product::Milan, ark, vec![]).expect("an anchor");
    let root = Certificate::parse(tdx.root()).expect("a root");
    let intel = IntelAnchor::new("model", root).expect("an anchor");
    let anchors = TrustAnchors { amd: vec![amd], intel: vec![intel], ..TrustAnchors::default() };
    let (log, register) = event_log();
    let mut spec = QuoteSpec::new(BodyKind::Td15Ex, [9; 64]);
    spec.report.rtmrs = [[0; 48], register, [0; 48], [8; 48]];
    let set = tdx.collateral(&CollateralSpec::new(&tdx, START)).expect("collateral");
    let objects = [
        psp.report(&[1; 64], &[2; 48]).expect("a report").to_vec(),
        psp.vek_der().to_vec(),
        psp.ask_der().to_vec(),
        psp.cert_table(),
        psp.crl(&[&[9]], START, UnixTime(NOW.0 + 10)).expect("a list"),
        tdx.quote(&spec).expect("a quote"),
        set.tcb_info,
        set.qe_identity,
        set.tcb_signing_chain,
        set.root_crl,
        set.pck_crls.concat(),
        log,
    ];
    let claims = |machine| judge(&objects, machine, &anchors).expect("evidence").into_inner();
    Bench { snp: claims(0), tdx: claims(TDX), anchors: anchors.clone(), objects: objects.clone() }
});

/// A log with one event, and the register that it replays to.
fn event_log() -> (Vec<u8>, [u8; 48]) {
    let spec_id =
        [b"Spec ID Event03\0".as_slice(), &[0; 8], &[1, 0, 0, 0, 12, 0, 48, 0, 0]].concat();
    let mut log = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0], &spec_id].concat();
    log.extend([2, 0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 12, 0]);
    log.extend([7; 48]);
    log.extend([4, 0, 0, 0, 1, 2, 3, 4]);
    log.extend([0xff; 16]);
    (log, eventlog::extend(&[0; 48], &[7; 48]))
}

/// Verifies the machine whose objects start at `machine`.
fn judge(
    objects: &[Vec<u8>; 12],
    machine: usize,
    anchors: &TrustAnchors,
) -> Result<Verified<Claims>, VerifyError> {
    let [report, vek, ask, table, crl, quote, tcb_info, qe_identity, signing, root, pck, log] =
        objects.clone();
    let item = |kind, evidence, endorsements| EvidenceItem { kind, evidence, endorsements };
    let items = if machine == TDX {
        let set = Collateral {
            tcb_info,
            qe_identity,
            tcb_signing_chain: signing,
            root_crl: root,
            pck_crls: vec![pck],
        };
        let sent = vec![(EndorsementKind::TdxCollateral, set.encode())];
        let log = item(EvidenceKind::EventLog, log, vec![]);
        vec![item(EvidenceKind::TdxQuote, quote, sent), log]
    } else {
        let sent = vec![
            (EndorsementKind::CertificateChain, vek),
            (EndorsementKind::CertificateChain, ask),
            (EndorsementKind::SnpCertTable, table),
            (EndorsementKind::Crl, crl),
        ];
        vec![item(EvidenceKind::SnpReport, report, sent)]
    };
    verify(&Evidence { items }, anchors, &Endorsements::default(), NOW)
}

/// Changes an object: what to do with it, an offset u16, and bytes for there.
fn change(object: &mut Vec<u8>, how: u8, bytes: &[u8]) {
    let Some((&[low, high], bytes)) = bytes.split_first_chunk() else { return };
    let at = usize::from(u16::from_le_bytes([low, high])) % (object.len() + 1);
    let end = (at + bytes.len()).min(object.len());
    match how % 4 {
        0 => object[at..end].copy_from_slice(&bytes[..end - at]),
        1 => object[at..end].iter_mut().zip(bytes).for_each(|(byte, bits)| *byte ^= bits),
        2 => _ = object.splice(at..at, bytes.iter().copied()),
        _ => _ = object.drain(at..end),
    }
}

fuzz_target!(|input: &[u8]| {
    let bench = &*BENCH;
    let mut objects = bench.objects.clone();
    let mut machine = 0;
    for part in parts(input) {
        let which = usize::from(part.kind & 15) % objects.len();
        machine = if which >= TDX { TDX } else { 0 };
        change(&mut objects[which], part.kind >> 4, part.bytes);
    }
    let Ok(claims) = judge(&objects, machine, &bench.anchors) else { return };
    if let (Some(actual), Some(signed)) = (claims.snp(), bench.snp.snp()) {
        assert_eq!(actual, signed);
    }
    if let (Some(actual), Some(signed)) = (claims.tdx(), bench.tdx.tdx()) {
        assert_eq!(actual, signed);
    }
    let registers = |claims: &Claims| claims.event_log().map(|log| log.rtmrs.clone());
    assert!(machine == 0 || registers(&claims) == registers(&bench.tdx));
    let (policy, none) = (Policy::default(), ReferenceValues::default());
    let appraisal = appraise(&claims, &policy, &none, Expected::ReportData([9; 64]), NOW);
    assert!(!appraisal.label().contains("proved by hardware"));
    assert!(Seen::default().advance(&claims, NOW, 7).is_ok());
});
