//! Which AlgorithmIdentifiers and keys are accepted: an exact list, with the
//! exact parameters (RFC 3279, RFC 4055, RFC 5758, RFC 8410).

use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::crypto::{PublicKey, Scheme};
use crate::error::{Reason, VerifyError};

const ED25519: &str = "1.3.101.112";
const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";
const RSA: &str = "1.2.840.113549.1.1.1";
const RSA_PSS: &str = "1.2.840.113549.1.1.10";
const RSA_SHA256: &str = "1.2.840.113549.1.1.11";
const RSA_SHA384: &str = "1.2.840.113549.1.1.12";
const EC: &str = "1.2.840.10045.2.1";
/// Content of the OBJECT IDENTIFIER secp256r1.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Content of the OBJECT IDENTIFIER secp384r1.
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// Content of RSASSA-PSS-params for SHA-384, MGF1-SHA-384 and a salt of 48,
/// with NULL parameters of the digest, as AMD writes it.
const PSS_SHA384: &[u8] = &[
    0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05,
    0x00, // hashAlgorithm
    0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30,
    0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05,
    0x00, // MGF1
    0xa2, 0x03, 0x02, 0x01, 0x30, // saltLength
];
/// The same without NULL (RFC 4055 2.1 lets a writer leave it out).
const PSS_SHA384_NO_NULL: &[u8] = &[
    0xa0, 0x0d, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0xa1,
    0x1a, 0x30, 0x18, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0b,
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0xa2, 0x03, 0x02, 0x01, 0x30,
];
/// trailerField 1, which is the default and yet sometimes written out.
const PSS_TRAILER: &[u8] = &[0xa3, 0x03, 0x02, 0x01, 0x01];

/// The scheme that a signature's AlgorithmIdentifier names.
pub(super) fn scheme(id: &AlgorithmIdentifier<'_>) -> Result<Scheme, VerifyError> {
    let oid = id.algorithm.to_id_string();
    let scheme = match (oid.as_str(), parameters(id)) {
        (ED25519, Parameters::None) => Some(Scheme::Ed25519),
        (ECDSA_SHA256, Parameters::None) => Some(Scheme::EcdsaP256Sha256Der),
        (ECDSA_SHA384, Parameters::None) => Some(Scheme::EcdsaP384Sha384Der),
        (RSA_SHA256, Parameters::Null) => Some(Scheme::RsaPkcs1Sha256),
        (RSA_SHA384, Parameters::Null) => Some(Scheme::RsaPkcs1Sha384),
        (RSA_PSS, Parameters::Sequence(content)) if is_pss_sha384(content) => {
            Some(Scheme::RsaPssSha384)
        }
        _ => None,
    };
    scheme.ok_or_else(|| {
        refuse("signature algorithm", "one of the closed list, with its exact parameters", oid)
    })
}

/// The subject's key, which must be of the closed list.
pub(super) fn public_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, VerifyError> {
    let oid = spki.algorithm.algorithm.to_id_string();
    let bits = &spki.subject_public_key;
    if bits.unused_bits != 0 {
        return Err(refuse("subject public key", "a BIT STRING of whole bytes", bits.unused_bits));
    }
    let key = match (oid.as_str(), parameters(&spki.algorithm)) {
        (EC, Parameters::Oid(curve)) if curve == P256 => PublicKey::p256(&bits.data),
        (EC, Parameters::Oid(curve)) if curve == P384 => PublicKey::p384(&bits.data),
        (RSA, Parameters::Null) => PublicKey::rsa(&bits.data),
        (ED25519, Parameters::None) => match bits.data.as_ref().try_into() {
            Ok(bytes) => PublicKey::ed25519(bytes),
            Err(_) => return Err(refuse("subject public key", "32 bytes", bits.data.len())),
        },
        _ => return Err(refuse("subject public key", "P-256, P-384, RSA or Ed25519", oid)),
    };
    key.map_err(|error| refuse("subject public key", error.expected, "another key"))
}

fn is_pss_sha384(content: &[u8]) -> bool {
    let implicit = content.strip_suffix(PSS_TRAILER).unwrap_or(content);
    implicit == PSS_SHA384 || implicit == PSS_SHA384_NO_NULL
}

enum Parameters<'a> {
    None,
    Null,
    Oid(&'a [u8]),
    Sequence(&'a [u8]),
    Other,
}

fn parameters<'a>(id: &'a AlgorithmIdentifier<'_>) -> Parameters<'a> {
    let Some(any) = &id.parameters else { return Parameters::None };
    match any.tag() {
        Tag::Null if any.data.is_empty() => Parameters::Null,
        Tag::Oid => Parameters::Oid(any.data),
        Tag::Sequence => Parameters::Sequence(any.data),
        _ => Parameters::Other,
    }
}

fn refuse(
    field: &'static str,
    expected: &'static str,
    actual: impl core::fmt::Display,
) -> VerifyError {
    VerifyError::new(Reason::CertAlgorithm, field, expected, actual)
}
