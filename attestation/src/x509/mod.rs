//! Certificates and revocation lists, read strictly and checked by hand.
//!
//! `x509-parser` reads the DER. This module copies out what a chain of AMD,
//! Intel or NVIDIA needs, refuses every algorithm outside the closed list of
//! [`crate::crypto`], and checks signatures over the received bytes. There is
//! no path building: each vendor's profile says which certificate issues which.

mod algorithm;
mod crl;
pub(crate) mod der;
mod pem;
mod shell;

pub use crl::{Crl, CrlNumber, MAX_CRL_BYTES};
pub use pem::{PemLimits, certificates_from_pem, crls_der_or_pem, crls_from_pem, der_or_pem};

use x509_parser::certificate::X509CertificateParser;
use x509_parser::nom::Parser as _;

use crate::crypto::{PublicKey, Scheme, sha256};
use crate::error::{Reason, VerifyError};
use crate::time::UnixTime;
use crate::wire::hex;

/// The largest certificate that is read; RFC 5280 sets no limit.
pub const MAX_CERTIFICATE_BYTES: usize = 4096;

/// One X.509 version 3 certificate. Its signature is not yet checked.
#[derive(Debug, Clone)]
pub struct Certificate {
    der: Vec<u8>,
    tbs: Vec<u8>,
    serial: Vec<u8>,
    subject: Name,
    issuer: Name,
    not_before: UnixTime,
    not_after: UnixTime,
    key: PublicKey,
    scheme: Scheme,
    signature: Vec<u8>,
    extensions: Vec<Extension>,
}

/// A distinguished name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name's DER, which is what names are compared by.
    pub der: Vec<u8>,
    /// The one common name in it, or an empty string.
    pub common_name: String,
}

/// One certificate extension, its value not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The object identifier in dotted form.
    pub oid: String,
    /// Whether it is marked critical.
    pub critical: bool,
    /// The content of extnValue.
    pub value: Vec<u8>,
}

impl Certificate {
    /// Reads one DER certificate; nothing may follow it.
    pub fn parse(der: &[u8]) -> Result<Self, VerifyError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(VerifyError::new(
                Reason::Limit,
                "certificate",
                format!("at most {MAX_CERTIFICATE_BYTES} bytes"),
                der.len(),
            ));
        }
        let (rest, certificate) = X509CertificateParser::new()
            .with_deep_parse_extensions(false)
            .parse(der)
            .map_err(|error| malformed("DER of an X.509 certificate", reason_of(&error)))?;
        if !rest.is_empty() {
            return Err(malformed(
                "nothing after the certificate",
                format!("{} bytes", rest.len()),
            ));
        }
        let tbs = &certificate.tbs_certificate;
        if tbs.version.0 != 2 {
            return Err(malformed(
                "version 3",
                format!("version {}", tbs.version.0.saturating_add(1)),
            ));
        }
        let scheme = algorithm::scheme(&certificate.signature_algorithm)?;
        if !der::names_one_algorithm(der, tbs.as_ref()) {
            // RFC 5280 4.1.1.2.
            return Err(VerifyError::new(
                Reason::CertAlgorithm,
                "signature algorithm",
                "one, inside and outside",
                "two",
            ));
        }
        let signature = bit_string(&certificate.signature_value)?;
        if !shell::is_exact(der, tbs.as_ref(), signature) || !der::is_strict(tbs.as_ref()) {
            return Err(malformed("DER", "another encoding"));
        }
        let extensions: Vec<_> = tbs.extensions().iter().map(extension).collect();
        refuse_duplicates(&extensions)?;
        Ok(Self {
            der: der.to_vec(),
            tbs: tbs.as_ref().to_vec(),
            serial: tbs.raw_serial().to_vec(),
            subject: name(&tbs.subject),
            issuer: name(&tbs.issuer),
            not_before: unix(&tbs.validity.not_before),
            not_after: unix(&tbs.validity.not_after),
            key: algorithm::public_key(&tbs.subject_pki)?,
            scheme,
            signature: signature.to_vec(),
            extensions,
        })
    }

    /// The certificate as it was received.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the received bytes.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// The serial number's content bytes.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// Who the certificate is for.
    pub fn subject(&self) -> &Name {
        &self.subject
    }

    /// Who says so.
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// The first second of validity.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// The last second of validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The subject's key, parsed.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The scheme of the issuer's signature.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Every extension in the order received.
    pub fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// The value of the extension `oid`, if the certificate has it.
    pub fn extension(&self, oid: &str) -> Option<&[u8]> {
        self.extensions.iter().find(|e| e.oid == oid).map(|e| e.value.as_slice())
    }

    /// Whether subject and issuer are the same name.
    pub fn is_self_issued(&self) -> bool {
        self.subject.der == self.issuer.der
    }

    /// Checks that `issuer` is named as the issuer and that its key signed.
    pub fn check_issued_by(&self, issuer: &Self) -> Result<(), VerifyError> {
        if self.issuer.der != issuer.subject.der {
            return Err(VerifyError::new(
                Reason::Chain,
                format!("issuer of {}", self.subject.common_name),
                issuer.subject.common_name.clone(),
                &self.issuer.common_name,
            ));
        }
        self.check_signature(&issuer.key)
    }

    /// Checks that `key` signed the received bytes.
    pub fn check_signature(&self, key: &PublicKey) -> Result<(), VerifyError> {
        if key.verify(self.scheme, &self.tbs, &self.signature) {
            return Ok(());
        }
        Err(VerifyError::new(
            Reason::CertSignature,
            format!("signature of {}", self.subject.common_name),
            format!("one by the key of {}", self.issuer.common_name),
            "one that does not verify",
        ))
    }

    /// Checks that the signature is by `scheme`, as the profile demands.
    pub fn check_scheme(&self, scheme: Scheme) -> Result<(), VerifyError> {
        if self.scheme == scheme {
            return Ok(());
        }
        Err(VerifyError::new(
            Reason::CertAlgorithm,
            format!("signature algorithm of {}", self.subject.common_name),
            format!("{scheme:?}"),
            format!("{:?}", self.scheme),
        ))
    }

    /// Checks that `now` lies within notBefore and notAfter, both included.
    pub fn check_validity(&self, now: UnixTime) -> Result<(), VerifyError> {
        if self.not_before <= now && now <= self.not_after {
            return Ok(());
        }
        Err(VerifyError::new(
            Reason::CertValidity,
            format!("validity of {}", self.subject.common_name),
            format!("{} to {}", self.not_before, self.not_after),
            now,
        ))
    }

    /// Checks that the certificate may issue others: basicConstraints says CA,
    /// and keyUsage, where there is one, says keyCertSign (RFC 5280 4.2.1).
    pub fn check_ca(&self) -> Result<(), VerifyError> {
        let wrong = |expected: &str, actual: &str| {
            Err(VerifyError::new(
                Reason::CertExtension,
                format!("extensions of {}", self.subject.common_name),
                expected,
                actual,
            ))
        };
        let unknown = self.extensions.iter().find(|extension| {
            let known = [BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE];
            extension.critical && !known.contains(&extension.oid.as_str())
        });
        if let Some(extension) = unknown {
            return wrong("no critical extension that is not known", &extension.oid);
        }
        match self.extension(BASIC_CONSTRAINTS) {
            // SEQUENCE { cA BOOLEAN TRUE, pathLenConstraint INTEGER OPTIONAL }
            Some([0x30, 3, 1, 1, 0xff] | [0x30, 6, 1, 1, 0xff, 2, 1, 0..=0x7f]) => {}
            Some(_) => return wrong("basicConstraints with cA", "another value"),
            None => return wrong("basicConstraints with cA", "none"),
        }
        self.check_key_usage(KeyUsage::KeyCertSign)
    }

    /// Checks that keyUsage, where there is one, names `usage` (RFC 5280 4.2.1.3).
    pub fn check_key_usage(&self, usage: KeyUsage) -> Result<(), VerifyError> {
        // BIT STRING; bits are counted from the top.
        let (bit, name) = match usage {
            KeyUsage::DigitalSignature => (0x80, "digitalSignature"),
            KeyUsage::KeyCertSign => (0x04, "keyCertSign"),
            KeyUsage::CrlSign => (0x02, "cRLSign"),
        };
        match self.extension(KEY_USAGE) {
            None => Ok(()),
            Some([3, 2 | 3, 0..=7, bits, ..]) if bits & bit != 0 => Ok(()),
            Some(value) => Err(VerifyError::new(
                Reason::CertExtension,
                format!("extensions of {}", self.subject.common_name),
                format!("keyUsage with {name}"),
                hex(value),
            )),
        }
    }
}

/// What a key may be used for (RFC 5280 4.2.1.3), as far as anybody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyUsage {
    /// To sign what is neither a certificate nor a list.
    DigitalSignature,
    /// To sign certificates.
    KeyCertSign,
    /// To sign revocation lists.
    CrlSign,
}

/// The extension basicConstraints.
pub const BASIC_CONSTRAINTS: &str = "2.5.29.19";
/// The extension keyUsage.
pub const KEY_USAGE: &str = "2.5.29.15";
/// The extension extKeyUsage.
pub const EXTENDED_KEY_USAGE: &str = "2.5.29.37";

fn malformed(expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::CertMalformed, "certificate", expected, actual)
}

fn reason_of<E: core::fmt::Debug>(error: &x509_parser::nom::Err<E>) -> String {
    match error {
        x509_parser::nom::Err::Incomplete(_) => "too few bytes".to_owned(),
        x509_parser::nom::Err::Error(inner) | x509_parser::nom::Err::Failure(inner) => {
            format!("{inner:?}")
        }
    }
}

fn refuse_duplicates(extensions: &[Extension]) -> Result<(), VerifyError> {
    match named_twice(extensions.iter().map(|e| e.oid.as_str()).collect()) {
        None => Ok(()),
        Some(oid) => Err(VerifyError::new(
            Reason::CertExtension,
            "extensions",
            "each once",
            format!("{oid} twice"),
        )),
    }
}

fn named_twice<T: Ord>(mut oids: Vec<T>) -> Option<T> {
    oids.sort_unstable();
    let at = oids.windows(2).position(|pair| pair.first() == pair.last())?;
    Some(oids.swap_remove(at))
}

fn extension(from: &x509_parser::extensions::X509Extension<'_>) -> Extension {
    Extension { oid: from.oid.to_id_string(), critical: from.critical, value: from.value.to_vec() }
}

fn name(from: &x509_parser::x509::X509Name<'_>) -> Name {
    let mut names = from.iter_common_name();
    let first = names.next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    let common_name = if names.next().is_none() { first.to_owned() } else { String::new() };
    Name { der: from.as_raw().to_vec(), common_name }
}

fn unix(time: &x509_parser::time::ASN1Time) -> UnixTime {
    UnixTime(u64::try_from(time.timestamp()).unwrap_or(0))
}

fn bit_string<'a>(
    bits: &'a x509_parser::der_parser::asn1_rs::BitString<'_>,
) -> Result<&'a [u8], VerifyError> {
    if bits.unused_bits == 0 {
        Ok(&bits.data)
    } else {
        Err(malformed("a BIT STRING of whole bytes", format!("{} unused bits", bits.unused_bits)))
    }
}

impl core::fmt::Display for Certificate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{} by {}, serial {}",
            self.subject.common_name,
            self.issuer.common_name,
            hex(&self.serial)
        )
    }
}
