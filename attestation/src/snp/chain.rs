//! From a report to a vendor's root: the cryptographic rules of a verifier
//! (AMD 56860, SEV-SNP firmware ABI, ATTESTATION_REPORT; AMD 57230, VCEK
//! certificates).

use std::sync::Arc;

use super::flags::SigningKey;
use super::memory::{self, Kept};
use super::report::{Report, SIGNED_BYTES};
use super::table::CertTable;
use super::tcb::{Product, Tcb};
use super::vek::{Vek, VekOwner};
use crate::anchors::{AmdAnchor, Anchor, TrustAnchors};
use crate::crypto::Scheme;
use crate::error::{Reason, VerifyError};
use crate::evidence::{EndorsementKind, EvidenceItem};
use crate::seen;
use crate::time::UnixTime;
use crate::verify::{Endorsements, Verified};
use crate::wire::hex;
use crate::x509::{Certificate, Crl, CrlNumber, KeyUsage, PemLimits, crls_der_or_pem, der_or_pem};

/// What a verified SNP report says, and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpClaims {
    /// The report.
    pub report: Report,
    /// The product line: of the certificate, and of the report where it has one.
    pub product: Product,
    /// REPORTED_TCB in components; equal to the certificate's.
    pub reported_tcb: Tcb,
    /// The chip or the provider that the signing key belongs to.
    pub owner: VekOwner,
    /// The root that vouches.
    pub anchor: Anchor,
    /// The SHA-256 of that root's certificate.
    pub root: [u8; 32],
    /// The revocation list that was consulted, if there was one.
    pub crl: Option<CrlState>,
}

/// Which revocation list was consulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrlState {
    /// Its CRL number, if it has one.
    pub number: Option<CrlNumber>,
    /// When it was made.
    pub this_update: UnixTime,
    /// When the next one is due.
    pub next_update: Option<UnixTime>,
}

/// A VEK certificate whose chain was checked. Safe to keep and to share: the
/// times within which the check holds travel with it. Of several lists the one
/// that was the newest when it was made speaks; [`Self::holds_at`] says whether
/// another one does by now.
#[derive(Debug, Clone)]
pub struct PreparedVek {
    vek: Vek,
    chain: Vec<Certificate>,
    anchor: Anchor,
    root: [u8; 32],
    crl: Option<Crl>,
    /// When another of the lists becomes the newest, if one will.
    until: Option<UnixTime>,
}

impl PreparedVek {
    /// Checks the chain from `vek` to a root in `anchors` at `now`.
    ///
    /// `supplied` are CA certificates beyond those the anchors know; a root
    /// among them means nothing. Of `crls`, every one by the root that the chain
    /// ends at is consulted; the newest made by `now` decides whether they are
    /// current.
    pub fn new(
        vek: Certificate,
        supplied: &[Certificate],
        crls: &[Crl],
        anchors: &TrustAnchors,
        now: UnixTime,
    ) -> Result<Self, VerifyError> {
        let vek = Vek::parse(vek)?;
        let (anchor, issuer) = find_issuer(&vek, supplied, anchors)?;
        let of_the_root = |crl: &&Crl| crl.issuer() == anchor.ark().subject();
        let crls: Vec<_> = crls.iter().filter(of_the_root).collect();
        crls.iter().try_for_each(|crl| check_list(crl, anchor.ark()))?;
        let newest = crls.iter().max_by_key(|crl| (crl.this_update() <= now, crl.this_update()));
        let prepared = Self {
            vek,
            chain: vec![issuer, anchor.ark().clone()],
            anchor: anchor.anchor().clone(),
            root: seen::id_of(anchor.ark()),
            crl: newest.map(|crl| (*crl).clone()),
            until: crls.iter().map(|crl| crl.this_update()).filter(|made| *made > now).min(),
        };
        prepared.check_time(now)?;
        // What a root once revoked stays so, whichever of its lists says it.
        crls.iter().try_for_each(|crl| prepared.check_not_revoked(crl))?;
        Ok(prepared)
    }

    /// The certificate that the chain was checked for.
    pub fn vek(&self) -> &Vek {
        &self.vek
    }

    /// The root that vouches.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Checks that `now` lies in every window of the chain.
    pub fn check_time(&self, now: UnixTime) -> Result<(), VerifyError> {
        self.vek.certificate().check_validity(now)?;
        self.chain.iter().try_for_each(|certificate| certificate.check_validity(now))?;
        self.crl.iter().try_for_each(|crl| crl.check_current(now))
    }

    /// Whether the same certificates and lists would come to this chain at `now`.
    /// Clocks are given: one may lie before that of the call before.
    pub fn holds_at(&self, now: UnixTime) -> bool {
        self.until.is_none_or(|until| now < until) && self.check_time(now).is_ok()
    }

    /// Verifies the report `bytes` at `now` with the prepared key.
    pub fn verify(&self, bytes: &[u8], now: UnixTime) -> Result<Verified<SnpClaims>, VerifyError> {
        let report = Report::parse(bytes)?;
        check_key_info(&report)?;
        self.check_time(now)?;
        self.check_report(report, bytes)
    }

    /// The rules that tie a report to this key, and the signature last.
    fn check_report(
        &self,
        report: Report,
        bytes: &[u8],
    ) -> Result<Verified<SnpClaims>, VerifyError> {
        if report.key_info.signing_key != self.vek.kind() {
            return Err(VerifyError::new(
                Reason::SigningKey,
                "SIGNING_KEY",
                self.vek.kind().name(),
                report.key_info.signing_key,
            ));
        }
        self.check_product(&report)?;
        self.check_chip(&report)?;
        let reported_tcb = self.check_tcb(&report)?;
        let signed = bytes.get(..SIGNED_BYTES).unwrap_or_default();
        let key = self.vek.certificate().key();
        if !key.verify(Scheme::EcdsaP384Sha384Raw, signed, &report.signature) {
            return Err(VerifyError::new(
                Reason::Signature,
                "SIGNATURE",
                format!("one by the {}", self.vek.kind()),
                "one that does not verify",
            ));
        }
        Ok(Verified::new(SnpClaims {
            product: self.vek.product(),
            reported_tcb,
            owner: self.vek.owner().clone(),
            anchor: self.anchor.clone(),
            root: self.root,
            crl: self.crl.as_ref().map(CrlState::of),
            report,
        }))
    }

    /// The certificate's product must be the CPU's. Version 2 has no CPUID:
    /// there the certificate alone says which product it is.
    fn check_product(&self, report: &Report) -> Result<(), VerifyError> {
        let Some([family, model, _]) = report.cpuid else { return Ok(()) };
        match Product::from_cpuid(family, model) {
            Some(product) if product == self.vek.product() => Ok(()),
            product => Err(VerifyError::new(
                Reason::Product,
                "CPUID_FAM_ID, CPUID_MOD_ID",
                format!("a {} processor", self.vek.product()),
                product.map_or_else(
                    || format!("family {family:#x}, model {model:#x}"),
                    |product| product.to_string(),
                ),
            )),
        }
    }

    /// A VCEK is one chip's. A VLEK is not: there CHIP_ID is the platform's word.
    fn check_chip(&self, report: &Report) -> Result<(), VerifyError> {
        let VekOwner::Chip(hwid) = self.vek.owner() else { return Ok(()) };
        if report.chip_id_is_masked() {
            return Err(VerifyError::new(
                Reason::ChipIdMasked,
                "CHIP_ID",
                format!("the certificate's HWID {}", hex(hwid)),
                "zero (masked)",
            ));
        }
        let (id, rest) = report.chip_id.split_at_checked(hwid.len()).unwrap_or_default();
        if id != hwid || rest.iter().any(|byte| *byte != 0) {
            return Err(VerifyError::new(
                Reason::ChipId,
                "CHIP_ID",
                format!("the certificate's HWID {}", hex(hwid)),
                hex(&report.chip_id),
            ));
        }
        Ok(())
    }

    /// Equality in every component: the key was derived for exactly this TCB.
    fn check_tcb(&self, report: &Report) -> Result<Tcb, VerifyError> {
        let expected = self.vek.tcb();
        match report.reported_tcb.components(self.vek.product()) {
            Some(tcb) if tcb == expected => Ok(tcb),
            other => Err(VerifyError::new(
                Reason::Tcb,
                "REPORTED_TCB",
                format!("the certificate's ({expected})"),
                other.map_or_else(|| report.reported_tcb.to_string(), |tcb| tcb.to_string()),
            )),
        }
    }

    /// Checks `crl` against this chain: issuer, signature, time, entries.
    pub fn check_crl(&self, crl: &Crl, now: UnixTime) -> Result<(), VerifyError> {
        let root = self.chain.last().unwrap_or(self.vek.certificate());
        check_list(crl, root)?;
        crl.check_current(now)?;
        self.check_not_revoked(crl)
    }

    fn check_not_revoked(&self, crl: &Crl) -> Result<(), VerifyError> {
        self.chain.iter().try_for_each(|certificate| crl.check_not_revoked(certificate))?;
        crl.check_not_revoked(self.vek.certificate())
    }
}

impl CrlState {
    fn of(crl: &Crl) -> Self {
        Self {
            number: crl.number(),
            this_update: crl.this_update(),
            next_update: crl.next_update(),
        }
    }
}

/// AMD's roots sign in one way alone, certificates and lists (AMD 57230, RSASSA-PSS
/// with SHA-384).
fn check_list(crl: &Crl, root: &Certificate) -> Result<(), VerifyError> {
    crl.check_issued_by(root)?;
    root.check_key_usage(KeyUsage::CrlSign)?;
    if crl.scheme() == Scheme::RsaPssSha384 {
        return Ok(());
    }
    Err(VerifyError::new(
        Reason::CrlSignature,
        "signature algorithm of the CRL",
        "RSASSA-PSS with SHA-384",
        format!("{:?}", crl.scheme()),
    ))
}

/// A report that firmware was told not to sign proves nothing.
fn check_key_info(report: &Report) -> Result<(), VerifyError> {
    let info = report.key_info;
    if info.mask_chip_key || info.signing_key == SigningKey::None {
        return Err(VerifyError::new(
            Reason::Unsigned,
            "KEY_INFO",
            "MASK_CHIP_KEY 0 and a SIGNING_KEY",
            format!(
                "MASK_CHIP_KEY {}, SIGNING_KEY {}",
                u8::from(info.mask_chip_key),
                info.signing_key
            ),
        ));
    }
    Ok(())
}

/// The anchor and the CA certificate under it that signed `vek`.
fn find_issuer<'a>(
    vek: &Vek,
    supplied: &[Certificate],
    anchors: &'a TrustAnchors,
) -> Result<(&'a AmdAnchor, Certificate), VerifyError> {
    let issuer = &vek.certificate().issuer().common_name;
    let mut last = VerifyError::new(
        Reason::Chain,
        "root of the VEK certificate",
        "a trust anchor for its product line",
        format!("no anchor for {}", vek.product()),
    );
    for anchor in anchors.amd.iter().filter(|anchor| anchor.product() == vek.product()) {
        let known = anchor.intermediates().iter().filter(|ca| ca.subject().common_name == *issuer);
        for ca in known {
            match vek.certificate().check_issued_by(ca) {
                Ok(()) => return Ok((anchor, ca.clone())),
                Err(error) => last = error,
            }
        }
        for ca in supplied.iter().filter(|ca| ca.subject().common_name == *issuer) {
            let checked =
                anchor.check_intermediate(ca).and_then(|()| vek.certificate().check_issued_by(ca));
            match checked {
                Ok(()) => return Ok((anchor, ca.clone())),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// Verifies one SNP item of an envelope with everything that came along.
pub(crate) fn verify_item(
    item: &EvidenceItem,
    anchors: &TrustAnchors,
    endorsements: &Endorsements,
    now: UnixTime,
) -> Result<Verified<SnpClaims>, VerifyError> {
    let report = Report::parse(&item.evidence)?;
    check_key_info(&report)?;
    let key = memory::key(&[&item.endorsements, &endorsements.items]);
    let known = anchors.amd.iter().find_map(|anchor| anchor.memory().chain(&key));
    let usable =
        |kept: &Arc<Kept>| fits(&report, &kept.prepared.vek) && kept.prepared.holds_at(now);
    if let Some(kept) = known.filter(usable) {
        let claims = kept.prepared.check_report(report, &item.evidence)?;
        kept.sent.iter().try_for_each(|crl| crl.check_current(now))?;
        return Ok(claims);
    }
    let (mut certificates, crls) = supporting(&item.endorsements, None)?;
    // What the caller keeps may be of other machines altogether. It is named
    // where the chain does not hold without it.
    let mut unread = None;
    let (more_certificates, mut more_crls) = supporting(&endorsements.items, Some(&mut unread))?;
    certificates.extend(more_certificates);
    let (veks, supplied): (Vec<_>, Vec<_>) = certificates.into_iter().partition(is_vek);
    more_crls.extend(crls.iter().cloned());
    let prepared = pick_vek(&report, veks)
        .and_then(|vek| PreparedVek::new(vek, &supplied, &more_crls, anchors, now))
        .map_err(|error| match (error.reason, unread) {
            (Reason::CertMissing | Reason::Chain, Some(unread)) => unread,
            _ => error,
        })?;
    let claims = prepared.check_report(report, &item.evidence)?;
    // The caller keeps lists of many issuers; the attester sends its own root's.
    for crl in &crls {
        prepared.check_crl(crl, now)?;
    }
    let root = prepared.chain.last().map(Certificate::der);
    if let Some(anchor) = anchors.amd.iter().find(|anchor| Some(anchor.ark().der()) == root) {
        anchor.memory().keep(key, Kept { prepared, sent: crls });
    }
    Ok(claims)
}

/// Whether `vek` is the certificate that `report` was signed for.
fn fits(report: &Report, vek: &Vek) -> bool {
    vek.kind() == report.key_info.signing_key
        && report.reported_tcb.components(vek.product()) == Some(vek.tcb())
        && match vek.owner() {
            VekOwner::Chip(hwid) => report.chip_id.starts_with(hwid),
            VekOwner::Provider(_) => true,
        }
}

fn is_vek(certificate: &Certificate) -> bool {
    matches!(certificate.subject().common_name.as_str(), "SEV-VCEK" | "SEV-VLEK")
}

/// The certificate to verify with: of several, the one that fits the report.
fn pick_vek(report: &Report, mut veks: Vec<Certificate>) -> Result<Certificate, VerifyError> {
    let fits = veks.iter().position(|certificate| {
        Vek::parse(certificate.clone()).is_ok_and(|vek| fits(report, &vek))
    });
    let at = match fits {
        Some(at) => at,
        None if veks.is_empty() => {
            return Err(VerifyError::new(
                Reason::CertMissing,
                "VEK certificate",
                format!("a {} certificate for the report", report.key_info.signing_key),
                "none, neither sent nor supplied",
            ));
        }
        None => 0,
    };
    Ok(veks.swap_remove(at))
}

/// Every certificate and revocation list among `endorsements`. Certificates that
/// cannot be read are an error or, where there is a place for it, are passed over;
/// lists never are.
fn supporting(
    endorsements: &[(EndorsementKind, Vec<u8>)],
    mut unread: Option<&mut Option<VerifyError>>,
) -> Result<(Vec<Certificate>, Vec<Crl>), VerifyError> {
    let mut certificates = Vec::new();
    let mut crls = Vec::new();
    for (kind, bytes) in endorsements {
        match kind {
            EndorsementKind::SnpCertTable => {
                let table = CertTable::parse(bytes)?;
                certificates.extend(table.certificates);
                crls.extend(table.crls);
            }
            EndorsementKind::CertificateChain => {
                match (der_or_pem(bytes, PemLimits::CHAIN), &mut unread) {
                    (Ok(more), _) => certificates.extend(more),
                    (Err(error), Some(unread)) => _ = unread.get_or_insert(error),
                    (Err(error), None) => return Err(error),
                }
            }
            EndorsementKind::Crl => crls.extend(crls_der_or_pem(bytes)?),
            _ => {}
        }
    }
    Ok((certificates, crls))
}
