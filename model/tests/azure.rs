//! Azure evidence of a modelled CPU and paravisor, through the one verify():
//! what ties report, runtime data, key, quote and nonce together.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::LazyLock;

use casemate_attestation::anchors::{IntelAnchor, TrustAnchors};
use casemate_attestation::azure::{HclKind, PCRS, TpmQuote};
use casemate_attestation::crypto::sha256;
use casemate_attestation::tdx::BodyKind;
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    Appraisal, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected,
    Outcome, Policy, Reason, ReferenceValues, UnixTime, VerifyError, appraise, verify,
};
use casemate_model::azure::Paravisor;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};

const START: UnixTime = UnixTime(1_780_000_000);
const NOW: UnixTime = UnixTime(1_781_000_000);
const USER_DATA: [u8; 64] = [0xab; 64];
const NONCE: &[u8] = b"challenge";

struct Machine {
    psp: PspModel,
    tdx: TdxModel,
    paravisor: Paravisor,
    anchors: TrustAnchors,
}

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    let psp = PspModel::generate(PspConfig::milan(START)).unwrap();
    let tdx = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let toml = format!("vendor = []\n{}", psp.anchor_toml("a"));
    let mut anchors = TrustAnchors::from_toml(&toml).unwrap();
    let root = Certificate::parse(tdx.root()).unwrap();
    anchors.intel.push(IntelAnchor::new("tdx-model", root).unwrap());
    Machine { psp, tdx, paravisor: Paravisor::generate().unwrap(), anchors }
});

fn item(kind: EvidenceKind, evidence: Vec<u8>) -> EvidenceItem {
    EvidenceItem { kind, evidence, endorsements: vec![] }
}

fn snp_items() -> Vec<EvidenceItem> {
    let runtime = MACHINE.paravisor.runtime(&USER_DATA);
    let report = MACHINE.psp.report(&Paravisor::report_data(&runtime), &[9; 48]).unwrap();
    let mut hcl = item(EvidenceKind::AzureHcl, Paravisor::snp_report(&report, &runtime));
    hcl.endorsements.push((EndorsementKind::SnpCertTable, MACHINE.psp.cert_table()));
    vec![hcl, item(EvidenceKind::AzureQuote, quote(NONCE).encode())]
}

fn tdx_items() -> Vec<EvidenceItem> {
    let runtime = MACHINE.paravisor.runtime(&USER_DATA);
    let spec = QuoteSpec::new(BodyKind::Td10, Paravisor::report_data(&runtime));
    let mut quote = item(EvidenceKind::TdxQuote, MACHINE.tdx.quote(&spec).unwrap());
    let collateral = MACHINE.tdx.collateral(&CollateralSpec::new(&MACHINE.tdx, START)).unwrap();
    quote.endorsements.push((EndorsementKind::TdxCollateral, collateral.encode()));
    let hcl = item(EvidenceKind::AzureHcl, Paravisor::tdx_report(&runtime));
    vec![quote, hcl, item(EvidenceKind::AzureQuote, self::quote(NONCE).encode())]
}

fn quote(nonce: &[u8]) -> TpmQuote {
    MACHINE.paravisor.quote(nonce, [[7; 32]; PCRS]).unwrap()
}

fn judge(items: Vec<EvidenceItem>, expected: Expected<'_>) -> Result<Appraisal, VerifyError> {
    let evidence = Evidence { items };
    assert_eq!(Evidence::decode(&evidence.encode()).unwrap(), evidence);
    let claims = verify(&evidence, &MACHINE.anchors, &Endorsements::default(), NOW)?;
    let references = format!(
        "[[image]]\nlabel = \"i\"\nsnp_measurements = [\"{}\"]\n[[image.tdx]]\nmrtd = \"{}\"\n\
         rtmr1 = \"{}\"\nrtmr2 = \"{}\"\n[[image.azure]]\npcrs = {{ 4 = \"{}\" }}\n",
        "09".repeat(48),
        "4d".repeat(48),
        "a1".repeat(48),
        "a2".repeat(48),
        "07".repeat(32),
    );
    let references = ReferenceValues::from_toml(&references).unwrap();
    Ok(appraise(&claims, &Policy::default(), &references, expected, NOW))
}

fn failed(items: Vec<EvidenceItem>, expected: Expected<'_>) -> Vec<&'static str> {
    let appraisal = judge(items, expected).unwrap();
    let failed = appraisal.checks().iter().filter(|check| check.outcome == Outcome::Fail);
    failed.map(|check| check.rule).collect()
}

#[test]
fn a_challenge_is_answered_by_the_vtpm_or_by_the_user_data() {
    let none: Vec<&str> = vec![];
    for items in [snp_items(), tdx_items()] {
        let without_quote = items.split_last().unwrap().1.to_vec();
        assert_eq!(failed(items.clone(), Expected::TpmNonce(NONCE)), none);
        for (items, expected, rule) in [
            (&items, Expected::TpmNonce(b"another"), Some("azure.nonce")),
            (&items, Expected::TpmNonce(b""), Some("azure.nonce")),
            (&items, Expected::ReportData([0; 64]), Some("azure.user-data")),
            (&without_quote, Expected::TpmNonce(NONCE), Some("azure.nonce")),
            (&items, Expected::Nothing, None),
        ] {
            let rules: Vec<_> = rule.into_iter().chain(["azure.pcrs", "evidence.bound"]).collect();
            assert_eq!(failed(items.clone(), expected), rules);
        }
    }
}

/// Fresh user data says nothing of when the registers were read.
#[test]
fn an_old_quote_beside_fresh_user_data_is_refused() {
    let expected = Expected::ReportData(USER_DATA);
    for items in [snp_items(), tdx_items()] {
        let (last, rest) = items.split_last().unwrap();
        let over = |nonce: &[u8]| {
            let evidence = quote(nonce).encode();
            [rest, &[EvidenceItem { evidence, ..last.clone() }]].concat()
        };
        let fresh = over(&sha256(&USER_DATA));
        assert_eq!(failed(fresh.clone(), expected), Vec::<&str>::new());
        assert_eq!(judge(fresh, expected).unwrap().image(), Some("i"));
        for stale in [items.clone(), over(b""), over(&USER_DATA[..32]), rest.to_vec()] {
            assert_eq!(failed(stale.clone(), expected), ["azure.pcrs"]);
            assert_eq!(judge(stale, expected).unwrap().image(), None);
        }
    }
}

#[test]
fn each_link_is_needed() {
    let refused = |items: Vec<EvidenceItem>| judge(items, Expected::Nothing).unwrap_err().reason;
    let other = Paravisor::generate().unwrap();
    let foreign = other.quote(NONCE, [[7; 32]; PCRS]).unwrap().encode();
    let mut changed = quote(NONCE);
    changed.pcrs[23] = [8; 32];
    for good in [snp_items(), tdx_items()] {
        let (last, rest) = good.split_last().unwrap();
        for evidence in [foreign.clone(), changed.encode()] {
            let bad = EvidenceItem { evidence, ..last.clone() };
            assert_eq!(refused([rest, &[bad]].concat()), Reason::HclQuote);
        }
        let bad = EvidenceItem { evidence: vec![1, 2], ..last.clone() };
        assert_eq!(refused([rest, &[bad]].concat()), Reason::Malformed);
        assert_eq!(refused([&good[..], std::slice::from_ref(last)].concat()), Reason::Malformed);
        assert_eq!(refused(vec![last.clone()]), Reason::HclBinding);
        // The runtime data of another machine: its digest is not the CPU's.
        let mut other_runtime = good.clone();
        let hcl = other_runtime.iter_mut().find(|i| i.kind == EvidenceKind::AzureHcl).unwrap();
        let at = hcl.evidence.len() - 3;
        hcl.evidence[at] ^= 1;
        assert_eq!(refused(other_runtime), Reason::HclBinding);
    }
    // A TDX machine's HCL report says nothing without its quote, and the quote
    // must be of the same machine.
    assert_eq!(refused(tdx_items()[1..].to_vec()), Reason::HclBinding);
    let elsewhere = other.runtime(&USER_DATA);
    let mut swapped = tdx_items();
    swapped[1].evidence = Paravisor::tdx_report(&elsewhere);
    assert_eq!(refused(swapped), Reason::HclBinding);
    // One machine has one CPU.
    let two = [snp_items(), tdx_items()[..1].to_vec()].concat();
    assert_eq!(refused(two), Reason::Malformed);
}

#[test]
fn the_claims_name_what_the_paravisor_says() {
    let evidence = Evidence { items: snp_items() };
    let claims = verify(&evidence, &MACHINE.anchors, &Endorsements::default(), NOW).unwrap();
    let azure = claims.azure().unwrap();
    assert_eq!((azure.kind, azure.user_data), (HclKind::Snp, Some(USER_DATA)));
    assert_eq!(azure.configuration["tpm-enabled"], true);
    assert_eq!(claims.snp().unwrap().report.measurement, [9; 48]);
    assert_eq!(claims.vtpm().unwrap().claimed_nonce().unwrap(), NONCE);
}

/// What the CPU measured is the paravisor: the guest is in the registers.
#[test]
fn the_guest_is_known_by_the_vtpms_registers() {
    let judge = |items: Vec<EvidenceItem>, azure: &str| {
        let claims =
            verify(&Evidence { items }, &MACHINE.anchors, &Endorsements::default(), NOW).unwrap();
        let measured = "09".repeat(48);
        let references = ReferenceValues::from_toml(&format!(
            "[[image]]\nlabel = \"i\"\nproperties = [\"mediated\"]\n\
             snp_measurements = [\"{measured}\"]\n{azure}"
        ));
        let expected = Expected::TpmNonce(NONCE);
        let appraisal = appraise(&claims, &Policy::default(), &references.unwrap(), expected, NOW);
        let check = appraisal.checks().iter().find(|check| check.rule == "azure.pcrs");
        let outcome = check.map(|check| check.outcome).unwrap();
        (outcome, appraisal.image().map(str::to_owned))
    };
    let (pass, fail) = ((Outcome::Pass, Some("i".to_owned())), (Outcome::Fail, None));
    let pcrs = |four: u8| {
        let (zero, four) = ("07".repeat(32), format!("{four:02x}").repeat(32));
        format!("[[image.azure]]\npcrs = {{ 0 = \"{zero}\", 4 = \"{four}\" }}\n")
    };
    assert_eq!(judge(snp_items(), ""), fail);
    assert_eq!(judge(snp_items(), &pcrs(7)), pass);
    assert_eq!(judge(snp_items(), &pcrs(8)), fail);
    assert_eq!(judge(snp_items(), &format!("{}{}", pcrs(8), pcrs(7))), pass);
    assert_eq!(judge(snp_items()[..1].to_vec(), &pcrs(7)), fail);
    // Images share a paravisor: the one that was booted counts, wherever it stands.
    let second = |four| {
        let measured = "09".repeat(48);
        let head = format!("[[image]]\nlabel = \"j\"\nsnp_measurements = [\"{measured}\"]\n");
        head + &pcrs(four)
    };
    let passed = (Outcome::Pass, Some("j".to_owned()));
    for first in ["", &pcrs(8)] {
        assert_eq!(judge(snp_items(), &format!("{first}{}", second(7))), passed);
        assert_eq!(judge(snp_items(), &format!("{first}{}", second(8))), fail);
    }
    for bad in ["{}", "{ 24 = \"00\" }", "{ x = \"00\" }"] {
        let text = format!("[[image]]\nlabel = \"i\"\n[[image.azure]]\npcrs = {bad}\n");
        assert!(ReferenceValues::from_toml(&text).is_err(), "{bad}");
    }
}

/// Every byte of an HCL report counts but its status and reserved words.
#[test]
fn every_flipped_byte_of_an_hcl_report_is_refused() {
    for good in [snp_items(), tdx_items()] {
        let at = good.iter().position(|item| item.kind == EvidenceKind::AzureHcl).unwrap();
        for byte in 0..good[at].evidence.len() {
            let mut bad = good.clone();
            bad[at].evidence[byte] ^= 1;
            let excepted = EXCEPTED.iter().any(|(range, _)| range.contains(&byte))
                || (good.len() == 3 && TDREPORT_UNREAD.iter().any(|range| range.contains(&byte)));
            let refused = judge(bad, Expected::Nothing).is_err();
            assert_ne!(refused, excepted, "{} items, byte {byte:#x}", good.len());
        }
    }
}

/// Bytes that nobody signed and that mean nothing here.
const EXCEPTED: [(std::ops::Range<usize>, &str); 2] = [
    (16..32, "status and reserved words"),
    (32 + 1184 + 4..32 + 1184 + 8, "version of the runtime data"),
];
/// A TDREPORT is for its own machine: only its report data is compared, with
/// the quote's, which is signed.
const TDREPORT_UNREAD: [std::ops::Range<usize>; 2] = [32..32 + 128, 32 + 192..32 + 1184];
