//! COSE_Sign1 (RFC 9052 section 4.2) with one algorithm and a typed header.
//!
//! Every signed record of this project is an untagged COSE_Sign1 whose
//! protected header holds exactly `alg` (-19, Ed25519, RFC 9864), `kid`
//! (SHA-256 of the public key, first 16 bytes) and `typ` (RFC 9596), the
//! domain separator; the unprotected header is empty. Signatures are checked
//! over the received bytes.

use ciborium::Value;
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, Header, HeaderBuilder, Label};

use crate::cbor;
use crate::crypto;

/// Why bytes are not a record signed by the expected key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoseError {
    /// The bytes are not one untagged COSE_Sign1 in deterministic encoding.
    #[error("{typ}: expected an untagged, deterministic COSE_Sign1")]
    Malformed {
        /// The record type that was expected.
        typ: &'static str,
    },
    /// The protected header is not the one this record type has.
    #[error("{typ}, protected header: expected {expected}")]
    Header {
        /// The record type that was expected.
        typ: &'static str,
        /// What the header had to say.
        expected: &'static str,
    },
    /// The key named by the header is another one than was given.
    #[error("{typ}, kid: expected {expected}, got {actual}")]
    KeyId {
        /// The record type that was expected.
        typ: &'static str,
        /// The key that was given, in hex.
        expected: String,
        /// The key that the header names, in hex.
        actual: String,
    },
    /// The signature does not verify.
    #[error("{typ}: signature does not verify under key {key_id}")]
    Signature {
        /// The record type that was expected.
        typ: &'static str,
        /// The key that was given, in hex.
        key_id: String,
    },
}

/// The first 16 bytes of the SHA-256 of an Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// The id of `public_key`.
    pub fn of(public_key: &[u8; 32]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(crypto::sha256(public_key).split_at(16).0);
        Self(id)
    }
}

impl core::fmt::Display for KeyId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A record whose structure was read but whose signature was not yet checked.
#[derive(Debug, Clone)]
pub struct Unverified {
    typ: &'static str,
    key_id: KeyId,
    to_be_signed: Vec<u8>,
    signature: Vec<u8>,
    payload: Vec<u8>,
}

impl Unverified {
    /// Reads the COSE_Sign1 `bytes` of type `typ`.
    pub fn parse(typ: &'static str, bytes: &[u8], limit: usize) -> Result<Self, CoseError> {
        // coset would take other encodings of the same structure; we do not.
        let malformed = CoseError::Malformed { typ };
        if bytes.len() > limit {
            return Err(malformed);
        }
        let sign1 = CoseSign1::from_slice(bytes).map_err(|_| malformed.clone())?;
        if sign1.clone().to_vec().ok().as_deref() != Some(bytes) {
            return Err(malformed);
        }
        let key_id = header_key_id(typ, &sign1)?;
        let to_be_signed = sign1.tbs_data(&[]);
        let payload = sign1.payload.ok_or(malformed)?;
        Ok(Self { typ, key_id, to_be_signed, signature: sign1.signature, payload })
    }

    /// The key that the record says signed it. Not yet proved.
    pub fn claimed_key_id(&self) -> KeyId {
        self.key_id
    }

    /// The payload before its signature was checked, to find the key by.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, once the signature by `public_key` is checked.
    pub fn verify(self, public_key: &[u8; 32]) -> Result<Vec<u8>, CoseError> {
        let expected = KeyId::of(public_key);
        if self.key_id != expected {
            return Err(CoseError::KeyId {
                typ: self.typ,
                expected: expected.to_string(),
                actual: self.key_id.to_string(),
            });
        }
        if !crypto::ed25519_verify(public_key, &self.to_be_signed, &self.signature) {
            return Err(CoseError::Signature { typ: self.typ, key_id: expected.to_string() });
        }
        Ok(self.payload)
    }
}

/// Signs `payload` as a record of type `typ`; `sign` is the private key's act.
pub fn sign1(
    typ: &'static str,
    public_key: &[u8; 32],
    payload: Vec<u8>,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Vec<u8> {
    let header = HeaderBuilder::new()
        .algorithm(coset::iana::Algorithm::Ed25519)
        .key_id(KeyId::of(public_key).0.to_vec())
        .value(TYP, Value::Text(typ.to_owned()))
        .build();
    CoseSign1Builder::new()
        .protected(header)
        .payload(payload)
        .create_signature(&[], |message| sign(message).to_vec())
        .build()
        .to_vec()
        .unwrap_or_default()
}

/// Checks the protected header for `typ` and returns its key id.
fn header_key_id(typ: &'static str, sign1: &CoseSign1) -> Result<KeyId, CoseError> {
    let refuse = |expected| CoseError::Header { typ, expected };
    if !sign1.unprotected.is_empty() {
        return Err(refuse("an empty unprotected header"));
    }
    let key_id: [u8; 16] = sign1
        .protected
        .header
        .key_id
        .as_slice()
        .try_into()
        .map_err(|_| refuse("kid of 16 bytes"))?;
    // Compared whole, so that a field nobody looked for cannot hide in it; the
    // bytes too, so that an unusual encoding of the header cannot.
    let expected = Header {
        alg: Some(coset::RegisteredLabelWithPrivate::Assigned(coset::iana::Algorithm::Ed25519)),
        key_id: key_id.to_vec(),
        rest: vec![(Label::Int(TYP), Value::Text(typ.to_owned()))],
        ..Header::default()
    };
    if sign1.protected.header != expected {
        return Err(refuse("exactly alg -19 (Ed25519), kid and this record's typ"));
    }
    let received = sign1.protected.original_data.as_deref();
    if received.is_some_and(|bytes| cbor::decode(typ, bytes, 512).is_err()) {
        return Err(refuse("deterministic encoding"));
    }
    Ok(KeyId(key_id))
}

/// The header parameter `typ` (RFC 9596).
const TYP: i64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn record() -> Vec<u8> {
        sign1("application/test+cose", &KEY, b"payload".to_vec(), |_| [1; 64])
    }

    #[test]
    fn structure_survives_and_signature_is_checked() {
        let record = Unverified::parse("application/test+cose", &record(), 4096).unwrap();
        assert_eq!(record.unverified_payload(), b"payload");
        assert!(matches!(record.verify(&KEY), Err(CoseError::Signature { .. })));
    }

    #[test]
    fn the_algorithm_is_the_registered_one() {
        use coset::iana::EnumI64 as _;
        assert_eq!(coset::iana::Algorithm::Ed25519.to_i64(), -19);
    }

    #[test]
    fn another_type_is_refused() {
        let error = Unverified::parse("application/other+cose", &record(), 4096).unwrap_err();
        assert!(matches!(error, CoseError::Header { .. }), "{error}");
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = record();
        bytes.push(0);
        assert!(Unverified::parse("application/test+cose", &bytes, 4096).is_err());
    }
}
