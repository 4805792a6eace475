//! Collateral checked once, and the verification of quotes against it.

use super::certificates::{self, PckCa};
use super::collateral::Collateral;
use super::issuers::{Memo, Pck};
use super::json::{self, SignedQeIdentity, SignedTcbInfo};
use super::level::{self, Tcb};
use super::pck::SgxExtension;
use super::qe_identity::QeIdentity;
use super::quote::{QeReport, Quote};
use super::report::{BodyKind, TdReport};
use super::tcb_info::{self, Kind, TcbInfo};
use crate::anchors::{Anchor, IntelAnchor};
use crate::crypto::{PublicKey, Scheme, sha256};
use crate::error::{Reason, VerifyError};
use crate::seen;
use crate::time::UnixTime;
use crate::verify::Verified;
use crate::wire::hex;
use crate::x509::{Certificate, Crl, PemLimits, certificates_from_pem, crls_from_pem};

/// Collateral of one platform family, every signature in it checked.
///
/// It keeps what it learns of PCK certificates, so that the next quote of a
/// platform costs two signature verifications. Safe to share between threads.
#[derive(Debug)]
pub struct Prepared {
    anchor: Anchor,
    root: Certificate,
    root_crl: Crl,
    tcb_info: TcbInfo,
    tcb_info_signers: Vec<Certificate>,
    qe_identity: QeIdentity,
    qe_identity_signers: Vec<Certificate>,
    pck_crls: Vec<Crl>,
    memo: Memo,
}

/// What a verified quote says, and what Intel's collateral says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxClaims {
    /// The quote's version, 4 or 5.
    pub version: u16,
    /// Which form of report it carries.
    pub body_kind: BodyKind,
    /// The TD report.
    pub report: TdReport,
    /// The platform, as its PCK certificate names it.
    pub platform: SgxExtension,
    /// The quoting enclave's measurement.
    pub qe_mrenclave: [u8; 32],
    /// The quoting enclave's security version.
    pub qe_isvsvn: u16,
    /// The TCB status and what it is made of.
    pub tcb: Tcb,
    /// The collateral that it was judged by.
    pub collateral: CollateralFacts,
    /// The root that vouches.
    pub anchor: Anchor,
    /// The SHA-256 of that root's certificate.
    pub root: [u8; 32],
}

/// The age of collateral, for policies on freshness and rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollateralFacts {
    /// The platform family it is for.
    pub fmspc: [u8; 6],
    /// The lower of the evaluation numbers of TCB info and QE identity.
    pub tcb_evaluation_data_number: u32,
    /// The TCB info's own evaluation number.
    pub tcb_info_number: u32,
    /// The QE identity's own evaluation number.
    pub qe_identity_number: u32,
    /// When the oldest part of it was issued, the root's CRL left out.
    pub issued: UnixTime,
    /// When the first part of it is due for renewal.
    pub next_update: UnixTime,
    /// When the root's CRL was made. Intel's CRL numbers do not rise.
    pub root_crl: UnixTime,
    /// When the PCK CA's CRL was made.
    pub pck_crl: UnixTime,
    /// The name of the PCK CA.
    pub pck_ca: String,
}

impl Prepared {
    /// Checks `collateral` under `anchor`, at no particular time. Most callers
    /// use [`crate::verify()`], for which the anchor remembers what it prepared.
    pub fn new(collateral: &Collateral, anchor: &IntelAnchor) -> Result<Self, VerifyError> {
        refuse_missing(collateral)?;
        let root = anchor.root();
        // First of all: what is under another root altogether is refused for that.
        let signers = tcb_signers(&collateral.tcb_signing_chain, root)?;
        let root_crl = crl(&collateral.root_crl)?;
        certificates::check_crl_issued_by(&root_crl, root)?;
        root_crl.check_not_revoked(root)?;
        signers.iter().try_for_each(|signer| root_crl.check_not_revoked(signer))?;
        let (tcb_info, tcb_info_signers) = tcb_info(&collateral.tcb_info, &signers)?;
        let (qe_identity, qe_identity_signers) = qe_identity(&collateral.qe_identity, &signers)?;
        let pck_crls = collateral.pck_crls.iter().map(|bytes| crl(bytes)).collect::<Result<_, _>>();
        Ok(Self {
            anchor: anchor.anchor().clone(),
            root: root.clone(),
            root_crl,
            tcb_info,
            tcb_info_signers,
            qe_identity,
            qe_identity_signers,
            pck_crls: pck_crls?,
            memo: Memo::default(),
        })
    }

    /// The platform family that the TCB info is for.
    pub fn fmspc(&self) -> [u8; 6] {
        self.tcb_info.fmspc.0
    }

    /// Checks the quote in `bytes` at the time `now`. The TCB status is part of
    /// what comes out: only policy can say whether it will do.
    pub fn verify(&self, bytes: &[u8], now: UnixTime) -> Result<Verified<TdxClaims>, VerifyError> {
        let quote = Quote::parse(bytes)?;
        let pck = self.memo.pck(quote.pck_chain, &self.root, &self.root_crl, &self.pck_crls)?;
        self.check_current(&pck, now)?;
        self.check_family(&pck.extension)?;
        check_qe_report(&quote, &pck.key)?;
        self.qe_identity.check(&quote.qe_report)?;
        check_quote(&quote)?;
        let qe = level::svn_level(&self.qe_identity.tcb_levels, quote.qe_report.isvsvn);
        let tcb = level::assess(&self.tcb_info, &quote.report, &pck.extension.tcb, qe)?;
        let collateral = self.facts(&pck.ca);
        Ok(Verified::new(TdxClaims {
            version: quote.version,
            body_kind: quote.body_kind,
            report: quote.report,
            platform: pck.extension.clone(),
            qe_mrenclave: quote.qe_report.mrenclave,
            qe_isvsvn: quote.qe_report.isvsvn,
            tcb,
            collateral,
            anchor: self.anchor.clone(),
            root: seen::id_of(&self.root),
        }))
    }

    /// Checks a list that came beside this collateral against the chain of a quote that
    /// verified, and against the signers: if it is by the root or by the PCK CA, it must
    /// be signed and must not revoke. When it was made does not count.
    pub(super) fn check_list(&self, quote: &[u8], list: &Crl) -> Result<(), VerifyError> {
        let chain = Quote::parse(quote)?.pck_chain;
        let pck = self.memo.pck(chain, &self.root, &self.root_crl, &self.pck_crls)?;
        let is_by = |one: &&Certificate| one.subject().der == list.issuer().der;
        let Some(issuer) = [&pck.ca.certificate, &self.root].into_iter().find(is_by) else {
            return Ok(());
        };
        certificates::check_crl_issued_by(list, issuer)?;
        [&pck.certificate, &pck.ca.certificate]
            .into_iter()
            .chain(&self.tcb_info_signers)
            .chain(&self.qe_identity_signers)
            .chain([&self.root])
            .filter(|one| one.issuer().der == list.issuer().der)
            .try_for_each(|one| list.check_not_revoked(one))
    }

    /// Everything with a window must be inside of it: certificates first,
    /// because collateral older than a platform says nothing of it.
    fn check_current(&self, pck: &Pck, now: UnixTime) -> Result<(), VerifyError> {
        pck.certificate.check_validity(now)?;
        pck.ca.certificate.check_validity(now)?;
        self.root.check_validity(now)?;
        check_any_valid(&self.tcb_info_signers, now)?;
        check_any_valid(&self.qe_identity_signers, now)?;
        certificates::check_crl_current(&self.root_crl, now)?;
        certificates::check_crl_current(&pck.ca.crl, now)?;
        let (info, identity) = (&self.tcb_info, &self.qe_identity);
        check_window("TCB info", info.issue_date.0, info.next_update.0, now)?;
        check_window("QE identity", identity.issue_date.0, identity.next_update.0, now)
    }

    fn check_family(&self, platform: &SgxExtension) -> Result<(), VerifyError> {
        let (fmspc, pceid) = (&self.tcb_info.fmspc.0, &self.tcb_info.pce_id.0);
        if platform.fmspc != *fmspc {
            let (expected, actual) = (hex(fmspc), hex(&platform.fmspc));
            return Err(VerifyError::new(Reason::Fmspc, "FMSPC of the PCK", expected, actual));
        }
        if platform.pceid != *pceid {
            let (expected, actual) = (hex(pceid), hex(&platform.pceid));
            return Err(VerifyError::new(Reason::PceId, "PCEID of the PCK", expected, actual));
        }
        Ok(())
    }

    fn facts(&self, ca: &PckCa) -> CollateralFacts {
        let (info, identity) = (&self.tcb_info, &self.qe_identity);
        let never = UnixTime(0);
        let crls = [&self.root_crl, &ca.crl].map(|crl| crl.next_update().unwrap_or(never));
        let next = [info.next_update.0, identity.next_update.0].into_iter().chain(crls);
        let issued = [info.issue_date.0, identity.issue_date.0, ca.crl.this_update()];
        CollateralFacts {
            fmspc: info.fmspc.0,
            tcb_evaluation_data_number: info
                .tcb_evaluation_data_number
                .min(identity.tcb_evaluation_data_number),
            tcb_info_number: info.tcb_evaluation_data_number,
            qe_identity_number: identity.tcb_evaluation_data_number,
            issued: issued.into_iter().min().unwrap_or(never),
            next_update: next.min().unwrap_or(never),
            root_crl: self.root_crl.this_update(),
            pck_crl: ca.crl.this_update(),
            pck_ca: ca.certificate.subject().common_name.clone(),
        }
    }
}

/// The QE report is by the platform and about the attestation key.
fn check_qe_report(quote: &Quote<'_>, pck: &PublicKey) -> Result<(), VerifyError> {
    let QeReport { signed, report_data, .. } = &quote.qe_report;
    if !pck.verify(Scheme::EcdsaP256Sha256Raw, signed, &quote.qe_report_signature) {
        let (field, expected) = ("QE report signature", "one by the PCK");
        return Err(refuse_signature(Reason::QeReportSignature, field, expected));
    }
    let bound = sha256(&[&quote.attestation_key, quote.qe_auth_data].concat());
    let (digest, rest) = report_data.split_at(bound.len());
    if digest != bound || rest.iter().any(|byte| *byte != 0) {
        let expected = format!("{} and zeros", hex(&bound));
        let field = "QE report data";
        return Err(VerifyError::new(Reason::QeBinding, field, expected, hex(report_data)));
    }
    Ok(())
}

/// The quote is by the attestation key.
fn check_quote(quote: &Quote<'_>) -> Result<(), VerifyError> {
    let mut point = [4; 65];
    point.split_at_mut(1).1.copy_from_slice(&quote.attestation_key);
    let key = PublicKey::p256(&point).map_err(|error| {
        VerifyError::new(Reason::Signature, "attestation key", error.expected, "another point")
    })?;
    if !key.verify(Scheme::EcdsaP256Sha256Raw, quote.signed, &quote.signature) {
        let (field, expected) = ("quote signature", "one by the attestation key");
        return Err(refuse_signature(Reason::Signature, field, expected));
    }
    Ok(())
}

fn refuse_signature(reason: Reason, field: &str, expected: &str) -> VerifyError {
    VerifyError::new(reason, field, expected, "one that does not verify")
}

fn refuse_missing(collateral: &Collateral) -> Result<(), VerifyError> {
    let parts = [
        ("TCB info", collateral.tcb_info.is_empty()),
        ("QE identity", collateral.qe_identity.is_empty()),
        ("TCB signing chain", collateral.tcb_signing_chain.is_empty()),
        ("root CRL", collateral.root_crl.is_empty()),
        ("PCK CRL", collateral.pck_crls.iter().all(Vec::is_empty)),
    ];
    match parts.iter().find(|(_, missing)| *missing) {
        None => Ok(()),
        Some((part, _)) => {
            Err(VerifyError::new(Reason::CollateralMissing, *part, "some bytes", "none"))
        }
    }
}

/// The TCB signing certificates in `pem`. The root may be there too, and must
/// then be the one that is trusted.
fn tcb_signers(pem: &[u8], root: &Certificate) -> Result<Vec<Certificate>, VerifyError> {
    let mut signers = Vec::new();
    for certificate in certificates_from_pem(pem, PemLimits::CHAIN)? {
        if certificate.is_self_issued() {
            certificates::check_same_root(&certificate, root)?;
            continue;
        }
        certificates::check_tcb_signer(&certificate, root)?;
        signers.push(certificate);
    }
    Ok(signers)
}

fn tcb_info(
    bytes: &[u8],
    signers: &[Certificate],
) -> Result<(TcbInfo, Vec<Certificate>), VerifyError> {
    let what = "TCB info";
    let signed: SignedTcbInfo<'_> = json::read_response(what, bytes)?;
    let body = signed.body.get().as_bytes();
    let signers = signers_of(what, body, &signed.signature.0, signers)?;
    check_kind(what, body, "TDX", 3..=3)?;
    let mut tcb_info: TcbInfo = json::read(what, body)?;
    if !tcb_info.compares_components() {
        let (field, expected) = ("TCB info, tcbType", "0 (component by component)");
        return Err(VerifyError::new(Reason::CollateralKind, field, expected, "another"));
    }
    tcb_info.sort();
    Ok((tcb_info, signers))
}

fn qe_identity(
    bytes: &[u8],
    signers: &[Certificate],
) -> Result<(QeIdentity, Vec<Certificate>), VerifyError> {
    let what = "QE identity";
    let signed: SignedQeIdentity<'_> = json::read_response(what, bytes)?;
    let body = signed.body.get().as_bytes();
    let signers = signers_of(what, body, &signed.signature.0, signers)?;
    check_kind(what, body, "TD_QE", 2..=3)?;
    let mut identity: QeIdentity = json::read(what, body)?;
    tcb_info::sort_levels(&mut identity.tcb_levels);
    Ok((identity, signers))
}

/// Those of `signers` whose key signed exactly `body`; at least one must have.
fn signers_of(
    what: &'static str,
    body: &[u8],
    signature: &[u8; 64],
    signers: &[Certificate],
) -> Result<Vec<Certificate>, VerifyError> {
    let signed: Vec<_> = signers
        .iter()
        .filter(|signer| signer.key().verify(Scheme::EcdsaP256Sha256Raw, body, signature))
        .cloned()
        .collect();
    if signed.is_empty() {
        let expected = "one by a TCB signing certificate over the received bytes";
        return Err(refuse_signature(Reason::CollateralSignature, what, expected));
    }
    Ok(signed)
}

fn check_kind(
    what: &'static str,
    body: &[u8],
    id: &str,
    versions: core::ops::RangeInclusive<u32>,
) -> Result<(), VerifyError> {
    let kind: Kind = json::read(what, body)?;
    if kind.id == id && versions.contains(&kind.version) {
        return Ok(());
    }
    let (first, last) = (versions.start(), versions.end());
    let to = if first == last { String::new() } else { format!(" to {last}") };
    let expected = format!("id {id}, version {first}{to}");
    let actual = format!("id {}, version {}", kind.id, kind.version);
    Err(VerifyError::new(Reason::CollateralKind, what, expected, actual))
}

/// A CRL in DER, or the only one in a PEM text.
fn crl(bytes: &[u8]) -> Result<Crl, VerifyError> {
    if bytes.first() == Some(&0x30) {
        return Crl::parse(bytes);
    }
    let mut crls = crls_from_pem(bytes, PemLimits::CRLS)?;
    match (crls.pop(), crls.is_empty()) {
        (Some(crl), true) => Ok(crl),
        _ => Err(VerifyError::new(Reason::CrlMalformed, "CRL", "one", "several")),
    }
}

/// Intel's signing certificates overlap and share a key: one must be valid.
fn check_any_valid(signers: &[Certificate], now: UnixTime) -> Result<(), VerifyError> {
    let mut result = Ok(());
    for signer in signers {
        result = signer.check_validity(now);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn check_window(
    what: &'static str,
    issued: UnixTime,
    next_update: UnixTime,
    now: UnixTime,
) -> Result<(), VerifyError> {
    if issued <= now && now < next_update {
        return Ok(());
    }
    let expected = format!("{issued} to {next_update}");
    Err(VerifyError::new(Reason::CollateralStale, what, expected, now))
}
