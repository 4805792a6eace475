//! Who calls: the sandbox named by an identity certificate.
//!
//! Format: docs/formats/identity-certificate.md. The same reading serves the
//! gateway, at the start of a connection, and the auditor, years later.

use casemate_attestation::cose::KeyId;
use casemate_attestation::crypto::KeyKind;
use casemate_attestation::x509::Certificate;
use casemate_attestation::{IdentityClaims, UnixTime, VerifyError};

use crate::invocation::MAX_SANDBOX_BYTES;

/// A sandbox whose certificate was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The sandbox's URI.
    pub sandbox: String,
    /// Its tenant, the first step of the URI's path.
    pub tenant: String,
    /// Its Ed25519 identity key.
    pub key: [u8; 32],
    /// The attested facts.
    pub claims: IdentityClaims,
    /// The end of the certificate's validity.
    pub expires: UnixTime,
    /// SHA-256 of the certificate in DER.
    pub digest: [u8; 32],
}

/// Why a certificate does not name a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate, its chain or its validity is wrong.
    #[error(transparent)]
    Certificate(#[from] VerifyError),
    /// The private extension does not read.
    #[error(transparent)]
    Claims(#[from] casemate_attestation::cbor::CborError),
    /// A part of the certificate is not as the format has it.
    #[error("identity certificate, {field}: expected {expected}")]
    Field {
        /// The part.
        field: &'static str,
        /// What it had to be.
        expected: &'static str,
    },
}

/// [`casemate_attestation::identity::IDENTITY_EXTENSION_OID`] in dotted form.
const CLAIMS: &str = "1.3.6.1.4.1.59999.1.1";

/// The other extensions, each with the one content that the format has.
const FIXED: [(&str, &str, &[u8]); 3] = [
    ("2.5.29.19", "basicConstraints", &[0x30, 0]),
    ("2.5.29.15", "keyUsage", &[3, 2, 7, 0x80]),
    (
        "2.5.29.37",
        "extendedKeyUsage",
        &[0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2], // clientAuth
    ),
];
const SUBJECT_ALT_NAME: &str = "2.5.29.17";

impl Identity {
    /// Reads the certificate `der`, which `ca` must have issued and which must
    /// be valid at `now`.
    pub fn verify(der: &[u8], ca: &Certificate, now: UnixTime) -> Result<Self, IdentityError> {
        let certificate = Certificate::parse(der)?;
        ca.check_ca()?;
        certificate.check_issued_by(ca)?;
        certificate.check_validity(now)?;
        Self::read(&certificate)
    }

    fn read(certificate: &Certificate) -> Result<Self, IdentityError> {
        let field = |field, expected| IdentityError::Field { field, expected };
        for (oid, name, content) in FIXED {
            if certificate.extension(oid) != Some(content) {
                return Err(field(name, "the one value that identity certificates have"));
            }
        }
        if certificate.key().kind() != KeyKind::Ed25519 {
            return Err(field("subject key", "an Ed25519 key"));
        }
        let key = certificate.key().bytes().try_into();
        let key: [u8; 32] = key.map_err(|_| field("subject key", "32 bytes"))?;
        let sandbox = certificate
            .extension(SUBJECT_ALT_NAME)
            .and_then(only_uri)
            .ok_or(field("subjectAltName", "exactly one URI of at most 512 bytes"))?;
        let tenant = tenant_of(&sandbox, &key)
            .ok_or(field("URI", "spiffe://<domain>/<tenant>/sb/<id of the key>"))?;
        let claims = certificate.extension(CLAIMS).ok_or(field(CLAIMS, "the claims"))?;
        Ok(Self {
            claims: IdentityClaims::decode(claims)?,
            tenant,
            sandbox,
            key,
            expires: certificate.not_after(),
            digest: certificate.fingerprint(),
        })
    }

    /// The id of the identity key, as revocations name it.
    pub fn key_id(&self) -> KeyId {
        KeyId::of(&self.key)
    }
}

/// The URI of a GeneralNames with exactly one name (RFC 5280 4.2.1.6).
fn only_uri(der: &[u8]) -> Option<String> {
    let names = content(der, 0x30)?;
    let uri = content(names, 0x86)?;
    let fits = uri.len() <= MAX_SANDBOX_BYTES && uri.iter().all(|byte| byte.is_ascii_graphic());
    fits.then(|| String::from_utf8_lossy(uri).into_owned())
}

/// The content of the one DER element `der` with `tag`; at most 65535 bytes.
fn content(der: &[u8], tag: u8) -> Option<&[u8]> {
    let rest = der.strip_prefix(&[tag])?;
    let (length, rest) = match rest {
        [length @ 0..=0x7f, rest @ ..] => (usize::from(*length), rest),
        [0x81, length @ 0x80..=0xff, rest @ ..] => (usize::from(*length), rest),
        [0x82, high @ 1..=0xff, low, rest @ ..] => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        _ => return None,
    };
    (rest.len() == length).then_some(rest)
}

/// The tenant in a sandbox URI whose id must be that of `key`.
fn tenant_of(uri: &str, key: &[u8; 32]) -> Option<String> {
    let mut steps = uri.strip_prefix("spiffe://")?.split('/');
    let (domain, tenant, sb, id) = (steps.next()?, steps.next()?, steps.next()?, steps.next()?);
    let fits = !domain.is_empty()
        && !tenant.is_empty()
        && sb == "sb"
        && id == KeyId::of(key).to_string()
        && steps.next().is_none();
    fits.then(|| tenant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_uri_is_read() {
        assert_eq!(only_uri(&[0x30, 3, 0x86, 1, b'a']).as_deref(), Some("a"));
        for bad in [
            &[0x30, 0][..],
            &[0x30, 3, 0x82, 1, b'a'],
            &[0x30, 6, 0x86, 1, b'a', 0x86, 1, b'b'],
            &[0x30, 3, 0x86, 1, b' '],
            &[0x30, 3, 0x86, 1, b'a', 0],
            &[0x30, 0x81, 3, 0x86, 1, b'a'],
        ] {
            assert_eq!(only_uri(bad), None, "{bad:x?}");
        }
    }

    #[test]
    fn the_uri_names_the_key() {
        let key = [7; 32];
        let uri = |id: &str| format!("spiffe://casemate.internal/demo/sb/{id}");
        let id = KeyId::of(&key).to_string();
        assert_eq!(tenant_of(&uri(&id), &key).as_deref(), Some("demo"));
        assert_eq!(tenant_of(&uri("00"), &key), None);
        assert_eq!(tenant_of(&uri(&format!("{id}/x")), &key), None);
        assert_eq!(tenant_of(&format!("spiffe:///demo/sb/{id}"), &key), None);
    }
}
