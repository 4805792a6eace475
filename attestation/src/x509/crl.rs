//! Certificate revocation lists (RFC 5280 section 5).

use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Certificate, Name, algorithm, name, unix};
use crate::crypto::{PublicKey, Scheme};
use crate::error::{Reason, VerifyError};
use crate::time::UnixTime;
use crate::wire::{hex, unhex};

/// The largest list that is read; RFC 5280 sets no limit.
pub const MAX_CRL_BYTES: usize = 256 * 1024;

/// The number of a revocation list: up to 20 octets (RFC 5280 5.2.3), which
/// only rise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CrlNumber([u8; MAX_NUMBER_BYTES]);

const CRL_NUMBER: &str = "2.5.29.20";

/// "CRL verifiers MUST be able to handle CRLNumber values up to 20 octets."
const MAX_NUMBER_BYTES: usize = 20;

/// One revocation list. Its signature is not yet checked.
#[derive(Debug, Clone)]
pub struct Crl {
    tbs: Vec<u8>,
    scheme: Scheme,
    signature: Vec<u8>,
    issuer: Name,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    number: Option<CrlNumber>,
    revoked: std::collections::BTreeSet<Vec<u8>>,
}

impl CrlNumber {
    /// The number with these octets, the highest first.
    pub fn from_be_bytes(bytes: &[u8]) -> Option<Self> {
        let significant = plain(bytes);
        let mut number = [0; MAX_NUMBER_BYTES];
        let start = MAX_NUMBER_BYTES.checked_sub(significant.len())?;
        number.get_mut(start..)?.copy_from_slice(&significant);
        Some(Self(number))
    }

    /// The number's octets, all of them, the highest first: as bytes they sort
    /// like the numbers.
    pub fn to_be_bytes(self) -> [u8; MAX_NUMBER_BYTES] {
        self.0
    }

    fn read(bytes: &[u8]) -> Result<Self, VerifyError> {
        Self::from_be_bytes(bytes)
            .ok_or_else(|| malformed("a CRL number of at most 20 octets", bytes.len()))
    }

    /// The number, if it is no larger than that.
    fn small(self) -> Option<u64> {
        let (high, low) = self.0.split_last_chunk::<8>().map(|(high, low)| (high, *low))?;
        high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(low))
    }
}

impl From<u64> for CrlNumber {
    fn from(number: u64) -> Self {
        Self::from_be_bytes(&number.to_be_bytes()).unwrap_or_default()
    }
}

/// As other tools print it: decimal, or hex digits after 0x from 2^64 on.
impl core::fmt::Display for CrlNumber {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.small() {
            Some(number) => write!(f, "{number}"),
            None => write!(f, "0x{}", hex(&plain(&self.0))),
        }
    }
}

/// The form that [`Display`](core::fmt::Display) writes.
impl core::str::FromStr for CrlNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("0x") {
            None => text.parse().ok().map(|number: u64| number.into()),
            Some("") => None,
            Some(digits) => unhex(digits).and_then(|bytes| Self::from_be_bytes(&bytes)),
        };
        number.ok_or_else(|| format!("expected a number of at most 20 octets, got {text:?}"))
    }
}

impl serde::Serialize for CrlNumber {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.small() {
            Some(number) => serializer.serialize_u64(number),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> serde::Deserialize<'de> for CrlNumber {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(number.into()),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
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
        // Which list it would be is known, and that its signature is none of ours.
        let scheme = algorithm::scheme(&list.signature_algorithm)
            .map_err(|error| VerifyError { reason: Reason::CrlSignature, ..error })?;
        if !super::der::names_one_algorithm(der, list.tbs_cert_list.as_ref()) {
            return Err(malformed("one signature algorithm, inside and outside", "two"));
        }
        check_form(&list)?;
        // Indirect, partial and delta lists mark themselves critical.
        let entries = list.iter_revoked_certificates().flat_map(|entry| entry.extensions());
        if let Some(unknown) = list.extensions().iter().chain(entries).find(|e| e.critical) {
            return Err(malformed("no critical extension", unknown.oid.to_id_string()));
        }
        let tbs: &[u8] = list.tbs_cert_list.as_ref();
        let signature = super::bit_string(&list.signature_value)
            .map_err(|error| malformed(error.expected, error.actual))?;
        // Not so strict inside: a padded serial number is revoked all the same.
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
            number: list.crl_number().map(|n| CrlNumber::read(&n.to_bytes_be())).transpose()?,
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
    pub fn number(&self) -> Option<CrlNumber> {
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

/// Version 2 where there are extensions, none of them twice, and a number that is
/// not negative (RFC 5280 5.1.2.1, 5.2, 5.2.3).
fn check_form(list: &CertificateRevocationList<'_>) -> Result<(), VerifyError> {
    let version = list.version().map(|version| version.0);
    let is_v2 = version == Some(1) || version.is_none() && list.extensions().is_empty();
    if !is_v2 {
        let actual = version.map_or_else(|| "none".to_owned(), |v| v.saturating_add(1).to_string());
        return Err(malformed("version 2", format!("version {actual}")));
    }
    let oids: Vec<_> = list.extensions().iter().map(|e| e.oid.to_id_string()).collect();
    if let Some(oid) = super::named_twice(oids) {
        return Err(malformed("each extension once", format!("{oid} twice")));
    }
    let number = list.extensions().iter().find(|e| e.oid.to_id_string() == CRL_NUMBER);
    match (number, list.crl_number()) {
        // A list with a number that nobody can read is not one without.
        (Some(number), None) => Err(malformed("a CRL number of 0 or more", hex(number.value))),
        _ => Ok(()),
    }
}

fn malformed(expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::CrlMalformed, "CRL", expected, actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_above_64_bits_keep_their_order_and_their_text() {
        let number = |text: &str| text.parse::<CrlNumber>().unwrap();
        let (small, large) = (CrlNumber::from(u64::MAX), number("0x010000000000000000"));
        assert!(small < large && large < number(&format!("0x{}", "ff".repeat(20))));
        assert_eq!(number("7"), CrlNumber::from(7));
        assert_eq!(number("0x0007"), CrlNumber::from(7));
        for one in [CrlNumber::default(), small, large] {
            assert_eq!(number(&one.to_string()), one);
            let json = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<CrlNumber>(&json).unwrap(), one);
        }
        for bad in ["", "-1", "0x", "0xg", &format!("0x01{}", "00".repeat(20))] {
            assert!(bad.parse::<CrlNumber>().is_err(), "{bad}");
        }
    }
}
