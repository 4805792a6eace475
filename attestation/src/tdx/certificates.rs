//! Intel's certificates: which role each has, and how they hang together.
//!
//! Source: Intel SGX PCK Certificate and CRL Profile Specification. Roles are
//! told apart by common name and by the presence of the SGX extension, so that
//! no key can stand in for that of another role.

use super::pck::{SGX_EXTENSION, SgxExtension};
use crate::crypto::{KeyKind, Scheme};
use crate::error::{Reason, VerifyError};
use crate::time::UnixTime;
use crate::x509::{BASIC_CONSTRAINTS, Certificate, Crl, KEY_USAGE, KeyUsage};

/// A PCK CA: its certificate, checked against the root, and its CRL.
#[derive(Debug)]
pub(super) struct PckCa {
    pub(super) certificate: Certificate,
    /// The newest of its lists, which must be current.
    pub(super) crl: Crl,
    /// Its other lists: what they revoke is revoked too.
    older: Vec<Crl>,
}

impl PckCa {
    /// Checks that no list of this CA names `certificate`.
    pub(super) fn check_not_revoked(&self, certificate: &Certificate) -> Result<(), VerifyError> {
        self.crl.check_not_revoked(certificate)?;
        self.older.iter().try_for_each(|crl| crl.check_not_revoked(certificate))
    }
}

/// Checks that `certificate` is a PCK CA issued by `root`, and that one of
/// `crls` is its own.
pub(super) fn pck_ca(
    certificate: Certificate,
    root: &Certificate,
    crls: &[Crl],
) -> Result<PckCa, VerifyError> {
    if !PCK_CA_NAMES.contains(&certificate.subject().common_name.as_str()) {
        return Err(role(&certificate, "one of a PCK CA"));
    }
    check_profile(&certificate)?;
    certificate.check_issued_by(root)?;
    certificate.check_ca()?;
    let own = crls.iter().filter(|crl| crl.issuer().der == certificate.subject().der);
    let mut own: Vec<Crl> = own.cloned().collect();
    own.iter().try_for_each(|crl| check_crl_issued_by(crl, &certificate))?;
    own.sort_by_key(Crl::this_update);
    let crl = own.pop().ok_or_else(|| missing_crl(&certificate))?;
    Ok(PckCa { certificate, crl, older: own })
}

/// Reads the SGX extension of a certificate that must be a PCK's.
pub(super) fn pck_extension(certificate: &Certificate) -> Result<SgxExtension, VerifyError> {
    if certificate.subject().common_name != PCK_NAME {
        return Err(role(certificate, PCK_NAME));
    }
    let extension = certificate
        .extension(SGX_EXTENSION)
        .ok_or_else(|| role(certificate, "one with an SGX extension"))?;
    refuse_ca(certificate)?;
    SgxExtension::parse(extension)
}

/// Checks that a PCK certificate is issued by `ca`.
pub(super) fn check_pck(certificate: &Certificate, ca: &PckCa) -> Result<(), VerifyError> {
    check_profile(certificate)?;
    certificate.check_key_usage(KeyUsage::DigitalSignature)?;
    certificate.check_issued_by(&ca.certificate)
}

/// Checks that `certificate` is the TCB signer, issued by `root`.
pub(super) fn check_tcb_signer(
    certificate: &Certificate,
    root: &Certificate,
) -> Result<(), VerifyError> {
    // Of no other role: a PCK in this place is a fault of the collateral.
    let wrong = |error| VerifyError { reason: Reason::CollateralSignature, ..error };
    if certificate.subject().common_name != TCB_SIGNING_NAME
        || certificate.extension(SGX_EXTENSION).is_some()
    {
        return Err(wrong(role(certificate, TCB_SIGNING_NAME)));
    }
    check_profile(certificate)?;
    refuse_ca(certificate).map_err(wrong)?;
    certificate.check_key_usage(KeyUsage::DigitalSignature)?;
    certificate.check_issued_by(root)
}

/// Checks that a root sent along is the one that is trusted: by key and name,
/// because Intel's pre-production root has the same name.
pub(super) fn check_same_root(sent: &Certificate, root: &Certificate) -> Result<(), VerifyError> {
    if sent.der() == root.der() {
        return Ok(());
    }
    // Another edition of it, which must then be signed by it.
    if sent.key() == root.key() && sent.subject().der == root.subject().der {
        return sent.check_issued_by(root);
    }
    Err(VerifyError::new(
        Reason::Chain,
        "root certificate",
        format!("{root}"),
        format!("{sent}, with another key or name"),
    ))
}

/// Checks that `crl` is by `issuer`, which may sign lists (RFC 5280 6.3.3 (f)).
pub(super) fn check_crl_issued_by(crl: &Crl, issuer: &Certificate) -> Result<(), VerifyError> {
    issuer.check_key_usage(KeyUsage::CrlSign)?;
    crl.check_issued_by(issuer)
}

/// As [`Crl::check_current`], but a CRL is one part of the collateral here.
pub(super) fn check_crl_current(crl: &Crl, now: UnixTime) -> Result<(), VerifyError> {
    crl.check_current(now).map_err(|error| VerifyError { reason: Reason::CollateralStale, ..error })
}

/// P-256 throughout, and no critical extension that nobody looked at.
fn check_profile(certificate: &Certificate) -> Result<(), VerifyError> {
    certificate.check_scheme(Scheme::EcdsaP256Sha256Der)?;
    let kind = certificate.key().kind();
    if kind != KeyKind::P256 {
        let field = format!("key of {}", certificate.subject().common_name);
        let actual = format!("{kind:?}");
        return Err(VerifyError::new(Reason::CertAlgorithm, field, "P256", actual));
    }
    let unknown = certificate
        .extensions()
        .iter()
        .find(|extension| extension.critical && !CRITICAL.contains(&extension.oid.as_str()));
    match unknown {
        None => Ok(()),
        Some(extension) => Err(VerifyError::new(
            Reason::CertExtension,
            format!("extensions of {}", certificate.subject().common_name),
            "no critical one but basicConstraints and keyUsage",
            &extension.oid,
        )),
    }
}

/// A leaf issues nothing.
fn refuse_ca(certificate: &Certificate) -> Result<(), VerifyError> {
    match certificate.check_ca() {
        Err(_) => Ok(()),
        Ok(()) => Err(role(certificate, "one that is no CA")),
    }
}

fn role(certificate: &Certificate, expected: &str) -> VerifyError {
    VerifyError::new(Reason::PckCertificate, "certificate", expected, certificate)
}

fn missing_crl(ca: &Certificate) -> VerifyError {
    let expected = format!("one of {}", ca.subject().common_name);
    VerifyError::new(Reason::CrlIssuer, "PCK CRL", expected, "none")
}

const PCK_NAME: &str = "Intel SGX PCK Certificate";
/// Platform first.
pub(super) const PCK_CA_NAMES: [&str; 2] =
    ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"];
const TCB_SIGNING_NAME: &str = "Intel SGX TCB Signing";
const CRITICAL: [&str; 2] = [BASIC_CONSTRAINTS, KEY_USAGE];
