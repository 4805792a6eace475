//! Certificate revocation lists (RFC 5280 section 5).

use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Certificate, Name, algorithm, name, unix};
use crate::crypto::{PublicKey, Scheme};
use crate::error::{Reason, VerifyError};
use crate::time::UnixTime;
use crate::wire::hex;

/// The largest list that is read; RFC 5280 sets no limit.
pub const MAX_CRL_BYTES: usize = 256 * 1024;

/// One revocation list. Its signature is not yet checked.
#[derive(Debug, Clone)]
pub struct Crl {
    tbs: Vec<u8>,
    scheme: Scheme,
    signature: Vec<u8>,
    issuer: Name,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    number: Option<u64>,
    revoked: std::collections::BTreeSet<Vec<u8>>,
}

impl Crl {
    /// Reads one DER list; nothing may follow it.
    pub fn parse(der: &[u8]) -> Result<Self, VerifyError> {
        if der.len() > MAX_CRL_BYTES {
            return Err(VerifyError::new(
                Reason::Limit,
                "CRL",
                format!("at most {MAX_CRL_BYTES} bytes"),
                der.len(),
            ));
        }
        let (rest, list) = CertificateRevocationList::from_der(der)
            .map_err(|error| malformed("DER of a CRL", super::reason_of(&error)))?;
        if !rest.is_empty() {
            return Err(malformed("nothing after the CRL", format!("{} bytes", rest.len())));
        }
        let scheme = algorithm::scheme(&list.signature_algorithm)?;
        if !super::der::names_one_algorithm(der, list.tbs_cert_list.as_ref()) {
            return Err(malformed("one signature algorithm, inside and outside", "two"));
        }
        // Indirect, partial and delta lists mark themselves critical.
        let entries = list.iter_revoked_certificates().flat_map(|entry| entry.extensions());
        if let Some(unknown) = list.extensions().iter().chain(entries).find(|e| e.critical) {
            return Err(malformed("no critical extension", unknown.oid.to_id_string()));
        }
        let tbs: &[u8] = list.tbs_cert_list.as_ref();
        let signature = super::bit_string(&list.signature_value)?;
        if !super::shell::is_exact(der, tbs, signature) {
            return Err(malformed("DER around the signed part", "another encoding"));
        }
        Ok(Self {
            tbs: tbs.to_vec(),
            scheme,
            signature: signature.to_vec(),
            issuer: name(list.issuer()),
            this_update: unix(&list.last_update()),
            next_update: list.next_update().as_ref().map(unix),
            number: list.crl_number().and_then(|number| u64::try_from(number).ok()),
            revoked: list.iter_revoked_certificates().map(|r| plain(r.raw_serial())).collect(),
        })
    }

    /// Who issued the list.
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// The scheme of the issuer's signature.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// When the list was made.
    pub fn this_update(&self) -> UnixTime {
        self.this_update
    }

    /// When the next list is due.
    pub fn next_update(&self) -> Option<UnixTime> {
        self.next_update
    }

    /// The list's number, which only rises (RFC 5280 5.2.3).
    pub fn number(&self) -> Option<u64> {
        self.number
    }

    /// How many certificates are on the list.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether no certificate is on the list.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// Checks that `key` signed the received bytes.
    pub fn check_signature(&self, key: &PublicKey) -> Result<(), VerifyError> {
        if key.verify(self.scheme, &self.tbs, &self.signature) {
            return Ok(());
        }
        Err(VerifyError::new(
            Reason::CrlSignature,
            format!("signature of the CRL of {}", self.issuer.common_name),
            "one by the issuer's key",
            "one that does not verify",
        ))
    }

    /// Checks that `issuer` is named as the issuer and that its key signed.
    pub fn check_issued_by(&self, issuer: &Certificate) -> Result<(), VerifyError> {
        if self.issuer.der != issuer.subject().der {
            return Err(VerifyError::new(
                Reason::CrlIssuer,
                "issuer of the CRL",
                issuer.subject().common_name.clone(),
                &self.issuer.common_name,
            ));
        }
        self.check_signature(issuer.key())
    }

    /// Checks thisUpdate <= now < nextUpdate; a list without nextUpdate is never current.
    pub fn check_current(&self, now: UnixTime) -> Result<(), VerifyError> {
        if self.this_update <= now && self.next_update.is_some_and(|next| now < next) {
            return Ok(());
        }
        let next =
            self.next_update.map_or_else(|| "(no next update)".to_owned(), |t| t.to_string());
        Err(VerifyError::new(
            Reason::CrlStale,
            format!("CRL of {}", self.issuer.common_name),
            format!("{} to {next}", self.this_update),
            now,
        ))
    }

    /// Checks that `certificate` is not listed. The caller has checked that
    /// this list is the one of the certificate's issuer.
    pub fn check_not_revoked(&self, certificate: &Certificate) -> Result<(), VerifyError> {
        if !self.revoked.contains(&plain(certificate.serial())) {
            return Ok(());
        }
        Err(VerifyError::new(
            Reason::Revoked,
            certificate.subject().common_name.clone(),
            "a serial that is not on the CRL",
            format!("serial {}", hex(certificate.serial())),
        ))
    }
}

/// A serial number without leading zeros, so that equal numbers are equal bytes.
fn plain(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}

fn malformed(expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::CrlMalformed, "CRL", expected, actual)
}
