//! Each reason that evidence other than an SNP report or a host's claim can be
//! refused for has a case here that causes it. The list is the one that the
//! SNP cases pass over (`attestation/tests/snp_reasons.rs`), so that the two
//! tests together walk the whole enum.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../../attestation/tests/of_other_evidence/mod.rs"]
mod of_other_evidence;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::azure::{HclReport, PCRS, TpmQuote, verify_snp};
use casemate_attestation::snp::PreparedVek;
use casemate_attestation::tdx::{BodyKind, Collateral};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Reason, Seen,
    UnixTime, Verified, VerifyError, verify,
};
use casemate_model::azure::Paravisor;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, Role, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};

const START: UnixTime = UnixTime(1_780_000_000);
const NOW: UnixTime = UnixTime(1_781_000_000);

struct Machine {
    psp: PspModel,
    tdx: TdxModel,
    other: TdxModel,
    paravisor: Paravisor,
    anchors: TrustAnchors,
}

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    let psp = PspModel::generate(PspConfig::milan(START)).unwrap();
    let tdx = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let other = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let toml = format!("vendor = []\n{}{}", psp.anchor_toml("a"), tdx.anchor_toml("b"));
    let anchors = TrustAnchors::from_toml(&toml).unwrap();
    Machine { psp, tdx, other, paravisor: Paravisor::generate().unwrap(), anchors }
});

#[test]
fn every_other_reason_is_caused() {
    let mut caused = BTreeSet::new();
    let cases = quotes().into_iter().chain(bytes_of_quotes()).chain(collaterals()).chain(others());
    for (reason, outcome) in cases {
        let error = outcome.map(|_| ()).expect_err(reason.code());
        assert_eq!(error.reason, reason, "{error}");
        caused.insert(reason);
    }
    for reason in of_other_evidence::REASONS {
        assert!(caused.contains(reason), "{} has no case", reason.code());
    }
}

type Case = (Reason, Result<Verified<Claims>, VerifyError>);

/// Quotes that the model signs with something wrong in them.
fn quotes() -> Vec<Case> {
    let case = |reason, change: fn(&mut QuoteSpec)| {
        let mut spec = spec();
        change(&mut spec);
        (reason, tdx(MACHINE.tdx.quote(&spec).unwrap(), &collateral(|_| ())))
    };
    vec![
        case(Reason::CertData, |spec| spec.certification_type = 1),
        case(Reason::QeBinding, |spec| spec.bound = Role::Rogue),
        case(Reason::QeReportSignature, |spec| spec.qe_report_by = Role::TcbSigning),
        case(Reason::QeIdentity, |spec| spec.qe.mrsigner = [0; 32]),
        case(Reason::PckCertificate, |spec| {
            spec.pck_chain = Some(MACHINE.tdx.tcb_signing_chain());
        }),
        case(Reason::TdxModule, |spec| spec.report.tee_tcb_svn[1] = 2),
    ]
}

/// Quotes with a byte changed afterwards.
fn bytes_of_quotes() -> Vec<Case> {
    let good = MACHINE.tdx.quote(&spec()).unwrap();
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        tdx(bad, &collateral(|_| ()))
    };
    let trailing = [&good[..], &[7]].concat();
    vec![
        (Reason::TeeType, flipped(4)),
        (Reason::QeVendor, flipped(12)),
        (Reason::BodyType, flipped(48)),
        (Reason::TrailingBytes, tdx(trailing, &collateral(|_| ()))),
    ]
}

fn collaterals() -> Vec<Case> {
    let good = collateral(|_| ());
    let foreign = MACHINE.other.collateral(&CollateralSpec::new(&MACHINE.other, START)).unwrap();
    let run = |collateral: &Collateral| tdx(MACHINE.tdx.quote(&spec()).unwrap(), collateral);
    let stale = collateral(|spec| spec.next_update = NOW);
    vec![
        (Reason::CollateralMissing, run(&Collateral { qe_identity: vec![], ..good.clone() })),
        (Reason::CollateralMalformed, run(&Collateral { tcb_info: b"{}".into(), ..good.clone() })),
        (
            Reason::CollateralSignature,
            run(&Collateral { tcb_info: foreign.tcb_info, ..good.clone() }),
        ),
        (Reason::CollateralKind, run(&collateral(|spec| spec.tcb_info_id = "SGX".to_owned()))),
        (Reason::CollateralStale, run(&stale)),
        (Reason::Fmspc, run(&collateral(|spec| spec.fmspc[5] ^= 1))),
        (Reason::PceId, run(&collateral(|spec| spec.pceid[1] ^= 1))),
    ]
}

/// Event logs, devices, Azure, and a verifier that remembers.
fn others() -> Vec<Case> {
    let device = item(EvidenceKind::GpuReport, vec![1, 2, 3]);
    let hcl = azure();
    let (last, first) = hcl.split_last().unwrap();
    let mut unbound = hcl.clone();
    let end = unbound[0].evidence.len() - 3;
    unbound[0].evidence[end] ^= 1;
    let mut quote = TpmQuote::decode(&last.evidence).unwrap();
    quote.pcrs[0] = [8; 32];
    let other_pcrs = item(EvidenceKind::AzureQuote, quote.encode());
    vec![
        (Reason::EventLog, run(vec![item(EvidenceKind::EventLog, event_log())])),
        (Reason::GpuReport, run(vec![device])),
        (Reason::HclBinding, run(unbound)),
        (Reason::HclQuote, run([first, &[other_pcrs]].concat())),
        (Reason::Unsupported, wrong_kind_of_hcl()),
        (Reason::CollateralRollback, older_collateral()),
    ]
}

/// An HCL report of a TDX machine, given as one of an SNP machine.
fn wrong_kind_of_hcl() -> Result<Verified<Claims>, VerifyError> {
    let report = Paravisor::tdx_report(&MACHINE.paravisor.runtime(&[1; 64]));
    let hcl = HclReport::parse(&report)?;
    let vek = Certificate::parse(MACHINE.psp.vek_der())?;
    let vek = PreparedVek::new(vek, &[], &[], &MACHINE.anchors, NOW)?;
    let quote = MACHINE.paravisor.quote(b"n", [[7; 32]; PCRS]).unwrap();
    let outcome = verify_snp(&hcl, &quote, b"n", &vek, NOW);
    Err(outcome.map(|_| ()).unwrap_err())
}

/// Collateral with a lower evaluation number than one that was seen.
fn older_collateral() -> Result<Verified<Claims>, VerifyError> {
    let quote = MACHINE.tdx.quote(&spec()).unwrap();
    let newer = tdx(quote.clone(), &collateral(|spec| spec.evaluation_number += 1))?;
    let seen = Seen::default().advance(&newer, NOW, 0)?;
    let older = tdx(quote, &collateral(|_| ()))?;
    seen.advance(&older, NOW, 0).map(|_| older)
}

fn spec() -> QuoteSpec {
    QuoteSpec::new(BodyKind::Td15, [9; 64])
}

fn collateral(change: impl FnOnce(&mut CollateralSpec)) -> Collateral {
    let mut spec = CollateralSpec::new(&MACHINE.tdx, START);
    change(&mut spec);
    MACHINE.tdx.collateral(&spec).unwrap()
}

fn tdx(quote: Vec<u8>, collateral: &Collateral) -> Result<Verified<Claims>, VerifyError> {
    let mut quote = item(EvidenceKind::TdxQuote, quote);
    quote.endorsements.push((EndorsementKind::TdxCollateral, collateral.encode()));
    run(vec![quote])
}

fn azure() -> Vec<EvidenceItem> {
    let runtime = MACHINE.paravisor.runtime(&[1; 64]);
    let report = MACHINE.psp.report(&Paravisor::report_data(&runtime), &[9; 48]).unwrap();
    let mut hcl = item(EvidenceKind::AzureHcl, Paravisor::snp_report(&report, &runtime));
    hcl.endorsements.push((EndorsementKind::SnpCertTable, MACHINE.psp.cert_table()));
    let quote = MACHINE.paravisor.quote(b"n", [[7; 32]; PCRS]).unwrap();
    vec![hcl, item(EvidenceKind::AzureQuote, quote.encode())]
}

fn item(kind: EvidenceKind, evidence: Vec<u8>) -> EvidenceItem {
    EvidenceItem { kind, evidence, endorsements: vec![] }
}

fn run(items: Vec<EvidenceItem>) -> Result<Verified<Claims>, VerifyError> {
    verify(&Evidence { items }, &MACHINE.anchors, &Endorsements::default(), NOW)
}

/// A log of no event, which needs a TDX quote beside it.
fn event_log() -> Vec<u8> {
    let spec_id =
        [b"Spec ID Event03\0".as_slice(), &[0; 8], &[1, 0, 0, 0, 12, 0, 48, 0, 0]].concat();
    let size = u32::try_from(spec_id.len()).unwrap().to_le_bytes();
    [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &size, &spec_id, &[0xff; 64]].concat()
}
