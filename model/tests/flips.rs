//! Every byte counts: in quotes of each form with their PCK chain, in TDX
//! collateral, and in a VEK's chain, one flipped bit anywhere is refused.
//! What is excepted is named where it is.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::sync::LazyLock;

use casemate_attestation::anchors::{AmdAnchor, IntelAnchor, TrustAnchors};
use casemate_attestation::snp::{PreparedVek, Product};
use casemate_attestation::tdx::{BodyKind, Collateral, Prepared};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{UnixTime, VerifyError};
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};

const START: UnixTime = UnixTime(1_780_000_000);
const NOW: UnixTime = UnixTime(1_781_000_000);

static TDX: LazyLock<TdxModel> =
    LazyLock::new(|| TdxModel::generate(TdxConfig::new(START)).unwrap());

/// Flips a bit of each byte of `good`; gives those bytes where nothing was seen.
fn unseen(good: &[u8], check: impl Fn(&[u8]) -> Result<(), VerifyError>) -> Vec<usize> {
    check(good).unwrap();
    let mut bad = good.to_vec();
    let mut unseen = Vec::new();
    for at in 0..good.len() {
        bad[at] ^= 1 << (at % 8);
        if check(&bad).is_ok() {
            unseen.push(at);
        }
        bad[at] = good[at];
    }
    unseen
}

/// The line ends of PEM text are no part of a certificate: one may become
/// another blank, or stand for none.
fn is_line_end(text: &[u8], at: usize) -> bool {
    text[at] == b'\n'
}

#[test]
fn quotes_of_each_form() {
    let collateral = TDX.collateral(&CollateralSpec::new(&TDX, START)).unwrap();
    let prepared = Prepared::new(&collateral, &anchor()).unwrap();
    for (version, body) in
        [(4, BodyKind::Td10), (5, BodyKind::Td10), (5, BodyKind::Td15), (5, BodyKind::Td15Ex)]
    {
        let spec = QuoteSpec { version, ..QuoteSpec::new(body, [9; 64]) };
        let quote = TDX.quote(&spec).unwrap();
        for at in unseen(&quote, |bytes| prepared.verify(bytes, NOW).map(|_| ())) {
            assert!(is_line_end(&quote, at), "version {version}, {body:?}: byte {at}");
        }
    }
}

#[test]
fn each_part_of_collateral() {
    let good = TDX.collateral(&CollateralSpec::new(&TDX, START)).unwrap();
    let quote = TDX.quote(&QuoteSpec::new(BodyKind::Td10, [9; 64])).unwrap();
    let judge = |collateral: &Collateral| {
        Prepared::new(collateral, &anchor())?.verify(&quote, NOW).map(|_| ())
    };
    type Part = fn(&mut Collateral) -> &mut Vec<u8>;
    let parts: [(&str, Part); 5] = [
        ("TCB info", |all| &mut all.tcb_info),
        ("QE identity", |all| &mut all.qe_identity),
        ("TCB signing chain", |all| &mut all.tcb_signing_chain),
        ("root CRL", |all| &mut all.root_crl),
        ("PCK CRL", |all| &mut all.pck_crls[0]),
    ];
    for (name, part) in parts {
        let bytes = part(&mut good.clone()).clone();
        let check = |changed: &[u8]| {
            let mut collateral = good.clone();
            *part(&mut collateral) = changed.to_vec();
            judge(&collateral)
        };
        for at in unseen(&bytes, check) {
            let text = name == "TCB signing chain" && is_line_end(&bytes, at);
            // The signature at the end is hex, in either case: bit 5 of a letter.
            let hex = bytes.starts_with(b"{")
                && at + 2 + 128 >= bytes.len()
                && bytes[at].is_ascii_alphabetic()
                && at % 8 == 5;
            assert!(text || hex, "{name}: byte {at} of {}", bytes.len());
        }
    }
}

#[test]
fn each_certificate_of_a_vek() {
    let psp = PspModel::generate(PspConfig::milan(START)).unwrap();
    let report = psp.report(&[1; 64], &[2; 48]).unwrap();
    let judge = |ask: &[u8], vek: &[u8]| {
        let ark = Certificate::parse(psp.ark_der())?;
        let anchor = AmdAnchor::new("model", Product::Milan, ark, vec![Certificate::parse(ask)?])?;
        let anchors = TrustAnchors { amd: vec![anchor], ..TrustAnchors::default() };
        let vek = Certificate::parse(vek)?;
        PreparedVek::new(vek, &[], &[], &anchors, NOW)?.verify(&report, NOW).map(|_| ())
    };
    assert_eq!(unseen(psp.vek_der(), |vek| judge(psp.ask_der(), vek)), [0; 0]);
    assert_eq!(unseen(psp.ask_der(), |ask| judge(ask, psp.vek_der())), [0; 0]);
}

fn anchor() -> IntelAnchor {
    IntelAnchor::new("model", Certificate::parse(TDX.root()).unwrap()).unwrap()
}
