//! TDX evidence that strays from Intel's profiles in one place: certificates,
//! collateral, the order in which faults are named.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::LazyLock;

use casemate_attestation::anchors::IntelAnchor;
use casemate_attestation::tdx::{BodyKind, Collateral, Prepared, Tcb, TcbStatus};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{Reason, UnixTime, VerifyError};
use casemate_model::tdx::{CollateralSpec, Flaw, QuoteSpec, Role, TdxConfig, TdxModel};

const START: UnixTime = UnixTime(1_780_000_000);
const NOW: UnixTime = UnixTime(1_781_000_000);

static MODEL: LazyLock<TdxModel> = LazyLock::new(|| model(None));

/// RFC 5280 4.2.1.3 and 6.3.3 (f), and P-256 as Intel's profile has it.
#[test]
fn certificates_are_for_what_they_are_used_for() {
    let cases = [
        (Role::Root, Flaw::KeyUsage(0x04), Reason::CertExtension),
        (Role::PckCa, Flaw::KeyUsage(0x02), Reason::CertExtension),
        (Role::PckCa, Flaw::KeyUsage(0x04), Reason::CertExtension),
        (Role::Pck, Flaw::KeyUsage(0x40), Reason::CertExtension),
        (Role::TcbSigning, Flaw::KeyUsage(0x40), Reason::CertExtension),
        (Role::PckCa, Flaw::P384Key, Reason::CertAlgorithm),
        (Role::Pck, Flaw::P384Key, Reason::CertAlgorithm),
        (Role::TcbSigning, Flaw::P384Key, Reason::CertAlgorithm),
    ];
    for (role, flaw, reason) in cases {
        let model = model(Some((role, flaw)));
        let error = judge(&model, &good(&model), &quote(&model)).unwrap_err();
        assert_eq!(error.reason, reason, "{role:?}, {flaw:?}: {error}");
    }
    // What is asked for is enough.
    for (role, usage) in [(Role::PckCa, 0x06), (Role::Pck, 0x80), (Role::TcbSigning, 0x80)] {
        let model = model(Some((role, Flaw::KeyUsage(usage))));
        judge(&model, &good(&model), &quote(&model)).unwrap();
    }
}

/// Root, lists, signers and quote of another: the certificates are named first.
#[test]
fn another_world_is_another_chain() {
    let other = model(None);
    let error = judge(&MODEL, &good(&other), &quote(&other)).unwrap_err();
    assert_eq!(error.reason.class(), "chain", "{error}");
    // Only the list is another's.
    let listed = Collateral { root_crl: good(&other).root_crl, ..good(&MODEL) };
    let error = judge(&MODEL, &listed, &quote(&MODEL)).unwrap_err();
    assert_eq!(error.reason, Reason::CrlSignature, "{error}");
}

#[test]
fn no_other_role_signs_collateral() {
    let in_its_place = Collateral { tcb_signing_chain: MODEL.pck_chain(), ..good(&MODEL) };
    let error = judge(&MODEL, &in_its_place, &quote(&MODEL)).unwrap_err();
    assert_eq!(error.reason, Reason::CollateralSignature, "{error}");
}

#[test]
fn an_error_page_is_no_revocation_list() {
    let page = b"<!DOCTYPE html><title>503</title>".to_vec();
    for bad in [
        Collateral { root_crl: page.clone(), ..good(&MODEL) },
        Collateral { pck_crls: vec![page.clone()], ..good(&MODEL) },
    ] {
        let error = judge(&MODEL, &bad, &quote(&MODEL)).unwrap_err();
        assert_eq!(error.reason, Reason::CrlMalformed, "{error}");
    }
}

#[test]
fn a_signature_section_that_is_cut_short_is_a_wrong_length() {
    let quote = quote(&MODEL);
    let at = 48 + 584;
    let (before, rest) = quote.split_at(at);
    let (length, section) = rest.split_first_chunk().unwrap();
    for short in [1, 100, u32::from_le_bytes(*length)] {
        let length = (u32::from_le_bytes(*length) - short).to_le_bytes();
        let cut = [before, &length, section].concat();
        let error = judge(&MODEL, &good(&MODEL), &cut).unwrap_err();
        assert_eq!(error.reason, Reason::Length, "{short}: {error}");
    }
    let longer = [&quote[..], &[1]].concat();
    let error = judge(&MODEL, &good(&MODEL), &longer).unwrap_err();
    assert_eq!(error.reason, Reason::TrailingBytes, "{error}");
}

/// `(mask & reported) == golden`: the golden value is not masked.
#[test]
fn a_golden_value_outside_of_its_mask_is_met_by_nobody() {
    let identity = |from: &str, to: &str| signed(|_| (), &|_, identity| swap(identity, from, to));
    let miscselect = identity(
        "\"miscselect\":\"00000000\",\"miscselectMask\":\"FFFFFFFF\"",
        "\"miscselect\":\"00000001\",\"miscselectMask\":\"FFFFFFFE\"",
    );
    let attributes =
        identity("11000000000000000000000000000000", "11000000000000000000000000000001");
    let module = signed(|_| (), &|info, _| {
        // Of every module version.
        *info = info
            .replace("\"attributes\":\"0000000000000000\"", "\"attributes\":\"0100000000000000\"")
            .replace("FFFFFFFFFFFFFFFF", "FEFFFFFFFFFFFFFF");
    });
    for (reason, collateral) in [
        (Reason::QeIdentity, miscselect),
        (Reason::QeIdentity, attributes),
        (Reason::TdxModule, module),
    ] {
        let error = judge(&MODEL, &collateral, &quote(&MODEL)).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }
}

/// Intel's schema gives modules and QEs three statuses.
#[test]
fn a_module_or_qe_needs_no_configuration() {
    use TcbStatus::{ConfigurationAndSwHardeningNeeded, ConfigurationNeeded};
    use TcbStatus::{OutOfDateConfigurationNeeded, SwHardeningNeeded};
    for status in [
        SwHardeningNeeded,
        ConfigurationNeeded,
        OutOfDateConfigurationNeeded,
        ConfigurationAndSwHardeningNeeded,
    ] {
        let module = signed(|spec| spec.modules[0].levels[0].status = status, &|_, _| ());
        let qe = signed(|spec| spec.qe[0].status = status, &|_, _| ());
        for collateral in [module, qe] {
            let error = judge(&MODEL, &collateral, &quote(&MODEL)).unwrap_err();
            assert_eq!(error.reason, Reason::CollateralMalformed, "{status}: {error}");
        }
        let platform = signed(|spec| spec.platform[0].status = status, &|_, _| ());
        assert_eq!(judge(&MODEL, &platform, &quote(&MODEL)).unwrap().status, status);
    }
}

#[test]
fn a_module_below_every_level_counts_before_a_revoked_platform() {
    let collateral = signed(
        |spec| {
            spec.platform[0].status = TcbStatus::Revoked;
            spec.modules[0].levels.truncate(1);
        },
        &|_, _| (),
    );
    let mut spec = QuoteSpec::new(BodyKind::Td15, [9; 64]);
    let revoked = MODEL.quote(&spec).unwrap();
    assert_eq!(judge(&MODEL, &collateral, &revoked).unwrap().status, TcbStatus::Revoked);
    spec.report.tee_tcb_svn[0] = 1;
    let below = MODEL.quote(&spec).unwrap();
    assert_eq!(judge(&MODEL, &collateral, &below).unwrap().status, TcbStatus::NotSupported);
}

fn model(flaw: Option<(Role, Flaw)>) -> TdxModel {
    TdxModel::generate(TdxConfig { flaw, ..TdxConfig::new(START) }).unwrap()
}

fn good(model: &TdxModel) -> Collateral {
    model.collateral(&CollateralSpec::new(model, START)).unwrap()
}

fn quote(model: &TdxModel) -> Vec<u8> {
    model.quote(&QuoteSpec::new(BodyKind::Td10, [9; 64])).unwrap()
}

/// Collateral by the right signer, `change` and then `edit` applied.
fn signed(
    change: impl FnOnce(&mut CollateralSpec),
    edit: &dyn Fn(&mut String, &mut String),
) -> Collateral {
    let mut spec = CollateralSpec::new(&MODEL, START);
    change(&mut spec);
    let plain = MODEL.collateral(&spec).unwrap();
    let (mut info, mut identity) = (body(&plain.tcb_info), body(&plain.qe_identity));
    edit(&mut info, &mut identity);
    MODEL.collateral_of(&spec, &info, &identity).unwrap()
}

fn swap(text: &mut String, from: &str, to: &str) {
    assert!(text.contains(from), "{from}");
    *text = text.replacen(from, to, 1);
}

/// The signed member of a response, as text.
fn body(response: &[u8]) -> String {
    let text = String::from_utf8(response.to_vec()).unwrap();
    let (_, rest) = text.split_once(':').unwrap();
    rest.rsplit_once(",\"signature\"").unwrap().0.to_owned()
}

fn judge(model: &TdxModel, collateral: &Collateral, quote: &[u8]) -> Result<Tcb, VerifyError> {
    let root = Certificate::parse(model.root())?;
    let prepared = Prepared::new(collateral, &IntelAnchor::new("model", root)?)?;
    Ok(prepared.verify(quote, NOW)?.tcb.clone())
}
